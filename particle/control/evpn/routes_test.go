package evpn

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/particle"
)

// overTheWire is paths as another speaker has them: each in a message of its
// own, told by a neighbour.
func overTheWire(t interface{ Fatal(...any) }, paths []*apiutil.Path) (all []*apiutil.Path) {
	for _, p := range paths {
		text, err := bgp.NewBGPUpdateMessage(nil, p.Attrs, nil).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		m, err := bgp.ParseBGPMessage(text)
		if err != nil {
			t.Fatal(err)
		}
		heard := &apiutil.Path{Family: bgp.RF_EVPN, PeerAddress: netip.MustParseAddr("192.0.2.254"), Attrs: m.Body.(*bgp.BGPUpdate).PathAttributes}
		for _, a := range heard.Attrs {
			if reach, ok := a.(*bgp.PathAttributeMpReachNLRI); ok {
				heard.Nlri = reach.Value[0].NLRI
			}
		}
		all = append(all, heard)
	}
	return all
}

func address(t *rapid.T, name string, bits int) netip.Addr {
	if rapid.Bool().Draw(t, name+" is IPv6") {
		b := [16]byte{0xfd, 0x77}
		copy(b[2:], rapid.SliceOfN(rapid.Byte(), 14, 14).Draw(t, name))
		return netip.PrefixFrom(netip.AddrFrom16(b), bits*4).Masked().Addr()
	}
	b := [4]byte{10}
	copy(b[1:], rapid.SliceOfN(rapid.Byte(), 3, 3).Draw(t, name))
	return netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked().Addr()
}

func station(t *rapid.T, name string) particle.MAC {
	return particle.MAC(append([]byte{2}, rapid.SliceOfN(rapid.Byte(), 5, 5).Draw(t, name)...))
}

func TestAnyMemberIsUnderstoodByOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := particle.Member{Network: "a/b", VNI: rapid.Uint32Range(1, 1<<24-1).Draw(t, "vni")}
		m.Self = particle.Peer{Node: "n", Underlay: address(t, "underlay", 32), MAC: station(t, "mac")}
		if rapid.Bool().Draw(t, "has IPv4") {
			m.Self.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, rapid.Byte().Draw(t, "third"), 0}), 24)
		}
		if rapid.Bool().Draw(t, "has IPv6") {
			m.Self.Prefix6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x88, rapid.Byte().Draw(t, "third")}), 64)
		}
		if !m.Self.Prefix.IsValid() && !m.Self.Prefix6.IsValid() {
			m.Self.MAC = nil // of nothing that is told
		}
		host := particle.Host{Address: netip.AddrFrom4([4]byte{192, 168, 0, rapid.Byte().Draw(t, "host")}), MAC: station(t, "host's mac")}
		m.Self.Hosts = []particle.Host{host}
		asn := rapid.Uint32Min(1).Draw(t, "asn")
		paths, err := encode(m, asn, netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(m.VNI))
		if err != nil {
			t.Fatal(err)
		}
		table := newTable(Config{})
		table.update(overTheWire(t, paths))
		want := m.Self
		want.Node = ""
		if got := table.peers(m.VNI, netip.Addr{}); !equal(got, []particle.Peer{want}) {
			a, _ := json.Marshal(got)
			b, _ := json.Marshal(want)
			t.Fatalf("have %s\nwant %s", a, b)
		}
		if got := table.peers(m.VNI, m.Self.Underlay); len(got) != 0 {
			t.Fatalf("the node has itself as a peer: %v", got)
		}
		for _, p := range paths {
			p.Withdrawal = true
		}
		table.update(paths)
		if got := table.peers(m.VNI, netip.Addr{}); len(got) != 0 || len(table.routes) != 0 || len(table.vnis) != 0 {
			t.Fatalf("something is left: %v", got)
		}
	})
}

