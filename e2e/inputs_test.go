package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/store"
)

// counter is a file server that counts what it sends.
type counter struct {
	files    http.Handler
	sent     atomic.Int64
	ranged   atomic.Int64
	unranged atomic.Int64
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		if r.Header.Get("Range") != "" {
			c.ranged.Add(1)
		} else {
			c.unranged.Add(1)
		}
	}
	c.files.ServeHTTP(countingWriter{w, &c.sent}, r)
}

type countingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

// Write sends not more than about 20 MB/s over a connection: on loopback, what
// was sent would otherwise be what fits into the system's buffers.
func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	time.Sleep(time.Duration(n) * time.Second / 20e6)
	return n, err
}

// looped returns a file with the clip n times in a row.
func looped(t *testing.T, input string, n int) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), fmt.Sprintf("looped%s", filepath.Ext(input)))
	ffmpeg(t, "-stream_loop", fmt.Sprint(n-1), "-i", input, "-c", "copy", "-movflags", "+faststart", out)
	return out
}

func TestAnHTTPInputIsReadByRangesAndNotDownloadedFirst(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	short := clip(t, "short.mp4", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=24:duration=5,noise=alls=40:allf=t",
		"-f", "lavfi", "-i", "anoisesrc=color=pink:seed=7:duration=5",
		"-c:v", "libx264", "-preset", "ultrafast", "-b:v", "16M", "-g", "48", "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest")
	for _, sound := range []bool{false, true} {
		t.Run(fmt.Sprintf("sound %v", sound), func(t *testing.T) {
			big := looped(t, short, 8)
			if !sound {
				mute := filepath.Join(t.TempDir(), "mute.mp4")
				ffmpeg(t, "-i", big, "-an", "-c", "copy", "-movflags", "+faststart", mute)
				big = mute
			}
			size := int64(len(readFile(t, big)))
			c := &counter{files: http.FileServer(http.Dir(filepath.Dir(big)))}
			server := httptest.NewServer(c)
			defer server.Close()
			dir := filepath.Join(t.TempDir(), "out")
			p := startVolley(t, nil, "run", "grayscale", server.URL+"/"+filepath.Base(big), "-o", dir, "-q", "--json", "--chunk", "1s", "--workers", "2", "--set", "encode.preset=ultrafast")
			published(t, p, dir, 1)
			first := c.sent.Load()
			e := p.wait(t)
			if e.code != 0 {
				t.Fatalf("exit status %d\n%s", e.code, e.stderr)
			}
			t.Logf("file %.1f MB; %.1f MB sent (%.0f %%) when the first segment was there, %.1f MB in all; %d ranges, %d requests without",
				mb(size), mb(first), 100*float64(first)/float64(size), mb(c.sent.Load()), c.ranged.Load(), c.unranged.Load())
			if first > size/4 {
				t.Errorf("%.1f of %.1f MB were fetched before the first segment was there", mb(first), mb(size))
			}
			if n := len(outputPictures(t, dir, "gray")); n != 8*120 {
				t.Errorf("%d frames, want %d", n, 8*120)
			}
		})
	}
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func TestAnHTTPInputGivesTheSameAsTheFile(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	for _, name := range []string{"in.mp4", "in.mkv", "in.ts"} {
		t.Run(name, func(t *testing.T) {
			input := withNoise(name, 4, x264("-g", "30")...)(t)
			var tries atomic.Int64
			files := http.FileServer(http.Dir(filepath.Dir(input)))
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// Every seventh request fails: servers do that.
				if tries.Add(1)%7 == 0 {
					http.Error(w, "busy", http.StatusServiceUnavailable)
					return
				}
				files.ServeHTTP(w, r)
			}))
			defer server.Close()
			dir := filepath.Join(t.TempDir(), "out")
			runJSON(t, append([]string{"transcode", server.URL + "/" + name + "?token=geheim", "-o", dir, "--chunk", "0.6s"}, lossless()...)...)
			checkSame(t, outputPictures(t, dir, "yuv420p"), pictures(t, "yuv420p", "", input), 0.0006)
			checkSound(t, input, dir)
			if strings.Contains(readFile(t, dir, "result.json"), "geheim") {
				t.Error("result.json holds the token of the address")
			}
		})
	}
}

