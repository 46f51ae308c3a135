//go:build !linux

package sys

import (
	"errors"
	"fmt"
	"os"
)

// MemFile needs Linux.
func MemFile(string) (*os.File, error) {
	return nil, fmt.Errorf("make a file in memory: %w", errors.ErrUnsupported)
}

// OpenTap needs Linux.
func OpenTap(_, name string) (*os.File, error) {
	return nil, fmt.Errorf("open tap %s: %w", name, errors.ErrUnsupported)
}

// AddTap needs Linux.
func AddTap(string) error { return errors.ErrUnsupported }

// LooseTap needs Linux.
func LooseTap(name string) (*os.File, error) {
	return nil, fmt.Errorf("make tap %s: %w", name, errors.ErrUnsupported)
}
