package particle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/volley-run/volley/particle/rtnl"
)

// The names of the steps of thesis 3.1.3.
const (
	stepNamespace = "S1" // make the endpoint's namespace
	stepPair      = "S2" // make the veth pair in the node's namespace
	stepMoveLocal = "S3" // move one end to the VTEP's
	stepMoveGuest = "S4" // move the other one to the endpoint's
	stepAttach    = "S5" // make the first a port of the bridge, set both up
	stepAddress   = "S6" // address and Ethernet address
)

// endpointAddresses adds an endpoint's addresses to a link of its own: with
// the length of the whole prefix, so that the others are on the link.
func (nw *Network) endpointAddresses(b *rtnl.Batch, link int, ep Endpoint) {
	for _, a := range []struct {
		own   netip.Addr
		whole netip.Prefix
	}{{ep.Address, nw.spec.Prefix}, {ep.Address6, nw.spec.Prefix6}} {
		if !a.own.IsValid() {
			continue
		}
		bits := a.whole.Bits()
		if nw.spec.Design.SharesNamespace() {
			bits = a.own.BitLen()
		}
		b.AddAddress(link, netip.PrefixFrom(a.own, bits))
	}
}

// makeBaseline connects endpoints one after the other, as overlays do.
func (nw *Network) makeBaseline(ctx context.Context, v *place, mtu int, steps *stepwatch) error {
	for i := range nw.spec.Endpoints {
		if err := nw.makeBaselineEndpoint(ctx, v, i, mtu, steps); err != nil {
			return err
		}
	}
	return nil
}

func (nw *Network) makeBaselineEndpoint(ctx context.Context, v *place, i, mtu int, steps *stepwatch) error {
	ep := nw.endpoint(i)
	guest, err := nw.createNamespace(ep.Namespace)
	if err != nil {
		return err
	}
	defer guest.close()
	steps.end(stepNamespace)
	link, err := nw.moveInto(ctx, v, guest, i, ifName, mtu, steps)
	if err != nil {
		return err
	}
	var b rtnl.Batch
	b.SetLink(link, rtnl.LinkConfig{MAC: ep.mac(), Up: true})
	nw.endpointAddresses(&b, link, ep)
	b.AwaitCarrier(ifName)
	if err := guest.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end(stepAddress)
	return nil
}

// makeMoved connects endpoints that share a namespace one after the other.
func (nw *Network) makeMoved(ctx context.Context, v *place, j *place, mtu int, steps *stepwatch) error {
	for i := range nw.spec.Endpoints {
		ep := nw.endpoint(i)
		link, err := nw.moveInto(ctx, v, j, i, sharedIfName(i), mtu, steps)
		if err != nil {
			return err
		}
		var b rtnl.Batch
		b.SetLink(link, rtnl.LinkConfig{MAC: ep.mac(), Up: true, NoNeighbours: true})
		nw.endpointAddresses(&b, link, ep)
		b.AwaitCarrier(sharedIfName(i))
		if err := j.conn.Do(ctx, &b); err != nil {
			return err
		}
		steps.end(stepAddress)
	}
	return nil
}

// moveInto makes a pair in the node's namespace, moves both ends to where they
// belong, and sets them up: steps S2 to S5. It returns the number of the
// guest's end in its namespace.
func (nw *Network) moveInto(ctx context.Context, v *place, guest *place, i int, name string, mtu int, steps *stepwatch) (link int, err error) {
	host, vni := nw.node.host, nw.spec.VNI
	local := rtnl.LinkConfig{Name: endpointPortName(vni, i), MTU: mtu, Group: vni}
	other := rtnl.LinkConfig{Name: endpointGuestName(vni, i), MTU: mtu, Group: vni}
	var b rtnl.Batch
	do := func(c *rtnl.Conn, step string) error {
		defer b.Reset()
		if err := c.Do(ctx, &b); err != nil {
			return err
		}
		steps.end(step)
		return nil
	}
	b.AddVeth(local, other)
	if err := do(host, stepPair); err != nil {
		return 0, err
	}
	near, err := host.Link(local.Name)
	if err != nil {
		return 0, err
	}
	far, err := host.Link(other.Name)
	if err != nil {
		return 0, err
	}
	b.SetLink(near.Index, rtnl.LinkConfig{Namespace: v.ns})
	if err := do(host, stepMoveLocal); err != nil {
		return 0, err
	}
	b.SetLink(far.Index, rtnl.LinkConfig{Namespace: guest.ns, Name: name})
	if err := do(host, stepMoveGuest); err != nil {
		return 0, err
	}
	b.SetLinkNamed(rtnl.LinkConfig{Name: local.Name, Master: bridgeIndex(vni), Up: true})
	if err := v.conn.Do(ctx, &b); err != nil {
		return 0, err
	}
	b.Reset()
	inside, err := guest.conn.Link(name)
	if err != nil {
		return 0, err
	}
	b.SetLink(lo, rtnl.LinkConfig{Up: true})
	b.SetLink(inside.Index, rtnl.LinkConfig{Up: true})
	if err := guest.conn.Do(ctx, &b); err != nil {
		return 0, err
	}
	b.Reset()
	b.AwaitCarrier(local.Name)
	return inside.Index, do(v.conn, stepAttach)
}

