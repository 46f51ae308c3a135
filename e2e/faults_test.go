package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// silentServer takes connections and says nothing.
func silentServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

// checkOneError checks that a run ended with the status and said why in one
// line with all the words, and with nothing else around it but a worker's log.
func checkOneError(t *testing.T, e ended, code int, words ...string) {
	t.Helper()
	if e.code != code {
		t.Errorf("exit status %d, want %d", e.code, code)
	}
	message, rest, _ := strings.Cut(e.stderr, "\n")
	if !strings.HasPrefix(message, "volley: ") {
		t.Errorf("stderr does not begin with the error:\n%s", e.stderr)
	}
	if rest != "" && !strings.HasPrefix(rest, "The end of the worker's log:\n  ") && !strings.HasPrefix(rest, "Run \"volley --help\"") {
		t.Errorf("more than one line of error:\n%s", e.stderr)
	}
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("the error does not say %q:\n%s", w, e.stderr)
		}
	}
	if e.stdout != "" {
		t.Errorf("an error, and yet on stdout:\n%s", e.stdout)
	}
}

// cut returns a copy of a file's first part.
func cut(t *testing.T, path string, part float64) string {
	t.Helper()
	text := readFile(t, path)
	return writeFile(t, filepath.Join(t.TempDir(), "cut-"+filepath.Base(path)), text[:int(part*float64(len(text)))])
}

// damage returns a copy of a file with noise in the given part of it.
func damage(t *testing.T, path string, from, to float64) string {
	t.Helper()
	text := []byte(readFile(t, path))
	r := rand.New(rand.NewPCG(1, 2))
	for i := int(from * float64(len(text))); i < int(to*float64(len(text))); i++ {
		text[i] = byte(r.Uint32())
	}
	return writeFile(t, filepath.Join(t.TempDir(), "damaged-"+filepath.Base(path)), string(text))
}

func TestABadInputGivesOneClearErrorAndLeavesNothing(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	good := plainClip(t, "good.mp4", 4)
	front := filepath.Join(t.TempDir(), "front.mp4")
	ffmpeg(t, "-i", good, "-c", "copy", "-movflags", "+faststart", front)
	webm := filepath.Join(t.TempDir(), "good.mkv")
	ffmpeg(t, "-i", good, "-c", "copy", webm)
	ts := filepath.Join(t.TempDir(), "good.ts")
	ffmpeg(t, "-i", good, "-c", "copy", ts)

	files := http.FileServer(http.Dir(filepath.Dir(good)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/forbidden.mp4":
			http.Error(w, "no", http.StatusForbidden)
		case "/whole/good.mp4":
			// A server that knows no ranges.
			r.Header.Del("Range")
			text, err := os.ReadFile(good)
			if err == nil {
				_, err = w.Write(text)
			}
			_ = err // the client may hang up
		default:
			files.ServeHTTP(w, r)
		}
	}))
	defer server.Close()
	gone := httptest.NewServer(nil)
	goneURL := gone.URL
	gone.Close()

	for _, tc := range []struct {
		name, input string
		words       []string
	}{
		{"damaged in the middle", damage(t, good, 0.3, 0.6), []string{"damage"}},
		{"a few damaged frames", damage(t, good, 0.5, 0.52), []string{"damage"}},
		{"cut off, index in front", cut(t, front, 0.6), nil},
		{"cut off, index behind", cut(t, good, 0.6), nil},
		{"cut off in the index in front", cut(t, front, 0.005), nil},
		{"a Matroska file that is cut off", cut(t, webm, 0.6), nil},
		{"sound only", clip(t, "sound.m4a", append(testNoise(2), "-c:a", "aac")...), []string{"no video"}},
		{"sound only, as MP3", clip(t, "sound.mp3", append(testNoise(2), "-c:a", "libmp3lame")...), []string{"no video"}},
		{"no bytes", writeFile(t, filepath.Join(t.TempDir(), "empty.mp4"), ""), []string{"empty"}},
		{"no file", filepath.Join(t.TempDir(), "missing.mp4"), []string{"missing.mp4"}},
		{"a directory", t.TempDir(), []string{"directory"}},
		{"a text file", writeFile(t, filepath.Join(t.TempDir(), "notes.txt"), strings.Repeat("This is no video.\n", 500)), []string{"notes.txt"}},
		{"a text file that is called mp4", writeFile(t, filepath.Join(t.TempDir(), "notes.mp4"), strings.Repeat("This is no video.\n", 500)), []string{"notes.mp4"}},
		{"noise", damage(t, good, 0, 1), nil},
		{"an address that is not there", server.URL + "/missing.mp4", []string{"404"}},
		{"an address that is forbidden", server.URL + "/forbidden.mp4", []string{"403"}},
		{"a server without ranges", server.URL + "/whole/good.mp4", []string{"range", "download"}},
		{"no server", goneURL + "/film.mp4", nil},
		{"an unknown scheme", "gopher://host/film.mp4", []string{"gopher"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			e := runVolley(t, "run", "grayscale", tc.input, "-o", dir, "-q", "--set", "encode.preset=ultrafast", "--chunk", "1s")
			checkOneError(t, e, 4, append(tc.words, "input ")...)
			if exists(t, dir) {
				t.Errorf("the output directory was left behind: %v", globbedAll(t, dir))
			}
			t.Log(strings.TrimSpace(e.stderr))
		})
	}
	t.Run("MPEG-TS that is cut off is only shorter", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "out")
		runJSON(t, "grayscale", cut(t, ts, 0.6), "-o", dir, "--set", "encode.preset=ultrafast", "--set", "decode.errors=conceal")
	})
	t.Run("damage is concealed on request", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "out")
		r := runJSON(t, "grayscale", damage(t, good, 0.5, 0.52), "-o", dir, "--set", "encode.preset=ultrafast", "--set", "decode.errors=conceal", "--chunk", "1s")
		if r.Frames < 90 {
			t.Errorf("%d frames, want about 96", r.Frames)
		}
	})
}

