package particle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/volley-run/volley/particle/rtnl"
)

const (
	// maxPorts is how many ports a Linux bridge can have.
	maxPorts = 1023
	// aloneMTU is for networks without an underlay.
	aloneMTU = 1500
	// overhead is what VXLAN adds to a packet: 14 bytes of the inner Ethernet
	// header, 8 of VXLAN, 8 of UDP, and an IP header.
	overhead4, overhead6 = 50, 70

	lo = 1 // the index of every namespace's loopback device
)

// The links of a segment in the VTEP's namespace have numbers that follow from
// its VNI, far above those that the kernel gives, so that requests need not ask
// for them. So has the port's other end in a namespace that endpoints share, a
// number of its own: the kernel takes its time, up to a second, to let packets
// through a veth pair whose ends have the same.
func bridgeIndex(vni uint32) int { return 1<<24 | int(vni) }
func vxlanIndex(vni uint32) int  { return 2<<24 | int(vni) }
func portIndex(vni uint32) int   { return 3<<24 | int(vni) }
func jobIndex(vni uint32) int    { return 4<<24 | int(vni) }

func bridgeName(vni uint32) string               { return fmt.Sprintf("b%d", vni) }
func vxlanName(vni uint32) string                { return fmt.Sprintf("x%d", vni) }
func portName(vni uint32) string                 { return fmt.Sprintf("p%d", vni) }
func endpointPortName(vni uint32, i int) string  { return fmt.Sprintf("p%d.%d", vni, i) }
func endpointGuestName(vni uint32, i int) string { return fmt.Sprintf("g%d.%d", vni, i) }

// ifName is the interface of a namespace that has one, and of one that is
// shared the one for the node.
const ifName = "eth0"

// ifName is what the node's interface in the shared namespace is called.
func (nw *Network) ifName() string {
	if nw.opts.namespace != "" {
		return nw.opts.ifName
	}
	return ifName
}

// sharedIfName is an endpoint's own interface in a namespace that is shared.
func sharedIfName(i int) string { return fmt.Sprintf("eth%d", i+1) }

// linkQueues is for links whose packets go straight through: more queues than
// one would only take time to make.
const linkQueues = 1

// checkPorts returns ErrBridgeFull, wrapped, if the bridge has too few ports.
func (nw *Network) checkPorts() error {
	ports := 0
	switch nw.spec.Design {
	case Baseline, Direct, Attached:
		ports = nw.spec.Endpoints
	case Shared, Batched:
		ports = nw.spec.Endpoints + 1
	}
	if nw.spec.Underlay.Address.IsValid() {
		ports++
	}
	if ports <= maxPorts {
		return nil
	}
	return fmt.Errorf("%w, and %d endpoints of the design %s take %d: use %s or %s, which take one", ErrBridgeFull, nw.spec.Endpoints, nw.spec.Design, ports, AnyIP, Consolidated)
}

// bridgeFull gives the kernel's answer the meaning it has here.
func bridgeFull(err error) error {
	if errors.Is(err, rtnl.ErrBridgeFull) {
		return fmt.Errorf("%w: use the design %s or %s: %w", ErrBridgeFull, AnyIP, Consolidated, err)
	}
	return err
}

// make makes what is not there. r.MTU is filled in.
func (nw *Network) make(ctx context.Context, v *place, r *record, others []record, steps *stepwatch) error {
	there, err := nw.makeLinks(ctx, v, r, others)
	if err != nil {
		return bridgeFull(err)
	}
	steps.end("links")
	if !nw.spec.Design.SharesNamespace() {
		if r.State != StateUp {
			switch nw.spec.Design {
			case Baseline:
				err = nw.makeBaseline(ctx, v, r.MTU, steps)
			case Direct:
				err = nw.makeDirect(ctx, v, r.MTU, steps)
			}
			if err != nil {
				return bridgeFull(err)
			}
		}
		if err := nw.rewire(ctx, v, nil, wiring{}, wireAll(r.Spec, r.Leaving), nw.wiring(*r, others)); err != nil {
			return err
		}
		steps.end("peers")
		return nil
	}
	job, err := nw.makeShared(ctx, v, r, there, steps)
	if err != nil {
		return bridgeFull(err)
	}
	defer job.close()
	if r.State != StateUp {
		switch nw.spec.Design {
		case Shared:
			err = nw.makeMoved(ctx, v, job, r.MTU, steps)
		case Batched:
			err = nw.makeBatched(ctx, v, job, r.MTU, steps)
		}
		if err != nil {
			return bridgeFull(err)
		}
	}
	var b rtnl.Batch
	b.SetLink(lo, rtnl.LinkConfig{Up: true})
	b.SetLink(jobIndex(nw.spec.VNI), rtnl.LinkConfig{Up: true})
	addresses(&b, nw.spec)
	for _, o := range others { // what they have is gone if the namespace was
		addresses(&b, o.Spec)
	}
	b.AwaitCarrier(nw.ifName())
	want := nw.wiring(*r, others)
	nw.wire(&b, wiring{}, wireAll(r.Spec, r.Leaving), want)
	if err := job.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end("addresses")
	b.Reset()
	b.AwaitCarrier(portName(nw.spec.VNI))
	nw.forward(&b, wiring{}, wireAll(r.Spec, r.Leaving), want)
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	steps.end("peers")
	return nil
}

