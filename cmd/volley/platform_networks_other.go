//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/volley-run/volley/sandbox"
)

// openJobNetworks fails: networks need Linux, and so do the drivers that use them.
func openJobNetworks(context.Context, string, string, bool) (interface {
	sandbox.Networks
	Close() error
}, error) {
	return nil, errors.New("job networks need Linux")
}
