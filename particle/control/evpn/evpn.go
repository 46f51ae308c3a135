// Package evpn is the control plane of networks over BGP EVPN (RFC 7432, 8365
// and 9136), with a BGP speaker inside this process. Nodes peer with each
// other, with a route reflector, or with routers such as FRR, and join the
// VXLAN segments of those.
//
// What a node announces lives as long as its BGP sessions: when the process
// closes or dies, the others keep its routes for Config.RestartTime (a minute
// unless set), within which it may come back; when the machine dies or is cut
// off, for Config.HoldTime (9 s unless set) more. Neighbours without graceful
// restart for EVPN, such as FRR 8.4, forget at once what a closed session told.
//
// EVPN carries neither names of nodes nor of networks: members of a network
// are who use its VNI, and peers have no Node.
package evpn

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/volley-run/volley/particle"
)

// Default values of a Config.
const (
	DefaultPort        = 179
	DefaultHoldTime    = 9 * time.Second
	DefaultRestartTime = time.Minute
	DefaultInitialWait = 10 * time.Second
)

const (
	// retrySeconds is the pause before a lost session is tried again.
	retrySeconds = 2
	clientGroup  = "clients"
	// maxPassword is TCP_MD5SIG_MAXKEYLEN.
	maxPassword = 80
)

// ErrClosed is returned by the methods of a Speaker that was closed.
var ErrClosed = errors.New("the BGP speaker is closed")

// Config is how a Speaker is set up.
type Config struct {
	// ASN is the number of the own autonomous system. Where it has more than
	// 16 bits, route targets have the lower ones, as FRR's do.
	ASN uint32
	// RouterID is an IPv4 address that no other speaker of the system has as
	// its own. It need not be reachable.
	RouterID netip.Addr
	// ListenAddress is where this node listens, and where its sessions with
	// others begin. Invalid: any address of the node. A loopback address is only
	// for sessions within the machine; others begin anywhere then.
	ListenAddress netip.Addr
	// ListenPort is the TCP port for sessions that others begin; BGP's is
	// DefaultPort. 0: this node does not listen, but begins all of its sessions.
	ListenPort int
	// Neighbors are whom this node has sessions with.
	Neighbors []Neighbor
	// Clients are prefixes from which any speaker of the own system may begin a
	// session. This node is a route reflector for them: it tells each what
	// the others announce. Who can reach the port from there decides where
	// packets go, so let only nodes in. Needs ListenPort.
	Clients []netip.Prefix
	// HoldTime is after how long a silent session is lost, in whole seconds,
	// at least 3. 0: DefaultHoldTime. The smaller one of both ends counts.
	HoldTime time.Duration
	// RestartTime is for how long the others shall keep this node's routes
	// when it has gone without a word, in whole seconds, at most 4095.
	// 0: DefaultRestartTime. Negative: no graceful restart.
	RestartTime time.Duration
	// InitialWait is for how long, from when the first session has come up,
	// Watch holds back its first call while other neighbours have not told all
	// that they know; with Clients also from Open on. While there has never been
	// a session with any of the Neighbors, Watch does not know and does not
	// call. 0: DefaultInitialWait.
	InitialWait time.Duration
	// Log is told of sessions, and of what is wrong. Nil for silence.
	Log *slog.Logger
}

// Neighbor is another BGP speaker.
type Neighbor struct {
	Address netip.Addr
	// ASN is the number of its autonomous system. 0: the own.
	ASN uint32
	// Port is where it listens. 0: DefaultPort.
	Port int
	// Password is that of TCP MD5 signatures (RFC 2385), at most 80 bytes.
	// Empty: none.
	Password string
	// Client is whether this node is a route reflector for it.
	Client bool
	// Passive is whether to wait for it to begin the session. Needs a ListenPort.
	Passive bool
}

