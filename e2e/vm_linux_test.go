package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// One recording serves all of this, since it boots a virtual machine.
func TestAFunctionIsBuiltRecordedShownAndCalledInAVirtualMachine(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.Userfaultfd)
	home := t.TempDir()
	t.Setenv("VOLLEY_HOME", home)
	hello := filepath.Join(testenv.RepoRoot(t), "examples", "hello")
	succeed(t, "vm", "build", "hello", "--from", hello, "--runtime", "python3", "--handler", "hello.handler", "--guest-memory", "256MB")
	t.Run("an interrupted recording leaves nothing", func(t *testing.T) {
		p := startVolley(t, nil, "snapshot", "record", "hello", "--accel", "tcg")
		var machines []string
		eventually(t, "a machine", func() bool {
			machines, _ = filepath.Glob(filepath.Join(home, "vm", "vms", "*", "memory"))
			return len(machines) > 0
		})
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if e := p.wait(t); e.code != 130 || !strings.Contains(e.stderr, "interrupted") {
			t.Errorf("exit status %d: %s", e.code, e.stderr)
		}
		for _, dir := range []string{"vms", "snapshots"} {
			if left, err := os.ReadDir(filepath.Join(home, "vm", dir)); err != nil || len(left) > 0 {
				t.Errorf("%s: %v, %v", dir, left, err)
			}
		}
	})
	if e := succeed(t, "snapshot", "record", "hello", "-d", `{"name": "Ada"}`, "--accel", "tcg"); !strings.Contains(e.stdout, "Made snapshot hello") || !strings.Contains(e.stdout, "loading set") {
		t.Errorf("record: %s", e.stdout)
	}
	picture := filepath.Join(t.TempDir(), "map.svg")
	if e := succeed(t, "snapshot", "show", "hello", "--svg", picture); !strings.Contains(e.stdout, "function         hello") || !strings.Contains(e.stdout, "128 KiB a character") || !strings.Contains(e.stdout, "in the page cache") || strings.Contains(e.stdout, "\x1b") {
		t.Errorf("show: %s", e.stdout)
	}
	if text, err := os.ReadFile(picture); err != nil || !strings.Contains(string(text), "<title>pages 0 to ") {
		t.Errorf("picture: %v", err)
	}
	if e := succeed(t, "vm", "invoke", "hello", "-d", `{"name": "Grace"}`, "--accel", "tcg", "--times", "--tail"); e.stdout != "{\"message\": \"Hello, Grace!\"}\n" ||
		!strings.Contains(e.stderr, "faasnap: start ") || !strings.Contains(e.stderr, "greeting Grace") {
		t.Errorf("invoke: %s%s", e.stdout, e.stderr)
	}
	if e := runVolley(t, "vm", "invoke", "hello", "-d", "[]", "--accel", "tcg"); e.code != 7 || !strings.Contains(e.stdout, "AttributeError") {
		t.Errorf("a function that fails: exit status %d, %s%s", e.code, e.stdout, e.stderr)
	}
	if e := runVolley(t, "snapshot", "record", "hello"); e.code != 5 || !strings.Contains(e.stderr, "--replace") {
		t.Errorf("record again: exit status %d, %s", e.code, e.stderr)
	}
	t.Run("a snapshot comes from a store, its memory later", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "store")
		succeed(t, "snapshot", "push", "hello", dir)
		if e := runVolley(t, "snapshot", "pull", dir, "hello", "--lazy"); e.code != 5 || !strings.Contains(e.stderr, "--replace") {
			t.Errorf("pull in the place of another: exit status %d, %s", e.code, e.stderr)
		}
		succeed(t, "snapshot", "rm", "hello")
		if e := succeed(t, "snapshot", "pull", dir, "hello", "--lazy"); !strings.Contains(e.stdout, "its memory stays in file://"+dir) {
			t.Errorf("pull: %s", e.stdout)
		}
		for _, command := range []string{"ls", "show", "verify"} {
			args := []string{"snapshot", command, "hello"}
			if command == "ls" {
				args = args[:2]
			}
			if e := succeed(t, args...); !strings.Contains(e.stdout, "file://"+dir) {
				t.Errorf("%s does not tell where memory is: %s", command, e.stdout)
			}
		}
		if e := succeed(t, "vm", "invoke", "hello", "-d", `{"name": "Barbara"}`, "--accel", "tcg", "--times"); !strings.Contains(e.stdout, "Hello, Barbara!") ||
			!strings.Contains(e.stderr, "faasnap-uffd: start ") {
			t.Errorf("invoke: %s%s", e.stdout, e.stderr)
		}
		if err := os.Rename(dir, dir+".aside"); err != nil {
			t.Fatal(err)
		}
		if e := runVolley(t, "snapshot", "verify", "hello"); e.code != 6 || !strings.Contains(e.stderr, "the object store fails") {
			t.Errorf("verify without the store: exit status %d, %s", e.code, e.stderr)
		}
		if e := runVolley(t, "vm", "invoke", "hello", "--mode", "full", "--accel", "tcg"); e.code != 6 || !strings.Contains(e.stderr, "the object store fails") {
			t.Errorf("invoke without the store: exit status %d, %s", e.code, e.stderr)
		}
		if e := runVolley(t, "snapshot", "pull", dir, "other"); e.code != 4 || !strings.Contains(e.stderr, "no snapshot") {
			t.Errorf("pull what is not there: exit status %d, %s", e.code, e.stderr)
		}
		succeed(t, "snapshot", "pull", dir+".aside", "hello", "--replace")
	})
	t.Run("a daemon keeps machines", func(t *testing.T) { daemonKeepsMachines(t, home) })
}

