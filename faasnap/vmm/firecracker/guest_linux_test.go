package firecracker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/firecracker"
	"github.com/volley-run/volley/faasnap/vmm/vmmtest"
	"github.com/volley-run/volley/internal/testenv"
)

func started(t *testing.T, vm vmm.VM, err error) vmm.VM {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func boot(t *testing.T, d *firecracker.Driver, b vmm.Boot) vmm.VM {
	t.Helper()
	b.Dir = t.TempDir()
	vm, err := d.Boot(t.Context(), b)
	return started(t, vm, err)
}

// save pauses and saves a guest.
func save(t *testing.T, vm vmm.VM) vmm.SaveFiles {
	t.Helper()
	dir := t.TempDir()
	f := vmm.SaveFiles{State: filepath.Join(dir, "state"), Memory: filepath.Join(dir, "memory")}
	if err := errors.Join(vm.Pause(t.Context()), vm.Save(t.Context(), f)); err != nil {
		t.Fatal(err)
	}
	return f
}

func ask(t *testing.T, vm vmm.VM, request string) string {
	t.Helper()
	answer, err := vmmtest.AskLine(vm.Agent(), request)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

func TestAGuestEnds(t *testing.T) {
	for _, tc := range []struct{ request, want string }{
		{"off", ""},
		{"crash", "exit status 148; it said: thread 'fc_vcpu 0' panicked"},
	} {
		t.Run(tc.request, func(t *testing.T) {
			vm := boot(t, newDriver(t), newBoot(t))
			if _, err := io.WriteString(vm.Agent(), tc.request+"\n"); err != nil {
				t.Fatal(err)
			}
			<-vm.Done()
			if err := vm.Err(); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v; want %q", err, tc.want)
			}
			if err := vm.Pause(t.Context()); err == nil {
				t.Error("a guest that has ended can be paused")
			}
			b := newBoot(t)
			b.Dir, b.CommandLine = t.TempDir(), "double.agent=none double.boot="+tc.request
			if vm, err := newDriver(t).Boot(t.Context(), b); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "ended") {
				started(t, vm, err)
				t.Errorf("boot: error %v; want %q", err, tc.want)
			}
		})
	}
}

