package rtnl

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// family returns the address family of a, which is no IPv4-mapped address.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// AddAddress gives a link an address, or changes nothing if it has it. An IPv6
// address is usable at once: nobody is asked whether it is taken.
func (b *Batch) AddAddress(index int, p netip.Prefix) {
	b.address(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "add address", index, p)
}

// DeleteAddress takes an address from a link.
func (b *Batch) DeleteAddress(index int, p netip.Prefix) {
	b.address(unix.RTM_DELADDR, 0, "delete address", index, p)
	b.lenient()
}

func (b *Batch) address(typ, flags uint16, op string, index int, p netip.Prefix) {
	b.begin(typ, flags, op, p)
	b.u8(family(p.Addr()), uint8(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE)
	b.u32(uint32(index))
	a := p.Addr().AsSlice()
	b.attr(unix.IFA_LOCAL, a)
	b.attr(unix.IFA_ADDRESS, a)
	if p.Addr().Is6() {
		f := uint32(unix.IFA_F_NODAD)
		if p.IsSingleIP() {
			f |= unix.IFA_F_NOPREFIXROUTE
		}
		b.attr32(unix.IFA_FLAGS, f)
	}
	b.end()
}

// Route says where packets to a prefix go.
type Route struct {
	To netip.Prefix
	// Via is the next hop, taken for reachable on the link whatever the
	// link's own prefix is. Invalid: To is on the link itself.
	Via  netip.Addr
	Link int
	// Local makes every address of To one of this namespace's own.
	Local bool
	// Exception is for a route to addresses that would else be the namespace's
	// own, since a Local route to a larger prefix has them.
	Exception bool
}

func (r Route) String() string { return r.To.String() }

// AddRoute adds a route or replaces the one to the same prefix.
func (b *Batch) AddRoute(r Route) {
	b.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "add route to", r)
}

// DeleteRoute deletes a route.
func (b *Batch) DeleteRoute(r Route) {
	b.route(unix.RTM_DELROUTE, 0, "delete route to", r)
	b.lenient()
}

