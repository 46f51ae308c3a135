//go:build !linux

package seccomp

import (
	"errors"
	"fmt"
	"os/exec"
)

// Supervisor exists on Linux only; elsewhere nothing makes one.
type Supervisor struct{}

// Done returns a channel that is never closed.
func (*Supervisor) Done() <-chan struct{} { return nil }

// Wait returns at once.
func (*Supervisor) Wait() error { return Probe() }

// Close does nothing.
func (*Supervisor) Close() error { return nil }

// Start fails with errors.ErrUnsupported, wrapped.
func Start(*exec.Cmd, Endpoint, func() error) (*Supervisor, error) { return nil, Probe() }

// Probe returns errors.ErrUnsupported, wrapped.
func Probe() error {
	return fmt.Errorf("probe seccomp user notification: %w on this system", errors.ErrUnsupported)
}
