package player

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const dynamicManifest = `<?xml version="1.0"?><!-- c --><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"/>`

// write makes files below a new directory, by their slash-separated names.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func serve(t *testing.T, dir string) *Handler {
	t.Helper()
	h, err := New(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// ask sends a request straight to the handler: no client cleans its path.
func ask(h http.Handler, method, target string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "http://volley.test/", nil)
	r.URL.Path = target
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMediaHasTheRightTypesAndCaching(t *testing.T) {
	dir := write(t, map[string]string{
		"manifest.mpd": dynamicManifest, "playlist.m3u8": "#EXTM3U", "video/init.mp4": "i", "video/00000.m4s": "s",
		"thumbnails.vtt": "WEBVTT", "images/00000.jpg": "j", "images/1.png": "p", "result.json": "{}", "evil.html": "<script>", "video/x.svg": "<svg/>",
	})
	h := serve(t, dir)
	for name, want := range map[string][2]string{
		"manifest.mpd":     {"application/dash+xml", "no-store"},
		"playlist.m3u8":    {"application/vnd.apple.mpegurl", "no-store"},
		"result.json":      {"application/json", "no-store"},
		"thumbnails.vtt":   {"text/vtt; charset=utf-8", "no-store"},
		"video/init.mp4":   {"video/mp4", "no-cache"},
		"video/00000.m4s":  {"video/iso.segment", "no-cache"},
		"images/00000.jpg": {"image/jpeg", "no-cache"},
		"images/1.png":     {"image/png", "no-cache"},
		"evil.html":        {"application/octet-stream", "no-cache"},
		"video/x.svg":      {"application/octet-stream", "no-cache"},
	} {
		r := ask(h, "GET", "/media/"+name)
		got := [2]string{r.Header.Get("Content-Type"), r.Header.Get("Cache-Control")}
		if r.StatusCode != 200 || got != want {
			t.Errorf("%s: status %d, %q, want %q", name, r.StatusCode, got, want)
		}
		for key, value := range map[string]string{"Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff"} {
			if r.Header.Get(key) != value {
				t.Errorf("%s: %s is %q", name, key, r.Header.Get(key))
			}
		}
		if r.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: no Content-Security-Policy", name)
		}
	}
}

func TestMediaAnswersRangesHeadAndRevalidation(t *testing.T) {
	h := serve(t, write(t, map[string]string{"output.mp4": "0123456789", "manifest.mpd": dynamicManifest}))
	r := ask(h, "GET", "/media/output.mp4", "Range", "bytes=2-4")
	if got := body(t, r); r.StatusCode != 206 || got != "234" || r.Header.Get("Content-Range") != "bytes 2-4/10" {
		t.Errorf("range: %d %q %q", r.StatusCode, got, r.Header.Get("Content-Range"))
	}
	if r := ask(h, "GET", "/media/output.mp4", "Range", "bytes=20-"); r.StatusCode != 416 {
		t.Errorf("range past the end: %d", r.StatusCode)
	}
	r = ask(h, "HEAD", "/media/output.mp4")
	if got := body(t, r); r.StatusCode != 200 || got != "" || r.Header.Get("Content-Length") != "10" {
		t.Errorf("HEAD: %d %q length %s", r.StatusCode, got, r.Header.Get("Content-Length"))
	}
	if r := ask(h, "GET", "/media/output.mp4", "If-None-Match", r.Header.Get("ETag")); r.StatusCode != 304 {
		t.Errorf("revalidation: %d", r.StatusCode)
	}
	if r := ask(h, "GET", "/media/manifest.mpd", "If-Modified-Since", time.Now().Add(time.Hour).Format(http.TimeFormat)); r.StatusCode != 200 {
		t.Errorf("a manifest must always be sent: %d", r.StatusCode)
	}
	r = ask(h, "OPTIONS", "/media/output.mp4", "Origin", "http://other.test", "Access-Control-Request-Method", "GET")
	if r.StatusCode != 204 || r.Header.Get("Access-Control-Allow-Methods") != "GET, HEAD" {
		t.Errorf("preflight: %d %v", r.StatusCode, r.Header)
	}
	if r := ask(h, "PUT", "/media/output.mp4"); r.StatusCode != 405 {
		t.Errorf("PUT: %d", r.StatusCode)
	}
}

