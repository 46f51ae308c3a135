//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/sandbox"
)

// jobNetworks gives an invoker's sandboxes places on the networks of its node.
type jobNetworks struct {
	node *particle.Node
	// machines says that the sandboxes are virtual machines.
	machines bool
	// owner begins the names under which this invoker's containers hold
	// endpoints: it tells them from those of others.
	owner string
}

var _ sandbox.Networks = (*jobNetworks)(nil)

// openJobNetworks opens the node's networks for the invoker whose data is in
// dir, and gives back what its sandboxes held when it last ended. machines says
// that they are virtual machines. The caller closes it.
func openJobNetworks(ctx context.Context, state, dir string, machines bool) (_ *jobNetworks, err error) {
	node, err := particle.OpenNode(particle.NodeConfig{StateDir: state})
	if err != nil {
		return nil, err
	}
	j := &jobNetworks{node, machines, "sandbox " + dir + " "}
	defer func() {
		if err != nil {
			err = errors.Join(err, node.Close())
		}
	}()
	list, err := node.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		nw, err := node.Open(s.Spec.Name)
		if errors.Is(err, particle.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		owners, err := nw.Pool().Owners()
		if err != nil {
			return nil, err
		}
		for owner, ep := range owners {
			if !strings.HasPrefix(owner, j.owner) {
				continue
			}
			if nw.Spec().Design == particle.AnyIP { // it may have been a machine
				if err := nw.DisconnectTap(ctx, ep.Index); err != nil {
					return nil, err
				}
			}
			if err := nw.Pool().Release(ctx, owner); err != nil {
				return nil, err
			}
		}
	}
	return j, nil
}

// Join implements sandbox.Networks.
func (j *jobNetworks) Join(ctx context.Context, network, id string) (sandbox.Place, error) {
	nw, err := j.node.Open(network)
	if errors.Is(err, particle.ErrNotFound) {
		return sandbox.Place{}, function.Errorf(function.InvalidParameter, "this node has no network %s: declare it there with volley net up --name %s", network, network)
	}
	if err != nil {
		return sandbox.Place{}, err
	}
	if nw.Spec().Design == particle.Attached {
		return sandbox.Place{}, function.Errorf(function.InvalidParameter, "network %s is for container runtimes (design %s): declare one of another design", network, particle.Attached)
	}
	if j.machines && nw.Spec().Design != particle.AnyIP {
		return sandbox.Place{}, function.Errorf(function.InvalidParameter, "network %s is of the design %s, and virtual machines need %s: declare it with volley net up --design %s", network, nw.Spec().Design, particle.AnyIP, particle.AnyIP)
	}
	ep, err := nw.Pool().Acquire(ctx, j.owner+id)
	if errors.Is(err, particle.ErrNoEndpointLeft) {
		return sandbox.Place{}, function.Errorf(function.TooManyRequests, "network %s: %v: declare it with more --endpoints", network, err)
	}
	if err != nil {
		return sandbox.Place{}, err
	}
	place := sandbox.Place{Namespace: ep.Namespace, Cgroup: ep.Cgroup, Address: ep.Address, Address6: ep.Address6}
	if j.machines {
		var tap particle.Tap
		tap, err = nw.ConnectTap(ctx, ep.Index, sandbox.TapMAC())
		place.Tap, place.MTU, place.Cgroup = tap.Name, tap.MTU, ""
	} else if ep.Cgroup == "" && nw.Spec().Design.SharesNamespace() {
		err = fmt.Errorf("network %s: its discipline is %s, and containers need %s: see volley net doctor", network, nw.Spec().Discipline, particle.DisciplineBPF)
	} else {
		err = nw.Enroll(ctx, ep)
	}
	if err != nil {
		return sandbox.Place{}, errors.Join(err, j.release(context.WithoutCancel(ctx), nw, j.owner+id))
	}
	return place, nil
}

// Leave implements sandbox.Networks.
func (j *jobNetworks) Leave(ctx context.Context, network, id string) error {
	nw, err := j.node.Open(network)
	if errors.Is(err, particle.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return j.release(ctx, nw, j.owner+id)
}

// release gives back what an owner has of a network, if it has anything.
func (j *jobNetworks) release(ctx context.Context, nw *particle.Network, owner string) error {
	if j.machines {
		owners, err := nw.Pool().Owners()
		if err != nil {
			return err
		}
		if ep, ok := owners[owner]; ok {
			if err := nw.DisconnectTap(ctx, ep.Index); err != nil {
				return err
			}
		}
	}
	return nw.Pool().Release(ctx, owner)
}

// Close closes the node. The networks stay.
func (j *jobNetworks) Close() error { return j.node.Close() }