func TestWhatFirecrackerRefusesIsAnError(t *testing.T) {
	d := newDriver(t)
	for _, tc := range []struct {
		name, want string
		change     func(*vmm.Boot)
	}{
		{"a kernel that is none", "invalid ELF", func(b *vmm.Boot) { b.Kernel = os.Args[0] + ".none" }},
		{"a compressed kernel", "refuses PUT /actions (status 400): the kernel cannot be loaded: invalid ELF", func(b *vmm.Boot) {
			b.Kernel = filepath.Join(t.TempDir(), "bzImage")
			if err := os.WriteFile(b.Kernel, []byte("MZ"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"a missing drive", "no such file", func(b *vmm.Boot) { b.Drives = []vmm.Drive{{Path: b.Kernel + ".none"}} }},
		{"a missing initrd", "initrd cannot be opened", func(b *vmm.Boot) { b.Initrd = b.Kernel + ".none" }},
		{"a missing tap", "tap cannot be opened", func(b *vmm.Boot) { b.Network = &vmm.Network{Tap: "none"} }},
		{"a missing namespace", "no such file", func(b *vmm.Boot) {
			b.Network = &vmm.Network{Tap: "lo", Namespace: b.Kernel + ".none"}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBoot(t)
			b.Dir = t.TempDir()
			tc.change(&b)
			if tc.name == "a kernel that is none" {
				tc.want = "kernel or initrd cannot be opened"
			}
			vm, err := d.Boot(t.Context(), b)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				started(t, vm, err)
				t.Errorf("error %v; want %q", err, tc.want)
			}
			if left, err := os.ReadDir(b.Dir); err != nil || len(left) > 0 {
				t.Errorf("left in the directory: %v (%v)", left, err)
			}
		})
	}
	t.Run("a directory that another VM has", func(t *testing.T) {
		b := newBoot(t)
		b.Dir = t.TempDir()
		vm, err := d.Boot(t.Context(), b)
		started(t, vm, err)
		if _, err := d.Boot(t.Context(), b); err == nil || !strings.Contains(err.Error(), "no other VM") {
			t.Errorf("error %v; want that there is another", err)
		}
		ask(t, vm, "echo on")
	})
}

func TestSaveOfARunningGuestIsRefused(t *testing.T) {
	dir := t.TempDir()
	err := boot(t, newDriver(t), newBoot(t)).Save(t.Context(), vmm.SaveFiles{State: filepath.Join(dir, "state"), Memory: filepath.Join(dir, "memory")})
	if err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("error %v; want that it is not paused", err)
	}
}

func TestARestoredGuestHasItsOwnDrivesAndNetwork(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	namespace := testenv.AnyIPNamespace(t, "fc")
	for _, tap := range []string{"tap0", "tap1"} {
		if out, err := exec.Command("nsenter", "--net="+namespace, "ip", "link", "add", tap, "type", "bridge").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	d, b := newDriver(t), newBoot(t)
	newDrive := func() []vmm.Drive {
		path := filepath.Join(t.TempDir(), "drive")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return []vmm.Drive{{Path: path}, {Path: b.Kernel, ReadOnly: true}}
	}
	b.Drives = newDrive()
	b.Network = &vmm.Network{Namespace: namespace, Tap: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	vm := boot(t, d, b)
	f := save(t, vm)
	if err := errors.Join(vm.Close(), os.Remove(b.Drives[0].Path)); err != nil {
		t.Fatal(err)
	}
	restored := func(drives []vmm.Drive, tap string) (vmm.VM, error) {
		m := b.Machine
		m.Drives = drives
		m.Network = &vmm.Network{Namespace: namespace, Tap: tap}
		return d.Restore(t.Context(), vmm.Restore{Machine: m, State: f.State, Memory: vmm.Memory{File: f.Memory}, Dir: t.TempDir()})
	}
	for range 2 {
		vm, err := restored(newDrive(), "tap1")
		ask(t, started(t, vm, err), "echo on")
	}
	if _, err := restored(newDrive(), "tap2"); err == nil {
		t.Error("restored with a tap that is not there")
	}
	if _, err := restored(nil, "tap1"); err == nil {
		t.Error("restored without drives")
	}
}

func TestARestoredGuestIsAsLargeAsItWas(t *testing.T) {
	d, b := newDriver(t), newBoot(t)
	f := save(t, boot(t, d, b))
	m := b.Machine
	m.CPUs++
	_, err := d.Restore(t.Context(), vmm.Restore{Machine: m, State: f.State, Memory: vmm.Memory{File: f.Memory}, Dir: t.TempDir()})
	if want := "a guest with 2 CPUs and 16 MiB: want 3 CPUs"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v; want %q", err, want)
	}
}

func TestSavingOverTheFileThatOthersRunFrom(t *testing.T) {
	d, b := newDriver(t), newBoot(t)
	f := save(t, boot(t, d, b))
	r := vmm.Restore{Machine: b.Machine, State: f.State, Memory: vmm.Memory{File: f.Memory}}
	var vms []vmm.VM
	for range 2 {
		r.Dir = t.TempDir()
		vm, err := d.Restore(t.Context(), r)
		vms = append(vms, started(t, vm, err))
	}
	before := ask(t, vms[1], "sum")
	ask(t, vms[0], "fill 5")
	changed := ask(t, vms[0], "sum")
	if err := errors.Join(vms[0].Pause(t.Context()), vms[0].Save(t.Context(), f)); err != nil {
		t.Fatal(err)
	}
	if ask(t, vms[1], "sum") != before {
		t.Error("a guest has changed under its feet")
	}
	r.Dir = t.TempDir()
	vm, err := d.Restore(t.Context(), r)
	if ask(t, started(t, vm, err), "sum") != changed {
		t.Error("the file has other memory than was saved")
	}
}

func TestVersionSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\n%s\n", text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct{ binary, want string }{
		{filepath.Join(dir, "none"), "no such file"},
		{script("other", "echo Something v1"), `says "Something v1"`},
		{script("failing", "echo broken >&2; exit 3"), "exit status 3 broken"},
	} {
		if _, err := firecracker.NewWithoutKVM(tc.binary).Version(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v; want %q", tc.binary, err, tc.want)
		}
	}
	broken := errors.New("no KVM here")
	if _, err := firecracker.NewWithKVM(script("good", "echo Firecracker v1"), broken).Version(t.Context()); !errors.Is(err, broken) {
		t.Errorf("error %v; want %v", err, broken)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := firecracker.NewWithoutKVM(script("slow", "exec sleep 60")).Version(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v; want that the time is over", err)
	}
}
