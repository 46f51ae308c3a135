package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// filterSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const filterSkipStats = 1 << 3

// LinkConfig is what a link is made with. Zero values leave the choice to the
// kernel.
type LinkConfig struct {
	Name string
	// Index is the link's number in its namespace, which others refer to.
	Index int
	MAC   net.HardwareAddr
	MTU   int
	// Group is a number that links to be removed together share.
	Group uint32
	// Master is the index of the bridge that the link becomes a port of.
	Master int
	Up     bool
	// NoNeighbours says that nobody on the link is asked for, nor asks for, an
	// Ethernet address, so that its addresses take part in no multicast group.
	NoNeighbours bool
	// Namespace is where the link is made. nil: where the Conn is.
	Namespace *Namespace
	// Queues is the number of queues in each direction. Each costs time, and
	// a veth or VXLAN device on which no queueing is done gains nothing by them.
	Queues int
}

// VXLAN is what a VXLAN device has of its own. Its socket is in the namespace
// of the Conn that makes it, wherever the device itself is.
type VXLAN struct {
	VNI   uint32
	Local netip.Addr
	Port  uint16
	// Learning lets the device learn from what it receives which address is
	// behind which node.
	Learning bool
}

// linkMessage begins a request about a link with its fixed part.
func (b *Batch) linkMessage(typ, flags uint16, op string, subject any, index int, set uint32) {
	b.begin(typ, flags, op, subject)
	b.ifinfo(index, set)
}

func (b *Batch) ifinfo(index int, set uint32) {
	b.u32(unix.AF_UNSPEC) // family, padding, type
	b.u32(uint32(index))
	b.u32(set)
	b.u32(set) // which flags change
}

// flags are the device flags that l sets.
func (l LinkConfig) flags() uint32 {
	var set uint32
	if l.Up {
		set |= unix.IFF_UP
	}
	if l.NoNeighbours {
		set |= unix.IFF_NOARP
	}
	return set
}

func (b *Batch) linkAttributes(l LinkConfig) {
	if l.Name != "" {
		b.attrString(unix.IFLA_IFNAME, l.Name)
	}
	if l.MAC != nil {
		b.attr(unix.IFLA_ADDRESS, l.MAC)
	}
	if l.MTU != 0 {
		b.attr32(unix.IFLA_MTU, uint32(l.MTU))
	}
	if l.Group != 0 {
		b.attr32(unix.IFLA_GROUP, l.Group)
	}
	if l.Master != 0 {
		b.attr32(unix.IFLA_MASTER, uint32(l.Master))
	}
	if l.Namespace != nil {
		b.attr32(unix.IFLA_NET_NS_FD, uint32(l.Namespace.FD()))
	}
	if l.Queues != 0 {
		b.attr32(unix.IFLA_NUM_TX_QUEUES, uint32(l.Queues))
		b.attr32(unix.IFLA_NUM_RX_QUEUES, uint32(l.Queues))
	}
}

func (b *Batch) addLink(l LinkConfig, kind string, data func()) {
	b.linkMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add "+kind, l.Name, l.Index, l.flags())
	b.linkAttributes(l)
	info := b.nest(unix.IFLA_LINKINFO)
	b.attrString(unix.IFLA_INFO_KIND, kind)
	if data != nil {
		d := b.nest(unix.IFLA_INFO_DATA)
		data()
		b.close(d)
	}
	b.close(info)
	b.end()
}

// AddBridge makes a bridge that looks into no multicast, so that it has no
// timers of its own.
func (b *Batch) AddBridge(l LinkConfig) {
	b.addLink(l, "bridge", func() { b.attr8(unix.IFLA_BR_MCAST_SNOOPING, 0) })
}

// AddVXLAN makes a VXLAN device.
func (b *Batch) AddVXLAN(l LinkConfig, v VXLAN) {
	b.addLink(l, "vxlan", func() {
		b.attr32(unix.IFLA_VXLAN_ID, v.VNI)
		if local := v.Local.Unmap(); local.Is4() {
			b.attr(unix.IFLA_VXLAN_LOCAL, local.AsSlice())
		} else if local.IsValid() {
			b.attr(unix.IFLA_VXLAN_LOCAL6, local.AsSlice())
		}
		b.attrPort(unix.IFLA_VXLAN_PORT, v.Port)
		learning := uint8(0)
		if v.Learning {
			learning = 1
		}
		b.attr8(unix.IFLA_VXLAN_LEARNING, learning)
	})
}

