//go:build !linux

package sys

import (
	"context"
	"errors"
	"fmt"
)

type pidfd struct{}

func openPidfd(pid int) (pidfd, error) {
	return pidfd{}, fmt.Errorf("open process %d: %w", pid, errors.ErrUnsupported)
}

func (pidfd) kill() error                { return errors.ErrUnsupported }
func (pidfd) wait(context.Context) error { return errors.ErrUnsupported }
func (pidfd) close() error               { return nil }