// makeLinks makes the segment's bridge and VXLAN device, and reports whether
// they were there.
func (nw *Network) makeLinks(ctx context.Context, v *place, r *record, others []record) (there bool, err error) {
	vni := nw.spec.VNI
	_, err = v.conn.Link(bridgeName(vni))
	if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
		return false, err
	}
	if err == nil {
		if r.State == StateUp {
			return true, nil
		}
		if len(others) > 0 {
			r.MTU = others[0].MTU
			return true, nil
		}
		// The claim on the VNI says that nobody needs them.
		if err := nw.deleteLinks(ctx, v, r.Spec); err != nil {
			return false, err
		}
	}
	if r.MTU, err = nw.mtu(); err != nil {
		return false, err
	}
	bridge := rtnl.LinkConfig{Name: bridgeName(vni), Index: bridgeIndex(vni), MAC: macOf(fmt.Sprint("bridge ", vni)), MTU: r.MTU, Group: vni, Up: true}
	var b rtnl.Batch
	b.AddBridge(bridge)
	if err := v.conn.Do(ctx, &b); err != nil {
		return false, err
	}
	u := nw.spec.Underlay
	if !u.Address.IsValid() {
		return false, nil
	}
	b.Reset()
	// The socket is in the namespace of whom is asked, the device in the VTEP's.
	b.AddVXLAN(rtnl.LinkConfig{
		Name: vxlanName(vni), Index: vxlanIndex(vni), MAC: macOf(fmt.Sprint("vxlan ", vni, " ", u.Address)), MTU: r.MTU, Group: vni,
		Master: bridge.Index, Up: true, Namespace: v.ns,
	}, rtnl.VXLAN{VNI: vni, Local: u.Address, Port: u.Port, Learning: !nw.spec.Design.SharesNamespace()})
	return false, nw.node.host.Do(ctx, &b)
}

// mtu returns the largest packet inside the network.
func (nw *Network) mtu() (int, error) {
	u := nw.spec.Underlay
	mtu := u.MTU
	switch {
	case mtu == 0 && !u.Address.IsValid():
		return aloneMTU, nil
	case mtu == 0:
		var err error
		if mtu, err = nw.node.host.MTU(u.Address); errors.Is(err, rtnl.ErrNotFound) {
			return 0, &SpecError{Field: "underlay.address", Problem: fmt.Sprintf("%s is on none of the node's interfaces", u.Address)}
		} else if err != nil {
			return 0, err
		}
	case !u.Address.IsValid():
		return mtu, nil
	}
	if u.Address.Unmap().Is4() {
		return mtu - overhead4, nil
	}
	return mtu - overhead6, nil
}

// macOf derives an Ethernet address from a name.
func macOf(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return unicast(sum[:6])
}

// EndpointMAC is the Ethernet address of an endpoint that has a link of its
// own. It follows from its address.
func EndpointMAC(a netip.Addr) MAC { return MAC(macOf("endpoint " + a.String())) }

// mac is the Ethernet address of an endpoint's own link.
func (ep Endpoint) mac() []byte {
	if ep.Address.IsValid() {
		return EndpointMAC(ep.Address)
	}
	return EndpointMAC(ep.Address6)
}

