package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed shim/shim.c
var shimSource []byte

// memoryPath is what QEMU is told to be the file of guest memory; the shim
// opens an inherited descriptor instead.
const memoryPath = "/volley/guest-memory"

// BuildShim compiles the library that is loaded into QEMU to map guest memory,
// into dir, unless it is there already, and returns its path. It needs a C
// compiler as cc.
func BuildShim(ctx context.Context, dir string) (string, error) {
	sum := sha256.Sum256(shimSource)
	path := filepath.Join(dir, "volley-shim-"+hex.EncodeToString(sum[:8])+".so")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build the library for QEMU: %w", err)
	}
	draft, err := os.CreateTemp(dir, ".shim-*.so")
	if err != nil {
		return "", fmt.Errorf("build the library for QEMU: %w", err)
	}
	defer os.Remove(draft.Name())
	if err := draft.Close(); err != nil {
		return "", fmt.Errorf("build the library for QEMU: %w", err)
	}
	cmd := exec.CommandContext(ctx, "cc", "-O2", "-shared", "-fPIC", "-x", "c", "-o", draft.Name(), "-", "-lpthread")
	cmd.Stdin = bytes.NewReader(shimSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", errors.New("build the library for QEMU: there is no C compiler: install gcc and libc6-dev")
		}
		return "", fmt.Errorf("build the library for QEMU: cc: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := os.Chmod(draft.Name(), 0o755); err != nil {
		return "", fmt.Errorf("build the library for QEMU: %w", err)
	}
	if err := os.Rename(draft.Name(), path); err != nil {
		return "", fmt.Errorf("build the library for QEMU: %w", err)
	}
	return path, nil
}
