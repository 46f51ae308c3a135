package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/rtnl"
)

// MaxNodes is how many nodes a Cluster may have.
const MaxNodes = 64

// Cluster is some nodes on this machine, each with its underlay in a network
// namespace of its own, all on one wire. Its methods, and those of what it
// returns, are for one goroutine at a time unless they say otherwise.
type Cluster struct {
	nodes []*node
	undo  []func() error // in the order of making
	next  int            // number of the newest network
	// id is in the networks' names: a control plane may remember earlier clusters'.
	id uint32
}

// node is one node of a Cluster.
type node struct {
	*particle.Node
	name    string
	address netip.Addr
	ns      *rtnl.Namespace
}

const (
	wireIndex  = 100 // the bridge, in the wire's namespace
	portIndex  = 200 // and its ports, one a node
	uplinkName = "eth0"
	uplink     = 300 // in a node's namespace
)

// OpenCluster makes nodes. The caller closes the cluster.
func OpenCluster(ctx context.Context, nodes int) (_ *Cluster, err error) {
	if nodes < 1 || nodes > MaxNodes {
		return nil, fmt.Errorf("a cluster has 1 to %d nodes, not %d", MaxNodes, nodes)
	}
	if err := rtnl.PrepareDir(particle.DefaultNamespaceDir); err != nil {
		return nil, err
	}
	c := &Cluster{id: rand.Uint32()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make the nodes: %w", err), c.Close())
		}
	}()
	dir, err := os.MkdirTemp("", "volley-bench-particle-")
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, func() error { return os.RemoveAll(dir) })
	_, wire, err := c.namespace("wire")
	if err != nil {
		return nil, err
	}
	var b rtnl.Batch
	b.AddBridge(rtnl.LinkConfig{Name: "wire", Index: wireIndex, MTU: 1500, Up: true})
	if err := wire.Do(ctx, &b); err != nil {
		return nil, err
	}
	for i := range nodes {
		if err := c.addNode(ctx, wire, i, dir); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cluster) addNode(ctx context.Context, wire *rtnl.Conn, i int, dir string) error {
	n := &node{name: fmt.Sprintf("bench%d-%d", os.Getpid(), i), address: netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})}
	ns, inside, err := c.namespace(fmt.Sprint("node", i))
	if err != nil {
		return err
	}
	n.ns = ns
	var b rtnl.Batch
	b.AddVeth(rtnl.LinkConfig{Name: fmt.Sprint("n", i), Index: portIndex + i, Master: wireIndex, Up: true},
		rtnl.LinkConfig{Name: uplinkName, Index: uplink, Namespace: ns})
	if err := wire.Do(ctx, &b); err != nil {
		return err
	}
	b.Reset()
	b.SetLink(1, rtnl.LinkConfig{Up: true})
	b.SetLink(uplink, rtnl.LinkConfig{Up: true})
	b.AddAddress(uplink, netip.PrefixFrom(n.address, 24))
	if err := inside.Do(ctx, &b); err != nil {
		return err
	}
	if err := ns.Do(func() (err error) {
		n.Node, err = particle.OpenNode(particle.NodeConfig{Name: n.name, StateDir: filepath.Join(dir, n.name)})
		return err
	}); err != nil {
		return err
	}
	c.undo = append(c.undo, n.Close, n.empty)
	c.nodes = append(c.nodes, n)
	return nil
}

// empty removes what is left of networks, and the VTEP.
func (n *node) empty() error {
	ctx := context.Background()
	list, err := n.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range list {
		nw, err := n.Open(s.Spec.Name)
		if err == nil {
			err = nw.Close(ctx)
		}
		if err != nil {
			return err
		}
	}
	_, err = n.GC(ctx)
	return err
}

// namespace makes a network namespace, with a socket in it.
func (c *Cluster) namespace(name string) (ns *rtnl.Namespace, conn *rtnl.Conn, err error) {
	path := filepath.Join(particle.DefaultNamespaceDir, fmt.Sprintf("volley-bench%d-%s", os.Getpid(), name))
	ns, err = rtnl.Create(path, func() (err error) {
		conn, err = rtnl.Dial()
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	c.undo = append(c.undo, func() error { return errors.Join(conn.Close(), ns.Close(), rtnl.Remove(path)) })
	return ns, conn, nil
}

// Close removes the nodes and their networks.
func (c *Cluster) Close() error {
	var all []error
	for _, f := range slices.Backward(c.undo) {
		all = append(all, f())
	}
	c.undo, c.nodes = nil, nil
	return errors.Join(all...)
}

// Network is what is asked of a network to be measured.
type Network struct {
	Design particle.Design
	// Endpoints is how many each node has.
	Endpoints int
	// IPv6 gives each endpoint an address of that family too.
	IPv6 bool
	// Discipline: empty is DisciplineAuto.
	Discipline particle.Discipline
}

// The prefixes of the networks: a node has a part of a job's, for up to 16,381
// endpoints on each of up to 64 nodes.
const (
	nodeBits, nodeBits6 = 18, 64
)

// parts returns a node's parts of the prefixes.
func parts(node int) (v4, v6 netip.Prefix) {
	v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(node >> 2), byte(node << 6), 0}), nodeBits)
	six := netip.MustParseAddr("fd77::").As16()
	six[7] = byte(node)
	return v4, netip.PrefixFrom(netip.AddrFrom16(six), nodeBits6)
}

// declare declares one network on all nodes, each with all others as peers.
func (c *Cluster) declare(n Network) ([]*particle.Network, error) {
	c.next++
	var all []*particle.Network
	for i, node := range c.nodes {
		s := c.spec(n, i)
		for j, other := range c.nodes {
			if i == j {
				continue
			}
			p := particle.Peer{Node: other.name, Underlay: other.address}
			p.Prefix, p.Prefix6 = parts(j)
			if !n.IPv6 {
				p.Prefix6 = netip.Prefix{}
			}
			s.Peers = append(s.Peers, p)
		}
		nw, err := node.Declare(s)
		if err != nil {
			return nil, err
		}
		all = append(all, nw)
	}
	return all, nil
}

// spec is the current network's, without peers.
func (c *Cluster) spec(n Network, node int) particle.Spec {
	s := particle.Spec{
		Name: fmt.Sprintf("bench%d-%08x", c.next, c.id), Endpoints: n.Endpoints, Design: n.Design, Discipline: n.Discipline,
		Underlay: particle.Underlay{Address: c.nodes[node].address},
		Prefix:   netip.MustParsePrefix("10.0.0.0/8"),
	}
	var six netip.Prefix
	s.NodePrefix, six = parts(node)
	if n.IPv6 {
		s.Prefix6, s.NodePrefix6 = netip.MustParsePrefix("fd77::/48"), six
	}
	return s
}