func TestAHostIsWhereItHasLastMovedTo(t *testing.T) {
	host := particle.Host{Address: netip.MustParseAddr("10.77.0.9"), MAC: particle.MAC{2, 0, 0, 0, 0, 9}}
	for _, tc := range []struct {
		name      string
		sequences [2]uint32
		want      int // index of the node
	}{
		{name: "the second has it after the first", sequences: [2]uint32{1, 2}, want: 1},
		{name: "it has moved back", sequences: [2]uint32{3, 2}, want: 0},
		{name: "both at the same time", sequences: [2]uint32{1, 1}, want: 0},
		{name: "one that never moved", sequences: [2]uint32{0, 1}, want: 1},
	} {
		table := newTable(Config{})
		for i, sequence := range tc.sequences {
			underlay := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})
			m := particle.Member{Network: "a/b", VNI: 5, Self: particle.Peer{Node: "n", Underlay: underlay, Hosts: []particle.Host{host}}}
			paths, err := encode(m, 64512, underlay, 5)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range paths {
				for _, a := range p.Attrs {
					if c, ok := a.(*bgp.PathAttributeExtendedCommunities); ok && sequence > 0 {
						c.Value = append(c.Value[:len(c.Value):len(c.Value)], bgp.NewMacMobilityExtended(sequence, false))
					}
				}
			}
			table.update(overTheWire(t, paths))
		}
		peers := table.peers(5, netip.Addr{})
		if len(peers) != 2 || len(peers[tc.want].Hosts) != 1 || len(peers[1-tc.want].Hosts) != 0 {
			t.Errorf("%s: %+v", tc.name, peers)
		}
	}
}

func TestRoutesThatAreNotForVXLANAreIgnored(t *testing.T) {
	m := particle.Member{Network: "a/b", VNI: 5, Self: particle.Peer{Node: "n", Underlay: netip.MustParseAddr("192.0.2.1"), Prefix: netip.MustParsePrefix("10.77.1.0/24")}}
	m.Self.MAC = particle.GatewayMAC(m.VNI, m.Self.Underlay)
	paths, err := encode(m, 64512, m.Self.Underlay, 5)
	if err != nil {
		t.Fatal(err)
	}
	for name, communities := range map[string][]bgp.ExtendedCommunityInterface{
		"no route target": {bgp.NewEncapExtended(bgp.TUNNEL_TYPE_VXLAN)},
		"MPLS":            {bgp.NewTwoOctetAsSpecificExtended(bgp.EC_SUBTYPE_ROUTE_TARGET, 64512, 5, true), bgp.NewEncapExtended(bgp.TUNNEL_TYPE_MPLS)},
	} {
		for _, p := range overTheWire(t, paths) {
			for _, a := range p.Attrs {
				if c, ok := a.(*bgp.PathAttributeExtendedCommunities); ok {
					c.Value = communities
				}
			}
			if r, ok := decode(p); ok {
				t.Errorf("%s: %s is taken for %+v", name, p.Nlri, r)
			}
		}
	}
}

func TestOnlyWhatANewSessionMayHaveMissedIsSentAgain(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Now()
	r := newResender()
	r.changes["old"] = change{at: now.Add(-time.Minute)}
	r.changes["old and gone"] = change{at: now.Add(-time.Minute), gone: true}
	due := map[netip.Addr]time.Time{a: now.Add(-2 * resendWindow), b: now}
	if again, gone := r.missed(due); len(again) != 0 || len(gone) != 0 {
		t.Errorf("nothing has changed, but %v and %v are due", again, gone)
	}
	r.changes["new"] = change{at: now.Add(-3 * resendWindow / 2)}
	if again, gone := r.missed(due); len(again) != 1 || again[0] != a || len(gone) != 0 {
		t.Errorf("a has missed something, but %v and %v are due", again, gone)
	}
	r.changes["gone"] = change{at: now, gone: true}
	if _, gone := r.missed(due); len(gone) != 1 {
		t.Errorf("a withdrawal was missed, but %v are due", gone)
	}
}
