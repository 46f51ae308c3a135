package evpn

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"

	"github.com/volley-run/volley/particle"
)

const (
	// settle is how long a change waits for others that belong to it.
	settle = 50 * time.Millisecond
	// quiet is how long a neighbour that does not say when it has told all it
	// knows is given for that.
	quiet = 3 * time.Second
)

// table is what other speakers announce, by VNI.
type table struct {
	// known is closed when all neighbours have told what they know, or the
	// time for that is over.
	known       chan struct{}
	initialWait time.Duration

	mu     sync.Mutex
	closed bool
	begun  bool // a session has come up
	// pending are the neighbours that have not told all they know.
	pending map[netip.Addr]bool
	timers  []*time.Timer
	vnis    map[string]uint32 // by route: where it is in routes
	routes  map[uint32]map[string]route
	signals map[uint32]map[chan struct{}]bool
}

func newTable(cfg Config) *table {
	t := &table{
		known: make(chan struct{}), initialWait: cfg.InitialWait, pending: map[netip.Addr]bool{},
		vnis: map[string]uint32{}, routes: map[uint32]map[string]route{}, signals: map[uint32]map[chan struct{}]bool{},
	}
	for _, n := range cfg.Neighbors {
		t.pending[n.Address.Unmap()] = true
	}
	if len(cfg.Clients) > 0 {
		// Nobody knows who they are: they have this time to begin a session.
		t.pending[netip.Addr{}] = true
		t.after(cfg.InitialWait, func() { t.told(netip.Addr{}) })
	}
	if len(t.pending) == 0 {
		close(t.known)
	}
	return t
}

// after calls f with the lock held after a time, unless the table is closed.
func (t *table) after(d time.Duration, f func()) {
	t.timers = append(t.timers, time.AfterFunc(d, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.closed {
			f()
		}
	}))
}

func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, timer := range t.timers {
		timer.Stop()
	}
}

// established notes that a session has come up.
func (t *table) established(neighbor netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.begun {
		t.begun = true
		t.after(t.initialWait, func() {
			if len(t.pending) > 0 {
				clear(t.pending)
				close(t.known)
			}
		})
	}
	if neighbor = neighbor.Unmap(); t.pending[neighbor] {
		t.after(quiet, func() { t.told(neighbor) })
	}
}

// complete notes that a neighbour has told all it knows.
func (t *table) complete(neighbor netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told(neighbor.Unmap())
}

func (t *table) told(neighbor netip.Addr) {
	if !t.pending[neighbor] {
		return
	}
	if delete(t.pending, neighbor); len(t.pending) == 0 {
		close(t.known)
	}
}

// update takes over the best paths that have changed.
func (t *table) update(paths []*apiutil.Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range paths {
		if p == nil || p.Nlri == nil {
			continue
		}
		key := p.Nlri.String()
		if vni, ok := t.vnis[key]; ok {
			delete(t.vnis, key)
			if delete(t.routes[vni], key); len(t.routes[vni]) == 0 {
				delete(t.routes, vni)
			}
			t.signal(vni)
		}
		own := !p.PeerAddress.IsValid() || p.PeerAddress.IsUnspecified()
		if p.Withdrawal || own {
			continue
		}
		r, ok := decode(p)
		if !ok {
			continue
		}
		t.vnis[key] = r.vni
		if t.routes[r.vni] == nil {
			t.routes[r.vni] = map[string]route{}
		}
		t.routes[r.vni][key] = r
		t.signal(r.vni)
	}
}

func (t *table) signal(vni uint32) {
	for c := range t.signals[vni] {
		select {
		case c <- struct{}{}:
		default: // it has not taken the one before yet
		}
	}
}

// subscribe returns a channel that tells of changes of a VNI, until stop.
func (t *table) subscribe(vni uint32) (more <-chan struct{}, stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := make(chan struct{}, 1)
	if t.signals[vni] == nil {
		t.signals[vni] = map[chan struct{}]bool{}
	}
	t.signals[vni][c] = true
	return c, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if delete(t.signals[vni], c); len(t.signals[vni]) == 0 {
			delete(t.signals, vni)
		}
	}
}

