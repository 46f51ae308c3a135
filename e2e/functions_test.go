package e2e_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volley-run/volley/internal/testenv"
)

func TestAFunctionGoesFromADirectoryToAnAnswer(t *testing.T) {
	testenv.Need(t, testenv.Runc, testenv.Python3)
	_, api := startServer(t, "--driver", "runc")
	if out := api.succeed(t, "functions"); !strings.Contains(out, "No functions yet") {
		t.Errorf("functions of an empty server: %s", out)
	}
	dir := pythonFunction(t, `
import os

def handler(event, context):
    print("handling", event)
    if event.get("fail"):
        raise ValueError("as asked")
    return {"got": event, "token": os.environ["TOKEN"], "memory": context.memory_limit_in_mb, "user": os.getuid()}
`)
	api.succeed(t, "deploy", "walk", dir, "--env", "TOKEN=abc", "--memory", "96MB", "--retries", "0")

	e := api.run(t, "invoke", "walk", "-d", `{"a": "ü"}`, "--tail")
	var answer struct {
		Got    map[string]string
		Token  string
		Memory string
		User   int
	}
	if err := json.Unmarshal([]byte(e.stdout), &answer); err != nil || e.code != 0 {
		t.Fatalf("exit status %d, %v: %s%s", e.code, err, e.stdout, e.stderr)
	}
	if answer.Got["a"] != "ü" || answer.Token != "abc" || answer.Memory != "96" || answer.User == 0 {
		t.Errorf("the answer is %s", e.stdout)
	}
	if !strings.Contains(e.stderr, "handling") || !strings.Contains(e.stderr, "REPORT RequestId") {
		t.Errorf("the tail is %s", e.stderr)
	}
	if e := api.run(t, "invoke", "walk", "-d", `{"fail": true}`); e.code != 7 || !strings.Contains(e.stdout, "as asked") {
		t.Errorf("a failure: exit status %d, %s", e.code, e.stdout)
	}
	if e := api.run(t, "invoke", "nobody"); e.code != 6 || !strings.Contains(e.stderr, "not found") {
		t.Errorf("a function that is not there: exit status %d, %s", e.code, e.stderr)
	}
	if e := api.run(t, "invoke", "walk", "-d", "{"); e.code != 4 {
		t.Errorf("an event that is no JSON: exit status %d, %s", e.code, e.stderr)
	}

	accepted := api.succeed(t, "invoke", "walk", "--async", "-d", `{"fail": true}`)
	id := regexp.MustCompile(`[0-9a-f-]{36}`).FindString(accepted)
	eventually(t, "the asynchronous invocation to end", func() bool { return api.run(t, "records", id).code == 0 })
	if out := api.succeed(t, "records", "--dead"); !strings.Contains(out, id) || !strings.Contains(out, "Failed") {
		t.Errorf("what failed for good: %s", out)
	}
	api.succeed(t, "records", id, "--dead", "--remove")
	if out := api.succeed(t, "records", "--dead"); strings.Contains(out, id) {
		t.Errorf("after its removal: %s", out)
	}

	eventually(t, "the log to be there", func() bool { return strings.Count(api.run(t, "logs", "walk").stdout, "handling") >= 3 })
	if out := api.succeed(t, "ps", "walk"); !strings.Contains(out, "idle") || !strings.Contains(out, "96 MB") {
		t.Errorf("ps: %s", out)
	}
	if out := api.succeed(t, "nodes"); !strings.Contains(out, "online") || !strings.Contains(out, "runc") {
		t.Errorf("nodes: %s", out)
	}

	writeFile(t, filepath.Join(dir, "main.py"), "def handler(event, context):\n    return 'changed'\n")
	api.succeed(t, "deploy", "walk", dir)
	if out := api.succeed(t, "invoke", "walk"); out != "\"changed\"\n" {
		t.Errorf("after the change: %s", out)
	}
	api.succeed(t, "delete", "walk")
	if e := api.run(t, "logs", "nobody"); e.code != 6 {
		t.Errorf("the log of a function that never was: exit status %d", e.code)
	}
	eventually(t, "the containers to be gone", func() bool { return !strings.Contains(api.run(t, "ps").stdout, "walk") })
}

func TestFunctionsAreThereAfterARestartOfTheServer(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	data := t.TempDir()
	d, api := startServerIn(t, data, "--driver", "process")
	api.succeed(t, "deploy", "keep", pythonFunction(t, "def handler(event, context):\n    return 'kept'\n"))
	if e := runVolley(t, "server", "--data", data, "--driver", "process", "--listen", "127.0.0.1:0"); e.code != 2 || !strings.Contains(e.stderr, "another volley") {
		t.Errorf("a second server on the same data: exit status %d, %s", e.code, e.stderr)
	}
	d.kill(t)
	_, api = startServerIn(t, data, "--driver", "process")
	if out := api.succeed(t, "invoke", "keep"); out != "\"kept\"\n" {
		t.Errorf("after a crash and restart: %s", out)
	}
}

// imageArchive writes an image of one layer with these files, all executable, as
// `docker save` does, and returns the path.
func imageArchive(t *testing.T, config v1.Config, files map[string]string) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: config, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, l); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	ref, err := name.NewTag("image:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, ref, img); err != nil {
		t.Fatal(err)
	}
	return archive
}

func TestAnImageArchiveIsDeployedAndRuns(t *testing.T) {
	testenv.Need(t, testenv.Runc, testenv.Overlayfs)
	program := readFile(t, filepath.Join(filepath.Dir(volley), "examples", "echo", "bootstrap"))
	archive := imageArchive(t, v1.Config{Entrypoint: []string{"/app/echo"}}, map[string]string{"app/echo": program})

	_, api := startServer(t, "--driver", "runc")
	api.succeed(t, "deploy", "boxed", "--image", archive)
	if out := api.succeed(t, "invoke", "boxed", "-d", `{"in": "a box"}`); out != `{"in":"a box"}`+"\n" && out != `{"in": "a box"}`+"\n" {
		t.Errorf("the answer is %q", out)
	}
	if e := api.run(t, "deploy", "boxed", "--image", "127.0.0.1:1/no/such:image"); e.code != 6 || !strings.Contains(e.stderr, "127.0.0.1:1") {
		t.Errorf("a registry that is not there: exit status %d, %s", e.code, e.stderr)
	}
}
