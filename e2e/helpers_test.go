package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

// volley is the program under test; TestMain sets it and nobody else.
var volley string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "volley-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	volley = filepath.Join(dir, "volley")
	for name, pkg := range map[string]string{"volley": "cmd/volley", "volley-init": "cmd/volley-init", "examples/echo/bootstrap": "examples/echo"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), "github.com/volley-run/volley/"+pkg)
		// What runs in sandboxes must not need libraries of this machine.
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

// patience bounds every program that a test starts: a player's view of a run
// that never ends would otherwise wait for ever.
const patience = 2 * time.Minute

// ended is how a program ended.
type ended struct {
	stdout, stderr string
	code           int
}

// runVolley runs volley to its end.
func runVolley(t *testing.T, args ...string) ended {
	t.Helper()
	return startVolley(t, nil, args...).wait(t)
}

// succeed runs volley and fails the test if it does not exit with 0.
func succeed(t *testing.T, args ...string) ended {
	t.Helper()
	e := runVolley(t, args...)
	if e.code != 0 {
		t.Fatalf("volley %q: exit status %d\n%s", args, e.code, e.stderr)
	}
	return e
}

// result is what "volley run --json" prints and result.json holds.
type result struct {
	Outputs       []string `json:"outputs"`
	Complete      bool     `json:"complete"`
	Frames        int      `json:"frames"`
	Duration      float64  `json:"duration_seconds"`
	FirstPlayable float64  `json:"first_playable_seconds"`
	Elapsed       float64  `json:"elapsed_seconds"`
	WorkersLost   int      `json:"workers_lost"`
	Tasks         int      `json:"tasks"`
	TasksReplayed int      `json:"tasks_replayed"`
}

// runJSON runs "volley run" with --json to success.
func runJSON(t *testing.T, args ...string) result {
	t.Helper()
	return succeed(t, append([]string{"run", "--json", "-q"}, args...)...).result(t)
}

func (e ended) result(t *testing.T) result {
	t.Helper()
	var r result
	if err := json.Unmarshal([]byte(e.stdout), &r); err != nil {
		t.Fatalf("volley's --json: %v\n%s", err, e.stdout)
	}
	return r
}

// process is a volley that is running.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *testenv.Buffer
	done           chan struct{}
}

// startVolley starts volley with env added to the environment. It is killed
// when the test ends, if it is still there.
func startVolley(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	p := &process{cmd: exec.CommandContext(ctx, volley, args...), stdout: &testenv.Buffer{}, stderr: &testenv.Buffer{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		defer cancel()
		_ = p.cmd.Wait() // wait reads the exit status
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
	})
	return p
}

func (p *process) wait(t *testing.T) ended {
	t.Helper()
	<-p.done
	e := ended{stdout: p.stdout.String(), stderr: p.stderr.String(), code: p.cmd.ProcessState.ExitCode()}
	if strings.Contains(e.stderr, "panic:") || strings.Contains(e.stderr, "goroutine ") {
		t.Errorf("volley crashed:\n%s", e.stderr)
	}
	return e
}

// running reports whether p has not ended.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// eventually waits until ok, looking often.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	end := time.After(patience / 2)
	for !ok() {
		select {
		case <-look.C:
		case <-end:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// ffmpeg runs FFmpeg and returns its standard output.
func ffmpeg(t *testing.T, args ...string) string {
	t.Helper()
	return tool(t, "ffmpeg", append([]string{"-v", "error", "-nostdin", "-y"}, args...)...)
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return stdout.String()
}

// exists reports whether there is a file or directory.
func exists(t *testing.T, path ...string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(path...))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func readFile(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// segments returns the video segments of a result by path, from first to last.
func segments(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "video", "*.m4s"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// serveResult starts "volley serve" on a result and returns the address of its
// files.
func serveResult(t *testing.T, dir string) string {
	t.Helper()
	p := startVolley(t, nil, "serve", dir, "--listen", "127.0.0.1:0")
	var address string
	eventually(t, "volley serve to say where", func() bool {
		_, rest, found := strings.Cut(p.stdout.String(), "Watch it at ")
		if !found {
			if !p.running() {
				t.Fatalf("volley serve ended: %s", p.stderr.String())
			}
			return false
		}
		address, _, found = strings.Cut(rest, " ")
		return found
	})
	return address + "media/"
}

// published waits until a run has finished n segments or images.
func published(t *testing.T, p *process, dir string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d segments", n), func() bool {
		if !p.running() {
			t.Fatalf("the run ended too soon to be disturbed:\n%s", p.stderr.String())
		}
		return len(segments(t, dir)) >= n
	})
}