// peers returns who takes part in a VNI, but for self.
func (t *table) peers(vni uint32, self netip.Addr) []particle.Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	byVTEP := map[netip.Addr][]route{}
	at := map[netip.Addr]route{} // by host's address
	for _, r := range t.routes[vni] {
		if r.vtep == self.Unmap() {
			continue
		}
		byVTEP[r.vtep] = append(byVTEP[r.vtep], r)
		if best, ok := at[r.host.Address]; !ok || r.supersedes(best) {
			at[r.host.Address] = r
		}
	}
	for vtep, routes := range byVTEP {
		for i, r := range routes {
			if at[r.host.Address].vtep != vtep {
				routes[i].host = particle.Host{} // it has moved
			}
		}
	}
	peers := []particle.Peer{}
	for vtep, routes := range byVTEP {
		peers = append(peers, merge(vtep, routes)...)
	}
	slices.SortFunc(peers, func(a, b particle.Peer) int {
		return cmp.Or(a.Underlay.Compare(b.Underlay), a.Prefix.Compare(b.Prefix), a.Prefix6.Compare(b.Prefix6))
	})
	return peers
}

// supersedes says whether a host is where r says, rather than other: the higher
// sequence number counts, and then the lower address (RFC 7432, section 15.1).
func (r route) supersedes(other route) bool {
	return cmp.Or(cmp.Compare(r.sequence, other.sequence), other.vtep.Compare(r.vtep)) > 0
}

// merge makes the routes of one VTEP a peer; or several, when it has several
// prefixes of one family, or several gateways.
func merge(vtep netip.Addr, routes []route) []particle.Peer {
	slices.SortFunc(routes, func(a, b route) int {
		return cmp.Or(a.prefix.Compare(b.prefix), a.host.Address.Compare(b.host.Address), slices.Compare(a.host.MAC, b.host.MAC))
	})
	var peers []particle.Peer
	for _, r := range routes {
		if !r.prefix.IsValid() {
			continue
		}
		four := r.prefix.Addr().Is4()
		i := slices.IndexFunc(peers, func(p particle.Peer) bool {
			return slices.Equal(p.MAC, r.gateway) && (four && !p.Prefix.IsValid() || !four && !p.Prefix6.IsValid())
		})
		if i < 0 {
			i = len(peers)
			peers = append(peers, particle.Peer{Underlay: vtep, MAC: r.gateway})
		}
		if four {
			peers[i].Prefix = r.prefix
		} else {
			peers[i].Prefix6 = r.prefix
		}
	}
	if len(peers) == 0 {
		peers = []particle.Peer{{Underlay: vtep}}
	}
	hosts := &peers[0].Hosts
	for _, r := range routes {
		if h := r.host; h.Address.IsValid() && !isGateway(peers, h) &&
			(len(*hosts) == 0 || (*hosts)[len(*hosts)-1].Address != h.Address) {
			*hosts = append(*hosts, h)
		}
	}
	return peers
}

// isGateway says whether a host is what the prefixes are reached by.
func isGateway(peers []particle.Peer, h particle.Host) bool {
	return slices.ContainsFunc(peers, func(p particle.Peer) bool {
		return slices.Equal(p.MAC, h.MAC) &&
			(p.Prefix.IsValid() && particle.GatewayAddr(p.Prefix) == h.Address || p.Prefix6.IsValid() && particle.GatewayAddr(p.Prefix6) == h.Address)
	})
}

func equal(a, b []particle.Peer) bool {
	return slices.EqualFunc(a, b, func(p, q particle.Peer) bool {
		return p.Underlay == q.Underlay && p.Prefix == q.Prefix && p.Prefix6 == q.Prefix6 && slices.Equal(p.MAC, q.MAC) &&
			slices.EqualFunc(p.Hosts, q.Hosts, func(x, y particle.Host) bool { return x.Address == y.Address && slices.Equal(x.MAC, y.MAC) })
	})
}

// clone makes peers the receiver's own.
func clone(peers []particle.Peer) []particle.Peer {
	peers = slices.Clone(peers)
	for i := range peers {
		peers[i].MAC = slices.Clone(peers[i].MAC)
		peers[i].Hosts = slices.Clone(peers[i].Hosts)
	}
	return peers
}
