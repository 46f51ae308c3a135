// Package controltest tells whether an implementation of
// particle.ControlPlane does what the interface promises.
package controltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/particle"
)

// Options say what is particular to an implementation.
type Options struct {
	// Patience is how long something that must happen may take; 20 s if 0.
	Patience time.Duration
	// Members is how many nodes are in the test with many; 100 if 0.
	Members int
	// Nameless is for a protocol that carries no names of nodes and networks:
	// peers come without Node, and networks differ by VNI only.
	Nameless bool
	// Leaks are goroutines that may be left, of a library that cannot end them.
	Leaks []goleak.Option
}

// Open makes a new control plane and returns one connection to it, or speaker
// of it, for each of so many nodes. All is closed when the test ends. The
// nodes are those that Member describes with the same index.
type Open func(t testing.TB, nodes int) []particle.ControlPlane

// Run runs the suite. Each of its tests opens a control plane of its own,
// leaves no goroutine behind, and runs alone.
func Run(t *testing.T, open Open, opts Options) {
	if opts.Patience == 0 {
		opts.Patience = 20 * time.Second
	}
	if opts.Members == 0 {
		opts.Members = 100
	}
	s := suite{open: open, opts: opts}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"members hear of each other", s.testEachOther},
		{"the first call comes with nobody there", s.testNobody},
		{"all that a member says arrives", s.testAllFields},
		{"nodes with an IPv6 underlay hear of each other", s.testUnderlay6},
		{"who comes late hears of those before and is heard of", s.testLate},
		{"who only watches is not a member", s.testOnlyWatch},
		{"an announcement replaces the one before", s.testReplace},
		{"repeating an announcement changes nothing", s.testRepeat},
		{"what is withdrawn is gone, and may come again", s.testWithdraw},
		{"withdrawing nothing is no error", s.testWithdrawNothing},
		{"two networks do not mix", s.testTwoNetworks},
		{"peers are in the order of their underlay addresses", s.testOrder},
		{"changed is never called concurrently and ends with what is there", s.testSlow},
		{"a watch ends with its context", s.testWatchEnds},
		{"closing ends watches and all that comes after", s.testClose},
		{"what makes no sense is refused", s.testRefused},
		{"many members hear of each other", s.testMany},
	} {
		t.Run(test.name, func(t *testing.T) {
			leakFree(t, opts)
			test.run(t)
		})
	}
}

// leakFree checks at the end of the test, when everything else has been closed,
// that no goroutine is left. It is called first, so that it is the last cleanup.
func leakFree(t testing.TB, opts Options) {
	ignored := append([]goleak.Option{goleak.IgnoreCurrent()}, opts.Leaks...)
	t.Cleanup(func() {
		if !t.Failed() {
			goleak.VerifyNone(t, ignored...)
		}
	})
}

// Underlay is the underlay address of node i, counted from 0.
func Underlay(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

// Member is node i's part of a network: an IPv4 prefix, and the Ethernet
// address that follows from the other numbers. i is less than 254.
func Member(network string, vni uint32, i int) particle.Member {
	return particle.Member{
		Network: network,
		VNI:     vni,
		Self: particle.Peer{
			Node:     fmt.Sprintf("n%d", i),
			Underlay: Underlay(i),
			Prefix:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24),
			MAC:      particle.GatewayMAC(vni, Underlay(i)),
		},
	}
}

const (
	network = "job/default/one"
	vni     = 7001
)

type suite struct {
	open Open
	opts Options
}

func (s suite) testEachOther(t *testing.T) {
	nodes := s.open(t, 3)
	var watchers []*watcher
	for i, n := range nodes {
		watchers = append(watchers, s.watch(t, n, Member(network, vni, i)))
	}
	s.announce(t, nodes...)
	for i, w := range watchers {
		w.await(s.others(i, 3)...)
	}
}

func (s suite) testNobody(t *testing.T) {
	nodes := s.open(t, 2)
	s.watch(t, nodes[0], Member(network, vni, 0)).await()
}

func (s suite) testAllFields(t *testing.T) {
	nodes := s.open(t, 2)
	m := Member(network, vni, 1)
	m.Self.Prefix6 = netip.MustParsePrefix("fd77:0:0:1::/64")
	m.Self.MAC = particle.MAC{0x02, 0xaa, 0, 0, 0, 1}
	m.Self.Hosts = []particle.Host{
		{Address: netip.MustParseAddr("10.77.200.5"), MAC: particle.MAC{0x02, 0xbb, 0, 0, 0, 5}},
		{Address: netip.MustParseAddr("fd77:0:0:200::6"), MAC: particle.MAC{0x02, 0xbb, 0, 0, 0, 6}},
	}
	s.must(t, nodes[1].Announce(s.within(t), m))
	s.watch(t, nodes[0], Member(network, vni, 0)).await(s.seen(m))

	// IPv6 alone, and neither: a node that has hosts, or only a tunnel's end.
	m.Self.Prefix = netip.Prefix{}
	s.must(t, nodes[1].Announce(s.within(t), m))
	s.watch(t, nodes[0], Member(network, vni, 0)).await(s.seen(m))
}

