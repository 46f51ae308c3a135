package evpn

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/volley-run/volley/particle"
)

func TestAWithdrawalIsSentAgainWithoutTheRouteComingBack(t *testing.T) {
	pid := os.Getpid()
	addresses := [2]netip.Addr{}
	for i := range addresses {
		addresses[i] = netip.AddrFrom4([4]byte{127, byte(128 + pid>>8%64), byte(pid), byte(1 + i)})
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(addresses[0], 0).String())
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	open := func(cfg Config) *Speaker {
		cfg.ASN = 64512
		s, err := Open(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	hub := open(Config{RouterID: netip.MustParseAddr("10.255.1.1"), ListenAddress: addresses[0], ListenPort: port, Clients: []netip.Prefix{netip.PrefixFrom(addresses[0], 24).Masked()}})
	client := open(Config{RouterID: netip.MustParseAddr("10.255.1.2"), ListenAddress: addresses[1], Neighbors: []Neighbor{{Address: addresses[0], Port: port}}})
	m := particle.Member{Network: "a/b", VNI: 5, Self: particle.Peer{Node: "n", Underlay: addresses[0], MAC: particle.MAC{2, 0, 0, 0, 0, 1}, Prefix: netip.MustParsePrefix("10.77.1.0/24")}}
	if err := hub.Announce(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	awaitRoute := func(nlri bgp.NLRI, gone bool) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			client.resender.mu.Lock()
			c, ok := client.resender.changes[nlri.String()]
			client.resender.mu.Unlock()
			if ok && c.gone == gone {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("never heard of %s (gone: %t)", nlri, gone)
			case <-tick.C:
			}
		}
	}
	paths, err := encode(m, 64512, hub.cfg.RouterID, 5)
	if err != nil {
		t.Fatal(err)
	}
	own := paths[0].Nlri
	awaitRoute(own, false)

	// A route that the client has, though no node has it any more; and one that
	// is there after all.
	paths, err = encode(m, 64512, netip.MustParseAddr("10.255.1.3"), 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.bgp.AddPath(apiutil.AddPathRequest{Paths: paths[:1]}); err != nil {
		t.Fatal(err)
	}
	awaitRoute(paths[0].Nlri, false)
	for _, nlri := range []bgp.NLRI{own, paths[0].Nlri} {
		if err := hub.withdrawAgain(nlri); err != nil {
			t.Fatal(err)
		}
	}
	awaitRoute(paths[0].Nlri, true)
	awaitRoute(own, false)
	if peers := client.table.peers(5, netip.Addr{}); len(peers) != 1 {
		t.Errorf("peers are %v", peers)
	}
}
