package particle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/volley-run/volley/particle/rtnl"
)

// Tap is how a virtual machine is an endpoint: a tap device in the namespace of
// the network.
type Tap struct {
	// Name is the device's.
	Name string
	// MTU is the largest packet of the network, in bytes.
	MTU int
}

// Priorities of the rules that hold machines to their IPv6 addresses: a tap's
// own address comes to routing, all else from it does not. The rule for the
// namespace's addresses, which the kernel puts first, comes after them.
const (
	prioOwn = 1 + iota
	prioOther
	prioLocal
)

// ConnectTap makes endpoint i, from 0, of a network of the design AnyIP one for a
// virtual machine. It may be repeated. The tap is routed to: it is a link of two
// parties that have the same Ethernet address, mac, and ask nobody for others.
// What the machine sends from another address than the endpoint's is dropped.
//
// The error is ErrConflict, wrapped, if the network is of another design, and
// ErrNotFound, wrapped, if it is not up or has not so many endpoints. After an
// error DisconnectTap removes what there is.
func (nw *Network) ConnectTap(ctx context.Context, i int, mac net.HardwareAddr) (Tap, error) {
	tap, err := nw.connectTap(ctx, i, mac)
	if err != nil {
		return Tap{}, fmt.Errorf("connect endpoint %d of %s to a tap: %w", i, nw.spec.Name, err)
	}
	return tap, nil
}

func (nw *Network) connectTap(ctx context.Context, i int, mac net.HardwareAddr) (Tap, error) {
	if nw.spec.Design != AnyIP {
		return Tap{}, fmt.Errorf("%w: its design is %s, not %s", ErrConflict, nw.spec.Design, AnyIP)
	}
	ep, err := nw.Endpoint(i)
	if err != nil {
		return Tap{}, err
	}
	_, r, leave, err := nw.enter(ctx)
	if err != nil {
		return Tap{}, err
	}
	defer leave()
	if r.State != StateUp {
		return Tap{}, fmt.Errorf("%w: it is not up", ErrNotFound)
	}
	job, err := openPlace(nw.Namespace())
	if err != nil {
		return Tap{}, err
	}
	defer job.close()
	tap := Tap{Name: ep.tapName(), MTU: r.MTU}
	if err := job.ns.Do(func() error { return nw.makeTap(tap.Name) }); err != nil {
		return Tap{}, err
	}
	link, err := job.conn.Link(tap.Name)
	if err != nil {
		return Tap{}, err
	}
	if err := holdTap(ctx, job.conn, ep); err != nil {
		return Tap{}, err
	}
	var b rtnl.Batch
	b.SetLink(link.Index, rtnl.LinkConfig{MAC: mac, MTU: r.MTU, Up: true, NoNeighbours: true})
	for _, a := range ep.addresses() {
		b.AddRoute(rtnl.Route{To: single(a), Link: link.Index, Exception: true})
	}
	return tap, job.conn.Do(ctx, &b)
}

// DisconnectTap takes away what ConnectTap has made. It is no error if there is
// nothing, nor if the network is gone.
func (nw *Network) DisconnectTap(ctx context.Context, i int) error {
	if err := nw.disconnectTap(ctx, i); err != nil {
		return fmt.Errorf("disconnect the tap of endpoint %d of %s: %w", i, nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) disconnectTap(ctx context.Context, i int) error {
	_, _, leave, err := nw.enter(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer leave()
	job, err := openPlace(nw.Namespace())
	if noNamespace(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer job.close()
	ep := nw.endpoint(i)
	var b rtnl.Batch
	b.DeleteLink(ep.tapName()) // its routes go with it
	if ep.Address6.IsValid() {
		for _, rule := range ep.tapRules() {
			b.DeleteRule(rule)
		}
	}
	return job.conn.Do(ctx, &b)
}

// makeTap makes a tap in the calling thread's namespace, which passes packets on
// from then on.
func (nw *Network) makeTap(name string) error {
	if err := rtnl.AddTap(name); err != nil && !errors.Is(err, rtnl.ErrExists) {
		return err
	}
	for _, s := range [][2]string{
		{"ipv4/conf/" + name + "/rp_filter", "1"}, // from addresses only that are routed there
		{"ipv4/conf/" + name + "/accept_redirects", "0"},
		{"ipv4/ip_forward", "1"},
	} {
		if err := rtnl.SetSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if !nw.spec.NodePrefix6.IsValid() {
		return nil
	}
	return rtnl.SetSysctl("ipv6/conf/all/forwarding", "1")
}

// holdTap holds a machine to its IPv6 address, as rp_filter does for IPv4.
func holdTap(ctx context.Context, conn *rtnl.Conn, ep Endpoint) error {
	if !ep.Address6.IsValid() {
		return nil
	}
	local := rtnl.Rule{Priority: prioLocal, IPv6: true, Local: true}
	var b rtnl.Batch
	for _, rule := range append([]rtnl.Rule{local}, ep.tapRules()...) {
		b.AddRule(rule)
		if err := conn.Do(ctx, &b); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
		b.Reset()
	}
	local.Priority = 0
	b.DeleteRule(local)
	return conn.Do(ctx, &b)
}

// tapRules drop what comes from the endpoint's tap, unless it is from its own
// IPv6 address.
func (ep Endpoint) tapRules() []rtnl.Rule {
	return []rtnl.Rule{
		{Priority: prioOther, IPv6: true, In: ep.tapName()},
		{Priority: prioOwn, In: ep.tapName(), From: single(ep.Address6), Goto: prioLocal},
	}
}

// tapName follows from the endpoint's address, which nobody else in the
// namespace has.
func (ep Endpoint) tapName() string { return fmt.Sprintf("t%x", ep.mac()) }

// addresses are those that the endpoint has.
func (ep Endpoint) addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{ep.Address, ep.Address6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}