func (s suite) testUnderlay6(t *testing.T) {
	nodes := s.open(t, 2)
	m, self := Member(network, vni, 1), Member(network, vni, 0)
	m.Self.Underlay = netip.MustParseAddr("2001:db8::2")
	self.Self.Underlay = netip.MustParseAddr("2001:db8::1")
	s.must(t, nodes[1].Announce(s.within(t), m))
	s.watch(t, nodes[0], self).await(s.seen(m))
}

func (s suite) testLate(t *testing.T) {
	nodes := s.open(t, 3)
	early := s.watch(t, nodes[0], Member(network, vni, 0))
	s.announce(t, nodes[:2]...)
	early.await(s.others(0, 2)...)
	late := s.watch(t, nodes[2], Member(network, vni, 2))
	late.await(s.others(2, 3)...)
	s.must(t, nodes[2].Announce(s.within(t), Member(network, vni, 2)))
	early.await(s.others(0, 3)...)
}

func (s suite) testOnlyWatch(t *testing.T) {
	nodes := s.open(t, 3)
	watching := s.watch(t, nodes[0], Member(network, vni, 0))
	other := s.watch(t, nodes[1], Member(network, vni, 1))
	for i := 1; i < 3; i++ {
		s.must(t, nodes[i].Announce(s.within(t), Member(network, vni, i)))
	}
	watching.await(s.others(0, 3)...)
	other.await(s.seen(Member(network, vni, 2)))
}

func (s suite) testReplace(t *testing.T) {
	nodes := s.open(t, 2)
	w := s.watch(t, nodes[0], Member(network, vni, 0))
	m := Member(network, vni, 1)
	for step := range 4 {
		m.Self.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(100 + step), 0}), 24)
		m.Self.Hosts = nil
		if step%2 == 1 {
			m.Self.Hosts = []particle.Host{{Address: netip.AddrFrom4([4]byte{10, 77, 200, byte(step)}), MAC: particle.MAC{2, 0, 0, 0, 0, byte(step)}}}
		}
		s.must(t, nodes[1].Announce(s.within(t), m))
		w.await(s.seen(m))
	}
}

