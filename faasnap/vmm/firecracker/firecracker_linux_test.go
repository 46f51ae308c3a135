package firecracker_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/firecracker"
	"github.com/volley-run/volley/faasnap/vmm/firecracker/double"
	"github.com/volley-run/volley/faasnap/vmm/vmmtest"
	"github.com/volley-run/volley/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(double.Env) != "" {
		os.Exit(double.Main(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

const memoryBytes = 16 << 20

// newDriver returns a driver of the double.
func newDriver(t *testing.T) *firecracker.Driver {
	t.Helper()
	binary, err := double.Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return firecracker.NewWithoutKVM(binary)
}

// newBoot returns a guest of the double.
func newBoot(t *testing.T) vmm.Boot {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte(double.Kernel), 0o600); err != nil {
		t.Fatal(err)
	}
	return vmm.Boot{Machine: vmm.Machine{MemoryBytes: memoryBytes, CPUs: 2}, Kernel: kernel, CommandLine: "quiet"}
}

func sum(memory io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, memory)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func TestTheDriverDoesWhatDriversDo(t *testing.T) {
	vmmtest.Test(t, vmmtest.Config{
		Driver:    newDriver(t),
		Boot:      newBoot,
		Console:   "Linux version",
		Stuck:     func(b *vmm.Boot) { b.CommandLine += " double.agent=none" },
		Kinds:     []vmmtest.Kind{vmmtest.File, vmmtest.Faults},
		MemorySum: sum,
	})
}

// TestFirecrackerItself boots a kernel that has no agent.
func TestFirecrackerItself(t *testing.T) {
	testenv.Need(t, testenv.Firecracker)
	d := firecracker.New("")
	if version, err := d.Version(t.Context()); err != nil || !regexp.MustCompile(`^firecracker \S+ kvm$`).MatchString(version) {
		t.Errorf("version %q, error %v", version, err)
	}
	var console bytes.Buffer
	b := newBoot(t)
	b.MemoryBytes, b.Dir, b.Console = 128<<20, t.TempDir(), &console
	if err := os.WriteFile(b.Kernel, testenv.TinyKernel("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if vm, err := d.Boot(t.Context(), b); err == nil || !strings.Contains(err.Error(), "firecracker has ended") {
		started(t, vm, err)
		t.Errorf("error %v; want that the guest has ended", err)
	}
	if !strings.Contains(console.String(), "hello") {
		t.Errorf("the console has %q; want hello", &console)
	}
}
