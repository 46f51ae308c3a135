package particle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/volley-run/volley/particle/bpf"
	"github.com/volley-run/volley/particle/rtnl"
)

// errGuardUntried is why there is no guard before the first try.
var errGuardUntried = errors.New("not tried yet")

// probeGuard returns why this kernel has no guard, or nil.
func probeGuard() error {
	if err := bpf.Probe(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return nil
}

// programs says where the programs that hold endpoints to their addresses are.
func (c cgroups) programs() bpf.Config {
	return bpf.Config{Cgroup: c.parent, Depth: endpointDepth}
}

// cgroups returns the node's tree of groups. It makes nothing.
func (n *Node) cgroups() (cgroups, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tree == nil {
		tree, err := openCgroups(n.cfg.CgroupParent)
		if err != nil {
			return cgroups{}, err
		}
		n.tree = &tree
	}
	return *n.tree, nil
}

// guards returns the node's guard, or why there is none.
func (n *Node) guards() (*bpf.Guard, error) {
	tree, err := n.cgroups()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if errors.Is(n.guarded, errGuardUntried) {
		if n.guarded = os.MkdirAll(tree.parent, 0o755); n.guarded == nil {
			n.guard, n.guarded = bpf.Open(tree.programs())
		}
	}
	return n.guard, n.guarded
}

// canGuard returns why there can be no guard, or nil. It makes nothing.
func (n *Node) canGuard() error {
	if _, err := n.cgroups(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if errors.Is(n.probed, errGuardUntried) {
		n.probed = probeGuard()
	}
	return n.probed
}

// Disciplined reports whether control groups hold the endpoints to their
// addresses.
func (nw *Network) Disciplined() bool {
	if !nw.spec.Design.SharesNamespace() {
		return false
	}
	switch nw.spec.Discipline {
	case DisciplineBPF:
		return true
	case DisciplineAuto:
		return nw.node.canGuard() == nil
	}
	return false
}

// Enroll makes the endpoints' control groups, and holds what runs in them to
// the endpoints' addresses. It does nothing for endpoints without a group, and
// may be repeated.
func (nw *Network) Enroll(ctx context.Context, endpoints ...Endpoint) error {
	if err := nw.enroll(ctx, endpoints); err != nil {
		return fmt.Errorf("enroll endpoints of %s: %w", nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) enroll(ctx context.Context, endpoints []Endpoint) error {
	if !nw.Disciplined() {
		return nil
	}
	guard, err := nw.node.guards()
	if err != nil {
		return err
	}
	tree, err := nw.node.cgroups()
	if err != nil {
		return err
	}
	// Close must not look for groups while they are made.
	unlock, err := nw.node.state.lock(ctx, nw.label(), true)
	if err != nil {
		return err
	}
	defer unlock()
	if r, err := nw.node.state.load(nw.spec.Name); err != nil {
		return err
	} else if r.State != StateUp {
		return fmt.Errorf("%w: it is not up", ErrNotFound)
	}
	entries := make([]bpf.Entry, 0, len(endpoints))
	for _, ep := range endpoints {
		if ep.Network != nw.spec.Name || ep.Index < 0 || ep.Index >= nw.spec.Endpoints {
			return fmt.Errorf("endpoint %d of %s: %w", ep.Index, ep.Network, ErrNotFound)
		}
		own := nw.endpoint(ep.Index)
		dir, err := tree.make(own.Network, own.Name)
		if err != nil {
			return err
		}
		id, err := bpf.CgroupID(dir)
		if err != nil {
			return err
		}
		entries = append(entries, bpf.Entry{CgroupID: id, Address: own.Address, Address6: own.Address6})
	}
	if err := nw.serve(guard); err != nil {
		return err
	}
	return guard.Put(entries)
}

// serve lets servers on :: serve IPv4 and IPv6, where endpoints have both.
func (nw *Network) serve(guard *bpf.Guard) error {
	if !nw.spec.NodePrefix.IsValid() || !nw.spec.NodePrefix6.IsValid() {
		return nil
	}
	ns, err := rtnl.Open(nw.Namespace())
	if err != nil {
		return err
	}
	defer ns.Close()
	return guard.Serve(nw.label(), ns)
}

// unserve takes back what serve did for the labels that gone names, and returns
// them.
func (n *Node) unserve(gone func(label string) bool) ([]string, error) {
	tree, err := n.cgroups()
	if errors.Is(err, ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return bpf.Unserve(tree.programs(), gone)
}

// expel kills what runs in a network's groups and removes them.
func (n *Node) expel(ctx context.Context, network string) error {
	tree, err := n.cgroups()
	if errors.Is(err, ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	var ids []uint64
	if err := walkCgroups(filepath.Join(tree.parent, network), func(dir string) error {
		id, err := bpf.CgroupID(dir)
		if err == nil {
			ids = append(ids, id)
		}
		return err
	}); err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	if err := tree.remove(ctx, network); err != nil {
		return err
	}
	if n.canGuard() != nil {
		return nil
	}
	guard, err := n.guards()
	if err != nil {
		return err
	}
	return guard.Delete(ids)
}

// removeGuard removes the node's guard and the parent of all groups, which is
// empty.
func (n *Node) removeGuard() error {
	tree, err := n.cgroups()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.guard != nil {
		if err := n.guard.Close(); err != nil {
			return err
		}
	}
	n.guard, n.guarded = nil, errGuardUntried
	if err := bpf.Remove(tree.programs()); err != nil {
		return err
	}
	if err := os.Remove(tree.parent); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove control group: %w", err)
	}
	return nil
}