func TestNothingButPlainFilesOfTheDirectoryIsServed(t *testing.T) {
	dir := write(t, map[string]string{"output.mp4": "v", ".volley/secret.json": "hidden", "video/.part.m4s": "hidden", "images/a.jpg": "a"})
	outside := write(t, map[string]string{"secret.txt": "hidden"})
	for link, target := range map[string]string{
		"outside.txt": filepath.Join(outside, "secret.txt"),
		"up.txt":      "../" + filepath.Base(outside) + "/secret.txt",
		"inside":      ".volley",
		"out":         outside,
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	h := serve(t, dir)
	for _, name := range []string{
		"", ".", "..", "/", "images", "images/", "video/..", ".volley", ".volley/secret.json", "./.volley/secret.json",
		"images/../.volley/secret.json", "video/.part.m4s", "../" + filepath.Base(outside) + "/secret.txt",
		filepath.Join(outside, "secret.txt"), "/etc/passwd", "outside.txt", "up.txt", "inside/secret.json", "out/secret.txt",
		"output.mp4/x", "output.mp4/", "nul\x00", `..\x`, "none.m4s", strings.Repeat("a", 5000),
	} {
		r := ask(h, "GET", "/media/"+name)
		// (The mux redirects a path that is not clean, and echoes it.)
		if got := body(t, r); r.StatusCode == 200 || strings.Contains(got, "hidden") {
			t.Errorf("%q: %d %q", name, r.StatusCode, got)
		}
	}
	for _, name := range []string{"/assets/.gitkeep", "/assets/", "/assets/../ui.go", "/assets/index.html", "/other"} {
		if r := ask(h, "GET", name); r.StatusCode == 200 {
			t.Errorf("%s: %d", name, r.StatusCode)
		}
	}
}

func TestListingSaysWhatIsThere(t *testing.T) {
	at := 1.5
	const staticManifest = `<MPD type="static"/>`
	tests := []struct {
		name  string
		files map[string]string
		want  Listing
	}{
		{"a run that computes", map[string]string{"manifest.mpd": dynamicManifest, "playlist.m3u8": "#EXTM3U", ".volley/x": ""}, Listing{
			State: StateRunning,
			Outputs: []Output{{Name: "output_0", Formats: []string{"dash", "hls"}, Files: []File{
				{Name: "manifest.mpd", SizeBytes: int64(len(dynamicManifest))}, {Name: "playlist.m3u8", SizeBytes: 7},
			}}},
		}},
		{"a run that has made nothing yet", map[string]string{".volley/x": ""}, Listing{State: StateRunning, Outputs: []Output{}}},
		{"a finished run with two outputs", map[string]string{
			"manifest.mpd": staticManifest, "output_1/images.json": `[{"file":"images/00000.jpg","time":1.5},{"file":"../x.jpg"}]`,
			"output_1/thumbnails.vtt": "WEBVTT", "output_01/output.mp4": "x", "output_x/output.mp4": "x", "result.json": `{"complete":true}`,
		}, Listing{
			State:  StateFinished,
			Result: json.RawMessage(`{"complete":true}`),
			Outputs: []Output{
				{Name: "output_0", Formats: []string{"dash"}, Complete: true, Files: []File{{Name: "manifest.mpd", SizeBytes: 20}, {Name: "result.json", SizeBytes: 17}}},
				{Name: "output_1", Path: "output_1/", Formats: []string{"images"}, Complete: true, Thumbnails: "thumbnails.vtt",
					Images: []Image{{File: "images/00000.jpg", Time: &at}},
					Files:  []File{{Name: "images.json", SizeBytes: 60}, {Name: "thumbnails.vtt", SizeBytes: 6}}},
			},
		}},
		{"a run that ended early", map[string]string{"output.mp4": "x", "result.json": `{"complete":false}`}, Listing{
			State: StateStopped, Result: json.RawMessage(`{"complete":false}`),
			Outputs: []Output{{Name: "output_0", Formats: []string{"mp4"}, Complete: true, Files: []File{{Name: "output.mp4", SizeBytes: 1}, {Name: "result.json", SizeBytes: 18}}}},
		}},
		{"a result.json that is half written", map[string]string{"output.mp4": "x", "result.json": `{"comp`}, Listing{
			State:   StateFinished,
			Outputs: []Output{{Name: "output_0", Formats: []string{"mp4"}, Complete: true, Files: []File{{Name: "output.mp4", SizeBytes: 1}, {Name: "result.json", SizeBytes: 6}}}},
		}},
		{"images without a list", map[string]string{"images/1.jpg": "x", "images/.2.jpg": "x", "images/n.txt": "x"}, Listing{
			State:   StateFinished,
			Outputs: []Output{{Name: "output_0", Formats: []string{"images"}, Complete: true, Images: []Image{{File: "images/1.jpg"}}, Files: []File{}}},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := write(t, test.files)
			r := ask(serve(t, dir), "GET", "/api/result")
			if r.StatusCode != 200 || r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("%d %v", r.StatusCode, r.Header)
			}
			var got Listing
			if err := json.Unmarshal([]byte(body(t, r)), &got); err != nil {
				t.Fatal(err)
			}
			test.want.Name = filepath.Base(dir)
			got.IdleSeconds = 0
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("listing (-want +got):\n%s", diff)
			}
		})
	}
}

