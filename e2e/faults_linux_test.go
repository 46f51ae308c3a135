package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

// These tests look for processes in /proc, which only Linux has.

// mark returns a variable for the environment of a run by which all processes
// that it starts, directly or not, can be found.
func mark(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("VOLLEY_E2E_RUN=%d-%s", os.Getpid(), filepath.Base(t.TempDir())+strings.ReplaceAll(t.Name(), "/", "-"))
}

// marked returns the processes with mark in their environment and, if command
// is not empty, with that in their command line.
func marked(t *testing.T, mark, command string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, dir := range dirs {
		// Processes come and go: what cannot be read is gone.
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !strings.Contains("\x00"+string(env), "\x00"+mark+"\x00") {
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), command) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func kill(t *testing.T, pid int, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, signal); err != nil && err != syscall.ESRCH {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func checkNothingRuns(t *testing.T, mark string) {
	t.Helper()
	eventually(t, "all processes of the run to end", func() bool { return len(marked(t, mark, "")) == 0 })
}

// slowRun are the arguments of a run that takes some seconds in twenty tasks.
func slowRun(input, dir string, more ...string) []string {
	return append([]string{"run", "transcode", input, "-o", dir, "--chunk", "0.5s", "--workers", "2", "--json", "--set", "encode.preset=slower"}, more...)
}

// slowClip is ten seconds with sound.
func slowClip(t *testing.T) string {
	t.Helper()
	args := append(testPicture("640x360", "24", 10), testNoise(10)...)
	return clip(t, "slow.mp4", append(args, "-c:v", "libx264", "-preset", "ultrafast", "-g", "60", "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest")...)
}

// calm runs slowRun undisturbed and returns the pictures.
func calm(t *testing.T, input string, more ...string) []picture {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "calm")
	succeed(t, slowRun(input, dir, more...)...)
	want := outputPictures(t, dir, "yuv420p")
	if len(want) != 240 {
		t.Fatalf("the undisturbed run gave %d frames, want 240", len(want))
	}
	return want
}

// checkUnfinished checks that nothing in dir looks like a complete result.
func checkUnfinished(t *testing.T, dir string) {
	t.Helper()
	if exists(t, dir, "result.json") {
		t.Error("there is a result.json, though the run did not end")
	}
	for _, name := range []string{"video.m3u8", "audio.m3u8"} {
		if exists(t, dir, name) && strings.Contains(readFile(t, dir, name), "#EXT-X-ENDLIST") {
			t.Errorf("%s has an end, though the run did not end", name)
		}
	}
	if exists(t, dir, "manifest.mpd") && !strings.Contains(readFile(t, dir, "manifest.mpd"), `type="dynamic"`) {
		t.Error("manifest.mpd is not dynamic, though the run did not end")
	}
	if exists(t, dir, "output.mp4") {
		t.Error("there is an output.mp4, though the run did not end")
	}
}

// checkFinished checks the opposite, and that no state is left.
func checkFinished(t *testing.T, dir string) {
	t.Helper()
	if !exists(t, dir, "result.json") {
		t.Error("there is no result.json")
	}
	for _, name := range []string{".volley", ".volley.lock"} {
		if exists(t, dir, name) {
			t.Errorf("%s was left behind", name)
		}
	}
	if exists(t, dir, "manifest.mpd") && !strings.Contains(readFile(t, dir, "manifest.mpd"), `type="static"`) {
		t.Error("manifest.mpd is not static")
	}
}

func TestAKilledWorkerChangesNothingInTheOutput(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := slowClip(t)
	want := calm(t, input)
	for _, tc := range []struct {
		name, victim string
		all          bool
		lost         int
	}{
		{"one worker", "volley worker", false, 1},
		{"all workers at once", "volley worker", true, 2},
		{"the FFmpeg of a worker", "ffmpeg -nostdin", false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, tag := filepath.Join(t.TempDir(), "out"), mark(t)
			p := startVolley(t, []string{tag}, slowRun(input, dir)...)
			published(t, p, dir, 3)
			var victims []int
			eventually(t, tc.victim, func() bool {
				victims = marked(t, tag, tc.victim)
				return len(victims) > 0
			})
			if !tc.all {
				victims = victims[:1]
			}
			for _, pid := range victims {
				kill(t, pid, syscall.SIGKILL)
			}
			e := p.wait(t)
			if e.code != 0 {
				t.Fatalf("exit status %d\n%s", e.code, e.stderr)
			}
			if r := e.result(t); r.WorkersLost < tc.lost {
				t.Errorf("%d workers lost, want at least %d", r.WorkersLost, tc.lost)
			}
			checkSame(t, outputPictures(t, dir, "yuv420p"), want, 1e-6)
			checkSound(t, input, dir)
			checkFinished(t, dir)
			checkNothingRuns(t, tag)
		})
	}
}