// makeShared makes the namespace that endpoints share and its end of the port.
func (nw *Network) makeShared(ctx context.Context, v *place, r *record, there bool, steps *stepwatch) (j *place, err error) {
	path := nw.Namespace()
	if j, err = openPlace(path); err != nil && !noNamespace(err) {
		return nil, err
	}
	foreign := nw.opts.namespace != ""
	switch {
	case err == nil && foreign && !there:
		err = j.ns.Do(func() error { return nw.prepareIPv6() })
	case err == nil && !there:
		// The claim on its name says that nobody needs it: nobody knows what
		// somebody has done to it.
		j.close()
		if err = rtnl.Remove(path); err == nil {
			j, err = nw.createNamespace(path)
		}
	case err != nil && !foreign:
		j, err = nw.createNamespace(path)
	}
	if err != nil {
		return nil, err
	}
	steps.end("namespace")
	if there {
		if _, err := v.conn.Link(portName(nw.spec.VNI)); err == nil {
			return j, nil
		} else if !errors.Is(err, rtnl.ErrNotFound) {
			j.close()
			return nil, err
		}
	}
	vni := nw.spec.VNI
	var b rtnl.Batch
	b.AddVeth(
		rtnl.LinkConfig{Name: portName(vni), Index: portIndex(vni), MAC: macOf(fmt.Sprint("port ", vni)), MTU: r.MTU, Group: vni, Master: bridgeIndex(vni), Up: true, Queues: linkQueues},
		rtnl.LinkConfig{Name: nw.ifName(), Index: jobIndex(vni), MAC: []byte(GatewayMAC(vni, nw.spec.Underlay.Address)), MTU: r.MTU, Namespace: j.ns, Queues: linkQueues})
	if err := v.conn.Do(ctx, &b); err != nil {
		j.close()
		return nil, err
	}
	steps.end("port")
	return j, nil
}