// Speaker is a particle.ControlPlane. Its methods may be called concurrently.
type Speaker struct {
	cfg Config
	bgp *server.BgpServer
	log *slog.Logger
	// ctx ends, because of ErrClosed, with the speaker.
	ctx    context.Context
	cancel context.CancelCauseFunc
	table  *table
	// resender sends again what the BGP server may have lost.
	resender *resender
	up       map[netip.Addr]bool // which sessions there are; of session only
	// announcing is held while routes of this node are changed.
	announcing sync.Mutex
	members    map[memberKey]particle.Member
	numbers    map[uint32]uint16 // by VNI: the number in its route distinguisher
	origin     map[string]originated
	closed     bool
}

var _ particle.ControlPlane = (*Speaker)(nil)

// memberKey is what an announcement is replaced and withdrawn by.
type memberKey struct {
	network string
	vni     uint32
	node    string
}

// originated is a route of this node.
type originated struct {
	vni   uint32
	path  *apiutil.Path
	bytes []byte // of its attributes
}

// Open starts a BGP speaker. Sessions come up in the background, and again
// whenever they were lost. The caller closes it.
func Open(ctx context.Context, cfg Config) (*Speaker, error) {
	cfg.HoldTime = cmp.Or(cfg.HoldTime, DefaultHoldTime)
	cfg.RestartTime = cmp.Or(cfg.RestartTime, DefaultRestartTime)
	cfg.InitialWait = cmp.Or(cfg.InitialWait, DefaultInitialWait)
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open BGP speaker: %w", err)
	}
	s := &Speaker{
		cfg: cfg, log: cfg.Log,
		up: map[netip.Addr]bool{}, members: map[memberKey]particle.Member{}, numbers: map[uint32]uint16{}, origin: map[string]originated{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.table, s.resender = newTable(cfg), newResender()
	s.bgp = server.NewBgpServer(server.LoggerOption(slog.New(warnings{s.log.Handler(), s.ctx}), new(slog.LevelVar)))
	go s.bgp.Serve() // until Stop, which waits for it
	if err := s.start(ctx); err != nil {
		s.cancel(ErrClosed)
		s.resender.close()
		s.bgp.Stop()
		s.table.close()
		return nil, fmt.Errorf("open BGP speaker: %w", err)
	}
	return s, nil
}

func (c Config) check() error {
	switch {
	case c.ASN == 0:
		return errors.New("the number of the autonomous system is missing")
	case !c.RouterID.Is4() || c.RouterID.IsUnspecified():
		return fmt.Errorf("router id %s is no IPv4 address", c.RouterID)
	case c.ListenPort < 0 || c.ListenPort > math.MaxUint16:
		return fmt.Errorf("port %d is none", c.ListenPort)
	case c.HoldTime < 3*time.Second || c.HoldTime > math.MaxUint16*time.Second || c.HoldTime%time.Second != 0:
		return fmt.Errorf("hold time %v is not in whole seconds from 3 to 65535", c.HoldTime)
	case c.RestartTime > 4095*time.Second || c.RestartTime > 0 && c.RestartTime%time.Second != 0:
		return fmt.Errorf("restart time %v is not in whole seconds up to 4095", c.RestartTime)
	case len(c.Clients) > 0 && c.ListenPort == 0:
		return errors.New("route reflector clients need a port to connect to")
	}
	for _, p := range c.Clients {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("clients' prefix %s is none", p)
		}
	}
	for i, n := range c.Neighbors {
		switch {
		case !n.Address.IsValid() || n.Address.IsUnspecified():
			return fmt.Errorf("neighbour %d has no address", i)
		case n.Port < 0 || n.Port > math.MaxUint16:
			return fmt.Errorf("neighbour %s: port %d is none", n.Address, n.Port)
		case n.Client && n.ASN != 0 && n.ASN != c.ASN:
			return fmt.Errorf("neighbour %s is a route reflector client, but of another autonomous system", n.Address)
		case n.Passive && c.ListenPort == 0:
			return fmt.Errorf("neighbour %s is passive, but this node does not listen", n.Address)
		case len(n.Password) > maxPassword:
			return fmt.Errorf("neighbour %s: the password has more than %d bytes", n.Address, maxPassword)
		}
	}
	return nil
}

