// Package faasnaptest gives tests what runs real virtual machines.
package faasnaptest

import (
	"path/filepath"
	"testing"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// QEMU returns a driver on QEMU, which emulates the processor, and a builder
// whose images the tests of all packages share. It ends the test, as
// testenv.Need does, where that cannot be.
func QEMU(t testing.TB) (vmm.Driver, *guest.Builder) {
	t.Helper()
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.Userfaultfd)
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	shim, err := qemu.BuildShim(t.Context(), filepath.Join(cache, "shim"))
	if err != nil {
		t.Fatal(err)
	}
	return qemu.New(qemu.Config{Shim: shim, Accel: qemu.TCG}), &guest.Builder{Dir: filepath.Join(cache, "guest"), Init: sandboxtest.BuildInit(t)}
}