// AddVeth makes both ends of a veth pair, each where its Namespace says. Only
// the first end can be made the port of a bridge by this.
func (b *Batch) AddVeth(l, peer LinkConfig) {
	b.addLink(l, "veth", func() {
		p := b.nest(vethInfoPeer)
		b.ifinfo(peer.Index, peer.flags())
		b.linkAttributes(peer)
		b.close(p)
	})
}

// AddDummy makes a dummy device.
func (b *Batch) AddDummy(l LinkConfig) { b.addLink(l, "dummy", nil) }

// SetLink changes what l sets of the link with that index: moves it to
// l.Namespace, renames it (which needs it down), and so on.
func (b *Batch) SetLink(index int, l LinkConfig) {
	b.linkMessage(unix.RTM_SETLINK, 0, "change link", fmt.Sprint("number ", index), index, l.flags())
	b.linkAttributes(l)
	b.end()
}

// SetLinkNamed is SetLink for a link that is known by its name, l.Name.
func (b *Batch) SetLinkNamed(l LinkConfig) {
	b.linkMessage(unix.RTM_SETLINK, 0, "change link", l.Name, 0, l.flags())
	b.linkAttributes(l)
	b.end()
}

// AwaitCarrier lets the kernel take note that both ends of a veth pair are up.
// Otherwise it does so a little later, and drops until then what the link
// sends, or what its bridge would let through. (Since Linux 6.9. Before, there
// is no way to make it.)
func (b *Batch) AwaitCarrier(name string) {
	b.linkMessage(unix.RTM_GETLINK, 0, "await carrier of", name, 0, 0)
	b.attr32(unix.IFLA_EXT_MASK, filterSkipStats)
	b.attrString(unix.IFLA_IFNAME, name)
	b.end()
	b.requests[len(b.requests)-1].replies = true
}

// DeleteLink deletes the link with that name, and its peer if it is a veth.
func (b *Batch) DeleteLink(name string) {
	b.linkMessage(unix.RTM_DELLINK, 0, "delete link", name, 0, 0)
	b.attrString(unix.IFLA_IFNAME, name)
	b.end()
	b.lenient()
}

// DeleteGroup deletes all links of a group at once. 0, which all links are in
// that nobody has given another, is refused by doing nothing.
func (b *Batch) DeleteGroup(group uint32) {
	if group == 0 {
		return
	}
	b.linkMessage(unix.RTM_DELLINK, 0, "delete links of group", group, 0, 0)
	b.attr32(unix.IFLA_GROUP, group)
	b.end()
	b.lenient()
}

// Link is what the kernel says of a link.
type Link struct {
	Index  int
	Name   string
	Kind   string // "veth", "bridge", "vxlan"; empty for hardware and lo
	MAC    net.HardwareAddr
	MTU    int
	Group  uint32
	Master int
	Up     bool
}

// Links returns all links of the namespace.
func (c *Conn) Links() ([]Link, error) {
	var b Batch
	b.linkMessage(unix.RTM_GETLINK, unix.NLM_F_DUMP, "list links", "", 0, 0)
	b.attr32(unix.IFLA_EXT_MASK, filterSkipStats)
	b.end()
	var links []Link
	err := c.list(&b, func() { links = nil }, func(m message) {
		if l, ok := parseLink(m.body); ok {
			links = append(links, l)
		}
	})
	return links, err
}

// Link returns the link with that name, or ErrNotFound, wrapped.
func (c *Conn) Link(name string) (Link, error) {
	var b Batch
	b.linkMessage(unix.RTM_GETLINK, 0, "find link", name, 0, 0)
	b.attr32(unix.IFLA_EXT_MASK, filterSkipStats)
	b.attrString(unix.IFLA_IFNAME, name)
	b.end()
	var link Link
	err := c.list(&b, func() {}, func(m message) { link, _ = parseLink(m.body) })
	return link, err
}

func parseLink(body []byte) (l Link, ok bool) {
	const size = unix.SizeofIfInfomsg
	if len(body) < size {
		return Link{}, false
	}
	l.Index = int(int32(binary.NativeEndian.Uint32(body[4:])))
	l.Up = binary.NativeEndian.Uint32(body[8:])&unix.IFF_UP != 0
	for typ, value := range attributes(body[size:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = cString(value)
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), value...)
		case unix.IFLA_MTU:
			l.MTU = int(u32(value))
		case unix.IFLA_GROUP:
			l.Group = u32(value)
		case unix.IFLA_MASTER:
			l.Master = int(u32(value))
		case unix.IFLA_LINKINFO:
			for typ, value := range attributes(value) {
				if typ == unix.IFLA_INFO_KIND {
					l.Kind = cString(value)
				}
			}
		}
	}
	return l, true
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
