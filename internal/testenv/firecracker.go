package testenv

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// Firecracker is the firecracker program, found in PATH, and a KVM whose
// processors run: nested virtualization that is broken can hang.
const Firecracker Capability = "firecracker"

// firecrackerTime is how long Firecracker may take for what takes it far less
// than a second.
const firecrackerTime = 10 * time.Second

// probeFirecracker boots a kernel of a few instructions.
func probeFirecracker() error {
	program, err := exec.LookPath("firecracker")
	if err != nil {
		return err
	}
	if runtime.GOARCH != "amd64" {
		return errors.New("the kernel to try it with is one for amd64")
	}
	if err := sys.CheckKVM(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "volley-testenv-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kernel, config := filepath.Join(dir, "kernel"), filepath.Join(dir, "config")
	text, err := json.Marshal(map[string]any{
		"boot-source":    map[string]any{"kernel_image_path": kernel, "boot_args": "console=ttyS0"},
		"machine-config": map[string]any{"vcpu_count": 1, "mem_size_mib": 128},
		"drives":         []any{},
	})
	if err := errors.Join(err, os.WriteFile(kernel, TinyKernel("works"), 0o600), os.WriteFile(config, text, 0o600)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), firecrackerTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--no-api", "--config-file", config).CombinedOutput()
	if err == nil && !bytes.Contains(out, []byte("works")) {
		err = errors.New("its guest printed nothing")
	}
	if err != nil {
		return fmt.Errorf("boot a guest within %v: %w: %s", firecrackerTime, err, bytes.TrimSpace(out))
	}
	return nil
}

// TinyKernel returns a kernel for Firecracker on amd64, an ELF file, that prints
// a text on the first serial port and resets the machine.
func TinyKernel(text string) []byte {
	code := []byte{0x66, 0xba, 0xf8, 0x03} // mov dx, 0x3f8
	for _, c := range []byte(text) {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	code = append(code,
		0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
		0xf4, 0xeb, 0xfd) // hlt, again and again
	const (
		address    = 2 << 20
		headerSize = 64
		offset     = headerSize + 56
	)
	size := uint64(len(code))
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: address, Phoff: headerSize, Ehsize: headerSize, Phentsize: 56, Phnum: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Off: offset, Vaddr: address, Paddr: address, Filesz: size, Memsz: size, Align: 1,
	}
	var b bytes.Buffer
	for _, part := range []any{header, segment, code} {
		// A bytes.Buffer takes everything, and all have fixed sizes.
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}
