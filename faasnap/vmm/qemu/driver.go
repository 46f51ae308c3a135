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
	// Cache is a directory in which the answer about KVM is kept until the host
	// starts anew; empty asks KVM in every process, which takes up to a second.
	Cache string
	// UID and GID are what QEMU runs as, if this process is root; 0 is
	// DefaultUID.
	UID, GID int
}

// DefaultUID is whom QEMU runs as, if this process is root: nobody, and not
// whom functions run as in containers.
const DefaultUID = 65534

// Driver is a vmm.Driver.
type Driver struct {
	cfg     Config
	kvm     string // the device
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
	return &Driver{cfg: cfg, kvm: "/dev/kvm"}
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

var versionLine = regexp.MustCompile(`^QEMU emulator version (([0-9]+)\.([0-9]+)\S*)`)

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
		accel = d.detectAccel(ctx, string(m[1]))
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
