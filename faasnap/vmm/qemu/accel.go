package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// probeTime bounds how long the guest of a probe may take to end: much more than
// it does where the processor runs it. A host can have a KVM that hangs, or
// that emulates every instruction and is slower than TCG.
const probeTime = time.Second

// detectAccel returns the accelerator for a QEMU of that version.
func (d *Driver) detectAccel(ctx context.Context, version string) string {
	// Without the device there is nothing to ask.
	device, err := os.OpenFile(d.kvm, os.O_RDWR, 0)
	if err != nil {
		return TCG
	}
	_ = device.Close() // nothing was written
	// A cache that cannot be read or written only costs time.
	key, err := d.accelKey(version)
	path := filepath.Join(d.cfg.Cache, "qemu-accel")
	if d.cfg.Cache == "" || err != nil {
		return d.probeAccel(ctx)
	}
	if text, err := os.ReadFile(path); err == nil {
		if accel, ok := strings.CutPrefix(string(text), key); ok && (accel == KVM || accel == TCG) {
			return accel
		}
	}
	accel := d.probeAccel(ctx)
	if ctx.Err() == nil {
		_ = sys.ReplaceFile(path, []byte(key+accel), 0o600)
	}
	return accel
}

// accelKey is all that the answer about KVM depends on: this run of the host,
// QEMU and whom it runs as.
func (d *Driver) accelKey(version string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s %s %d %d:%d ", strings.TrimSpace(string(boot)), version, d.cfg.Binary, os.Geteuid(), d.cfg.UID, d.cfg.GID), nil
}

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

// probeAccel returns KVM if a guest runs under it.
func (d *Driver) probeAccel(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	rom, err := sys.MemFile("rom")
	if err != nil {
		return TCG
	}
	defer rom.Close()
	if _, err := rom.Write(probeROM()); err != nil {
		return TCG
	}
	cmd := exec.CommandContext(ctx, d.cfg.Binary, "-accel", "kvm", "-machine", "q35", "-nodefaults", "-no-user-config",
		"-display", "none", "-bios", "/proc/self/fd/3", "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
	cmd.ExtraFiles = []*os.File{rom}
	cmd.WaitDelay = time.Second
	sys.NewGroup(cmd)
	cmd.SysProcAttr.Credential = d.credential(KVM)
	var exit *exec.ExitError
	// QEMU ends with twice the value and one.
	if errors.As(cmd.Run(), &exit) && exit.ExitCode() == 0x21 {
		return KVM
	}
	return TCG
}