func TestADirectoryWithoutAResultIsRefusedWithAdvice(t *testing.T) {
	empty := t.TempDir()
	_, err := New(empty, nil)
	if !errors.Is(err, ErrNoResult) || !strings.Contains(err.Error(), "volley run") || !strings.Contains(err.Error(), empty) {
		t.Errorf("empty directory: %v", err)
	}
	_, err = New(filepath.Join(empty, "none"), nil)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "volley run") {
		t.Errorf("no directory: %v", err)
	}
	file := filepath.Join(empty, "f")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(file, nil); err == nil {
		t.Error("a file was taken for a directory")
	}
}

func TestThePlainPageNeedsNoScript(t *testing.T) {
	h := serve(t, write(t, map[string]string{"output.mp4": "x", "result.json": `{"pipeline":"<b>gray","complete":true}`}))
	r := ask(h, "GET", "/plain")
	got := body(t, r)
	for _, want := range []string{`<video`, `src="media/output.mp4"`, "&lt;b&gt;gray"} {
		if !strings.Contains(got, want) {
			t.Errorf("plain page lacks %s:\n%s", want, got)
		}
	}
	if strings.Contains(got, "<script") || r.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("plain page: %v\n%s", r.Header, got)
	}
	h.built = false
	if got := body(t, ask(h, "GET", "/")); !strings.Contains(got, "make ui") || !strings.Contains(got, "<video") {
		t.Errorf("page without bundle:\n%s", got)
	}
	h.built = true
	r = ask(h, "GET", "/")
	if got := body(t, r); r.StatusCode != 200 || !strings.Contains(got, `src="assets/app.js"`) {
		t.Errorf("page: %d\n%s", r.StatusCode, got)
	}
	r = ask(h, "GET", "/assets/style.css")
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/css; charset=utf-8" {
		t.Errorf("style: %d %v", r.StatusCode, r.Header)
	}
	if r := ask(h, "GET", "/assets/style.css", "If-None-Match", r.Header.Get("ETag")); r.StatusCode != 304 {
		t.Errorf("style again: %d", r.StatusCode)
	}
}
