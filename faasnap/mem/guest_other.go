//go:build !linux

package mem

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Guest is a VMM that has handed over the page faults of its guest's memory,
// which needs Linux.
type Guest struct{}

func errFaults() error {
	return fmt.Errorf("take over page faults: %w on this operating system", errors.ErrUnsupported)
}

// Handshake returns errors.ErrUnsupported, wrapped.
func Handshake(*net.UnixConn) (*Guest, error) { return nil, errFaults() }

// Serve returns errors.ErrUnsupported, wrapped.
func (*Guest) Serve(context.Context, GuestFiles) error { return errFaults() }

// Stats returns nothing.
func (*Guest) Stats() GuestStats { return GuestStats{} }

// PID returns no process.
func (*Guest) PID() int { return 0 }

// Close does nothing.
func (*Guest) Close() error { return nil }
