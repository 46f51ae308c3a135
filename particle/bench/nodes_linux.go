package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/volley-run/volley/particle"
)

// Nodes is one measurement of a job on several nodes at once (thesis table
// 3.1): from nothing, VTEPs included, until each node has spoken with the next.
type Nodes struct {
	Design    particle.Design
	Nodes     int
	Endpoints int // of each node
	// Applied is until every node has its network, Known until every node has
	// been told of all others, Connected until each has spoken with the next.
	Applied, Known, Connected time.Duration
}

const (
	// knownInterval is how often a node's peers are counted.
	knownInterval = 5 * time.Millisecond
	// nodesTime is how long all may take.
	nodesTime = 15 * time.Minute
)

// Nodes makes a network on all nodes of a cluster, none of which has had one,
// and lets them hear of each other by their control planes, which are opened
// with a node's number and closed at the end.
func (c *Cluster) Nodes(ctx context.Context, n Network, open func(i int) (particle.ControlPlane, error)) (m Nodes, err error) {
	ctx, cancel := context.WithTimeout(ctx, nodesTime)
	defer cancel()
	m = Nodes{Design: n.Design, Nodes: len(c.nodes), Endpoints: n.Endpoints}
	c.next++
	var planes []particle.ControlPlane
	defer func() {
		for _, p := range planes {
			err = errors.Join(err, p.Close())
		}
	}()
	networks := make([]*particle.Network, len(c.nodes))
	for i, node := range c.nodes {
		p, err := open(i)
		if err != nil {
			return m, err
		}
		planes = append(planes, p)
		if networks[i], err = node.Declare(c.spec(n, i)); err != nil {
			return m, err
		}
	}
	if !n.Design.SharesNamespace() {
		restore, full := roomForNeighbours()
		if full != nil {
			return m, full
		}
		defer func() { err = errors.Join(err, restore()) }()
	}
	follow, stop := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer stop()
	start := time.Now()
	for i, node := range c.nodes {
		following.Go(func() { _ = node.Follow(follow, planes[i], slog.New(slog.DiscardHandler)) }) // it ends with its context
	}
	defer func() {
		err = errors.Join(err, c.each(func(i int) error { return networks[i].Close(context.WithoutCancel(ctx)) }))
	}()
	if err := c.each(func(i int) error { return networks[i].Apply(ctx) }); err != nil {
		return m, err
	}
	m.Applied = time.Since(start)
	if err := c.each(func(i int) error { return c.awaitPeers(ctx, networks[i]) }); err != nil {
		return m, err
	}
	m.Known = time.Since(start)
	for i := range networks {
		if err := speak(ctx, networks[i], networks[(i+1)%len(networks)]); err != nil {
			return m, err
		}
	}
	m.Connected = time.Since(start)
	return m, nil
}

// each calls f for all nodes at once.
func (c *Cluster) each(f func(i int) error) error {
	results := make(chan error, len(c.nodes))
	for i := range c.nodes {
		go func() { results <- f(i) }()
	}
	var all []error
	for range c.nodes {
		all = append(all, <-results)
	}
	return errors.Join(all...)
}

func (c *Cluster) awaitPeers(ctx context.Context, nw *particle.Network) error {
	for {
		s, err := nw.Status(ctx)
		if err != nil {
			return err
		}
		if len(s.Peers) >= len(c.nodes)-1 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("a node knows %d of %d others: %w", len(s.Peers), len(c.nodes)-1, ctx.Err())
		}
		wait(ctx, knownInterval)
	}
}

// speak connects the first endpoints of two networks.
func speak(ctx context.Context, from, to *particle.Network) error {
	source, err := from.Endpoint(0)
	if err != nil {
		return err
	}
	target, err := to.Endpoint(0)
	if err != nil {
		return err
	}
	var l net.Listener
	if err := inNamespace(target.Namespace, func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(target.Address, serverPort).String())
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	return inNamespace(source.Namespace, func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source.Address, 0))}
		for {
			conn, err := d.DialContext(ctx, "tcp4", l.Addr().String())
			if err == nil {
				return conn.Close()
			}
			// A program would try again where the answer of a neighbour is late.
			// Peers are written down before there are routes to them.
			if ctx.Err() != nil || !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
				return err
			}
			wait(ctx, knownInterval)
		}
	})
}
