package particle

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func valid() Spec {
	return Spec{
		Name: "job1", Prefix: netip.MustParsePrefix("10.77.0.0/16"), NodePrefix: netip.MustParsePrefix("10.77.1.0/24"), Endpoints: 200,
		Underlay: Underlay{Address: netip.MustParseAddr("192.0.2.1")},
		Peers:    []Peer{{Node: "b", Underlay: netip.MustParseAddr("192.0.2.2"), Prefix: netip.MustParsePrefix("10.77.2.0/24")}},
	}
}

func TestDefaultsAreFilledIn(t *testing.T) {
	s := Spec{Name: "job1", Prefix: netip.MustParsePrefix("10.77.0.0/16"), Endpoints: 1}.WithDefaults()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if s.Tenant != DefaultTenant || s.Isolation != IsolateJob || s.Design != AnyIP || s.Discipline != DisciplineAuto || s.NodePrefix != s.Prefix || s.Underlay.Port != DefaultPort {
		t.Errorf("defaults are %+v", s)
	}
	if s.VNI == 0 || s.VNI > 1<<24-1 {
		t.Errorf("VNI = %d", s.VNI)
	}
	if again := s.WithDefaults(); !reflect.DeepEqual(again, s) {
		t.Errorf("defaults of defaults are %+v", again)
	}
	other := s
	other.Name, other.VNI = "job2", 0
	if other = other.WithDefaults(); other.VNI == s.VNI {
		t.Error("two jobs have one VNI")
	}
	other.Isolation, s.Isolation = IsolateTenant, IsolateTenant
	other.VNI, s.VNI = 0, 0
	if other.WithDefaults().VNI != s.WithDefaults().VNI {
		t.Error("two jobs of a tenant that is isolated as a whole have two VNIs")
	}
}

func TestValidateNamesTheFieldThatIsWrong(t *testing.T) {
	prefix := netip.MustParsePrefix
	for field, change := range map[string]func(*Spec){
		"name":              func(s *Spec) { s.Name = "" },
		"tenant":            func(s *Spec) { s.Tenant = "Not This" },
		"isolation":         func(s *Spec) { s.Isolation = "none" },
		"vni":               func(s *Spec) { s.VNI = 1 << 24 },
		"design":            func(s *Spec) { s.Design = "magic" },
		"discipline":        func(s *Spec) { s.Discipline = "trust" },
		"prefix":            func(s *Spec) { s.Prefix, s.NodePrefix = prefix("10.77.0.1/16"), prefix("10.77.1.0/24") },
		"nodePrefix":        func(s *Spec) { s.NodePrefix = prefix("10.78.0.0/24") },
		"prefix6":           func(s *Spec) { s.Prefix6, s.NodePrefix6 = prefix("10.77.0.0/16"), prefix("10.77.0.0/16") },
		"nodePrefix6":       func(s *Spec) { s.Prefix6, s.NodePrefix6 = prefix("fd77::/48"), prefix("fd78::/64") },
		"endpoints":         func(s *Spec) { s.Endpoints = 254 },
		"underlay.address":  func(s *Spec) { s.Underlay.Address = netip.Addr{} },
		"underlay.mtu":      func(s *Spec) { s.Underlay.MTU = 576 },
		"peers[0].underlay": func(s *Spec) { s.Peers[0].Underlay = s.Underlay.Address },
		"peers[0].mac":      func(s *Spec) { s.Peers[0].MAC = MAC{1} },
		"peers[0].prefix":   func(s *Spec) { s.Peers[0].Prefix = s.NodePrefix },
		"peers[1].prefix": func(s *Spec) {
			s.Peers = append(s.Peers, Peer{Underlay: netip.MustParseAddr("192.0.2.3"), Prefix: s.Peers[0].Prefix})
		},
	} {
		t.Run(field, func(t *testing.T) {
			s := valid().WithDefaults()
			change(&s)
			err := s.Validate()
			if wrong, ok := errors.AsType[*SpecError](err); !ok || wrong.Field != field {
				t.Errorf("Validate = %v, want a word on %s", err, field)
			}
		})
	}
	if err := valid().WithDefaults().Validate(); err != nil {
		t.Error(err)
	}
}

