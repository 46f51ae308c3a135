package qemu_test

import (
	"os"
	"os/exec"
	"path/filepath"
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
		Kinds:   []vmmtest.Kind{vmmtest.Shared, vmmtest.File, vmmtest.Overlay, vmmtest.Faults},
	})
}
