package particle

import (
	"context"
	"maps"
	"net/netip"

	"github.com/volley-run/volley/particle/rtnl"
)

// wiring is what a segment has for its peers on this node.
type wiring struct {
	// routes say by which next hop prefixes are reached; an invalid one stands
	// for a host on the link itself.
	routes map[netip.Prefix]netip.Addr
	// neighbours say which Ethernet addresses next hops and hosts have.
	neighbours map[netip.Addr]mac
	// forwards say behind which VTEPs Ethernet addresses are.
	forwards map[forward]bool
}

type mac [6]byte

// forward is an Ethernet address, or all of them if it is zero, behind a VTEP.
type forward struct {
	mac    mac
	remote netip.Addr
}

func (w wiring) equal(x wiring) bool {
	return maps.Equal(w.routes, x.routes) && maps.Equal(w.neighbours, x.neighbours) && maps.Equal(w.forwards, x.forwards)
}

// wireAll returns what peers of a network take.
func wireAll(s Spec, peers []Peer) wiring {
	w := wiring{map[netip.Prefix]netip.Addr{}, map[netip.Addr]mac{}, map[forward]bool{}}
	w.add(s, peers)
	return w
}

func (w wiring) add(s Spec, peers []Peer) {
	for _, p := range peers {
		remote := p.Underlay.Unmap()
		w.forwards[forward{remote: remote}] = true
		gateway := p.MAC
		if len(gateway) == 0 {
			gateway = GatewayMAC(s.VNI, p.Underlay)
		}
		w.forwards[forward{mac(gateway), remote}] = true
		for _, h := range p.Hosts {
			if len(h.MAC) != 6 {
				continue
			}
			w.forwards[forward{mac(h.MAC), remote}] = true
			if s.Design.SharesNamespace() && s.serves(h.Address) {
				w.routes[single(h.Address)] = netip.Addr{}
				w.neighbours[h.Address] = mac(h.MAC)
			}
		}
		if !s.Design.SharesNamespace() {
			continue // plain Ethernet: endpoints ask who has an address
		}
		for _, prefix := range []netip.Prefix{p.Prefix, p.Prefix6} {
			if !prefix.IsValid() || !s.serves(prefix.Addr()) {
				continue
			}
			via := GatewayAddr(prefix)
			w.routes[prefix] = via
			w.neighbours[via] = mac(gateway)
		}
	}
}

// serves reports whether the network has a's address family.
func (s Spec) serves(a netip.Addr) bool {
	if is6(a) {
		return s.NodePrefix6.IsValid()
	}
	return s.NodePrefix.IsValid()
}

// wiring returns what the network and the others of its segment need.
func (nw *Network) wiring(r record, others []record) wiring {
	w := wireAll(r.Spec, r.peers())
	for _, o := range others {
		w.add(o.Spec, o.peers())
	}
	return w
}

// rewire changes the segment from have to want, and deletes what is in stale
// and not in want. j is the shared namespace if the caller has it open.
func (nw *Network) rewire(ctx context.Context, v *place, j *place, have, stale, want wiring) error {
	var b rtnl.Batch
	nw.wire(&b, have, stale, want)
	if b.Len() > 0 {
		if j == nil {
			var err error
			if j, err = openPlace(nw.Namespace()); err != nil {
				return err
			}
			defer j.close()
		}
		if err := j.conn.Do(ctx, &b); err != nil {
			return err
		}
	}
	b.Reset()
	nw.forward(&b, have, stale, want)
	if b.Len() == 0 {
		return nil
	}
	if err := v.conn.Do(ctx, &b); err != nil {
		return err
	}
	return nw.unlearn(ctx, v, stale, want)
}

// unlearn makes the VXLAN device of a design whose device learns forget what it
// has learned from nodes that are peers no more.
func (nw *Network) unlearn(ctx context.Context, v *place, stale, want wiring) error {
	if nw.spec.Design.SharesNamespace() {
		return nil
	}
	var b rtnl.Batch
	for f := range stale.forwards {
		if f.mac == (mac{}) && !want.forwards[f] {
			b.FlushForwards(vxlanIndex(nw.spec.VNI), f.remote)
		}
	}
	if err := v.conn.Do(ctx, &b); err != nil && ctx.Err() != nil {
		return err
	}
	return nil // an old kernel cannot: it forgets after five minutes
}

// wire adds what rewire does in the shared namespace.
func (nw *Network) wire(b *rtnl.Batch, have, stale, want wiring) {
	link := jobIndex(nw.spec.VNI)
	for a, mac := range want.neighbours {
		if was, ok := have.neighbours[a]; !ok || was != mac {
			b.AddNeighbour(link, a, mac[:])
		}
	}
	for to, via := range want.routes {
		if was, ok := have.routes[to]; !ok || was != via {
			b.AddRoute(rtnl.Route{To: to, Via: via, Link: link})
		}
	}
	for to, via := range stale.routes {
		if _, ok := want.routes[to]; !ok {
			b.DeleteRoute(rtnl.Route{To: to, Via: via, Link: link})
		}
	}
	for a := range stale.neighbours {
		if _, ok := want.neighbours[a]; !ok {
			b.DeleteNeighbour(link, a)
		}
	}
}

// forward adds what rewire does in the VTEP's namespace.
func (nw *Network) forward(b *rtnl.Batch, have, stale, want wiring) {
	link := vxlanIndex(nw.spec.VNI)
	entry := func(f forward) rtnl.Forward {
		e := rtnl.Forward{Link: link, Remote: f.remote}
		if f.mac != (mac{}) {
			e.MAC = f.mac[:]
		}
		return e
	}
	wanted := map[mac]bool{}
	for f := range want.forwards {
		wanted[f.mac] = true
		if !have.forwards[f] {
			b.AddForward(entry(f))
		}
	}
	for f := range stale.forwards {
		// An address that is behind another VTEP now was replaced above.
		if want.forwards[f] || f.mac != (mac{}) && wanted[f.mac] {
			continue
		}
		b.DeleteForward(entry(f))
	}
}
