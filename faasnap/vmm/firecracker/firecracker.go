// Package firecracker is the driver of Firecracker as it is released, without a
// patch. It needs Linux, KVM, and Firecracker 1.12 or later.
//
// Firecracker maps guest memory itself, from a file or behind a userfaultfd, so
// memory of the kinds File and Faults can be restored; Shared and Overlay
// cannot. A snapshot resets the guest's vsock, so that the agent's stream ends:
// see VM.Agent.
//
// On machines without KVM the driver is tested against a double of Firecracker,
// package double, and not against Firecracker.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/tail"
)

const (
	mib = 1 << 20
	// pageBytes is what memory comes in multiples of.
	pageBytes = 2 * mib
	// maxCPUs is Firecracker's limit.
	maxCPUs = 32
	// consoleOptions are what the kernel has to be told about Firecracker's
	// hardware: the console, how to switch off, and what not to look for.
	consoleOptions = "console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux i8042.dumbkbd"
	interfaceID    = "eth0"
)

// Driver implements vmm.Driver.
type Driver struct {
	binary string
	kvm    func() error
}

var _ vmm.Driver = (*Driver)(nil)

// New returns the driver of a Firecracker binary. An empty path is the one
// called firecracker in PATH.
func New(binary string) *Driver {
	if binary == "" {
		binary = "firecracker"
	}
	return &Driver{binary: binary, kvm: sys.CheckKVM}
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "firecracker" }

// Version implements vmm.Driver. It is "firecracker 1.12.0 kvm".
func (d *Driver) Version(ctx context.Context) (string, error) {
	binary, err := d.find()
	if err != nil {
		return "", err
	}
	if err := d.kvm(); err != nil {
		return "", fmt.Errorf("firecracker needs a working /dev/kvm: %w", err)
	}
	cmd := exec.CommandContext(ctx, binary, "--version")
	var stderr tail.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w %s", binary, err, &stderr)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	version, ok := strings.CutPrefix(strings.TrimSpace(line), "Firecracker v")
	if !ok || version == "" {
		return "", fmt.Errorf("%s --version says %q: want the version of Firecracker", binary, line)
	}
	return "firecracker " + version + " kvm", nil
}

// find returns the absolute path of the binary.
func (d *Driver) find() (string, error) {
	path, err := exec.LookPath(d.binary)
	if err != nil {
		return "", fmt.Errorf("find firecracker: %w", err)
	}
	return filepath.Abs(path)
}

