package guest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// boot starts QEMU without KVM, and returns the stream to the agent and QEMU.
func boot(t *testing.T, image guest.Image, more ...string) (*os.File, *exec.Cmd, *testenv.Buffer) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	host, remote := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	args := []string{
		"-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", image.Kernel, "-initrd", image.Initrd,
		"-append", image.CommandLine + " mitigations=off console=ttyS0",
		"-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=3",
		"-device", "virtserialport,chardev=agent,name=org.volley.agent",
	}
	for i, drive := range image.Drives() {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=drive%d,file=%s,format=raw,readonly=on", i, drive),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=drive%d", i))
	}
	qemu := exec.Command("qemu-system-x86_64", append(args, more...)...)
	qemu.ExtraFiles = []*os.File{remote}
	out := &testenv.Buffer{}
	qemu.Stdout, qemu.Stderr = out, out
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = qemu.Process.Kill() // it has ended if the test went well
		_ = qemu.Wait()
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := remote.Close(); err != nil {
		t.Fatal(err)
	}
	return host, qemu, out
}

// testBuilder returns a Builder whose images the tests of all packages share.
func testBuilder(t *testing.T) *guest.Builder {
	t.Helper()
	testenv.Need(t, testenv.QEMU, testenv.GuestImages)
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return &guest.Builder{Dir: filepath.Join(cache, "guest"), Init: sandboxtest.BuildInit(t)}
}

// letGo ends an Agent's use of a stream, not the stream.
type letGo struct{ *os.File }

func (l letGo) Close() error { return l.SetReadDeadline(time.Now()) }

const pythonFunction = `
import os, random, time

random.seed(1)
same = random.Random(1)
restored = []

def after_restore():
    restored.append(open("/run/volley/instance-id").read())
    if len(restored) == 1:
        raise ValueError("the first time")

def handler(event, context):
    with open("/tmp/file", "w") as f:
        f.write("x")
    return {
        "uid": os.getuid(), "drawn": random.random(), "expected": same.random(),
        "restored": restored, "time": time.time(), "uptime": float(open("/proc/uptime").read().split()[0]),
    }
`

// said is what pythonFunction answers.
type said struct {
	UID             int
	Drawn, Expected float64
	Restored        []string
	Time, Uptime    float64
}

func invoke(t *testing.T, a *agent.Agent, id string) (said, sandbox.Response) {
	t.Helper()
	resp, err := a.Invoke(t.Context(), sandbox.Request{ID: id, Payload: []byte(`{}`), Deadline: time.Now().Add(30 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	var s said
	if resp.FunctionError == "" {
		if err := json.Unmarshal(resp.Payload, &s); err != nil {
			t.Fatalf("answer %s: %v", resp.Payload, err)
		}
	}
	return s, resp
}

func TestAFunctionRunsInAVirtualMachine(t *testing.T) {
	b := testBuilder(t)
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "app.py"), []byte(pythonFunction), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	image, err := b.Function(ctx, "python3.12", code)
	if err != nil {
		t.Fatal(err)
	}
	f := &function.Function{Name: "f", Runtime: "python3.12", Handler: "app.handler", MemoryMB: 256, Timeout: 30 * time.Second}
	cfg, err := agent.Command(f, "c", agent.Layout{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Credential = &frame.Credential{UID: guest.FunctionID, GID: guest.FunctionID}
	cfg.InitTimeout = time.Minute // without KVM all is slow
	start := time.Now()
	stream, qemu, out := boot(t, image)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", out)
		}
	})
	conn := agent.Conn{Reader: stream, Writer: stream, Closer: letGo{stream}}
	opts := agent.Options{Function: f}
	a, err := agent.Start(ctx, conn, cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v", time.Since(start))
	first, resp := invoke(t, a, "first")
	if first.UID != guest.FunctionID || first.Drawn != first.Expected || len(first.Restored) > 0 {
		t.Errorf("first answer %+v", first)
	}
	t.Logf("first invocation: %v at %v s of uptime", resp.Run, first.Uptime)

	if err := a.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := stream.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}

	at := time.Now().Add(time.Hour)
	a, err = agent.Resume(ctx, conn, agent.Restore{Time: at.UnixNano(), ID: "00000000-0000-0000-0000-000000000001"}, opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, resp := invoke(t, a, "second"); resp.FunctionError == "" || !strings.Contains(string(resp.Payload), "the first time") || resp.Broken {
		t.Errorf("a hook that fails gives %+v: %s", resp, resp.Payload)
	}
	third, resp := invoke(t, a, "third")
	if !slices.Equal(third.Restored, []string{"00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"}) || third.Drawn == third.Expected {
		t.Errorf("after restore: %+v", third)
	}
	if d := third.Time - float64(at.Unix()); d < 0 || d > 60 {
		t.Errorf("the clock is %v s off", d)
	}
	t.Logf("an invocation when warm: %v", resp.Run)
	if fourth, _ := invoke(t, a, "fourth"); len(fourth.Restored) != 2 {
		t.Errorf("the hook was called again: %+v", fourth)
	}
	// The agent lets go of the stream; volley-init is told to end all the same.
	if err := a.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := qemu.Wait(); err != nil {
		t.Errorf("QEMU: %v", err)
	}
}