// createNamespace makes a namespace of endpoints, pinned at path.
func (nw *Network) createNamespace(path string) (*place, error) {
	var conn *rtnl.Conn
	ns, err := rtnl.Create(path, func() (err error) {
		conn, err = nw.furnish()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &place{ns, conn}, nil
}

// furnish prepares the calling thread's namespace and opens a socket in it.
func (nw *Network) furnish() (*rtnl.Conn, error) {
	if err := nw.prepareNamespace(); err != nil {
		return nil, err
	}
	return rtnl.Dial()
}

// prepareNamespace sets what a namespace of endpoints needs, before there are
// links in it: they take after it.
func (nw *Network) prepareNamespace() error {
	// A new namespace takes after the machine in this, which may be a router.
	if err := rtnl.SetSysctl("ipv4/ip_forward", "0"); err != nil {
		return err
	}
	return nw.prepareIPv6()
}

func (nw *Network) prepareIPv6() error {
	if !nw.spec.NodePrefix6.IsValid() {
		if nw.opts.namespace != "" {
			return nil // it is not ours
		}
		return noIPv6()
	}
	for _, s := range [][2]string{
		{"ipv6/conf/default/addr_gen_mode", "1"}, // no link-local addresses
		{"ipv6/conf/default/accept_ra", "0"},     // routes come from Apply alone
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/bindv6only", "0"},
		{"ipv6/ip_nonlocal_bind", "1"}, // a local route alone does not do, as it does for IPv4
	} {
		if err := rtnl.SetSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// addresses adds what makes the endpoints' addresses those of the namespace
// that they share, and the node's own.
func addresses(b *rtnl.Batch, s Spec) { eachAddress(s, b.AddAddress, b.AddRoute) }

// withdraw deletes what addresses adds.
func withdraw(b *rtnl.Batch, s Spec) { eachAddress(s, b.DeleteAddress, b.DeleteRoute) }

// eachAddress calls address and route with all that a network has for addresses
// of its own in a namespace that endpoints share.
func eachAddress(s Spec, address func(link int, a netip.Prefix), route func(rtnl.Route)) {
	link := jobIndex(s.VNI)
	for _, node := range []netip.Prefix{s.NodePrefix, s.NodePrefix6} {
		if !node.IsValid() {
			continue
		}
		address(link, single(GatewayAddr(node)))
		switch s.Design {
		case AnyIP:
			route(rtnl.Route{To: node, Link: lo, Local: true})
		case Consolidated:
			// Nobody asks the link who has an address: peers know its one
			// Ethernet address. On it, each IPv6 address would join a group, and
			// the kernel goes through all groups for each.
			on := link
			if is6(node.Addr()) {
				on = lo
			}
			for i := range s.Endpoints {
				address(on, single(EndpointAddr(node, i)))
			}
		}
	}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func overlap(p, q netip.Prefix) bool { return p.IsValid() && q.IsValid() && p.Overlaps(q) }

// intact reports whether what an Apply has made is still there.
func (nw *Network) intact(v *place) (bool, error) {
	links, err := v.conn.Links()
	if err != nil {
		return false, err
	}
	vni := nw.spec.VNI
	links = slices.DeleteFunc(links, func(l rtnl.Link) bool { return l.Group != vni })
	want := 1 // the bridge
	if nw.spec.Underlay.Address.IsValid() {
		want++
	}
	if nw.spec.Design.SharesNamespace() {
		want++
	}
	switch nw.spec.Design {
	case Baseline, Direct, Shared, Batched:
		want += nw.spec.Endpoints
	}
	if len(links) < want {
		return false, nil
	}
	paths := []string{nw.Namespace()}
	if paths[0] == "" {
		paths = nw.endpointNamespaces()
	}
	for _, path := range paths {
		ns, err := rtnl.Open(path)
		if noNamespace(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if err := ns.Close(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// endpointNamespaces returns the paths of the namespaces that were made for one
// endpoint each.
func (nw *Network) endpointNamespaces() []string {
	if nw.spec.Design == Attached {
		return nil // they are somebody else's
	}
	paths := make([]string, nw.spec.Endpoints)
	for i := range paths {
		paths[i] = nw.node.namespacePath(endpointLabel(nw.label(), i))
	}
	return paths
}

// demolish removes all of a network that is there, however little that is, and
// forgets it. The caller holds the segment's lock and the VTEP.
func (nw *Network) demolish(ctx context.Context, v *place, r record) error {
	state, segment := nw.node.state, r.Spec.Segment()
	if r.State != StatePartial {
		r.State = StatePartial
		if err := state.save(r); err != nil {
			return err
		}
	}
	others, err := nw.neighbours()
	if err != nil {
		return err
	}
	if err := nw.node.expel(ctx, r.Spec.Name); err != nil {
		return err
	}
	nw.node.cfg.hook("close groups")
	// An Apply that was killed, or refused, early has not got the claims.
	hasLinks := state.claimed(state.vni(r.Spec.VNI)) == segment
	hasNamespaces := state.claimed(state.label(nw.label())) == segment
	whole := len(others) == 0
	if !whole {
		if hasLinks && hasNamespaces {
			if err := nw.detach(ctx, v, r, others); err != nil {
				return err
			}
		}
		return nw.release(r, false)
	}
	if hasLinks {
		if err := nw.deleteLinks(ctx, v, r.Spec); err != nil {
			return err
		}
	}
	nw.node.cfg.hook("close links")
	if hasNamespaces {
		if _, err := nw.node.unserve(func(label string) bool { return label == nw.label() }); err != nil {
			return err
		}
		if err := nw.removeNamespaces(ctx); err != nil {
			return err
		}
	}
	nw.node.cfg.hook("close namespaces")
	return nw.release(r, true)
}

// deleteLinks deletes all links of the segment, with their other ends.
func (nw *Network) deleteLinks(ctx context.Context, v *place, s Spec) error {
	var b rtnl.Batch
	b.DeleteGroup(s.VNI)
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	if s.Design == Baseline || s.Design == Shared {
		_, err := nw.node.deleteStray(ctx, func(vni uint32) bool { return vni == s.VNI })
		return err
	}
	return nil
}

// deleteStray deletes pairs that were made in the node's own namespace to be
// moved, and have not been, of the segments that gone names.
func (n *Node) deleteStray(ctx context.Context, gone func(vni uint32) bool) (names []string, err error) {
	links, err := n.host.Links()
	if err != nil {
		return nil, err
	}
	var b rtnl.Batch
	for _, l := range links {
		prefix, _, dotted := strings.Cut(l.Name, ".")
		if l.Kind != "veth" || l.Group == 0 || !dotted || !gone(l.Group) {
			continue
		}
		if prefix == fmt.Sprint("p", l.Group) || prefix == fmt.Sprint("g", l.Group) {
			b.DeleteLink(l.Name)
			names = append(names, l.Name)
		}
	}
	return names, n.host.Do(ctx, &b)
}

// removeNamespaces removes the segment's namespaces, or what was put into one
// that is not its own.
func (nw *Network) removeNamespaces(ctx context.Context) error {
	switch {
	case nw.opts.namespace != "":
		j, err := openPlace(nw.opts.namespace)
		if noNamespace(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer j.close()
		var b rtnl.Batch
		withdraw(&b, nw.spec)
		return j.conn.Do(ctx, &b)
	case nw.spec.Design.SharesNamespace():
		return rtnl.Remove(nw.Namespace())
	}
	for _, path := range nw.endpointNamespaces() {
		if err := rtnl.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// detach takes a network out of a segment that others stay in.
func (nw *Network) detach(ctx context.Context, v *place, r record, others []record) error {
	rest := others[0]
	want := nw.node.network(rest.Spec, rest.options()).wiring(rest, others[1:])
	have := wireAll(r.Spec, append(r.peers(), r.Leaving...))
	j, err := openPlace(nw.Namespace())
	if noNamespace(err) {
		var b rtnl.Batch
		nw.forward(&b, want, have, want)
		return v.conn.Do(ctx, &b)
	}
	if err != nil {
		return err
	}
	defer j.close()
	var b rtnl.Batch
	withdraw(&b, r.Spec)
	if err := j.conn.Do(ctx, &b); err != nil {
		return err
	}
	return nw.rewire(ctx, v, j, want, have, want)
}
