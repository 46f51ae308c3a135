//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// item is an entry of a layer.
type item struct {
	name, content, link string
	kind                byte
	mode                int64
}

func file(name, content string) item {
	return item{name: name, content: content, kind: tar.TypeReg, mode: 0o644}
}
func dir(name string) item { return item{name: name, kind: tar.TypeDir, mode: 0o755} }
func link(name, to string) item {
	return item{name: name, link: to, kind: tar.TypeSymlink, mode: 0o777}
}
func hard(name, to string) item { return item{name: name, link: to, kind: tar.TypeLink, mode: 0o644} }
func tarOf(items ...item) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Linkname: i.link, Typeflag: i.kind, Mode: i.mode, Size: int64(len(i.content)), ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := io.WriteString(w, i.content); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func layerOf(t *testing.T, items ...item) v1.Layer {
	t.Helper()
	content := tarOf(items...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf makes an image of layers, the lowest first.
func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"handler"}, Env: []string{"A=b"}, WorkingDir: "/w", User: "app",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	return img
}

// objects is an object store in memory.
type objects map[string][]byte

func (o objects) Get(_ context.Context, key string) (io.ReadCloser, error) {
	content, ok := o[key]
	if !ok {
		return nil, fmt.Errorf("object %s: %w", key, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func openStore(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(s.downloads); err != nil || len(left) > 0 {
			t.Errorf("left among the downloads: %v, %v", left, err)
		}
	})
	return s
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// uploaded returns a function whose image is that archive.
func uploaded(archive []byte) (*function.Function, objects) {
	return &function.Function{Name: "f", PackageType: function.Image, Code: function.Code{Object: "key", SHA256: digestOf(archive)}}, objects{"key": archive}
}

// saved returns an image as `docker save` writes it.
func saved(t *testing.T, img v1.Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	tag, err := name.NewTag("example/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.Write(tag, img, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// laidOut returns the directory of an OCI layout.
func laidOut(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tarDir(t *testing.T, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// mounted returns the directory of an image's root, mounted.
func mounted(t *testing.T, img *Image) string {
	t.Helper()
	top, root := t.TempDir(), t.TempDir()
	if err := sys.MountOverlay(img.Dir, append([]string{top}, img.Layers...), root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Unmount(root); err != nil {
			t.Error(err)
		}
	})
	return root
}

func wantFile(t *testing.T, root, name, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(root, name))
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
	}
}

func wantAbsent(t *testing.T, root, name string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(root, name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", name, err)
	}
}

func TestLayersLieOnEachOtherAsTheSpecificationSays(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Overlayfs)
	img := imageOf(t,
		layerOf(t, file("keep", "1"), file("gone", "1"), file("changed", "1"), dir("d"), file("d/a", "1"), file("d/b", "1"),
			dir("o"), file("o/old", "1"), dir("e"), file("e/old", "1"), link("l", "keep"), file("setuid", "x")),
		layerOf(t, file(".wh.gone", ""), file("changed", "2"), file("d/.wh.a", ""), file("o/.wh..wh..opq", ""), file("o/new", "2"),
			file(".wh.e", ""), file("e/new", "2"), file(".wh..wh.plnk", "")),
		layerOf(t, file("top", "3"), hard("hard", "top"), file(".wh.absent", "")),
	)
	f, store := uploaded(saved(t, img))
	got, err := openStore(t, Config{Objects: store}).Open(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if c := got.Config; c.EntryPoint[0] != "/entry" || c.Command[0] != "handler" || c.Env[0] != "A=b" || c.WorkingDir != "/w" || c.User != "app" {
		t.Errorf("configuration %+v", c)
	}
	root := mounted(t, got)
	for name, content := range map[string]string{"keep": "1", "changed": "2", "d/b": "1", "o/new": "2", "e/new": "2", "l": "1", "top": "3", "hard": "3"} {
		wantFile(t, root, name, content)
	}
	for _, name := range []string{"gone", "d/a", "o/old", "absent", ".wh.gone", ".wh..wh.plnk", "o/.wh..wh..opq"} {
		wantAbsent(t, root, name)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to the root: %v", err)
	}
	a, errA := os.Stat(filepath.Join(root, "top"))
	b, errB := os.Stat(filepath.Join(root, "hard"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Error("the hard link is another file")
	}
}

func TestEveryFormOfAnImageGivesTheSame(t *testing.T) {
	testenv.Need(t, testenv.Root)
	img := imageOf(t, layerOf(t, file("a", "1")), layerOf(t, file("b", "2")))
	layoutDir := laidOut(t, img)
	for form, archive := range map[string][]byte{
		"docker save":         saved(t, img),
		"docker save, zipped": gzipped(t, saved(t, img)),
		"OCI layout":          tarDir(t, layoutDir),
		"OCI layout, zipped":  gzipped(t, tarDir(t, layoutDir)),
	} {
		t.Run(form, func(t *testing.T) {
			f, store := uploaded(archive)
			got, err := openStore(t, Config{Objects: store}).Open(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Release()
			wantFile(t, filepath.Join(got.Dir, got.Layers[0]), "b", "2")
			wantFile(t, filepath.Join(got.Dir, got.Layers[1]), "a", "1")
		})
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	opened, err := OpenArchive(layoutDir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := opened.Digest(); got != want || err != nil {
		t.Errorf("digest %v, %v; want %v", got, err, want)
	}
}

// serve starts a registry, and returns its address and how many layers and
// configurations it has handed out.
func serve(t *testing.T) (host string, blobs *atomic.Int32) {
	t.Helper()
	blobs = new(atomic.Int32)
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(countingBlobs{registry.NewInMemoryBlobHandler().(blobStore), blobs}))
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	t.Cleanup(func() {
		if c, ok := remote.DefaultTransport.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	})
	return strings.TrimPrefix(srv.URL, "http://"), blobs
}

type blobStore interface {
	registry.BlobHandler
	registry.BlobPutHandler
}

type countingBlobs struct {
	blobStore
	n *atomic.Int32
}

func (c countingBlobs) Get(ctx context.Context, repo string, h v1.Hash) (io.ReadCloser, error) {
	c.n.Add(1)
	return c.blobStore.Get(ctx, repo, h)
}

func push(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
}

func TestAnImageIsPulledOnceAndItsLayersAreShared(t *testing.T) {
	testenv.Need(t, testenv.Root)
	host, blobs := serve(t)
	base := layerOf(t, file("base", "1"))
	push(t, host+"/app:a", imageOf(t, base, layerOf(t, file("app", "a"))))
	push(t, host+"/app:b", imageOf(t, base, layerOf(t, file("app", "b"))))
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	pull := func(s *Store, ref string) *Image {
		t.Helper()
		r, err := s.cfg.registries().Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if r.SizeBytes <= 0 || !strings.HasSuffix(r.Ref, "@sha256:"+r.SHA256) {
			t.Errorf("resolved %+v", r)
		}
		blobs.Store(0)
		got, err := s.Open(t.Context(), &function.Function{Name: "f", Code: function.Code{ImageRef: ref, ResolvedRef: r.Ref, SHA256: r.SHA256}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(got.Release)
		return got
	}
	a := pull(s, host+"/app:a")
	if n := blobs.Load(); n != 3 {
		t.Errorf("%d blobs for the first image", n)
	}
	b := pull(s, host+"/app:b")
	if n := blobs.Load(); n != 2 {
		t.Errorf("%d blobs for an image that shares a layer", n)
	}
	if a.Layers[1] != b.Layers[1] || a.Layers[0] == b.Layers[0] {
		t.Errorf("layers %v and %v", a.Layers, b.Layers)
	}
	pull(s, host+"/app:a")
	if n := blobs.Load(); n != 0 {
		t.Errorf("%d blobs for an image that is there", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	pull(openStore(t, Config{Dir: dir}), host+"/app:a")
	if n := blobs.Load(); n != 0 {
		t.Errorf("%d blobs for an image that an earlier process has pulled", n)
	}
}

func TestImagesThatCannotBePulledAreRefused(t *testing.T) {
	testenv.Need(t, testenv.Root)
	host, _ := serve(t)
	img := imageOf(t, layerOf(t, file("a", "1")))
	push(t, host+"/app:v1", img)
	foreign, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "mips", RootFS: v1.RootFS{DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}}})
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/app:mips", foreign)
	s := openStore(t, Config{})
	for name, tc := range map[string]struct{ ref, message string }{
		"an unknown tag":         {host + "/app:v2", "cannot pull"},
		"an unknown repository":  {host + "/other", "cannot pull"},
		"no reference":           {"UPPER CASE", "no image reference"},
		"another machine's":      {host + "/app:mips", "--platform"},
		"a registry without TLS": {"10.255.255.1.nip.invalid/app", "cannot pull"},
	} {
		_, err := s.cfg.registries().Resolve(t.Context(), tc.ref)
		if function.CodeOf(err) != function.InvalidImage || !strings.Contains(err.Error(), tc.message) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, code := range map[string]function.Code{
		"not pinned":      {ResolvedRef: host + "/app:v1", SHA256: strings.Repeat("0", 64)},
		"another digest":  {ResolvedRef: host + "/app@sha256:" + strings.Repeat("1", 64), SHA256: strings.Repeat("0", 64)},
		"unknown digest":  {ResolvedRef: host + "/app@sha256:" + strings.Repeat("1", 64), SHA256: strings.Repeat("1", 64)},
		"no digest":       {ResolvedRef: host + "/app:v1"},
		"malformed value": {ResolvedRef: host + "/app:v1", SHA256: "../../x"},
	} {
		if _, err := s.Open(t.Context(), &function.Function{Name: "f", Code: code}); function.CodeOf(err) != function.InvalidImage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "[::1]:5000": true,
		"10.0.0.1:5000": false, "registry.example": false, "localhost.example:80": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%s) = %v", host, got)
		}
		_, err := encrypted{refusing{}}.RoundTrip(httptest.NewRequest("GET", "http://"+host+"/v2/", nil))
		if errors.Is(err, errPlain) == want {
			t.Errorf("plain HTTP to %s: %v", host, err)
		}
	}
}
