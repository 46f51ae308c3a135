package evpn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/volley-run/volley/particle"
)

// checkMember refuses what cannot be said.
func checkMember(m particle.Member) error {
	switch {
	case m.Network == "":
		return errors.New("the network has no name")
	case m.VNI == 0 || m.VNI >= 1<<24:
		return fmt.Errorf("VNI %d is not from 1 to 16777215", m.VNI)
	case m.Self.Node == "":
		return errors.New("the node has no name")
	case !m.Self.Underlay.IsValid():
		return errors.New("the node has no underlay address")
	case len(m.Self.MAC) != 0 && len(m.Self.MAC) != 6:
		return fmt.Errorf("%s is no Ethernet address", m.Self.MAC)
	}
	for _, h := range m.Self.Hosts {
		if !h.Address.IsValid() || len(h.MAC) != 6 {
			return errors.New("a host lacks its address or its Ethernet address")
		}
	}
	return nil
}

// encode turns a member into routes: that it takes part (type 3), where its
// gateway and its hosts are (type 2), and its prefixes (type 5).
func encode(m particle.Member, asn uint32, routerID netip.Addr, number uint16) ([]*apiutil.Path, error) {
	rd, err := bgp.NewRouteDistinguisherIPAddressAS(routerID, number)
	if err != nil {
		return nil, fmt.Errorf("make route distinguisher: %w", err)
	}
	e := encoder{
		member: m, rd: rd,
		communities: []bgp.ExtendedCommunityInterface{
			bgp.NewTwoOctetAsSpecificExtended(bgp.EC_SUBTYPE_ROUTE_TARGET, uint16(asn), m.VNI, true),
			bgp.NewEncapExtended(bgp.TUNNEL_TYPE_VXLAN),
		},
	}
	e.multicast()
	for _, prefix := range []netip.Prefix{m.Self.Prefix, m.Self.Prefix6} {
		if prefix.IsValid() {
			e.host(particle.Host{Address: particle.GatewayAddr(prefix), MAC: m.Self.MAC})
			e.prefix(prefix)
		}
	}
	for _, h := range m.Self.Hosts {
		e.host(h)
	}
	return e.paths, errors.Join(e.errs...)
}

type encoder struct {
	member      particle.Member
	rd          bgp.RouteDistinguisherInterface
	communities []bgp.ExtendedCommunityInterface
	paths       []*apiutil.Path
	errs        []error
}

func (e *encoder) multicast() {
	nlri, err := bgp.NewEVPNMulticastEthernetTagRoute(e.rd, 0, e.member.Self.Underlay)
	id, err2 := bgp.NewIngressReplTunnelID(e.member.Self.Underlay)
	if err := errors.Join(err, err2); err != nil {
		e.errs = append(e.errs, err)
		return
	}
	e.add(nlri, e.communities, bgp.NewPathAttributePmsiTunnel(bgp.PMSI_TUNNEL_TYPE_INGRESS_REPL, false, e.member.VNI, id))
}

func (e *encoder) host(h particle.Host) {
	nlri, err := bgp.NewEVPNMacIPAdvertisementRoute(e.rd, bgp.EthernetSegmentIdentifier{}, 0, h.MAC.String(), h.Address, []uint32{e.member.VNI})
	if err != nil {
		e.errs = append(e.errs, err)
		return
	}
	e.add(nlri, e.routed())
}

func (e *encoder) prefix(p netip.Prefix) {
	none := netip.IPv4Unspecified()
	if p.Addr().Is6() {
		none = netip.IPv6Unspecified()
	}
	nlri, err := bgp.NewEVPNIPPrefixRoute(e.rd, bgp.EthernetSegmentIdentifier{}, 0, uint8(p.Bits()), p.Addr(), none, e.member.VNI)
	if err != nil {
		e.errs = append(e.errs, err)
		return
	}
	e.add(nlri, e.routed())
}

