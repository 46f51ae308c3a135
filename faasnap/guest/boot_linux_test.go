package guest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
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

// console collects what a guest prints, with the time since its start.
type console struct {
	mu    sync.Mutex
	start time.Time
	text  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// boot starts QEMU without KVM, and returns the stream to the agent and QEMU.
func boot(t *testing.T, image guest.Image, more ...string) (*os.File, *exec.Cmd, *console) {
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
		"-append", image.CommandLine + " console=ttyS0",
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
	out := &console{start: time.Now()}
	qemu.Stdout, qemu.Stderr = out, out
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	remote.Close()
	return host, qemu, out
}

func TestAFunctionRunsInAVirtualMachine(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages)
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	b := &guest.Builder{Dir: filepath.Join(cache, "guest"), Init: sandboxtest.BuildInit(t)}
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "app.py"), []byte(pythonFunction), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	image, err := b.Function(ctx, "python3.12", code)
	if err != nil {
		t.Fatal(err)
	}
	f := &function.Function{Name: "f", Runtime: "python3.12", Handler: "app.handler", MemoryMB: 256, Timeout: 30 * time.Second}
	start := time.Now()
	stream, qemu, out := boot(t, image)
	defer func() {
		if t.Failed() {
			t.Logf("console:\n%s", out)
		}
	}()
	defer qemu.Process.Kill()
	cfg, err := agent.Command(f, "c", agent.Layout{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Credential = &frame.Credential{UID: guest.FunctionID, GID: guest.FunctionID}
	cfg.InitTimeout = time.Minute
	a, err := agent.Start(ctx, agent.Conn{Reader: stream, Writer: stream, Closer: stream}, cfg, agent.Options{Function: f, Log: func(l function.LogLine) { t.Log(l) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v", time.Since(start))
	for i := range 3 {
		resp, err := a.Invoke(ctx, sandbox.Request{ID: fmt.Sprint("r", i), Payload: []byte(`{}`), Deadline: time.Now().Add(10 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s in %v", resp.Payload, resp.Run)
	}
	if err := a.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := qemu.Wait(); err != nil {
		t.Errorf("QEMU: %v", err)
	}
}

const pythonFunction = `
import os, random, sys
restored = []

def after_restore():
    restored.append(open("/run/volley/instance-id").read())

def handler(event, context):
    return {"uid": os.getuid(), "random": random.random(), "restored": restored, "boot": open("/proc/uptime").read(), "mounts": open("/proc/mounts").read(), "py": sys.version}
`