func (s suite) testRepeat(t *testing.T) {
	nodes := s.open(t, 3)
	w := s.watch(t, nodes[0], Member(network, vni, 0))
	for range 3 {
		s.must(t, nodes[1].Announce(s.within(t), Member(network, vni, 1)))
	}
	// What another node says afterwards shows that the repetitions are through.
	w.await(s.seen(Member(network, vni, 1)))
	s.must(t, nodes[2].Announce(s.within(t), Member(network, vni, 2)))
	w.await(s.others(0, 3)...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 1; i < len(w.calls); i++ {
		if w.calls[i] == w.calls[i-1] {
			t.Errorf("called twice with the same peers: %s", w.calls[i])
		}
	}
}

func (s suite) testWithdraw(t *testing.T) {
	nodes := s.open(t, 3)
	w := s.watch(t, nodes[0], Member(network, vni, 0))
	s.announce(t, nodes...)
	w.await(s.others(0, 3)...)
	s.must(t, nodes[1].Withdraw(s.within(t), Member(network, vni, 1)))
	w.await(s.seen(Member(network, vni, 2)))
	s.must(t, nodes[1].Withdraw(s.within(t), Member(network, vni, 1)))
	s.must(t, nodes[1].Announce(s.within(t), Member(network, vni, 1)))
	w.await(s.others(0, 3)...)
	s.must(t, nodes[1].Withdraw(s.within(t), Member(network, vni, 1)))
	s.must(t, nodes[2].Withdraw(s.within(t), Member(network, vni, 2)))
	w.await()
}

func (s suite) testWithdrawNothing(t *testing.T) {
	nodes := s.open(t, 2)
	s.must(t, nodes[0].Withdraw(s.within(t), Member(network, vni, 0)))
}

func (s suite) testTwoNetworks(t *testing.T) {
	nodes := s.open(t, 2)
	const otherVNI = vni + 1
	name, named := network, "job/default/two"
	self, other := s.watch(t, nodes[0], Member(name, vni, 0)), s.watch(t, nodes[0], Member(named, otherVNI, 0))
	s.must(t, nodes[1].Announce(s.within(t), Member(name, vni, 1)))
	self.await(s.seen(Member(name, vni, 1)))
	other.await()
	// The two may have the same prefixes.
	s.must(t, nodes[1].Announce(s.within(t), Member(named, otherVNI, 1)))
	other.await(s.seen(Member(named, otherVNI, 1)))
	s.must(t, nodes[1].Withdraw(s.within(t), Member(name, vni, 1)))
	self.await()
	other.await(s.seen(Member(named, otherVNI, 1)))
	if !s.opts.Nameless {
		// The same number, meant for another network.
		third := s.watch(t, nodes[0], Member("job/default/three", otherVNI, 0))
		third.await()
	}
}

func (s suite) testOrder(t *testing.T) {
	nodes := s.open(t, 6)
	w := s.watch(t, nodes[0], Member(network, vni, 0))
	for _, i := range []int{4, 2, 5, 1, 3} {
		s.must(t, nodes[i].Announce(s.within(t), Member(network, vni, i)))
	}
	w.await(s.others(0, 6)...)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disorder != "" {
		t.Errorf("peers out of order: %s", w.disorder)
	}
}

func (s suite) testSlow(t *testing.T) {
	nodes := s.open(t, 2)
	const rounds = 50
	gate := make(chan struct{})
	var inside, concurrent atomic.Int32
	w := newWatcher(t, s.opts.Patience)
	w.run(nodes[0], Member(network, vni, 0), func(peers []particle.Peer) {
		if inside.Add(1) > 1 {
			concurrent.Add(1)
		}
		<-gate // what changes meanwhile must not be lost
		inside.Add(-1)
		w.record(peers)
	})
	var last particle.Member
	for i := range rounds {
		last = Member(network, vni, 1)
		last.Self.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(100 + i), 0}), 24)
		s.must(t, nodes[1].Announce(s.within(t), last))
	}
	close(gate)
	w.await(s.seen(last))
	if concurrent.Load() != 0 {
		t.Error("changed was called while it was running")
	}
}

func (s suite) testWatchEnds(t *testing.T) {
	nodes := s.open(t, 2)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var calls atomic.Int32
	first := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- nodes[0].Watch(ctx, Member(network, vni, 0), func([]particle.Peer) {
			calls.Add(1)
			select {
			case first <- struct{}{}:
			default:
			}
		})
	}()
	receive(t, s.opts.Patience, "the first call", first)
	cancel()
	if err := receive(t, s.opts.Patience, "the end of the watch", done); !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v, not with its context's error", err)
	}
	before := calls.Load()
	s.must(t, nodes[1].Announce(s.within(t), Member(network, vni, 1)))
	s.watch(t, nodes[0], Member(network, vni, 0)).await(s.seen(Member(network, vni, 1)))
	if after := calls.Load(); after != before {
		t.Errorf("called %d times after the watch had ended", after-before)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := nodes[0].Watch(ended, Member(network, vni, 0), func([]particle.Peer) { t.Error("called") }); err == nil {
		t.Error("a watch with a context that has ended gives no error")
	}
}

func (s suite) testClose(t *testing.T) {
	nodes := s.open(t, 2)
	first := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- nodes[0].Watch(context.Background(), Member(network, vni, 0), func([]particle.Peer) {
			select {
			case first <- struct{}{}:
			default:
			}
		})
	}()
	receive(t, s.opts.Patience, "the first call", first)
	s.must(t, nodes[0].Close())
	if err := receive(t, s.opts.Patience, "the end of the watch", done); err == nil {
		t.Error("the watch ended without an error")
	}
	s.must(t, nodes[0].Close())
	if err := nodes[0].Announce(s.within(t), Member(network, vni, 0)); err == nil {
		t.Error("announcing after Close gives no error")
	}
	if err := nodes[0].Withdraw(s.within(t), Member(network, vni, 0)); err == nil {
		t.Error("withdrawing after Close gives no error")
	}
	if err := nodes[0].Watch(s.within(t), Member(network, vni, 0), func([]particle.Peer) { t.Error("called") }); err == nil {
		t.Error("watching after Close gives no error")
	}
}