// routed is the communities of a route that may become one of the IP routing
// table: by which Ethernet address this node routes. FRR puts type 2 there too
// when the VNI is one that it routes, and may not get on without that address.
func (e *encoder) routed() []bgp.ExtendedCommunityInterface {
	if len(e.member.Self.MAC) == 0 {
		return e.communities
	}
	router := bgp.NewRoutersMacExtended(e.member.Self.MAC.String())
	return append(e.communities[:len(e.communities):len(e.communities)], router)
}

func (e *encoder) add(nlri bgp.NLRI, communities []bgp.ExtendedCommunityInterface, more ...bgp.PathAttributeInterface) {
	reach, err := bgp.NewPathAttributeMpReachNLRI(bgp.RF_EVPN, []bgp.PathNLRI{{NLRI: nlri}}, e.member.Self.Underlay)
	if err != nil {
		e.errs = append(e.errs, err)
		return
	}
	attrs := append([]bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), reach, bgp.NewPathAttributeExtendedCommunities(communities),
	}, more...)
	e.paths = append(e.paths, &apiutil.Path{Family: bgp.RF_EVPN, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()})
}

// attributes is what two routes are compared by, beside what they are about.
func attributes(p *apiutil.Path) []byte {
	var all []byte
	for _, a := range p.Attrs {
		b, err := a.Serialize()
		if err != nil {
			return nil
		}
		all = append(all, b...)
	}
	return all
}

// route is what a path of another speaker says about one VNI.
type route struct {
	vni     uint32
	vtep    netip.Addr
	host    particle.Host // type 2 with an address
	prefix  netip.Prefix  // type 5
	gateway particle.MAC  // of prefix; nil if it is not said
	// sequence is how often host has moved.
	sequence uint32
}

// decode returns false for a path that is about nothing that VXLAN carries.
func decode(p *apiutil.Path) (route, bool) {
	nlri, ok := p.Nlri.(*bgp.EVPNNLRI)
	if !ok {
		return route{}, false
	}
	var r route
	var tunnel *bgp.PathAttributePmsiTunnel
	vxlan, imported := true, false
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeMpReachNLRI:
			r.vtep = a.Nexthop.Unmap().WithZone("")
		case *bgp.PathAttributePmsiTunnel:
			tunnel = a
		case *bgp.PathAttributeExtendedCommunities:
			for _, c := range a.Value {
				switch c := c.(type) {
				case *bgp.EncapExtended:
					vxlan = c.TunnelType == bgp.TUNNEL_TYPE_VXLAN
				case *bgp.RouterMacExtended:
					r.gateway = mac(c.Mac)
				case *bgp.MacMobilityExtended:
					r.sequence = c.Sequence
				}
				_, sub := c.GetTypes()
				imported = imported || sub == bgp.EC_SUBTYPE_ROUTE_TARGET
			}
		}
	}
	if !vxlan || !imported || !r.vtep.IsValid() || r.vtep.IsUnspecified() {
		return route{}, false
	}
	switch data := nlri.RouteTypeData.(type) {
	case *bgp.EVPNMulticastEthernetTagRoute:
		if tunnel == nil || tunnel.TunnelType != bgp.PMSI_TUNNEL_TYPE_INGRESS_REPL {
			return route{}, false
		}
		r.vni = tunnel.Label
	case *bgp.EVPNMacIPAdvertisementRoute:
		if len(data.Labels) == 0 {
			return route{}, false
		}
		r.vni = data.Labels[0]
		// A route without an address says that the node takes part; with one
		// that is valid on the link only, nothing more.
		if a := data.IPAddress; a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() {
			r.host = particle.Host{Address: a, MAC: mac(data.MacAddress)}
		}
	case *bgp.EVPNIPPrefixRoute:
		r.vni = data.Label
		r.prefix = netip.PrefixFrom(data.IPPrefix, int(data.IPPrefixLength)).Masked()
		if !r.prefix.IsValid() {
			return route{}, false
		}
	default:
		return route{}, false
	}
	return r, r.vni != 0 && r.vni < 1<<24
}

// mac copies an address out of a message; nil for one that is none.
func mac(hw net.HardwareAddr) particle.MAC {
	if len(hw) != 6 {
		return nil
	}
	return particle.MAC(append([]byte(nil), hw...))
}