// directChunk is how many namespaces makeDirect has open at a time: each takes
// two file descriptors.
const directChunk = 64

// makeDirect makes namespaces and then pairs with both ends in place.
func (nw *Network) makeDirect(ctx context.Context, v *place, mtu int, steps *stepwatch) error {
	for first := 0; first < nw.spec.Endpoints; first += directChunk {
		if err := nw.makeDirectChunk(ctx, v, first, min(first+directChunk, nw.spec.Endpoints), mtu, steps); err != nil {
			return err
		}
	}
	return nil
}

func (nw *Network) makeDirectChunk(ctx context.Context, v *place, first, end, mtu int, steps *stepwatch) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	paths := nw.endpointNamespaces()[first:end]
	conns := make([]*rtnl.Conn, len(paths))
	defer func() {
		for _, c := range conns {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	namespaces, err := rtnl.CreateAll(paths, func(i int) (err error) {
		conns[i], err = nw.furnish()
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		for _, ns := range namespaces {
			err = errors.Join(err, ns.Close())
		}
	}()
	steps.end("namespace")
	var b rtnl.Batch
	for i, ns := range namespaces {
		nw.addPair(&b, ns, ifName, first+i, mtu)
	}
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end("endpoints")
	for i, c := range conns {
		link, err := c.Link(ifName)
		if err != nil {
			return err
		}
		b.Reset()
		nw.startLink(&b, link, nw.endpoint(first+i))
		if err := c.Do(ctx, &b); err != nil {
			return err
		}
	}
	b.Reset()
	nw.awaitPorts(&b, first, end)
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end("addresses")
	return nil
}

// startLink sets an endpoint's link in its namespace up and gives it its
// addresses.
func (nw *Network) startLink(b *rtnl.Batch, link rtnl.Link, ep Endpoint) {
	b.SetLink(lo, rtnl.LinkConfig{Up: true})
	b.SetLink(link.Index, rtnl.LinkConfig{Up: true})
	nw.endpointAddresses(b, link.Index, ep)
	b.AwaitCarrier(link.Name)
}

// addPair adds the making of an endpoint's pair with both ends in place.
func (nw *Network) addPair(b *rtnl.Batch, ns *rtnl.Namespace, name string, i, mtu int) {
	vni := nw.spec.VNI
	port := endpointPortName(vni, i)
	b.AddVeth(
		rtnl.LinkConfig{Name: port, MAC: macOf(port), MTU: mtu, Group: vni, Master: bridgeIndex(vni), Up: true, Queues: linkQueues},
		rtnl.LinkConfig{Name: name, MAC: nw.endpoint(i).mac(), MTU: mtu, Namespace: ns, Queues: linkQueues})
}

// awaitPorts adds the wait for the ports of endpoints from first to end-1.
func (nw *Network) awaitPorts(b *rtnl.Batch, first, end int) {
	for i := first; i < end; i++ {
		b.AwaitCarrier(endpointPortName(nw.spec.VNI, i))
	}
}

// makeBatched makes all pairs of endpoints that share a namespace in one batch,
// and gives them their addresses in another.
func (nw *Network) makeBatched(ctx context.Context, v *place, j *place, mtu int, steps *stepwatch) error {
	var b rtnl.Batch
	for i := range nw.spec.Endpoints {
		nw.addPair(&b, j.ns, sharedIfName(i), i, mtu)
	}
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end("endpoints")
	links, err := j.conn.Links()
	if err != nil {
		return err
	}
	index := make(map[string]int, len(links))
	for _, l := range links {
		index[l.Name] = l.Index
	}
	b.Reset()
	for i := range nw.spec.Endpoints {
		link, ok := index[sharedIfName(i)]
		if !ok {
			return fmt.Errorf("find link %s: %w", sharedIfName(i), rtnl.ErrNotFound)
		}
		// Each group that an IPv6 address joins is reported on the link: the
		// bridge would carry a thousand reports to a thousand links.
		b.SetLink(link, rtnl.LinkConfig{Up: true, NoNeighbours: true})
		nw.endpointAddresses(&b, link, nw.endpoint(i))
		b.AwaitCarrier(sharedIfName(i))
	}
	if err := j.conn.Do(ctx, &b); err != nil {
		return err
	}
	b.Reset()
	nw.awaitPorts(&b, 0, nw.spec.Endpoints)
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end("addresses")
	return nil
}