// finishedSegments returns the segments that the journal of an unfinished run
// counts as done, with the times of their files.
func finishedSegments(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(dir, ".volley", "journal", "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	done := map[string]time.Time{}
	for _, name := range records {
		var record struct {
			Item struct {
				Objects []struct {
					Key string `json:"key"`
				} `json:"objects"`
			} `json:"item"`
		}
		if err := json.Unmarshal([]byte(readFile(t, name)), &record); err != nil {
			t.Fatal(err)
		}
		for _, obj := range record.Item.Objects {
			path := filepath.Join(dir, filepath.FromSlash(obj.Key))
			info, err := os.Stat(path)
			if err != nil {
				t.Fatalf("the journal counts %s as done: %v", obj.Key, err)
			}
			done[path] = info.ModTime()
		}
	}
	return done
}

func checkNotRedone(t *testing.T, done map[string]time.Time) {
	t.Helper()
	if len(done) == 0 {
		t.Error("nothing was finished when the run was disturbed")
	}
	for path, before := range done {
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if !info.ModTime().Equal(before) {
			t.Errorf("%s was written again", filepath.Base(path))
		}
	}
}

func TestARunWhoseCoordinatorWasKilledIsResumed(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := slowClip(t)
	want := calm(t, input)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"fused", nil},
		{"not fused", []string{"--no-fuse"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, tag := filepath.Join(t.TempDir(), "out"), mark(t)
			p := startVolley(t, []string{tag}, slowRun(input, dir, tc.args...)...)
			published(t, p, dir, 5)
			kill(t, p.cmd.Process.Pid, syscall.SIGKILL)
			p.wait(t)
			checkNothingRuns(t, tag)
			checkUnfinished(t, dir)
			done := finishedSegments(t, dir)

			again := runVolley(t, slowRun(input, dir)...)
			if again.code != 5 || !strings.Contains(again.stderr, "--resume") {
				t.Errorf("running anew over an unfinished run: exit status %d, want 5 and a hint\n%s", again.code, again.stderr)
			}
			r := runJSON(t, "--resume", dir, "--workers", "3")
			if r.TasksReplayed < len(done) || r.Frames != 240 {
				t.Errorf("%d tasks taken over and %d frames, want at least %d and 240", r.TasksReplayed, r.Frames, len(done))
			}
			checkNotRedone(t, done)
			checkSame(t, outputPictures(t, dir, "yuv420p"), want, 1e-6)
			checkSound(t, input, dir)
			checkFinished(t, dir)
		})
	}
}

func TestARunSurvivesBeingKilledAgainAndAgain(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := slowClip(t)
	want := pictures(t, "yuv420p", "", input)
	tag := mark(t)
	dir := filepath.Join(t.TempDir(), "out")
	args := append([]string{"run", "transcode", input, "-o", dir, "--chunk", "0.25s", "--no-fuse", "--format", "mp4", "--workers", "2"}, lossless()...)
	kills := 0
	for n := 4; n <= 24; n += 5 {
		p := startVolley(t, []string{tag}, args...)
		published(t, p, dir, n)
		kill(t, p.cmd.Process.Pid, syscall.SIGKILL)
		p.wait(t)
		checkNothingRuns(t, tag)
		checkUnfinished(t, dir)
		kills++
		args = []string{"run", "--resume", dir}
	}
	succeed(t, args...)
	checkSame(t, pictures(t, "yuv420p", "", filepath.Join(dir, "output.mp4")), want, 1e-4)
	checkFinished(t, dir)
}

func TestCtrlCStopsARunThatCanGoOnLater(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := slowClip(t)
	want := calm(t, input)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			dir, tag := filepath.Join(t.TempDir(), "out"), mark(t)
			p := startVolley(t, []string{tag}, slowRun(input, dir)...)
			published(t, p, dir, 4)
			kill(t, p.cmd.Process.Pid, signal)
			e := p.wait(t)
			if e.code != 130 {
				t.Errorf("exit status %d, want 130", e.code)
			}
			if !strings.Contains(e.stderr, "volley run --resume "+dir) || !strings.Contains(e.stderr, "interrupted") {
				t.Errorf("does not say how to go on:\n%s", e.stderr)
			}
			if left := marked(t, tag, ""); len(left) > 0 {
				t.Errorf("%d processes are left", len(left))
			}
			checkUnfinished(t, dir)
			if exists(t, dir, ".volley.lock") || exists(t, dir, ".volley", "tmp") && len(globbed(t, dir, ".volley", "tmp", "*")) > 0 {
				t.Error("a lock or temporary files are left")
			}
			done := finishedSegments(t, dir)
			runJSON(t, "--resume", dir)
			checkNotRedone(t, done)
			checkSame(t, outputPictures(t, dir, "yuv420p"), want, 1e-6)
			checkFinished(t, dir)
		})
	}
}

func TestCtrlCBeforeAnythingIsDoneLeavesNothing(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	// The server never answers, so that the run is still probing.
	address := silentServer(t)
	dir, tag := filepath.Join(t.TempDir(), "out"), mark(t)
	p := startVolley(t, []string{tag}, "run", "grayscale", address+"/film.mp4", "-o", dir, "-q")
	eventually(t, "a worker", func() bool { return len(marked(t, tag, "volley worker")) > 0 })
	kill(t, p.cmd.Process.Pid, syscall.SIGINT)
	if e := p.wait(t); e.code != 130 {
		t.Errorf("exit status %d, want 130\n%s", e.code, e.stderr)
	}
	checkNothingRuns(t, tag)
	if exists(t, dir) {
		t.Errorf("the output directory was left behind: %v", globbedAll(t, dir))
	}
}

func TestTwoRunsCannotWriteToOnePlaceAtTheSameTime(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := slowClip(t)
	dir := filepath.Join(t.TempDir(), "out")
	p := startVolley(t, nil, slowRun(input, dir)...)
	published(t, p, dir, 1)
	for _, args := range [][]string{
		slowRun(input, dir),
		slowRun(input, dir, "--force"),
		{"run", "--resume", dir},
	} {
		e := runVolley(t, args...)
		if e.code != 5 || !strings.Contains(e.stderr, "another run is writing") {
			t.Errorf("volley %q: exit status %d, want 5\n%s", args, e.code, e.stderr)
		}
	}
	if e := p.wait(t); e.code != 0 {
		t.Fatalf("the first run was disturbed: exit status %d\n%s", e.code, e.stderr)
	}
	checkFinished(t, dir)
	if n := len(outputPictures(t, dir, "yuv420p")); n != 240 {
		t.Errorf("%d frames, want 240", n)
	}
}

func globbed(t *testing.T, pattern ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(pattern...))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