// Boot implements vmm.Driver. The kernel is an uncompressed ELF file
// ("vmlinux"). Boot returns when the agent has answered, which listens on port
// 52 of the guest's vsock. b.Memory is not used.
func (d *Driver) Boot(ctx context.Context, b vmm.Boot) (vmm.VM, error) {
	v, err := d.boot(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	return v, nil
}

func (d *Driver) boot(ctx context.Context, b vmm.Boot) (*VM, error) {
	if err := check(b.Machine); err != nil {
		return nil, err
	}
	kernel, err := filepath.Abs(b.Kernel)
	if err != nil {
		return nil, err
	}
	boot := bootSource{Kernel: kernel, CommandLine: strings.TrimSpace(consoleOptions + " " + b.CommandLine)}
	if b.Initrd != "" {
		if boot.Initrd, err = filepath.Abs(b.Initrd); err != nil {
			return nil, err
		}
	}
	return d.start(ctx, &VM{machine: b.Machine, dir: b.Dir, console: b.Console}, func(v *VM) error {
		type request struct {
			path string
			body any
		}
		requests := []request{
			{"/machine-config", machineConfig{CPUs: b.CPUs, MemoryMiB: b.MemoryBytes / mib}},
			{"/boot-source", boot},
		}
		for i, dr := range b.Drives {
			id := driveID(i)
			requests = append(requests, request{"/drives/" + id, drive{ID: id, Path: id, ReadOnly: dr.ReadOnly}})
		}
		if n := b.Network; n != nil {
			requests = append(requests, request{"/network-interfaces/" + interfaceID, networkInterface{interfaceID, n.Tap, n.MAC.String()}})
		}
		requests = append(requests,
			request{"/vsock", vsock{CID: guestCID, Path: agentSocket}},
			request{"/actions", action{"InstanceStart"}})
		for _, r := range requests {
			if err := v.api.put(ctx, r.path, r.body); err != nil {
				return err
			}
		}
		return nil
	})
}

// Restore implements vmm.Driver. r.Memory is a File or Faults. The agent has a
// new stream. The guest's drives and tap may be others than it has been saved
// with.
func (d *Driver) Restore(ctx context.Context, r vmm.Restore) (vmm.VM, error) {
	v, err := d.restore(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	return v, nil
}

func (d *Driver) restore(ctx context.Context, r vmm.Restore) (*VM, error) {
	if err := check(r.Machine); err != nil {
		return nil, err
	}
	state, err := filepath.Abs(r.State)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(state); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, fmt.Errorf("%s: want a file that holds a guest's state", state)
	}
	v := &VM{machine: r.Machine, dir: r.Dir, console: r.Console}
	load := snapshotLoad{State: state, Resume: true}
	switch m := r.Memory; {
	case m.Shared != "" && m == (vmm.Memory{Shared: m.Shared}):
		return nil, fmt.Errorf("memory shared with a file: %w: firecracker maps a file privately", vmm.ErrUnsupported)
	case m.Overlay != nil && m == (vmm.Memory{Overlay: m.Overlay}):
		return nil, fmt.Errorf("memory as an overlay: %w: firecracker maps one file, or has page faults served", vmm.ErrUnsupported)
	case m.File != "" && m == (vmm.Memory{File: m.File}):
		if v.file, err = filepath.Abs(m.File); err != nil {
			return nil, err
		}
		info, err := os.Stat(v.file)
		if err != nil {
			return nil, err
		}
		if info.Size() != r.MemoryBytes {
			return nil, fmt.Errorf("memory file %s has %d bytes: want %d", v.file, info.Size(), r.MemoryBytes)
		}
		load.Memory = memoryBackend{"File", v.file}
	case m.Faults != nil && m == (vmm.Memory{Faults: m.Faults}):
		if v.faults, err = filepath.Abs(m.Faults.Socket); err != nil {
			return nil, err
		}
		load.Memory = memoryBackend{"Uffd", faultSocket}
	default:
		return nil, errors.New("memory has to be one of Shared, File, Overlay and Faults")
	}
	if n := r.Network; n != nil {
		load.Network = []networkOverride{{interfaceID, n.Tap}}
	}
	return d.start(ctx, v, func(v *VM) error {
		if err := v.api.put(ctx, "/snapshot/load", load); err != nil {
			return err
		}
		var got machineConfig
		if err := v.api.get(ctx, "/machine-config", &got); err != nil {
			return err
		}
		if want := (machineConfig{r.CPUs, r.MemoryBytes / mib}); got != want {
			return fmt.Errorf("the state is of a guest with %d CPUs and %d MiB: want %d CPUs and %d MiB", got.CPUs, got.MemoryMiB, want.CPUs, want.MemoryMiB)
		}
		return nil
	})
}

// check returns an error if Firecracker has no such machine.
func check(m vmm.Machine) error {
	if m.MemoryBytes <= 0 || m.MemoryBytes%pageBytes != 0 {
		return fmt.Errorf("%d bytes of memory: want a multiple of 2 MiB", m.MemoryBytes)
	}
	if m.CPUs < 1 || m.CPUs > maxCPUs {
		return fmt.Errorf("%d CPUs: want 1 to %d", m.CPUs, maxCPUs)
	}
	return nil
}

// start starts a Firecracker for v, has run make the guest run, and connects to
// its agent. Nothing is left after an error.
func (d *Driver) start(ctx context.Context, v *VM, run func(*VM) error) (_ *VM, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if v.dir, err = filepath.Abs(v.dir); err != nil {
		return nil, err
	}
	binary, err := d.find()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{apiSocket, agentSocket} {
		if _, err := os.Lstat(v.path(name)); err == nil {
			return nil, fmt.Errorf("%s exists: want a directory that no other VM has", v.path(name))
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.remove())
		}
	}()
	if err := v.link(); err != nil {
		return nil, err
	}
	namespace := ""
	if v.machine.Network != nil {
		namespace = v.machine.Network.Namespace
	}
	if v.process, err = startProcess(binary, v.dir, namespace, v.console); err != nil {
		return nil, err
	}
	v.api = newClient(v.path(apiSocket))
	defer func() {
		if err != nil {
			err = errors.Join(v.process.because(err), v.Close())
		}
	}()
	var version instanceVersion
	err = v.process.retry(ctx, func(ctx context.Context) error { return v.api.get(ctx, "/version", &version) })
	if err != nil {
		return nil, fmt.Errorf("wait for firecracker: %w", err)
	}
	if err := run(v); err != nil {
		return nil, err
	}
	if err := v.connect(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// driveID is the name of the i-th drive, and of the link to it.
func driveID(i int) string { return fmt.Sprint("drive", i) }