func TestParseSpecSaysWhereTheMistakeIs(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "empty",
		"{\n\"name\": }":                     "line 2",
		`{"name": "a"} {}`:                   "closing brace",
		`{"nam": "a"}`:                       "nam",
		`{"prefix": "10.0.0.0"}`:             "10.0.0.0",
		`{"peers": [{"mac": "02:00:00:0"}]}`: "Ethernet",
	} {
		if _, err := ParseSpec([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	text, err := json.Marshal(valid())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"name":"a","prefix6":"fd00::/8","peers":[{"underlay":"::1","mac":"02:00:00:00:00:01","hosts":[{"address":"fd00::1","mac":""}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSpec(text)
		if err != nil {
			return
		}
		s = s.WithDefaults()
		if s.Validate() != nil {
			return
		}
		// What is valid survives being written and read.
		text, err = json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSpec(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		second, err := json.Marshal(again.WithDefaults())
		if err != nil || string(second) != string(text) {
			t.Fatalf("%s became %s, %v", text, second, err)
		}
		for _, i := range []int{0, s.Endpoints - 1} {
			if i < 0 || i >= s.Endpoints {
				continue
			}
			for _, node := range []netip.Prefix{s.NodePrefix, s.NodePrefix6} {
				if !node.IsValid() {
					continue
				}
				a := EndpointAddr(node, i)
				if got, ok := s.IndexOf(a); !ok || got != i || !node.Contains(a) {
					t.Fatalf("endpoint %d of %s has %s, which is endpoint %d", i, node, a, got)
				}
			}
		}
	})
}

func TestAddressesOfNodesAndEndpointsAreDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		six := rapid.Bool().Draw(t, "six")
		var a netip.Addr
		if six {
			b := [16]byte{0xfd}
			copy(b[1:], rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "address"))
			a = netip.AddrFrom16(b)
		} else {
			b := [4]byte{10}
			copy(b[1:], rapid.SliceOfN(rapid.Byte(), 3, 3).Draw(t, "address"))
			a = netip.AddrFrom4(b)
		}
		bits := rapid.IntRange(8, a.BitLen()-2).Draw(t, "bits")
		node := netip.PrefixFrom(a, bits).Masked()
		n := min(capacity(node), 2000)
		s := Spec{Name: "a", Endpoints: n}
		if six {
			s.Prefix6 = node
		} else {
			s.Prefix = node
		}
		s = s.WithDefaults()
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Addr]string{node.Addr(): "the prefix", GatewayAddr(node): "the node"}
		if len(seen) != 2 {
			t.Fatal("the node has the prefix's own address")
		}
		last := node.Addr()
		for i := range n {
			a := EndpointAddr(node, i)
			if who, ok := seen[a]; ok {
				t.Fatalf("endpoint %d and %s have %s", i, who, a)
			}
			seen[a] = fmt.Sprint("endpoint ", i)
			if !node.Contains(a) || !last.Less(a) {
				t.Fatalf("endpoint %d has %s of %s, after %s", i, a, node, last)
			}
			if got, ok := s.IndexOf(a); !ok || got != i {
				t.Fatalf("%s is endpoint %d, not %d", a, i, got)
			}
			last = a
		}
		// The last address of a prefix that is used up is left out.
		if n == capacity(node) && node.Contains(last.Next()) == false {
			t.Fatalf("the last endpoint has the last address of %s", node)
		}
		for _, other := range []netip.Addr{node.Addr(), GatewayAddr(node), last.Next()} {
			if i, ok := s.IndexOf(other); ok {
				t.Fatalf("%s is endpoint %d", other, i)
			}
		}
	})
}

func TestGatewayMACsAreUnicastAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for vni := range uint32(50) {
		for i := range 20 {
			mac := GatewayMAC(vni+1, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			if mac[0]&3 != 2 || seen[mac.String()] {
				t.Fatalf("%s of VNI %d and node %d", mac, vni+1, i)
			}
			seen[mac.String()] = true
		}
	}
	if GatewayMAC(7, netip.MustParseAddr("192.0.2.1")).String() != GatewayMAC(7, netip.MustParseAddr("::ffff:192.0.2.1")).String() {
		t.Error("an address has another MAC if it is written as IPv6")
	}
}