func (b *Batch) route(typ, flags uint16, op string, r Route) {
	b.begin(typ, flags, op, r)
	table, scope, kind, how := uint8(unix.RT_TABLE_MAIN), uint8(unix.RT_SCOPE_UNIVERSE), uint8(unix.RTN_UNICAST), uint32(0)
	switch {
	case r.Local:
		table, scope, kind = unix.RT_TABLE_LOCAL, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
	case r.Via.IsValid():
		how = unix.RTNH_F_ONLINK
	default:
		scope = unix.RT_SCOPE_LINK
	}
	if r.Exception {
		table = unix.RT_TABLE_LOCAL
	}
	b.u8(family(r.To.Addr()), uint8(r.To.Bits()), 0, 0, table, unix.RTPROT_STATIC, scope, kind)
	b.u32(how)
	b.attr(unix.RTA_DST, r.To.Addr().AsSlice())
	b.attr32(unix.RTA_OIF, uint32(r.Link))
	if r.Via.IsValid() {
		b.attr(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	b.end()
}

// AddNeighbour says once and for all which Ethernet address a has.
func (b *Batch) AddNeighbour(index int, a netip.Addr, mac net.HardwareAddr) {
	b.neighbour(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "add neighbour", index, a, mac)
}

// DeleteNeighbour takes that back.
func (b *Batch) DeleteNeighbour(index int, a netip.Addr) {
	b.neighbour(unix.RTM_DELNEIGH, 0, "delete neighbour", index, a, nil)
	b.lenient()
}

func (b *Batch) neighbour(typ, flags uint16, op string, index int, a netip.Addr, mac net.HardwareAddr) {
	b.begin(typ, flags, op, a)
	b.ndmsg(family(a), index, unix.NUD_PERMANENT, 0)
	b.attr(unix.NDA_DST, a.AsSlice())
	if mac != nil {
		b.attr(unix.NDA_LLADDR, mac)
	}
	b.end()
}

func (b *Batch) ndmsg(family uint8, index int, state uint16, flags uint8) {
	b.u8(family, 0, 0, 0)
	b.u32(uint32(index))
	b.u16(state)
	b.u8(flags, 0)
}

// Forward is an entry of a VXLAN device: frames to MAC go to the node Remote.
type Forward struct {
	Link   int
	MAC    net.HardwareAddr // nil: frames to everybody, and to nobody known
	Remote netip.Addr
}

func (f Forward) String() string { return fmt.Sprintf("to %s by %s", f.MAC, f.Remote) }

// AddForward adds an entry. One without a MAC is added to those that are there;
// another one replaces what was said of its MAC.
func (b *Batch) AddForward(f Forward) {
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_REPLACE)
	if f.MAC == nil {
		flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
	}
	b.forward(unix.RTM_NEWNEIGH, flags, "add forwarding", f)
}

// DeleteForward deletes an entry.
func (b *Batch) DeleteForward(f Forward) {
	b.forward(unix.RTM_DELNEIGH, 0, "delete forwarding", f)
	b.lenient()
}

// FlushForwards deletes all entries by that node that the device has learned.
// (Since Linux 6.7; ErrUnsupported or an errno before.)
func (b *Batch) FlushForwards(link int, remote netip.Addr) {
	b.begin(unix.RTM_DELNEIGH, unix.NLM_F_BULK, "flush forwarding by", remote)
	b.ndmsg(unix.AF_BRIDGE, link, 0, unix.NTF_SELF)
	b.attr(unix.NDA_DST, remote.Unmap().AsSlice())
	b.end()
	b.lenient()
}

func (b *Batch) forward(typ, flags uint16, op string, f Forward) {
	b.begin(typ, flags, op, f)
	b.ndmsg(unix.AF_BRIDGE, f.Link, unix.NUD_PERMANENT|unix.NUD_NOARP, unix.NTF_SELF)
	mac := f.MAC
	if mac == nil {
		mac = make(net.HardwareAddr, 6)
	}
	b.attr(unix.NDA_LLADDR, mac)
	b.attr(unix.NDA_DST, f.Remote.Unmap().AsSlice())
	b.end()
}

// Address is an address of a link.
type Address struct {
	Link   int
	Prefix netip.Prefix
}

// Addresses returns all addresses of the namespace.
func (c *Conn) Addresses() ([]Address, error) {
	var b Batch
	b.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, "list addresses", "")
	b.u32(unix.AF_UNSPEC)
	b.u32(0)
	b.end()
	var all []Address
	err := c.list(&b, func() { all = nil }, func(m message) {
		const size = unix.SizeofIfAddrmsg
		if len(m.body) < size {
			return
		}
		bits := int(m.body[1])
		var address, local netip.Addr
		for typ, value := range attributes(m.body[size:]) {
			switch typ {
			case unix.IFA_ADDRESS:
				address, _ = netip.AddrFromSlice(value)
			case unix.IFA_LOCAL: // differs on point-to-point links
				local, _ = netip.AddrFromSlice(value)
			}
		}
		if local.IsValid() {
			address = local
		}
		if address.IsValid() {
			all = append(all, Address{Link: int(u32(m.body[4:])), Prefix: netip.PrefixFrom(address, bits)})
		}
	})
	return all, err
}

// Routes returns the unicast and local routes of the namespace, of all tables.
func (c *Conn) Routes() ([]Route, error) {
	var b Batch
	b.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, "list routes", "")
	b.u8(unix.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0)
	b.u32(0)
	b.end()
	var all []Route
	err := c.list(&b, func() { all = nil }, func(m message) {
		const size = unix.SizeofRtMsg
		if len(m.body) < size {
			return
		}
		to, bits, kind := netip.IPv4Unspecified(), int(m.body[1]), m.body[7]
		switch {
		case kind != unix.RTN_UNICAST && kind != unix.RTN_LOCAL:
			return
		case m.body[0] == unix.AF_INET6:
			to = netip.IPv6Unspecified()
		case m.body[0] != unix.AF_INET:
			return
		}
		r := Route{Local: kind == unix.RTN_LOCAL}
		for typ, value := range attributes(m.body[size:]) {
			switch typ {
			case unix.RTA_DST:
				to, _ = netip.AddrFromSlice(value)
			case unix.RTA_GATEWAY:
				r.Via, _ = netip.AddrFromSlice(value)
			case unix.RTA_OIF:
				r.Link = int(u32(value))
			}
		}
		r.To = netip.PrefixFrom(to, bits)
		all = append(all, r)
	})
	return all, err
}

// MTU returns the MTU of the link that has the address, or ErrNotFound, wrapped.
func (c *Conn) MTU(a netip.Addr) (int, error) {
	addresses, err := c.Addresses()
	if err != nil {
		return 0, err
	}
	links, err := c.Links()
	if err != nil {
		return 0, err
	}
	for _, has := range addresses {
		if has.Prefix.Addr() != a.Unmap() {
			continue
		}
		if i := slices.IndexFunc(links, func(l Link) bool { return l.Index == has.Link }); i >= 0 {
			return links[i].MTU, nil
		}
	}
	return 0, fmt.Errorf("find link with address %s: %w", a, ErrNotFound)
}
