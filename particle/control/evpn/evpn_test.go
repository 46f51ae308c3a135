package evpn_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/control/controltest"
	"github.com/volley-run/volley/particle/control/evpn"
)

const asn = 64512

// loopback is an address of this machine for node i, as speakers are told
// apart by theirs. Each test binary has a range of its own.
func loopback(i int) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(64 + pid>>8%64), byte(pid), byte(i + 1)})
}

func routerID(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 255, 0, byte(i + 1)}) }

// freePort returns a TCP port that nobody has on that address.
func freePort(t testing.TB, address netip.Addr) int {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func open(t testing.TB, cfg evpn.Config) *evpn.Speaker {
	t.Helper()
	if cfg.ASN == 0 {
		cfg.ASN = asn
	}
	s, err := evpn.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// reflected opens a route reflector and its clients, which begin the sessions.
func reflected(t testing.TB, nodes int) []particle.ControlPlane {
	hub := loopback(0)
	port := freePort(t, hub)
	var all []particle.ControlPlane
	for i := range nodes {
		// A hundred speakers in one process may keep each other waiting.
		cfg := evpn.Config{RouterID: routerID(i), ListenAddress: loopback(i), HoldTime: time.Minute}
		if i == 0 {
			cfg.ListenPort = port
			cfg.Clients = []netip.Prefix{netip.PrefixFrom(hub, 24).Masked()}
			cfg.InitialWait = 100 * time.Millisecond
		} else {
			cfg.Neighbors = []evpn.Neighbor{{Address: hub, Port: port}}
		}
		all = append(all, open(t, cfg))
	}
	return all
}

// meshed opens speakers that all have sessions with all others.
func meshed(t testing.TB, nodes int, change func(i int, cfg *evpn.Config)) []*evpn.Speaker {
	port := freePort(t, loopback(0))
	var all []*evpn.Speaker
	for i := range nodes {
		cfg := evpn.Config{RouterID: routerID(i), ListenAddress: loopback(i), ListenPort: port}
		for j := range nodes {
			if j != i {
				cfg.Neighbors = append(cfg.Neighbors, evpn.Neighbor{Address: loopback(j), Port: port})
			}
		}
		if change != nil {
			change(i, &cfg)
		}
		all = append(all, open(t, cfg))
	}
	return all
}

func TestClientsOfARouteReflectorConform(t *testing.T) {
	controltest.Run(t, reflected, controltest.Options{
		Nameless: true, Patience: 90 * time.Second,
		// The BGP server does not drain the queues of sessions that end.
		Leaks: []goleak.Option{goleak.IgnoreTopFunction("github.com/eapache/channels.(*InfiniteChannel).infiniteBuffer")},
	})
}

func TestNodesThatPeerWithEachOtherHearOfEachOther(t *testing.T) {
	nodes := meshed(t, 3, nil)
	for i, n := range nodes {
		announce(t, n, controltest.Member("n", 1, i))
	}
	for i, n := range nodes {
		var want []string
		for j := range nodes {
			if j != i {
				want = append(want, controltest.Underlay(j).String())
			}
		}
		follow(t, n, controltest.Member("n", 1, i)).await(t, fmt.Sprint(want))
	}
}

func TestNeighborsOfOtherAutonomousSystemsHearOfANodeItselfOnly(t *testing.T) {
	// A and B are one autonomous system, C and D others: B is in the middle.
	systems := []uint32{asn, asn, asn + 1, asn + 2}
	nodes := meshed(t, len(systems), func(i int, cfg *evpn.Config) {
		cfg.ASN = systems[i]
		cfg.Neighbors = slices.DeleteFunc(cfg.Neighbors, func(n evpn.Neighbor) bool { return i != 1 && n.Address != loopback(1) })
		for k := range cfg.Neighbors {
			j := int(cfg.Neighbors[k].Address.As4()[3]) - 1
			cfg.Neighbors[k].ASN, cfg.Neighbors[k].Passive = systems[j], j > i
		}
	})
	for i, n := range nodes {
		announce(t, n, controltest.Member("n", 1, i))
	}
	underlays := func(nodes ...int) string {
		all := []string{}
		for _, i := range nodes {
			all = append(all, controltest.Underlay(i).String())
		}
		return fmt.Sprint(all)
	}
	follow(t, nodes[1], controltest.Member("n", 1, 1)).await(t, underlays(0, 2, 3))
	follow(t, nodes[0], controltest.Member("n", 1, 0)).await(t, underlays(1, 2, 3))
	outside := []*followed{follow(t, nodes[2], controltest.Member("n", 1, 2)), follow(t, nodes[3], controltest.Member("n", 1, 3))}
	for _, f := range outside {
		f.await(t, underlays(1))
	}
	// What the node in the middle says later comes after what it might have
	// passed on.
	announce(t, nodes[0], controltest.Member("n", 2, 0))
	follow(t, nodes[1], controltest.Member("n", 2, 1)).await(t, underlays(0))
	announce(t, nodes[1], controltest.Member("n", 2, 1))
	follow(t, nodes[2], controltest.Member("n", 2, 2)).await(t, underlays(1))
}

func announce(t testing.TB, n *evpn.Speaker, m particle.Member) {
	t.Helper()
	if err := n.Announce(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// followed tells the underlay addresses of each call of a watch.
type followed struct {
	calls chan string
	count atomic.Int32
}

func follow(t testing.TB, n *evpn.Speaker, m particle.Member) *followed {
	f := &followed{calls: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Watch(ctx, m, func(peers []particle.Peer) {
			addresses := []string{}
			for _, p := range peers {
				addresses = append(addresses, p.Underlay.String())
			}
			f.count.Add(1)
			f.calls <- fmt.Sprint(addresses)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *followed) await(t testing.TB, want string) {
	t.Helper()
	late := time.After(40 * time.Second)
	last := "(no call)"
	for {
		select {
		case last = <-f.calls:
			if last == want {
				return
			}
		case <-late:
			t.Fatalf("never heard of %s, but last of %s", want, last)
		}
	}
}