// start gives the BGP server its configuration.
func (s *Speaker) start(ctx context.Context) error {
	global := &api.Global{Asn: s.cfg.ASN, RouterId: s.cfg.RouterID.String(), ListenPort: -1}
	if s.cfg.ListenPort != 0 {
		global.ListenPort = int32(s.cfg.ListenPort)
		if s.cfg.ListenAddress.IsValid() {
			global.ListenAddresses = []string{s.cfg.ListenAddress.String()}
		}
	}
	if err := s.bgp.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return err
	}
	if err := s.keepToOwnRoutes(ctx); err != nil {
		return err
	}
	err := s.bgp.WatchEvent(s.ctx, server.WatchEventMessageCallbacks{
		OnBestPath: func(paths []*apiutil.Path, _ time.Time) {
			s.resender.note(paths)
			s.table.update(paths)
		},
		OnPathEor: func(p *apiutil.Path, _ time.Time) {
			if p.Family == bgp.RF_EVPN {
				s.table.complete(p.PeerAddress)
			}
		},
		OnPeerUpdate: s.session,
	}, server.WatchBestPath(true), server.WatchEor(true), server.WatchPeer())
	if err != nil {
		return err
	}
	for _, n := range s.cfg.Neighbors {
		if err := s.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: s.neighbor(n)}); err != nil {
			return fmt.Errorf("neighbour %s: %w", n.Address, err)
		}
	}
	if len(s.cfg.Clients) == 0 {
		return nil
	}
	p := s.neighbor(Neighbor{Client: true})
	if err := s.bgp.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: &api.PeerGroup{
		Conf:   &api.PeerGroupConf{PeerGroupName: clientGroup, PeerAsn: s.cfg.ASN},
		Timers: p.Timers, Transport: p.Transport, AfiSafis: p.AfiSafis, RouteReflector: p.RouteReflector, GracefulRestart: p.GracefulRestart,
	}}); err != nil {
		return fmt.Errorf("route reflector clients: %w", err)
	}
	for _, prefix := range s.cfg.Clients {
		if err := s.bgp.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{
			DynamicNeighbor: &api.DynamicNeighbor{Prefix: prefix.String(), PeerGroup: clientGroup},
		}); err != nil {
			return fmt.Errorf("route reflector clients of %s: %w", prefix, err)
		}
	}
	return nil
}

// keepToOwnRoutes tells neighbours of other autonomous systems of no routes but
// this node's own: it would name itself as the next hop of the others, and is
// not where their VTEP is.
func (s *Speaker) keepToOwnRoutes(ctx context.Context) error {
	const name = "external neighbours"
	var external []string
	for _, n := range s.cfg.Neighbors {
		if n.ASN != 0 && n.ASN != s.cfg.ASN {
			external = append(external, netip.PrefixFrom(n.Address, n.Address.BitLen()).String())
		}
	}
	if len(external) == 0 {
		return nil
	}
	policy := &api.Policy{Name: name}
	for _, from := range []api.Conditions_RouteType{api.Conditions_ROUTE_TYPE_INTERNAL, api.Conditions_ROUTE_TYPE_EXTERNAL} {
		policy.Statements = append(policy.Statements, &api.Statement{
			Name:       from.String(),
			Conditions: &api.Conditions{NeighborSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name}, RouteType: from},
			Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_REJECT},
		})
	}
	if err := s.bgp.AddDefinedSet(ctx, &api.AddDefinedSetRequest{
		DefinedSet: &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: name, List: external},
	}); err != nil {
		return fmt.Errorf("set of %s: %w", name, err)
	}
	if err := s.bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: policy}); err != nil {
		return fmt.Errorf("policy of %s: %w", name, err)
	}
	if err := s.bgp.AddPolicyAssignment(ctx, &api.AddPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT, Policies: []*api.Policy{policy},
		DefaultAction: api.RouteAction_ROUTE_ACTION_ACCEPT,
	}}); err != nil {
		return fmt.Errorf("policy of %s: %w", name, err)
	}
	return nil
}