func (s suite) testRefused(t *testing.T) {
	nodes := s.open(t, 2)
	for name, change := range map[string]func(*particle.Member){
		"no network":        func(m *particle.Member) { m.Network = "" },
		"no VNI":            func(m *particle.Member) { m.VNI = 0 },
		"a VNI of 25 bits":  func(m *particle.Member) { m.VNI = 1 << 24 },
		"no name":           func(m *particle.Member) { m.Self.Node = "" },
		"no underlay":       func(m *particle.Member) { m.Self.Underlay = netip.Addr{} },
		"half a MAC":        func(m *particle.Member) { m.Self.MAC = m.Self.MAC[:3] },
		"a host without IP": func(m *particle.Member) { m.Self.Hosts = []particle.Host{{MAC: m.Self.MAC}} },
	} {
		m := Member(network, vni, 0)
		change(&m)
		if err := nodes[0].Announce(s.within(t), m); err == nil {
			t.Errorf("announcing with %s gives no error", name)
		}
	}
}

func (s suite) testMany(t *testing.T) {
	n := s.opts.Members
	nodes := s.open(t, n)
	var watchers []*watcher
	for i, node := range nodes {
		watchers = append(watchers, s.watch(t, node, Member(network, vni, i)))
	}
	start := time.Now()
	s.announce(t, nodes...)
	for i, w := range watchers {
		w.await(s.others(i, n)...)
	}
	took, calls := time.Since(start), 0
	for _, w := range watchers {
		w.mu.Lock()
		calls += len(w.calls)
		w.mu.Unlock()
	}
	t.Logf("%d members know each other after %v; %.1f calls each", n, took.Round(time.Millisecond), float64(calls)/float64(n))
}

// announce announces the first nodes of the network, concurrently.
func (s suite) announce(t testing.TB, nodes ...particle.ControlPlane) {
	t.Helper()
	ctx := s.within(t)
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.Announce(ctx, Member(network, vni, i)) })
	}
	wg.Wait()
	for _, err := range errs {
		s.must(t, err)
	}
}

// others are the peers that node i of n has.
func (s suite) others(i, n int) []particle.Peer {
	var peers []particle.Peer
	for j := range n {
		if j != i {
			peers = append(peers, s.seen(Member(network, vni, j)))
		}
	}
	return peers
}

// seen is how others see m.
func (s suite) seen(m particle.Member) particle.Peer {
	if s.opts.Nameless {
		m.Self.Node = ""
	}
	return m.Self
}

func (s suite) within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Patience)
	t.Cleanup(cancel)
	return ctx
}

func (s suite) must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s suite) watch(t testing.TB, c particle.ControlPlane, m particle.Member) *watcher {
	w := newWatcher(t, s.opts.Patience)
	w.run(c, m, w.record)
	return w
}

// watcher remembers what a watch told.
type watcher struct {
	t        testing.TB
	patience time.Duration
	more     chan struct{}

	mu       sync.Mutex
	calls    []string
	disorder string
	ended    error
}

func newWatcher(t testing.TB, patience time.Duration) *watcher {
	return &watcher{t: t, patience: patience, more: make(chan struct{}, 1)}
}

// run watches until the test ends.
func (w *watcher) run(c particle.ControlPlane, m particle.Member, changed func([]particle.Peer)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := c.Watch(ctx, m, changed)
		w.mu.Lock()
		w.ended = err
		w.mu.Unlock()
		w.signal()
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (w *watcher) record(peers []particle.Peer) {
	text := describe(peers)
	w.mu.Lock()
	w.calls = append(w.calls, text)
	if !slices.IsSortedFunc(peers, func(a, b particle.Peer) int { return a.Underlay.Compare(b.Underlay) }) {
		w.disorder = text
	}
	w.mu.Unlock()
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// await returns when the last call had these peers.
func (w *watcher) await(want ...particle.Peer) {
	w.t.Helper()
	text := describe(want)
	timeout := time.NewTimer(w.patience)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		last, ended := "(no call)", w.ended
		if n := len(w.calls); n > 0 {
			last = w.calls[n-1]
		}
		w.mu.Unlock()
		switch {
		case last == text:
			return
		case ended != nil:
			w.t.Fatalf("the watch has ended: %v", ended)
		}
		select {
		case <-w.more:
		case <-timeout.C:
			w.t.Fatalf("waited %v in vain\nwant: %s\nlast: %s", w.patience, text, last)
		}
	}
}

// describe is peers as text that can be compared, with hosts in a fixed order.
func describe(peers []particle.Peer) string {
	sorted := slices.Clone(peers)
	for i := range sorted {
		sorted[i].Hosts = slices.SortedFunc(slices.Values(sorted[i].Hosts), func(a, b particle.Host) int { return a.Address.Compare(b.Address) })
	}
	if len(sorted) == 0 {
		return "[]"
	}
	text, err := json.Marshal(sorted)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func receive[T any](t testing.TB, patience time.Duration, what string, from <-chan T) T {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case v := <-from:
		return v
	case <-timeout.C:
		t.Fatalf("waited %v in vain for %s", patience, what)
		panic("unreachable")
	}
}
