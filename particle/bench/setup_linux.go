package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/rtnl"
)

// Setup is one measurement of making and removing a network on one node, where
// the VTEP is there already, as thesis figure 3.2 has it.
type Setup struct {
	Design    particle.Design
	Endpoints int
	IPv6      bool
	// Apply is until all endpoints can be used, Close until it returns, Settled
	// from the begin of Close until the kernel has finished with it as well.
	Apply, Close, Settled time.Duration
	// Steps are parts of Apply: S1 to S6 of thesis 3.1.3 for Baseline and Shared.
	Steps []particle.Step
}

// Setup measures one network on the cluster's first node; it has one remote
// peer. The error is a *particle.SpecError, wrapped, if the design cannot have
// so many endpoints.
func (c *Cluster) Setup(ctx context.Context, n Network) (s Setup, err error) {
	if err := c.warm(ctx); err != nil {
		return s, err
	}
	s = Setup{Design: n.Design, Endpoints: n.Endpoints, IPv6: n.IPv6}
	all, err := c.declare(n)
	if err != nil {
		return s, err
	}
	nw := all[0]
	if err := rtnl.Settle(ctx); err != nil {
		return s, err
	}
	start := time.Now()
	err = nw.Apply(ctx)
	s.Apply = time.Since(start)
	s.Steps = nw.Steps()
	start = time.Now()
	// What is there goes, also if ctx has ended.
	err = errors.Join(err, nw.Close(context.WithoutCancel(ctx)))
	s.Close = time.Since(start)
	if err != nil {
		return s, fmt.Errorf("%s with %d endpoints: %w", n.Design, n.Endpoints, err)
	}
	if err := rtnl.Settle(ctx); err != nil {
		return s, err
	}
	s.Settled = time.Since(start)
	return s, nil
}

// warm makes the first node's VTEP, which stays.
func (c *Cluster) warm(ctx context.Context) error {
	if c.next > 0 {
		return nil
	}
	all, err := c.declare(Network{Endpoints: 1})
	if err != nil {
		return err
	}
	err = all[0].Apply(ctx)
	return errors.Join(err, all[0].Close(context.WithoutCancel(ctx)))
}
