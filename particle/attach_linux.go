package particle

import (
	"context"
	"errors"
	"fmt"

	"github.com/volley-run/volley/particle/bpf"
	"github.com/volley-run/volley/particle/rtnl"
)

// Attach connects endpoint i, from 0, of a network of the design Attached to
// the namespace that somebody else has pinned at path, by an interface of that
// name with the endpoint's address. It may be repeated: what is missing is
// made. An endpoint that is attached elsewhere moves here. After an error
// nothing is left of an interface that was not there before.
//
// The error is ErrConflict, wrapped, if the namespace has another interface of
// that name or the network is of another design; ErrNotFound, wrapped, if the
// network is not up or has not so many endpoints; fs.ErrNotExist or
// rtnl.ErrNotNamespace, wrapped, if there is no namespace.
//
// Nothing but the kernel knows what is attached: a pair belongs to the group of
// the network's links, which Close and GC delete, and goes with its namespace.
func (nw *Network) Attach(ctx context.Context, i int, path, ifName string) error {
	if err := nw.attach(ctx, i, path, ifName); err != nil {
		return fmt.Errorf("attach endpoint %d of %s: %w", i, nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) attach(ctx context.Context, i int, path, ifName string) (err error) {
	if nw.spec.Design != Attached {
		return fmt.Errorf("%w: its design is %s, not %s", ErrConflict, nw.spec.Design, Attached)
	}
	if _, err := nw.Endpoint(i); err != nil {
		return err
	}
	ep := nw.endpoint(i)
	guest, err := openPlace(path)
	if err != nil {
		return err
	}
	defer guest.close()
	v, r, leave, err := nw.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if r.State != StateUp {
		return fmt.Errorf("%w: it is not up", ErrNotFound)
	}
	fresh, err := nw.makePair(ctx, v, guest, ep, ifName, r.MTU)
	if err != nil {
		return bridgeFull(err)
	}
	defer func() {
		if err != nil && fresh {
			err = errors.Join(err, nw.deletePort(context.WithoutCancel(ctx), v, i))
		}
	}()
	nw.node.cfg.hook("attach pair")
	link, err := guest.conn.Link(ifName)
	if err != nil {
		return err
	}
	if err := guest.ns.Do(func() error { return nw.prepareLink(ifName) }); err != nil {
		return err
	}
	var b rtnl.Batch
	nw.startLink(&b, link, ep)
	if err := guest.conn.Do(ctx, &b); err != nil {
		return err
	}
	b.Reset()
	nw.awaitPorts(&b, i, i+1)
	return v.conn.Do(ctx, &b)
}

// Detach takes away what Attach has made. It is no error if there is nothing,
// nor if the namespace or the network is gone.
func (nw *Network) Detach(ctx context.Context, i int) error {
	if err := nw.detachEndpoint(ctx, i); err != nil {
		return fmt.Errorf("detach endpoint %d of %s: %w", i, nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) detachEndpoint(ctx context.Context, i int) error {
	if nw.spec.Design != Attached {
		return fmt.Errorf("%w: its design is %s, not %s", ErrConflict, nw.spec.Design, Attached)
	}
	v, _, leave, err := nw.enter(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer leave()
	return nw.deletePort(ctx, v, i)
}

// enter locks the network, which must be there, against changes by others, and
// opens the VTEP, until leave is called.
func (nw *Network) enter(ctx context.Context) (v *place, r record, leave func(), err error) {
	unlock, err := nw.node.state.lock(ctx, nw.label(), true)
	if err != nil {
		return nil, record{}, nil, err
	}
	r, err = nw.node.state.load(nw.spec.Name)
	if err == nil && r.Spec.Segment() != nw.spec.Segment() {
		err = fmt.Errorf("network %s: %w", nw.spec.Name, ErrNotFound)
	}
	if err != nil {
		unlock()
		return nil, record{}, nil, err
	}
	v, leaveVTEP, err := nw.node.enterVTEP(ctx)
	if err != nil {
		unlock()
		return nil, record{}, nil, err
	}
	return v, r, func() { leaveVTEP(); unlock() }, nil
}

// makePair makes an endpoint's pair between the bridge and a namespace, unless
// it is there.
func (nw *Network) makePair(ctx context.Context, v, guest *place, ep Endpoint, ifName string, mtu int) (fresh bool, err error) {
	inside, err := guest.conn.Link(ifName)
	if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
		return false, err
	}
	taken := err == nil
	_, err = v.conn.Link(endpointPortName(nw.spec.VNI, ep.Index))
	if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
		return false, err
	}
	port := err == nil
	if taken {
		// The Ethernet address follows from the endpoint's, which nobody else has.
		if port && MAC(inside.MAC).String() == MAC(ep.mac()).String() {
			return false, nil
		}
		return false, fmt.Errorf("%w: the namespace has another interface %s", ErrConflict, ifName)
	}
	if port {
		if err := nw.deletePort(ctx, v, ep.Index); err != nil {
			return false, err
		}
	}
	var b rtnl.Batch
	nw.addPair(&b, guest.ns, ifName, ep.Index, mtu)
	return true, v.conn.Do(ctx, &b)
}

// deletePort deletes an endpoint's port of the bridge, and with it the other
// end, wherever that is.
func (nw *Network) deletePort(ctx context.Context, v *place, i int) error {
	var b rtnl.Batch
	b.DeleteLink(endpointPortName(nw.spec.VNI, i))
	return v.conn.Do(ctx, &b)
}

// prepareLink does for one interface, before it is up, what prepareNamespace
// does for a namespace of our own.
func (nw *Network) prepareLink(ifName string) error {
	dir := "ipv6/conf/" + ifName + "/"
	if !nw.spec.NodePrefix6.IsValid() {
		return ifThere(rtnl.SetSysctl(dir+"disable_ipv6", "1"))
	}
	for _, s := range [][2]string{
		{"addr_gen_mode", "1"}, // no link-local address
		{"accept_ra", "0"},
		{"accept_dad", "0"},
		{"disable_ipv6", "0"},
	} {
		if err := rtnl.SetSysctl(dir+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// EnrollGroup holds what runs in a control group of somebody else, at that
// absolute path on cgroup v2, to an endpoint's addresses, as Enroll does for
// the endpoint's own. ExpelGroup ends that. It may be repeated, also with
// another endpoint. The error is ErrUnsupported, wrapped, if the network's
// discipline is not that of control groups.
func (nw *Network) EnrollGroup(ctx context.Context, ep Endpoint, cgroup string) error {
	if err := nw.enrollGroup(ctx, ep, cgroup); err != nil {
		return fmt.Errorf("enroll control group in %s: %w", nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) enrollGroup(ctx context.Context, ep Endpoint, cgroup string) (err error) {
	if !nw.Disciplined() {
		return fmt.Errorf("%w: no control groups hold its endpoints to their addresses", ErrUnsupported)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	id, err := bpf.CgroupID(cgroup)
	if err != nil {
		return err
	}
	guard, err := bpf.Open(bpf.Config{Cgroup: cgroup})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guard.Close()) }()
	return guard.Put([]bpf.Entry{{CgroupID: id, Address: ep.Address, Address6: ep.Address6}})
}

// ExpelGroup takes away what EnrollGroup has put on a control group, also if
// the group is gone. What runs in it is left alone. It is no error if there is
// nothing.
func ExpelGroup(cgroup string) error { return bpf.Remove(bpf.Config{Cgroup: cgroup}) }
