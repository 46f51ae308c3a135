package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/particle"
)

// Traffic is one measurement of TCP over the overlay, from endpoints of the
// first node to as many of the second.
type Traffic struct {
	Design     particle.Design
	Discipline particle.Discipline
	Pairs      int
	// BytesPerSecond is what all pairs together carry one way.
	BytesPerSecond float64
	// P50 and P99 are of a byte's way there and back, on one pair, when nothing
	// else is on the wire.
	P50, P99 time.Duration
}

const (
	// trafficWarmUp is what of the traffic is not counted.
	trafficWarmUp = 200 * time.Millisecond
	trafficBuffer = 128 << 10 // bytes
)

// Traffic measures for duration how much goes through, and then for as long
// how soon a byte is back. The network has one endpoint for each pair on each
// of the cluster's first two nodes.
func (c *Cluster) Traffic(ctx context.Context, n Network, pairs int, duration time.Duration) (t Traffic, err error) {
	n.Endpoints = pairs
	t = Traffic{Design: n.Design, Discipline: n.Discipline, Pairs: pairs}
	all, err := c.declare(n)
	if err != nil {
		return t, err
	}
	places := make([][]particle.Endpoint, 2)
	for i, nw := range all[:2] {
		defer func() { err = errors.Join(err, nw.Close(context.WithoutCancel(ctx))) }()
		if err := nw.Apply(ctx); err != nil {
			return t, err
		}
		for j := range pairs {
			ep, err := nw.Endpoint(j)
			if err != nil {
				return t, err
			}
			places[i] = append(places[i], ep)
		}
		if err := nw.Enroll(ctx, places[i]...); err != nil {
			return t, err
		}
	}
	var conns connections
	defer conns.close()
	for i := range pairs {
		if err := conns.open(ctx, places[0][i], places[1][i]); err != nil {
			return t, err
		}
	}
	if t.P50, t.P99, err = conns.roundTrips(ctx, duration); err != nil {
		return t, err
	}
	t.BytesPerSecond, err = conns.throughput(ctx, duration)
	return t, err
}

// connections are TCP connections from clients to servers.
type connections struct{ clients, servers []*net.TCPConn }

// open adds a connection from one endpoint to another.
func (c *connections) open(ctx context.Context, from, to particle.Endpoint) error {
	var l *net.TCPListener
	if err := inPlace(to, func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Address, serverPort)))
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	if err := inPlace(from, func() error {
		client, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Address, serverPort)))
		if err == nil {
			c.clients = append(c.clients, client)
		}
		return err
	}); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := l.SetDeadline(deadline); err != nil {
			return err
		}
	}
	server, err := l.AcceptTCP()
	if err != nil {
		return err
	}
	c.servers = append(c.servers, server)
	if n := len(c.servers); c.servers[n-1].LocalAddr().String() != c.clients[n-1].RemoteAddr().String() ||
		server.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() != from.Address && from.Cgroup != "" {
		return fmt.Errorf("the server at %s sees %s instead of %s", to.Address, server.RemoteAddr(), from.Address)
	}
	return nil
}

func (c *connections) close() {
	for _, conn := range append(c.clients, c.servers...) {
		conn.Close()
	}
}

// roundTrips measures how soon a byte is back.
func (c *connections) roundTrips(ctx context.Context, duration time.Duration) (p50, p99 time.Duration, err error) {
	client, server := c.clients[0], c.servers[0]
	deadline := time.Now().Add(duration)
	echoed := make(chan error, 1)
	go func() {
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(server, b); err != nil {
				echoed <- err
				return
			}
			if b[0] == 0 {
				echoed <- nil
				return
			}
			if _, err := server.Write(b); err != nil {
				echoed <- err
				return
			}
		}
	}()
	var all []time.Duration
	b := []byte{1}
	for time.Now().Before(deadline) && ctx.Err() == nil {
		start := time.Now()
		if _, err := client.Write(b); err != nil {
			return 0, 0, err
		}
		if _, err := io.ReadFull(client, b); err != nil {
			return 0, 0, err
		}
		all = append(all, time.Since(start))
	}
	if _, err := client.Write([]byte{0}); err != nil {
		return 0, 0, err
	}
	if err := errors.Join(<-echoed, ctx.Err()); err != nil {
		return 0, 0, err
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], nil
}

// throughput measures how much all connections carry, in bytes a second.
func (c *connections) throughput(ctx context.Context, duration time.Duration) (float64, error) {
	var total atomic.Int64
	var running sync.WaitGroup
	failed := make(chan error, 2*len(c.clients))
	stop := time.Now().Add(trafficWarmUp + duration)
	for i := range c.clients {
		running.Go(func() {
			data := make([]byte, trafficBuffer)
			for time.Now().Before(stop) && ctx.Err() == nil {
				if _, err := c.clients[i].Write(data); err != nil {
					failed <- err
					return
				}
			}
			if err := c.clients[i].CloseWrite(); err != nil {
				failed <- err
			}
		})
		running.Go(func() {
			data := make([]byte, trafficBuffer)
			for {
				n, err := c.servers[i].Read(data)
				total.Add(int64(n))
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wait(ctx, trafficWarmUp)
	begun, before := time.Now(), total.Load()
	wait(ctx, duration)
	rate := float64(total.Load()-before) / time.Since(begun).Seconds()
	running.Wait()
	close(failed)
	all := []error{ctx.Err()}
	for err := range failed {
		all = append(all, err)
	}
	return rate, errors.Join(all...)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// inPlace calls f where a program of an endpoint would be: in its namespace
// and, as a socket belongs to the control group in which it is made, with this
// process in the endpoint's. Not for concurrent use.
func inPlace(ep particle.Endpoint, f func() error) (err error) {
	if ep.Cgroup != "" {
		own, err := ownGroup()
		if err != nil {
			return err
		}
		if err := joinGroup(ep.Cgroup); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, joinGroup(own)) }()
	}
	return inNamespace(ep.Namespace, f)
}

// ownGroup returns the path of this process's control group.
func ownGroup() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(text) {
		if name, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::")); ok {
			mounts, err := sys.Mounts()
			if err != nil {
				return "", err
			}
			root, ok := sys.Cgroup2(mounts)
			if !ok {
				break
			}
			return filepath.Join(root, string(name)), nil
		}
	}
	return "", errors.New("this process has no cgroup v2 group")
}

func joinGroup(path string) error {
	return os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte("0"), 0)
}
