//go:build linux

package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/image"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// imageWith makes an image of one program, at /app/run, and some files.
func imageWith(t *testing.T, program string, config v1.Config, files map[string]string) v1.Image {
	t.Helper()
	code, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(name, content string, mode int64) {
		err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: mode, Typeflag: tar.TypeReg})
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("app/run", string(code), 0o755)
	for name, content := range files {
		add(name, content, 0o644)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: goruntime.GOARCH, Config: config})
	if err == nil {
		img, err = mutate.AppendLayers(img, l)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// fromRegistry pushes an image and returns a function of it.
func fromRegistry(t *testing.T, host, repository string, img v1.Image) *function.Function {
	t.Helper()
	ref, err := name.ParseReference(host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	r, err := image.Registries{}.Resolve(t.Context(), ref.Name())
	if err != nil {
		t.Fatal(err)
	}
	f := &function.Function{
		Name: repository, Revision: "1", PackageType: function.Image, Timeout: 10 * time.Second, MemoryMB: 128,
		Code: function.Code{ImageRef: ref.Name(), ResolvedRef: r.Ref, SHA256: r.SHA256, SizeBytes: r.SizeBytes},
	}
	f.SetDefaults()
	return f
}

func ask(t *testing.T, box sandbox.Sandbox, event string) string {
	t.Helper()
	resp, err := box.Invoke(t.Context(), sandbox.Request{ID: "r", Payload: []byte(event), Deadline: time.Now().Add(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	return string(resp.Payload)
}

func TestImagesRunAsTheySay(t *testing.T) {
	testenv.Need(t, testenv.Runc, testenv.Overlayfs)
	t.Parallel()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	images, err := image.Open(image.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	d := testDriver(t, Config{Images: images, InitTimeout: 2 * time.Second})
	program := filepath.Join(sandboxtest.BuildBehave(t), "bootstrap")
	app := fromRegistry(t, host, "app", imageWith(t, program,
		v1.Config{Entrypoint: []string{"/app/run"}, Env: []string{"FROM_IMAGE=yes"}, WorkingDir: "/app", User: "app"},
		map[string]string{"etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n", "app/data": "of the image"}))

	var boxes []sandbox.Sandbox
	for _, id := range []string{"a", "b"} {
		box, err := d.Create(t.Context(), sandbox.Spec{ID: id, Function: app})
		if err != nil {
			t.Fatal(err)
		}
		boxes = append(boxes, box)
	}
	if n := len(d.images.mounts); n != 1 {
		t.Errorf("%d mounts for one image", n)
	}
	for event, want := range map[string]string{
		`{"do":"echo","data":"hello"}`:                    `"hello"`,
		`{"do":"read","text":"/app/data"}`:                "of the image",
		`{"do":"read","text":"data"}`:                     "of the image",
		`{"do":"user"}`:                                   "1234",
		`{"do":"write","text":"/app/x","bytes":1}`:        "read-only file system",
		`{"do":"write","text":"/tmp/x","bytes":1}`:        "null",
		`{"do":"read","text":"/proc/self/environ"}`:       "FROM_IMAGE=yes",
		`{"do":"read","text":"/etc/hosts"}`:               "localhost",
		`{"do":"read","text":"/usr/bin/env"}`:             "no such file",
		`{"do":"read","text":"/etc/../.volley/../nope"}`:  "no such file",
		`{"do":"write","text":"/.volley/init","bytes":1}`: "errorMessage",
	} {
		if got := ask(t, boxes[0], event); !strings.Contains(got, want) {
			t.Errorf("%s: %s; want %s", event, got, want)
		}
	}
	for _, box := range boxes {
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantNothingLeft(t, d)

	for name, config := range map[string]v1.Config{
		"absent": {Entrypoint: []string{"/app/absent"}},
		"no-run": {},
		"nobody": {Entrypoint: []string{"/app/run"}, User: "nobody"},
		"exits":  {Entrypoint: []string{"/app/run"}, Env: []string{"BEHAVE=exit-at-init"}},
	} {
		f := fromRegistry(t, host, name, imageWith(t, program, config, nil))
		_, err := d.Create(t.Context(), sandbox.Spec{ID: name, Function: f})
		_, isInit := errors.AsType[*sandbox.InitError](err)
		if err == nil || !isInit && function.CodeOf(err) != function.InvalidImage {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLeft(t, d)
	}
	bare := *app
	withoutImages := testDriver(t, Config{})
	if _, err := withoutImages.Create(t.Context(), sandbox.Spec{ID: "a", Function: &bare}); function.CodeOf(err) != function.InvalidImage {
		t.Errorf("without a store of images: %v", err)
	}
}

func TestFunctionsHoldNoPrivileges(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	d := testDriver(t, Config{})
	box, err := d.Create(context.Background(), sandbox.Spec{ID: "a", Function: testFunction(sandboxtest.BuildBehave(t))})
	if err != nil {
		t.Fatal(err)
	}
	var status string
	answer := ask(t, box, `{"do":"read","text":"/proc/self/status"}`)
	if err := json.Unmarshal([]byte(answer), &status); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	for _, want := range []string{
		"NoNewPrivs:\t1", "Seccomp:\t2", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000",
		"CapBnd:\t00000000000000e0", "Uid:\t993\t993\t993\t993", "Gid:\t990\t990\t990\t990", "Groups:\t \n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	for _, f := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"} {
		if got := ask(t, box, `{"do":"read","text":"`+f+`"}`); got != `""` && !strings.Contains(got, "errorMessage") {
			t.Errorf("%s tells %.100s", f, got)
		}
	}
}
