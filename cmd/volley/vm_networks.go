package main

import (
	"context"
	"sync"

	"github.com/volley-run/volley/sandbox"
)

// vmNetworks gives virtual machines their places on networks of jobs. It opens
// the node's networks when the first is wanted, as most machines are on none; what
// an earlier process with the data directory held is given back then.
type vmNetworks struct {
	state, dir string

	mu   sync.Mutex
	open closableNetworks // nil before
}

type closableNetworks interface {
	sandbox.Networks
	Close() error
}

// Join implements sandbox.Networks.
func (n *vmNetworks) Join(ctx context.Context, network, id string) (sandbox.Place, error) {
	open, err := n.opened(ctx)
	if err != nil {
		return sandbox.Place{}, err
	}
	return open.Join(ctx, network, id)
}

func (n *vmNetworks) opened(ctx context.Context) (closableNetworks, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open != nil {
		return n.open, nil
	}
	open, err := openJobNetworks(ctx, n.state, n.dir, true)
	if err != nil {
		return nil, err
	}
	n.open = open
	return open, nil
}

// Leave implements sandbox.Networks.
func (n *vmNetworks) Leave(ctx context.Context, network, id string) error {
	open, err := n.opened(ctx)
	if err != nil {
		return err
	}
	return open.Leave(ctx, network, id)
}

// Close closes the node's networks, which stay.
func (n *vmNetworks) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		return nil
	}
	return n.open.Close()
}
