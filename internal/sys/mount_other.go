//go:build !linux

package sys

import (
	"errors"
	"fmt"
	"os"
)

func mountOverlay(_ string, _ []string, target string) error {
	return fmt.Errorf("mount overlay on %s: %w", target, errors.ErrUnsupported)
}

func unmount(target string) error {
	return fmt.Errorf("unmount %s: %w", target, errors.ErrUnsupported)
}

func whiteout(_ *os.File, name string) error {
	return fmt.Errorf("make whiteout of %s: %w", name, errors.ErrUnsupported)
}

func markOpaque(dir *os.File) error {
	return fmt.Errorf("mark %s opaque: %w", dir.Name(), errors.ErrUnsupported)
}
