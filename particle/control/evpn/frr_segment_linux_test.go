package evpn_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/volley-run/volley/particle"
)

// frrConf has FRR's autonomous system and what it advertises besides.
const frrConf = `router bgp %d
 bgp router-id 192.0.2.2
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 neighbor 192.0.2.1 remote-as 64512
 neighbor 192.0.2.1 timers connect 1
 address-family ipv4 unicast
  network 10.77.201.0/24
 exit-address-family
 address-family l2vpn evpn
  neighbor 192.0.2.1 activate
  advertise-all-vni
  %s
 exit-address-family
`

// The host's Ethernet address, and those of the router on the segment.
var (
	hostMAC   = particle.MAC{0x02, 0xaa, 0, 0, 0, 0x10}
	routerMAC = particle.MAC{0x02, 0xaa, 0, 0, 0, 0x02}
)

// bridge makes the router's end of a segment.
func (l *lab) bridge(vni int) (vxlan, bridge string) {
	vxlan, bridge = fmt.Sprint("vx", vni), fmt.Sprint("br", vni)
	l.ip("-n", l.inRouter, "link", "add", bridge, "address", routerMAC.String(), "mtu", "1450", "type", "bridge")
	l.ip("-n", l.inRouter, "link", "add", vxlan, "type", "vxlan", "id", fmt.Sprint(vni), "dstport", "4789", "local", frrVTEP.String(), "nolearning")
	l.ip("-n", l.inRouter, "link", "set", vxlan, "master", bridge, "up")
	l.ip("-n", l.inRouter, "link", "set", bridge, "up")
	l.ip("-n", l.inHost, "link", "set", "eth0", "mtu", "1450", "address", hostMAC.String())
	return vxlan, bridge
}

// speak sends a packet of the host's to the router. It makes the host known
// there, unless the router, which has just started, does not look yet.
func (l *lab) speak() {
	l.within(l.inHost, func() error {
		c, err := net.DialTimeout("udp", "10.77.200.1:9", time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		// Nobody listens there; what matters is the question for the address.
		_, _ = c.Write([]byte("hello"))
		return nil
	})
}

func TestAHostOnASegmentOfFRRAndEndpointsReachEachOther(t *testing.T) {
	for name, frrASN := range map[string]uint32{"in the same autonomous system": asn, "in another autonomous system": asn + 1} {
		t.Run(name, func(t *testing.T) { testSegment(t, frrASN) })
	}
}

func testSegment(t *testing.T, frrASN uint32) {
	const vni = 7001
	l := newLab(t)
	vxlan, bridge := l.bridge(vni)
	l.ip("-n", l.inRouter, "link", "set", "host", "master", bridge)
	l.ip("-n", l.inRouter, "addr", "add", "10.77.200.1/16", "dev", bridge)
	l.ip("-n", l.inHost, "addr", "add", "10.77.200.10/16", "dev", "eth0")
	l.ip("-n", l.inHost, "route", "add", "10.77.1.0/24", "via", "10.77.1.1")
	nw := l.up(vni)
	l.startFRR("", fmt.Sprintf(frrConf, frrASN, ""))
	l.startAgent(frrASN)
	host := netip.MustParseAddr("10.77.200.10")
	l.awaitPeers(nw, l.speak, particle.Peer{Underlay: frrVTEP, Hosts: []particle.Host{{Address: host, MAC: hostMAC}}})

	mac := particle.GatewayMAC(vni, nodeVTEP)
	l.await("the node's routes", func() string {
		return shows(l.vtysh("show bgp l2vpn evpn"),
			"[3]:[0]:[32]:[192.0.2.1]", fmt.Sprintf("[2]:[0]:[48]:[%s]:[32]:[10.77.1.1]", mac), "[5]:[0]:[24]:[10.77.1.0]",
			fmt.Sprintf("RT:%d:%d", asn, vni))
	})
	l.await("the node in the kernel's forwarding table", func() string {
		return shows(l.run("bridge", "-n", l.inRouter, "fdb", "show", "dev", vxlan), mac.String()+" dst 192.0.2.1", "00:00:00:00:00:00 dst 192.0.2.1")
	})

	endpoint, err := nw.Endpoint(1)
	if err != nil {
		t.Fatal(err)
	}
	inHost := "/run/netns/" + l.inHost
	if err := exchange(inHost, endpoint.Namespace, endpoint.Address); err != nil {
		t.Errorf("from the host to the endpoint: %v", err)
	}
	if err := exchange(endpoint.Namespace, inHost, host); err != nil {
		t.Errorf("from the endpoint to the host: %v", err)
	}

	if err := nw.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.await("the node's routes to be gone", func() string {
		if out := l.vtysh("show bgp l2vpn evpn"); shows(out, "192.0.2.1") == "" {
			return out
		}
		return ""
	})
}

func TestFRRAndANodeRouteEachOthersPrefixes(t *testing.T) {
	const vni = 7002
	l := newLab(t)
	l.bridge(vni)
	l.run("nsenter", "--net=/run/netns/"+l.inRouter, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	l.ip("-n", l.inRouter, "addr", "add", "10.77.201.1/24", "dev", "host")
	l.ip("-n", l.inHost, "addr", "add", "10.77.201.10/24", "dev", "eth0")
	l.ip("-n", l.inHost, "route", "add", "default", "via", "10.77.201.1")
	nw := l.up(vni)
	// The VNI is that of the default VRF, which needs no VRF of the kernel's.
	stop := l.startFRR(fmt.Sprintf("vni %d\n", vni), fmt.Sprintf(frrConf, asn, "advertise ipv4 unicast"))
	l.startAgent(asn)
	l.awaitPeers(nw, nil, particle.Peer{Underlay: frrVTEP, Prefix: netip.MustParsePrefix("10.77.201.0/24"), MAC: routerMAC})
	l.await("the node's prefix in the kernel's routing table", func() string {
		return shows(l.run("ip", "-n", l.inRouter, "route", "show", "10.77.1.0/24"), "via 192.0.2.1", "proto bgp")
	})

	endpoint, err := nw.Endpoint(1)
	if err != nil {
		t.Fatal(err)
	}
	inHost := "/run/netns/" + l.inHost
	if err := exchange(inHost, endpoint.Namespace, endpoint.Address); err != nil {
		t.Errorf("from the host to the endpoint: %v", err)
	}
	if err := exchange(endpoint.Namespace, inHost, netip.MustParseAddr("10.77.201.10")); err != nil {
		t.Errorf("from the endpoint to the host: %v", err)
	}

	// What FRR has told is forgotten with it.
	stop()
	l.awaitPeers(nw, nil)
}
