package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
	"github.com/volley-run/volley/internal/testenv"
)

// openDir makes a directory that any user can write to.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// script makes a program that any user can run.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(openDir(t), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// sparse makes a file of zeros.
func sparse(t *testing.T, sizeBytes int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, sizeBytes)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVersionSaysWhatIsMissing(t *testing.T) {
	for _, tc := range []struct{ name, binary, want string }{
		{"no program", filepath.Join(t.TempDir(), "none"), "install qemu-system-x86"},
		{"no program in PATH", "qemu-of-nobody", "install qemu-system-x86"},
		{"another program", script(t, "echo Something v1"), `says "Something v1"`},
		{"a program that says nothing", script(t, ""), `says ""`},
		{"a program that fails", script(t, "exit 3"), "exit status 3"},
		{"an old QEMU", script(t, "echo QEMU emulator version 7.1.0"), "version 7.1.0: 7.2 or later"},
		{"a very old QEMU", script(t, "echo QEMU emulator version 2.12.1"), "version 2.12.1: 7.2 or later"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := qemu.New(qemu.Config{Binary: tc.binary, Accel: qemu.TCG})
			if _, err := d.Version(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v; want %q", err, tc.want)
			}
			if _, err := d.Boot(t.Context(), vmm.Boot{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("boot: error %v; want %q", err, tc.want)
			}
		})
	}
	for says, want := range map[string]string{
		"7.2.22 (Debian 1:7.2+dfsg)": "qemu 7.2.22 q35 tcg", "8.0.0": "qemu 8.0.0 q35 tcg", "10.1.50": "qemu 10.1.50 q35 tcg",
	} {
		d := qemu.New(qemu.Config{Binary: script(t, fmt.Sprintf("echo 'QEMU emulator version %s'", says)), Accel: qemu.TCG})
		if got, err := d.Version(t.Context()); err != nil || got != want {
			t.Errorf("version %q, error %v; want %q", got, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if v, err := qemu.New(qemu.Config{Binary: script(t, "exec sleep 60")}).Version(ctx); err == nil {
		t.Errorf("version %q; want that the time is over", v)
	}
}

func TestKVMIsAskedOnceUntilTheHostStartsAnew(t *testing.T) {
	device := sparse(t, 0)
	// QEMU is another user's where this is root's.
	asked := filepath.Join(openDir(t), "asked")
	if err := errors.Join(os.WriteFile(asked, nil, 0o600), os.Chmod(asked, 0o666)); err != nil {
		t.Fatal(err)
	}
	// binary is a QEMU of a version whose guests end as a probe's should, or not.
	binary := func(version string, status int) string {
		return script(t, fmt.Sprintf("test \"$1\" != --version || exec echo QEMU emulator version %s\necho x >>%s\nexit %d", version, asked, status))
	}
	times := func() int {
		text, err := os.ReadFile(asked)
		if err != nil {
			t.Fatal(err)
		}
		return len(text) / 2
	}
	works, fails := binary("9.0.0", 0x21), binary("9.0.0", 1)
	cache := t.TempDir()
	const kvm, tcg = "qemu 9.0.0 microvm kvm", "qemu 9.0.0 q35 tcg"
	for _, step := range []struct {
		name   string
		cfg    qemu.Config
		device string
		want   string
		asks   int
	}{
		{"without the device", qemu.Config{Binary: works, Cache: cache}, device + ".none", tcg, 0},
		{"the first time", qemu.Config{Binary: works, Cache: cache}, device, kvm, 1},
		{"the second time", qemu.Config{Binary: works, Cache: cache}, device, kvm, 0},
		{"another user", qemu.Config{Binary: works, Cache: cache, UID: 65533}, device, kvm, 1},
		{"another program", qemu.Config{Binary: fails, Cache: cache}, device, tcg, 1},
		{"that program again", qemu.Config{Binary: fails, Cache: cache}, device, tcg, 0},
		{"without a cache", qemu.Config{Binary: works}, device, kvm, 1},
		{"a cache that cannot be written", qemu.Config{Binary: works, Cache: cache + "/none"}, device, kvm, 1},
		{"told what to take", qemu.Config{Binary: fails, Cache: cache, Accel: qemu.KVM}, device, kvm, 0},
	} {
		before := times()
		d := qemu.NewWithKVM(step.cfg, step.device)
		for range 2 {
			if got, err := d.Version(t.Context()); err != nil || got != step.want {
				t.Errorf("%s: version %q, error %v; want %q", step.name, got, err, step.want)
			}
		}
		if got := times() - before; got != step.asks {
			t.Errorf("%s: KVM was asked %d times; want %d", step.name, got, step.asks)
		}
	}
	names, err := os.ReadDir(cache)
	if err != nil || len(names) != 1 {
		t.Fatalf("the cache has %v (%v); want one file", names, err)
	}
	if err := os.WriteFile(filepath.Join(cache, names[0].Name()), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := qemu.NewWithKVM(qemu.Config{Binary: works, Cache: cache}, device).Version(t.Context()); err != nil || got != kvm {
		t.Errorf("with a damaged cache: version %q, error %v; want %q", got, err, kvm)
	}
}

// TestWhatCannotBeRestoredIsRefused restores no guest: QEMU, if it is started at
// all, ends before there is one.
func TestWhatCannotBeRestoredIsRefused(t *testing.T) {
	d := newDriver(t)
	const size = 16 << 20
	memory := sparse(t, size)
	plan := func(n int, loads ...pages.Range) *pages.Plan {
		t.Helper()
		all := pages.NewSet(n)
		all.AddRange(pages.Range{End: n})
		w := pages.WorkingSet{Pages: n}
		if len(loads) > 0 {
			w.Groups = []pages.Group{loads}
		}
		p, err := pages.Make(all, w, pages.DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	overlay := func(p *pages.Plan, loading string) vmm.Memory {
		return vmm.Memory{Overlay: &vmm.Overlay{Plan: p, Memory: memory, Loading: loading}}
	}
	garbage := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("garbage "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	n, load := size/pages.Size, pages.Range{Start: 16, End: 48}
	for _, tc := range []struct {
		name   string
		memory vmm.Memory
		change func(*vmm.Machine)
		want   string
	}{
		{"a plan for less memory", overlay(plan(n/2), ""), nil, "map plan: it is for guest memory of 8388608 bytes: want 16777216"},
		{"a plan for more memory", overlay(plan(n*2), ""), nil, "map plan: it is for guest memory of 33554432 bytes"},
		{"no name of a loading set", overlay(plan(n, load), ""), nil, "open loading set: open : no such file"},
		{"a missing loading set", overlay(plan(n, load), memory+".none"), nil, "open loading set: "},
		{"a loading set that is too short", overlay(plan(n, load), sparse(t, 31*pages.Size)), nil, "has 126976 bytes: want 131072"},
		{"a missing drive", vmm.Memory{File: memory}, func(m *vmm.Machine) { m.Drives = []vmm.Drive{{Path: memory + ".none"}} }, "open drive 1: "},
		{"a missing tap", vmm.Memory{File: memory}, func(m *vmm.Machine) { m.Network = &vmm.Network{Namespace: memory + ".none", Tap: "t"} }, "open tap t: "},
		{"a handler that does not listen", vmm.Memory{Faults: &vmm.Faults{Socket: memory}}, nil, "volley-shim: connect to the handler of page faults: "},
		{"garbage, file", vmm.Memory{File: memory}, nil, "QEMU has ended: qemu-system-x86_64: Not a migration stream"},
		{"garbage, overlay", overlay(plan(n, load), sparse(t, 32*pages.Size)), nil, "Not a migration stream"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, paused := range []bool{false, true} {
				m := vmm.Machine{MemoryBytes: size, CPUs: 1}
				if tc.change != nil {
					tc.change(&m)
				}
				vm, err := d.Restore(t.Context(), vmm.Restore{Machine: m, State: garbage, Memory: tc.memory, Dir: t.TempDir(), Paused: paused})
				if err == nil {
					t.Fatal(errors.Join(errors.New("no error"), vm.Close()))
				}
				if !strings.Contains(err.Error(), tc.want) {
					t.Errorf("paused %v: error %v; want %q", paused, err, tc.want)
				}
			}
		})
	}
	t.Run("no library", func(t *testing.T) {
		for path, want := range map[string]string{"": "is not built", memory + ".none": "no such file"} {
			r := vmm.Restore{Machine: vmm.Machine{MemoryBytes: size, CPUs: 1}, State: garbage, Memory: vmm.Memory{File: memory}}
			if _, err := qemu.New(qemu.Config{Accel: qemu.TCG, Shim: path}).Restore(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v; want %q", err, want)
			}
		}
	})
}

func TestTheShimIsSmallAndCompilesWithoutWarnings(t *testing.T) {
	testenv.Need(t, testenv.CC)
	cc := exec.Command("cc", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-x", "c", "-o", filepath.Join(t.TempDir(), "shim.so"), "-")
	cc.Stdin = bytes.NewReader(qemu.ShimSource())
	if out, err := cc.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if n := bytes.Count(qemu.ShimSource(), []byte("\n")); n >= 300 {
		t.Errorf("the shim has %d lines; want less than 300, as all of it is in a VMM", n)
	}
	dir := t.TempDir()
	first, err := qemu.BuildShim(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := qemu.BuildShim(t.Context(), dir)
	if err != nil || second != first {
		t.Fatalf("built %s, then %s (%v)", first, second, err)
	}
	if after, err := os.Stat(second); err != nil || !os.SameFile(before, after) {
		t.Errorf("built again what was there (%v)", err)
	}
	t.Setenv("PATH", "")
	if _, err := qemu.BuildShim(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "install gcc") {
		t.Errorf("error %v; want what to install", err)
	}
}
