// Package qemu runs virtual machines on QEMU as it comes, 7.2 and later: under
// KVM where that works, and else by software emulation (TCG).
//
// Guest memory is one file. At boot it is shared, so that a snapshot of it is
// that file; a restored guest has it mapped by a small library that is loaded
// into QEMU (shim/shim.c), as one private mapping, as a restore plan says, or
// with its page faults handed to another process. Devices and CPUs go through
// QEMU's migration with the capability x-ignore-shared.
//
// QEMU gets all files as descriptors, runs as an unprivileged user where this
// process is root, and under its own seccomp filter.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/volley-run/volley/faasnap/vmm"
)

// Accelerators.
const (
	// KVM is hardware virtualisation.
	KVM = "kvm"
	// TCG is software emulation.
	TCG = "tcg"
)

// Config is what a Driver has to know.
type Config struct {
	// Binary is the program; empty is qemu-system-x86_64 in PATH.
	Binary string
	// Accel is KVM or TCG; empty tries KVM once, and takes TCG if a guest
	// cannot run under it.
	Accel string
	// Shim is the path of the library that BuildShim has made.
	Shim string
	// UID and GID are what QEMU runs as, if this process is root; 0 is
	// DefaultUID.
	UID, GID int
}

// DefaultUID is whom QEMU runs as, if this process is root: nobody, and not
// whom functions run as in containers.
const DefaultUID = 65534

// Driver is a vmm.Driver.
type Driver struct {
	cfg Config

	detect  sync.Mutex
	version string // once known
	accel   string
}

var _ vmm.Driver = (*Driver)(nil)

// New returns a driver. It looks for nothing yet: Version does.
func New(cfg Config) *Driver {
	if cfg.Binary == "" {
		cfg.Binary = "qemu-system-x86_64"
	}
	if cfg.UID == 0 {
		cfg.UID = DefaultUID
	}
	if cfg.GID == 0 {
		cfg.GID = cfg.UID
	}
	return &Driver{cfg: cfg}
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

var versionLine = regexp.MustCompile(`^QEMU emulator version (([0-9]+)\.([0-9]+)[^ ]*)`)

// Version implements vmm.Driver: "qemu 7.2.22 q35 tcg".
func (d *Driver) Version(ctx context.Context) (string, error) {
	d.detect.Lock()
	defer d.detect.Unlock()
	if d.version != "" {
		return d.version, nil
	}
	out, err := exec.CommandContext(ctx, d.cfg.Binary, "--version").Output()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("find QEMU: %s is not there: install qemu-system-x86", d.cfg.Binary)
	}
	if err != nil {
		return "", fmt.Errorf("find QEMU: %s --version: %w", d.cfg.Binary, err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("find QEMU: %s --version says %q", d.cfg.Binary, firstLine(out))
	}
	if major, minor := string(m[2]), string(m[3]); len(major) == 1 && (major < "7" || major == "7" && minor < "2") {
		return "", fmt.Errorf("find QEMU: %s is version %s: 7.2 or later is needed", d.cfg.Binary, m[1])
	}
	accel := d.cfg.Accel
	if accel == "" {
		accel = TCG
		if kvmWorks(ctx, d.cfg.Binary) {
			accel = KVM
		}
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("find QEMU: %w", err)
	}
	d.accel = accel
	d.version = fmt.Sprintf("qemu %s %s %s", m[1], machineType(accel), accel)
	return d.version, nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// machineType is QEMU's machine for an accelerator: its microvm, which starts
// faster, boots Debian's kernel under KVM only.
func machineType(accel string) string {
	if accel == KVM {
		return "microvm"
	}
	return "q35"
}

// probeTime bounds how long the guest of a probe may take to end: much more than
// it does where the processor runs it. A host can have a KVM that hangs, or
// that emulates every instruction and is slower than TCG.
const probeTime = time.Second

// probeROM is firmware of 64 KiB that counts 100 million down and then writes to
// the port that ends QEMU.
func probeROM() []byte {
	rom := make([]byte, 64<<10)
	copy(rom, []byte{
		0x66, 0xb9, 0x00, 0xe1, 0xf5, 0x05, // mov ecx, 100000000
		0x66, 0x49, // dec ecx
		0x75, 0xfc, // jnz to the dec
		0xb0, 0x10, // mov al, 0x10
		0xba, 0xf4, 0x00, // mov dx, 0xf4
		0xee,             // out dx, al
		0xf4, 0xeb, 0xfd, // hlt; jmp to the hlt
	})
	// jmp to the beginning of the segment f000
	copy(rom[0xfff0:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0})
	return rom
}

// kvmWorks reports whether a guest runs under KVM.
func kvmWorks(ctx context.Context, binary string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	rom, err := os.CreateTemp("", "volley-kvm-*.rom")
	if err != nil {
		return false
	}
	defer os.Remove(rom.Name())
	_, err = rom.Write(probeROM())
	if err := errors.Join(err, rom.Close()); err != nil {
		return false
	}
	cmd := exec.CommandContext(ctx, binary, "-accel", "kvm", "-machine", "q35", "-nodefaults", "-no-user-config",
		"-display", "none", "-bios", rom.Name(), "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
	cmd.WaitDelay = time.Second
	var exit *exec.ExitError
	// QEMU ends with twice the value and one.
	return errors.As(cmd.Run(), &exit) && exit.ExitCode() == 0x21
}