func globbedAll(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
		out = append(out, path)
		return nil
	})
	return out
}

func TestABadInputDoesNotHarmWhatWasInTheDirectory(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "mine.txt"), "mine")
	bad := filepath.Join(t.TempDir(), "missing.mp4")
	checkOneError(t, runVolley(t, "run", "grayscale", bad, "-o", dir, "-q"), 5, "not empty", "-o", "--force")
	checkOneError(t, runVolley(t, "run", "grayscale", bad, "-o", dir, "-q", "--force"), 4, "missing.mp4")
	if left := globbedAll(t, dir); len(left) != 2 || readFile(t, dir, "mine.txt") != "mine" {
		t.Errorf("in the directory: %v", left)
	}
}

func TestAFullDiskStopsARunThatCanGoOnLater(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.Tmpfs)
	// Lossless noise is large.
	input := clip(t, "noise.mp4", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24:duration=5,noise=alls=30:allf=t",
		"-c:v", "libx264", "-preset", "ultrafast", "-g", "24", "-pix_fmt", "yuv420p")
	want := pictures(t, "yuv420p", "", input)
	args := append([]string{"run", "transcode", input, "--chunk", "0.5s", "--workers", "2", "-q"}, lossless()...)
	roomy := filepath.Join(t.TempDir(), "out")
	succeed(t, append(args, "-o", roomy)...)
	size := float64(treeSize(t, roomy))
	for _, tc := range []struct {
		name string
		args []string
		room float64 // of the size of the result
	}{
		{"segments", nil, 0.5},
		{"frames between stages", []string{"--no-fuse"}, 0.5},
		{"joining", []string{"--format", "mp4"}, 1.5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := testenv.MountTmpfs(t, int64(tc.room*size))
			dir := filepath.Join(disk, "out")
			args := append(args, "-o", dir)
			e := runVolley(t, append(args, tc.args...)...)
			checkOneError(t, e, 5, "space", "make room", "volley run --resume "+dir)
			t.Log(e.stderr)
			if exists(t, dir, "result.json") || exists(t, dir, "output.mp4") {
				t.Error("the result looks complete")
			}
			if exists(t, dir, "manifest.mpd") && !strings.Contains(readFile(t, dir, "manifest.mpd"), `type="dynamic"`) {
				t.Error("the manifest looks complete")
			}
			if exists(t, dir, "video.m3u8") && strings.Contains(readFile(t, dir, "video.m3u8"), "ENDLIST") {
				t.Error("the playlist looks complete")
			}
			tool(t, "mount", "-o", "remount,size="+fmt.Sprint(128<<20), disk)
			r := runJSON(t, "--resume", dir)
			if r.Frames != len(want) {
				t.Errorf("%d frames after making room, want %d", r.Frames, len(want))
			}
			if tc.name == "joining" {
				checkSame(t, pictures(t, "yuv420p", "", filepath.Join(dir, "output.mp4")), want, 1e-4)
			} else {
				checkSame(t, outputPictures(t, dir, "yuv420p"), want, 1e-4)
			}
		})
	}
}

func TestAnOutputThatCannotBeWrittenIsSaidAtOnce(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 1)
	file := writeFile(t, filepath.Join(t.TempDir(), "file"), "a file")
	checkOneError(t, runVolley(t, "run", "grayscale", input, "-o", filepath.Join(file, "out"), "-q"), 5, "output")
	checkOneError(t, runVolley(t, "run", "grayscale", input, "-o", file, "-q"), 5, "output")
	checkOneError(t, runVolley(t, "run", "--resume", filepath.Join(t.TempDir(), "nothing")), 5, "no directory")
	checkOneError(t, runVolley(t, "run", "--resume", t.TempDir()), 5, "no unfinished run")
}
