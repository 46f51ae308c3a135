package qemu_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
	"github.com/volley-run/volley/faasnap/vmm/vmmtest"
	"github.com/volley-run/volley/internal/testenv"
)

const memoryBytes = 160 << 20

// newDriver returns a driver of the host's QEMU, without KVM: that it is there
// does not say that it works.
func newDriver(t *testing.T) *qemu.Driver {
	t.Helper()
	testenv.Need(t, testenv.QEMU, testenv.CC)
	shim, err := qemu.BuildShim(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return qemu.New(qemu.Config{Accel: qemu.TCG, Shim: shim})
}

// newGuest returns what boots the guest of package vmmtest.
func newGuest(t *testing.T) vmm.Boot {
	t.Helper()
	testenv.Need(t, testenv.GuestImages)
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./faasnap/vmm/vmmtest/guest")
	build.Dir = testenv.RepoRoot(t)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v\n%s", err, out)
	}
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	builder := guest.Builder{Dir: filepath.Join(cache, "guest"), Init: program}
	kernel, err := builder.Kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return vmm.Boot{
		Machine: vmm.Machine{MemoryBytes: memoryBytes, CPUs: 1},
		Kernel:  kernel.Image, Initrd: kernel.Initrd,
		CommandLine: guest.CommandLine,
	}
}

func TestTheDriverDoesWhatDriversDo(t *testing.T) {
	d, b := newDriver(t), newGuest(t)
	vmmtest.Test(t, vmmtest.Config{
		Driver:  d,
		Boot:    func(*testing.T) vmm.Boot { return b },
		Console: "guest: ready",
		Locate:  locate,
		Kinds:   []vmmtest.Kind{vmmtest.Shared, vmmtest.File, vmmtest.Overlay, vmmtest.Faults},
	})
}

// locate finds guest memory: QEMU has it in a row that ends at a page that nobody
// can touch, and may begin with other memory.
func locate(pid int, sizeBytes int64) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	var found []uint64
	var start, end uint64 // of the row so far
	for line := range strings.Lines(string(text) + "0-0 ---p\n") {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			return 0, fmt.Errorf("malformed %q: %w", line, err)
		}
		writable := strings.HasPrefix(mode, "rw-")
		if from == end && writable {
			end = to
			continue
		}
		if at := end - uint64(sizeBytes); end-start >= uint64(sizeBytes) {
			found = append(found, at)
		}
		start, end = from, to
		if !writable {
			start = to
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("process %d has %d places that could be guest memory: want one", pid, len(found))
	}
	return found[0], nil
}