// bucket starts an S3 server and sets the environment so that volley and the
// test can use it.
func bucket(t *testing.T) store.Store {
	t.Helper()
	server, err := store.StartServer(t.Context(), store.ServerConfig{Dir: t.TempDir(), AccessKey: "volley-test", SecretKey: "volley-test-secret", Buckets: []string{"films"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("AWS_ACCESS_KEY_ID", "volley-test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "volley-test-secret")
	t.Setenv("AWS_ENDPOINT_URL", server.Endpoint())
	t.Setenv("AWS_REGION", "us-east-1")
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	s, err := store.Open(t.Context(), "s3://films", store.WithHTTPClient(client))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func upload(t *testing.T, s store.Store, key, file string) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, strings.NewReader(readFile(t, file))); err != nil {
		t.Fatal(err)
	}
}

// download copies all objects below prefix into a new directory.
func download(t *testing.T, s store.Store, prefix string) string {
	t.Helper()
	dir := t.TempDir()
	for _, key := range keys(t, s, prefix) {
		r, err := s.Get(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, filepath.FromSlash(strings.TrimPrefix(key, prefix)))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, string(bytes.Clone(data)))
	}
	return dir
}

func keys(t *testing.T, s store.Store, prefix string) []string {
	t.Helper()
	var out []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Key)
	}
	return out
}

func TestInputsResultsAndFramesCanBeInS3(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	s3 := bucket(t)
	input := plainClip(t, "in.mp4", 3)
	upload(t, s3, "in/film one.mp4", input)
	want := pictures(t, "yuv420p", "", input)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"fused", nil},
		{"not fused", []string{"--no-fuse"}},
		{"not fused, frames compressed, in a store of their own", []string{"--no-fuse", "--frames", "ffv1", "--store", "s3://films/scratch"}},
		{"joined", []string{"--format", "mp4"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			prefix := "out/" + strings.ReplaceAll(tc.name, " ", "-")
			args := append([]string{"transcode", "s3://films/in/film one.mp4", "-o", "s3://films/" + prefix, "--chunk", "0.7s"}, lossless()...)
			runJSON(t, append(args, tc.args...)...)
			dir := download(t, s3, prefix+"/")
			if tc.name == "joined" {
				checkSame(t, pictures(t, "yuv420p", "", filepath.Join(dir, "output.mp4")), want, 0.0001)
			} else {
				checkSame(t, outputPictures(t, dir, "yuv420p"), want, 0.0001)
				checkSound(t, input, dir)
			}
			checkLeft(t, s3, prefix)
			again := runVolley(t, append([]string{"run", "-q"}, args...)...)
			checkOneError(t, again, 5, "finished result", "--force")
		})
	}
	if left := keys(t, s3, "scratch/"); len(left) > 0 {
		t.Errorf("left in the store between stages: %q", left)
	}
}

// checkLeft checks that a finished result holds nothing of its run.
func checkLeft(t *testing.T, s store.Store, prefix string) {
	t.Helper()
	for _, key := range keys(t, s, prefix+"/") {
		if strings.HasPrefix(strings.TrimPrefix(key, prefix+"/"), ".") {
			t.Errorf("%s was left behind", path.Base(key))
		}
	}
}

func TestALocalResultCanHaveItsFramesInS3AndTheOtherWayRound(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	s3 := bucket(t)
	input := plainClip(t, "in.mp4", 2)
	want := pictures(t, "yuv420p", "", input)
	dir := filepath.Join(t.TempDir(), "out")
	runJSON(t, append([]string{"transcode", input, "-o", dir, "--chunk", "0.7s", "--no-fuse", "--store", "s3://films/scratch"}, lossless()...)...)
	checkSame(t, outputPictures(t, dir, "yuv420p"), want, 0.0001)
	scratch := t.TempDir()
	runJSON(t, append([]string{"transcode", input, "-o", "s3://films/out", "--chunk", "0.7s", "--no-fuse", "--store", scratch}, lossless()...)...)
	checkSame(t, outputPictures(t, download(t, s3, "out/"), "yuv420p"), want, 0.0001)
	for _, p := range globbedAll(t, scratch) {
		if info, err := os.Stat(p); err == nil && !info.IsDir() {
			t.Errorf("%s was left behind", p)
		}
	}
}

func TestS3ErrorsAreClear(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	bucket(t)
	input := plainClip(t, "in.mp4", 1)
	dir := filepath.Join(t.TempDir(), "out")
	checkOneError(t, runVolley(t, "run", "grayscale", "s3://films/nothing.mp4", "-o", dir, "-q"), 4, "s3://films/nothing.mp4")
	checkOneError(t, runVolley(t, "run", "grayscale", "s3://nobucket/in.mp4", "-o", dir, "-q"), 4, "s3://nobucket/in.mp4")
	checkOneError(t, runVolley(t, "run", "grayscale", input, "-o", "s3://nobucket/out", "-q"), 5, "nobucket")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	checkOneError(t, runVolley(t, "run", "grayscale", input, "-o", "s3://films/out", "-q"), 5, "permission")
	checkOneError(t, runVolley(t, "run", "grayscale", "s3://films/in.mp4", "-o", dir, "-q"), 4, "credentials")
	if exists(t, dir) {
		t.Error("the output directory was left behind")
	}
}