// neighbor is n in the words of the BGP server.
func (s *Speaker) neighbor(n Neighbor) *api.Peer {
	hold := uint64(s.cfg.HoldTime / time.Second)
	p := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: n.Address.String(), PeerAsn: cmp.Or(n.ASN, s.cfg.ASN), AuthPassword: n.Password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: retrySeconds, IdleHoldTimeAfterReset: retrySeconds, HoldTime: hold, KeepaliveInterval: hold / 3,
		}},
		Transport: &api.Transport{RemotePort: uint32(cmp.Or(n.Port, DefaultPort))},
		AfiSafis: []*api.AfiSafi{{
			Config: &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_AFI_L2VPN, Safi: api.Family_SAFI_EVPN}, Enabled: true},
		}},
	}
	p.Transport.PassiveMode = n.Passive
	if own := s.cfg.ListenAddress; own.IsValid() && (!own.IsLoopback() || n.Address.IsLoopback() || !n.Address.IsValid()) {
		p.Transport.LocalAddress = s.cfg.ListenAddress.String()
	}
	if n.Client {
		p.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: s.cfg.RouterID.String()}
	}
	if s.cfg.RestartTime > 0 {
		p.GracefulRestart = &api.GracefulRestart{Enabled: true, RestartTime: uint32(s.cfg.RestartTime / time.Second)}
		p.AfiSafis[0].MpGracefulRestart = &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}}
	}
	return p
}

// session notes the beginning and the end of sessions. The server calls it for
// one after the other.
func (s *Speaker) session(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	state := e.Peer.State
	up := state.SessionState == bgp.BGP_FSM_ESTABLISHED
	switch {
	case up:
		s.log.Info("BGP session established", "neighbour", state.NeighborAddress, "asn", state.PeerASN)
		s.table.established(state.NeighborAddress)
		s.resender.established(s, state.NeighborAddress)
	case s.up[state.NeighborAddress]:
		s.log.Warn("BGP session lost", "neighbour", state.NeighborAddress, "reason", state.DisconnectMessage)
	}
	s.up[state.NeighborAddress] = up
}

// Close implements particle.ControlPlane. How long the others keep what was
// announced is in the package's description.
func (s *Speaker) Close() error {
	s.announcing.Lock()
	closed := s.closed
	s.closed = true
	s.announcing.Unlock()
	if closed {
		return nil
	}
	s.cancel(ErrClosed)
	s.resender.close()
	// First the sessions, without a word to those who then wait for a restart.
	if err := s.bgp.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: true}); err != nil {
		s.log.Warn("stop the BGP server", "error", err)
	}
	s.bgp.Stop()
	s.table.close()
	return nil
}

// Announce implements particle.ControlPlane. Two members of one VNI, which on
// one node are jobs of one tenant, are announced together.
func (s *Speaker) Announce(_ context.Context, m particle.Member) error {
	if err := checkMember(m); err != nil {
		return fmt.Errorf("announce %s on %s: %w", m.Self.Node, m.Network, err)
	}
	if len(m.Self.MAC) == 0 {
		m.Self.MAC = particle.GatewayMAC(m.VNI, m.Self.Underlay)
	}
	s.announcing.Lock()
	defer s.announcing.Unlock()
	if s.closed {
		return fmt.Errorf("announce %s on %s: %w", m.Self.Node, m.Network, ErrClosed)
	}
	key := memberKey{m.Network, m.VNI, m.Self.Node}
	before, had := s.members[key]
	s.members[key] = m
	err := s.originate(m.VNI)
	if err == nil {
		return nil
	}
	if delete(s.members, key); had {
		s.members[key] = before
	}
	return fmt.Errorf("announce %s on %s: %w", m.Self.Node, m.Network, errors.Join(err, s.originate(m.VNI)))
}

// Withdraw implements particle.ControlPlane.
func (s *Speaker) Withdraw(_ context.Context, m particle.Member) error {
	s.announcing.Lock()
	defer s.announcing.Unlock()
	if s.closed {
		return fmt.Errorf("withdraw %s from %s: %w", m.Self.Node, m.Network, ErrClosed)
	}
	delete(s.members, memberKey{m.Network, m.VNI, m.Self.Node})
	if err := s.originate(m.VNI); err != nil {
		return fmt.Errorf("withdraw %s from %s: %w", m.Self.Node, m.Network, err)
	}
	return nil
}

