package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/volley-run/volley/particle/control/evpn"
)

func TestBGPFlagsBecomeASpeaker(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := bgpOptions{
		asn: 64512, routerID: "192.0.2.1", listen: "192.0.2.1:1179", clients: []string{"192.0.2.0/24"},
		neighbors: []string{"192.0.2.2", "192.0.2.3:1179,as=64513,password-file=" + file, "2001:db8::4,passive,client", "[2001:db8::5]:1179"},
	}
	got, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	want := evpn.Config{
		ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.1"), ListenAddress: netip.MustParseAddr("192.0.2.1"), ListenPort: 1179,
		Clients: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Neighbors: []evpn.Neighbor{
			{Address: netip.MustParseAddr("192.0.2.2"), Port: 179},
			{Address: netip.MustParseAddr("192.0.2.3"), Port: 1179, ASN: 64513, Password: "secret"},
			{Address: netip.MustParseAddr("2001:db8::4"), Port: 179, Passive: true, Client: true},
			{Address: netip.MustParseAddr("2001:db8::5"), Port: 1179},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestAPortAloneIsListenedToOnLoopback(t *testing.T) {
	for text, want := range map[string]string{"1179": "127.0.0.1:1179", ":1179": "127.0.0.1:1179", "192.0.2.1": "192.0.2.1:179", "[::]:1179": "[::]:1179"} {
		address, port, err := parseBGPListen(text)
		if got := netip.AddrPortFrom(address, uint16(port)).String(); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", text, got, err, want)
		}
	}
}

func TestBGPFlagsThatMakeNoSenseAreNamed(t *testing.T) {
	long := filepath.Join(t.TempDir(), "long")
	password := strings.Repeat("secret", 20)
	if err := os.WriteFile(long, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	good := bgpOptions{asn: 64512, routerID: "192.0.2.1", neighbors: []string{"192.0.2.2"}}
	for _, tc := range []struct {
		name   string
		change func(*bgpOptions)
		want   string
	}{
		{"no autonomous system", func(o *bgpOptions) { o.asn = 0 }, "--bgp-as"},
		{"no router id", func(o *bgpOptions) { o.routerID = "" }, "--bgp-router-id"},
		{"an IPv6 router id", func(o *bgpOptions) { o.routerID = "2001:db8::1" }, "--bgp-router-id"},
		{"a port of 17 bits", func(o *bgpOptions) { o.listen = "65536" }, "--bgp-listen"},
		{"nobody", func(o *bgpOptions) { o.neighbors = nil }, "--bgp-neighbor is missing"},
		{"a name", func(o *bgpOptions) { o.neighbors = []string{"router"} }, "IP address"},
		{"no node", func(o *bgpOptions) { o.neighbors = []string{"0.0.0.0"} }, "no node"},
		{"the same twice", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2", "192.0.2.2:1179"} }, "given before"},
		{"an unknown word", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2,pasive"} }, "passive"},
		{"no number", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2,as=x"} }, "as=x"},
		{"nowhere to connect to", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2,passive"} }, "--bgp-listen"},
		{"a client elsewhere", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2,client,as=1"} }, "client"},
		{"no password file", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2,password-file=missing"} }, "missing"},
		{"a long password", func(o *bgpOptions) { o.neighbors = []string{"192.0.2.2,password-file=" + long} }, "80 bytes"},
		{"clients without a port", func(o *bgpOptions) { o.clients = []string{"192.0.2.0/24"} }, "--bgp-listen"},
		{"clients that are no prefix", func(o *bgpOptions) { o.clients = []string{"192.0.2.1/24"}; o.listen = "1179" }, "--bgp-clients"},
	} {
		o := good
		tc.change(&o)
		_, err := o.config()
		switch {
		case err == nil:
			t.Errorf("%s: no error", tc.name)
		case !strings.Contains(err.Error(), tc.want):
			t.Errorf("%s: %v, which does not say %q", tc.name, err, tc.want)
		case strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: the error tells the password", tc.name)
		}
	}
}

func TestFlagsOfTheOtherControlPlaneAreRefused(t *testing.T) {
	for args, want := range map[string]string{
		"":                               "--control evpn",
		"--control other":                "nats or evpn",
		"--control evpn --nats x":        "--nats",
		"--nats nats://x --bgp-as 64512": "--bgp-as",
	} {
		cmd := newNetAgentCommand()
		cmd.SetArgs(strings.Fields(args))
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("agent %s: %v, which does not say %q", args, err, want)
		}
	}
}
