package seccomp

import (
	"net/netip"
	"testing"
)

func TestAddressesAreDecidedByTheEndpoint(t *testing.T) {
	four, six := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")
	both, only4, only6 := Endpoint{four, six}, Endpoint{Address: four}, Endpoint{Address6: six}
	const no = ""
	for _, c := range []struct {
		name          string
		ep            Endpoint
		six           bool
		asked         string
		bind, connect string
	}{
		{"any becomes one's own", both, false, "0.0.0.0", "10.88.0.2", "10.88.0.2"},
		{"loopback becomes one's own", both, false, "127.3.2.1", "10.88.0.2", "10.88.0.2"},
		{"one's own stays", both, false, "10.88.0.2", "10.88.0.2", "10.88.0.2"},
		{"another's is not for binding", both, false, "10.88.0.3", no, "10.88.0.3"},
		{"any of IPv6 becomes one's own", both, true, "::", "fd88::2", "fd88::2"},
		{"loopback of IPv6 becomes one's own", both, true, "::1", "fd88::2", "fd88::2"},
		{"one's own IPv6 stays", both, true, "fd88::2", "fd88::2", "fd88::2"},
		{"another's IPv6 is not for binding", both, true, "fd88::3", no, "fd88::3"},
		{"a mapped one is decided like IPv4", both, true, "::ffff:10.88.0.3", no, "::ffff:10.88.0.3"},
		{"mapped any becomes one's own, mapped", both, true, "::ffff:0.0.0.0", "::ffff:10.88.0.2", "::ffff:10.88.0.2"},
		{"mapped loopback becomes one's own, mapped", both, true, "::ffff:127.0.0.1", "::ffff:10.88.0.2", "::ffff:10.88.0.2"},
		{"without IPv6, any is one's own, mapped", only4, true, "::", "::ffff:10.88.0.2", "::ffff:10.88.0.2"},
		{"without IPv4 there is none", only6, false, "0.0.0.0", no, no},
		{"without IPv4 there is no mapped one", only6, true, "::ffff:0.0.0.0", no, no},
		{"multicast is not for binding", both, false, "224.0.0.1", no, "224.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := netip.MustParseAddr(c.asked)
			check := func(what string, got netip.Addr, v verdict, want string) {
				t.Helper()
				text := no
				if v != refused {
					text = got.String()
				}
				if text != want {
					t.Errorf("%s %s: got %q, want %q", what, asked, text, want)
				}
				if (v == asItIs) != (text == c.asked) {
					t.Errorf("%s %s: verdict %d for %q", what, asked, v, text)
				}
			}
			a, v := c.ep.forBind(c.six, asked)
			check("bind", a, v, c.bind)
			a, v = c.ep.forConnect(c.six, asked)
			check("connect", a, v, c.connect)
		})
	}
}