// originate makes this node's routes of a VNI those of its members: first it
// adds or replaces, and then removes, so that nothing is missing meanwhile.
// The caller holds the lock.
func (s *Speaker) originate(vni uint32) error {
	wanted := map[string]originated{}
	for _, key := range slices.SortedFunc(maps.Keys(s.members), compareKeys) {
		if key.vni != vni {
			continue
		}
		number, err := s.number(vni)
		if err != nil {
			return err
		}
		paths, err := encode(s.members[key], s.cfg.ASN, s.cfg.RouterID, number)
		if err != nil {
			return err
		}
		for _, p := range paths {
			wanted[p.Nlri.String()] = originated{vni, p, attributes(p)}
		}
	}
	for key, o := range wanted {
		if was, ok := s.origin[key]; ok && bytes.Equal(was.bytes, o.bytes) {
			continue
		}
		if _, err := s.bgp.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{o.path}}); err != nil {
			return fmt.Errorf("add route %s: %w", key, err)
		}
		s.origin[key] = o
	}
	for key, o := range s.origin {
		if _, ok := wanted[key]; ok || o.vni != vni {
			continue
		}
		if err := s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{o.path}}); err != nil {
			return fmt.Errorf("delete route %s: %w", key, err)
		}
		delete(s.origin, key)
	}
	if len(wanted) == 0 {
		delete(s.numbers, vni)
	}
	return nil
}

func compareKeys(a, b memberKey) int {
	return cmp.Or(cmp.Compare(a.vni, b.vni), cmp.Compare(a.network, b.network), cmp.Compare(a.node, b.node))
}

// number returns what tells the VNI's routes from others of this node. A route
// distinguisher has room for 16 of the VNI's 24 bits, so two that agree in
// those cannot both have them.
func (s *Speaker) number(vni uint32) (uint16, error) {
	if n, ok := s.numbers[vni]; ok {
		return n, nil
	}
	taken := map[uint16]bool{}
	for _, n := range s.numbers {
		taken[n] = true
	}
	for i := range uint32(1 << 16) {
		if n := uint16(vni + i); !taken[n] {
			s.numbers[vni] = n
			return n, nil
		}
	}
	return 0, errors.New("this node is in 65536 networks already")
}

// Watch implements particle.ControlPlane. Peers that announce several prefixes
// of one family are several elements with the same Underlay.
func (s *Speaker) Watch(ctx context.Context, m particle.Member, changed func([]particle.Peer)) error {
	if err := s.watch(ctx, m, changed); err != nil {
		return fmt.Errorf("watch %s: %w", m.Network, err)
	}
	return nil
}

func (s *Speaker) watch(ctx context.Context, m particle.Member, changed func([]particle.Peer)) error {
	more, stop := s.table.subscribe(m.VNI)
	defer stop()
	var last []particle.Peer
	wait := (<-chan struct{})(s.table.known)
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-wait:
		}
		if wait = more; !first {
			// Routes that belong together come one after the other.
			if err := pause(ctx, s.ctx, settle); err != nil {
				return err
			}
		}
		// What has come until now is in the table.
		select {
		case <-more:
		default:
		}
		peers := s.table.peers(m.VNI, m.Self.Underlay)
		if ctx.Err() != nil || s.ctx.Err() != nil || !first && equal(last, peers) {
			continue
		}
		last = peers
		changed(clone(peers))
	}
}

// pause returns after a time, or with the cause when one of the contexts ends.
func pause(a, b context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-a.Done():
		return context.Cause(a)
	case <-b.Done():
		return context.Cause(b)
	}
}

// warnings passes on what is a warning or worse, until the speaker is closed:
// the BGP server has much to say, and what matters of it is logged here.
type warnings struct {
	slog.Handler
	speaker context.Context
}

func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.speaker.Err() == nil && w.Handler.Enabled(ctx, level)
}

func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs), w.speaker}
}

func (w warnings) WithGroup(name string) slog.Handler {
	return warnings{w.Handler.WithGroup(name), w.speaker}
}