func daemonKeepsMachines(t *testing.T, home string) {
	p := startVolley(t, nil, "vm", "daemon", "--accel", "tcg")
	socket := filepath.Join(home, "vm.sock")
	eventually(t, "the daemon", func() bool { return strings.Contains(p.stdout.String(), "API at "+socket) || !p.running() })
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v: %s", info, err, p.stderr)
	}
	if e := runVolley(t, "vm", "daemon"); e.code != 6 {
		t.Errorf("a second daemon: exit status %d, %s", e.code, e.stderr)
	}
	id := strings.TrimSpace(succeed(t, "vm", "restore", "hello").stdout)
	if e := succeed(t, "vm", "invoke", id, "-d", `{"name": "Edsger"}`); !strings.Contains(e.stdout, "Hello, Edsger!") {
		t.Errorf("invoke: %s", e.stdout)
	}
	var list struct {
		Functions []struct{ Name string }
		VMs       []struct {
			ID, State string
			Host      struct{ PID int }
		}
	}
	if err := json.Unmarshal([]byte(succeed(t, "vm", "ls", "--json").stdout), &list); err != nil || len(list.VMs) != 1 || list.VMs[0].ID != id || list.VMs[0].State != "idle" || len(list.Functions) != 1 {
		t.Fatalf("ls: %+v, %v", list, err)
	}
	succeed(t, "vm", "pause", id[:8])
	if e := succeed(t, "vm", "show", id[:8]); !strings.Contains(e.stdout, "state          paused") || !strings.Contains(e.stdout, "snapshot       hello") || !strings.Contains(e.stdout, "memory in use") {
		t.Errorf("show a paused machine: %s", e.stdout)
	}
	if e := runVolley(t, "vm", "invoke", id); e.code != 6 || !strings.Contains(e.stderr, "paused") {
		t.Errorf("invoke a paused machine: exit status %d, %s", e.code, e.stderr)
	}
	succeed(t, "vm", "resume", id[:8])
	if e := succeed(t, "vm", "invoke", id, "-d", `{"name": "Barbara"}`); !strings.Contains(e.stdout, "Hello, Barbara!") {
		t.Errorf("invoke: %s", e.stdout)
	}
	if e := runVolley(t, "vm", "pause", "nobody"); e.code != 4 {
		t.Errorf("pause nobody: exit status %d, %s", e.code, e.stderr)
	}
	if e := succeed(t, "snapshot", "learn", "hello", "-d", `{"name": "Donald"}`); !strings.Contains(e.stdout, "READ AHEAD") || !strings.Contains(e.stdout, "loading set") {
		t.Errorf("learn: %s", e.stdout)
	}
	if e := runVolley(t, "vm", "snapshot", id[:8], "more"); e.code != 6 || !strings.Contains(e.stderr, "only one that was booted") {
		t.Errorf("save a restored machine: exit status %d, %s", e.code, e.stderr)
	}
	if _, err := exec.LookPath("curl"); err == nil {
		answer := tool(t, "curl", "-sSi", "--unix-socket", socket, "http://volley/v1/functions/hello/invocations?mode=full", "-d", `{"name": "curl"}`)
		if !strings.Contains(answer, `"Hello, curl!"`) || !strings.Contains(answer, "Volley-Mode: full") || !strings.Contains(answer, "Server-Timing: start;dur=") {
			t.Errorf("curl: %s", answer)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := p.wait(t); e.code != 0 {
		t.Errorf("daemon: exit status %d, %s", e.code, e.stderr)
	}
	if err := syscall.Kill(list.VMs[0].Host.PID, 0); err == nil {
		t.Error("the machine outlived the daemon")
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket outlived the daemon")
	}
	if e := succeed(t, "vm", "ls"); strings.Contains(e.stdout, id) {
		t.Errorf("ls: %s", e.stdout)
	}
}
