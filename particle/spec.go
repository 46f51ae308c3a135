package particle

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Design is how the endpoints of a network are connected to its bridge
// (thesis 3.2.1).
type Design string

// The designs. Baseline, Direct and Attached give each endpoint a network
// namespace of its own; with the others the endpoints of a node share one.
const (
	// Baseline makes a namespace and a veth pair for each endpoint and moves
	// both ends to where they belong: steps S1 to S6 of thesis 3.1.3, one
	// endpoint after the other.
	Baseline Design = "baseline"
	// Direct is Baseline without the moves: both ends are made in their
	// namespaces by one RTM_NEWLINK.
	Direct Design = "direct"
	// Shared is one namespace and a veth pair, moved, for each endpoint.
	Shared Design = "shared"
	// Batched is Shared with all pairs made in place by one batch of messages.
	Batched Design = "batched"
	// Consolidated is one namespace and one veth pair, with an address on it
	// for each endpoint.
	Consolidated Design = "consolidated"
	// AnyIP is one namespace, one veth pair and one local route for the whole
	// prefix of the node: its cost does not depend on the number of endpoints.
	AnyIP Design = "anyip"
	// Attached is Direct for namespaces that somebody else makes, such as a
	// container runtime: Apply makes the segment alone, and each endpoint comes
	// and goes by Network.Attach and Detach. On the wire it is Direct, so that
	// nodes of both meet. It is not among the designs of the thesis.
	Attached Design = "attached"
)

// Designs returns the designs of the thesis in its order: those whose
// endpoints Apply makes.
func Designs() []Design {
	return []Design{Baseline, Direct, Shared, Batched, Consolidated, AnyIP}
}

// SharesNamespace says whether all endpoints of a node are in one network
// namespace.
func (d Design) SharesNamespace() bool { return d != Baseline && d != Direct && d != Attached }

// knownDesigns are all that a Spec may name.
func knownDesigns() []Design { return append(Designs(), Attached) }

// Isolation says what is kept apart.
type Isolation string

// The kinds of isolation (thesis 3.5).
const (
	// IsolateJob gives each job a segment (VNI, bridge, namespace) of its own.
	IsolateJob Isolation = "job"
	// IsolateTenant puts all jobs of a tenant in one segment, where they reach
	// each other. They have one VNI, and prefixes that do not overlap.
	IsolateTenant Isolation = "tenant"
)

// Discipline is what keeps the endpoints that share a namespace to their own
// addresses (thesis 3.2.2).
type Discipline string

// The disciplines.
const (
	// DisciplineAuto is the first of BPF, Seccomp and Preload that works here.
	DisciplineAuto Discipline = "auto"
	// DisciplineBPF rewrites and refuses in eBPF programs of the control group.
	DisciplineBPF Discipline = "bpf"
	// DisciplineSeccomp does so by seccomp user notification, with a supervisor
	// for each endpoint.
	DisciplineSeccomp Discipline = "seccomp"
	// DisciplinePreload overrides functions of the C library. Programs that do
	// not use it, or do not want to, evade it.
	DisciplinePreload Discipline = "preload"
	// DisciplineNone leaves the choice of addresses to the application.
	DisciplineNone Discipline = "none"
)

// Default values of a Spec.
const (
	DefaultTenant = "default"
	DefaultPort   = 4789
)

// Spec declares one network on one node. As JSON it is what `volley net up`
// reads; docs/formats/network.md describes it.
type Spec struct {
	// Name is the job's name: lower-case letters, digits and '-', at most 40.
	// It is unique on a node.
	Name string `json:"name"`
	// Tenant is whose job it is, named like a job. Empty means DefaultTenant.
	Tenant    string    `json:"tenant,omitempty"`
	Isolation Isolation `json:"isolation,omitempty"` // empty: IsolateJob
	// VNI is the VXLAN network identifier, 1 to 16777215. 0 derives it from
	// the segment's name; two names can then meet in one number, which Apply
	// notices on its own node only.
	VNI uint32 `json:"vni,omitempty"`
	// Prefix is the job's prefix on all nodes, NodePrefix this node's part of
	// it: the first address is the prefix's own, the second the node's, the
	// last is left out, and the others are endpoints'. At least one of the two
	// address families must be given; with both, an endpoint has an address of each.
	Prefix      netip.Prefix `json:"prefix,omitzero"`
	NodePrefix  netip.Prefix `json:"nodePrefix,omitzero"`
	Prefix6     netip.Prefix `json:"prefix6,omitzero"`
	NodePrefix6 netip.Prefix `json:"nodePrefix6,omitzero"`
	// Endpoints is how many endpoints this node has.
	Endpoints int    `json:"endpoints"`
	Design    Design `json:"design,omitempty"` // empty: AnyIP
	// Discipline is ignored by designs that give each endpoint a namespace.
	Discipline Discipline `json:"discipline,omitempty"` // empty: DisciplineAuto
	// Underlay is how this node reaches the others. Zero: it is alone.
	Underlay Underlay `json:"underlay,omitzero"`
	// Peers are the other nodes. A control plane adds to them.
	Peers []Peer `json:"peers,omitempty"`
}

// Underlay is the node's end of the tunnels.
type Underlay struct {
	// Address is the VTEP's own address, on an interface of the node.
	Address netip.Addr `json:"address,omitzero"`
	// Port is the UDP port of VXLAN, the same on all nodes. 0: DefaultPort.
	Port uint16 `json:"port,omitempty"`
	// MTU is the underlay's in bytes. 0: that of the interface that has Address.
	MTU int `json:"mtu,omitempty"`
}

// Peer is another node's part of a network.
type Peer struct {
	// Node names the node, for people.
	Node string `json:"node,omitempty"`
	// Underlay is the address of its VTEP.
	Underlay netip.Addr `json:"underlay"`
	// Prefix and Prefix6 are its NodePrefix and NodePrefix6. Invalid (absent)
	// for a node that routes no prefix, such as one that bridges hosts.
	Prefix  netip.Prefix `json:"prefix,omitzero"`
	Prefix6 netip.Prefix `json:"prefix6,omitzero"`
	// MAC is where packets for its prefixes go. Empty: GatewayMAC(VNI, Underlay).
	MAC MAC `json:"mac,omitempty"`
	// Hosts are single addresses that it serves, each by an Ethernet address
	// of its own (EVPN type-2 routes). Few: each takes a neighbour entry.
	Hosts []Host `json:"hosts,omitempty"`
}

// Host is one address behind an Ethernet address.
type Host struct {
	Address netip.Addr `json:"address"`
	MAC     MAC        `json:"mac"`
}

// MAC is an Ethernet address, as text in JSON.
type MAC net.HardwareAddr

// String returns colon-separated hexadecimal digits, or "".
func (m MAC) String() string { return net.HardwareAddr(m).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = nil
		return nil
	}
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != 6 {
		return fmt.Errorf("%q is no Ethernet address such as 02:00:00:00:00:01", text)
	}
	*m = MAC(hw)
	return nil
}

// GatewayMAC is the Ethernet address of a node's namespace in the segment with
// that VNI. It follows from the two numbers, so that nodes need not be told.
func GatewayMAC(vni uint32, underlay netip.Addr) MAC {
	h := fnv.New64a()
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], vni)
	h.Write(id[:])
	h.Write(underlay.Unmap().AsSlice())
	sum := h.Sum(nil)
	return unicast(sum[:6])
}

// unicast makes b a locally administered address of one station.
func unicast(b []byte) MAC {
	b[0] = b[0]&^0x01 | 0x02
	return b
}

// SpecError says which field of a Spec is wrong.
type SpecError struct {
	// Field is as in JSON, such as "peers[2].prefix".
	Field, Problem string
}

func (e *SpecError) Error() string { return e.Field + ": " + e.Problem }

func wrong(field, format string, args ...any) error {
	return &SpecError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// ParseSpec reads one Spec as JSON. Unknown fields are errors. It does not
// validate.
func ParseSpec(text []byte) (Spec, error) {
	var s Spec
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n"))
			return Spec{}, fmt.Errorf("line %d: %w", line, err)
		}
		if errors.Is(err, io.EOF) {
			return Spec{}, errors.New("it is empty")
		}
		return Spec{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Spec{}, errors.New("there is something after the closing brace")
	}
	return s, nil
}

// ValidName reports whether a job, a tenant or a node may be called that:
// lower-case letters, digits and '-', at most 40.
func ValidName(name string) bool {
	return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`).MatchString(name)
}

// WithDefaults returns s with empty fields filled in.
func (s Spec) WithDefaults() Spec {
	if s.Tenant == "" {
		s.Tenant = DefaultTenant
	}
	if s.Isolation == "" {
		s.Isolation = IsolateJob
	}
	if s.Design == "" {
		s.Design = AnyIP
	}
	if s.Discipline == "" {
		s.Discipline = DisciplineAuto
	}
	if s.Underlay.Port == 0 {
		s.Underlay.Port = DefaultPort
	}
	if !s.NodePrefix.IsValid() {
		s.NodePrefix = s.Prefix
	}
	if !s.NodePrefix6.IsValid() {
		s.NodePrefix6 = s.Prefix6
	}
	if s.VNI == 0 {
		h := fnv.New32a()
		io.WriteString(h, s.Segment())
		s.VNI = h.Sum32()%(1<<24-1) + 1
	}
	return s
}

// Segment names what the network is a part of: the job, or its tenant. Call it
// on a Spec with defaults.
func (s Spec) Segment() string {
	if s.Isolation == IsolateTenant {
		return "tenant/" + s.Tenant
	}
	return "job/" + s.Tenant + "/" + s.Name
}

// Validate checks a Spec with defaults and returns a *SpecError for the first
// field that is wrong.
func (s Spec) Validate() error {
	switch {
	case s.Name == "":
		return wrong("name", "is missing: give the job a name")
	case !ValidName(s.Name):
		return wrong("name", "%q must be lower-case letters, digits and '-', at most 40", s.Name)
	case !ValidName(s.Tenant):
		return wrong("tenant", "%q must be lower-case letters, digits and '-', at most 40", s.Tenant)
	case s.Isolation != IsolateJob && s.Isolation != IsolateTenant:
		return wrong("isolation", "%q is unknown: use %q or %q", s.Isolation, IsolateJob, IsolateTenant)
	case s.VNI > 1<<24-1:
		return wrong("vni", "%d is more than 16777215", s.VNI)
	case !slices.Contains(knownDesigns(), s.Design):
		return wrong("design", "%q is unknown: use one of %s", s.Design, join(knownDesigns()))
	case !slices.Contains(disciplines(), s.Discipline):
		return wrong("discipline", "%q is unknown: use one of %s", s.Discipline, join(disciplines()))
	case !s.Prefix.IsValid() && !s.Prefix6.IsValid():
		return wrong("prefix", "is missing: give the job a prefix such as 10.77.0.0/16, or prefix6")
	case s.Endpoints < 0:
		return wrong("endpoints", "%d is negative", s.Endpoints)
	}
	for _, family := range []struct {
		name, nodeName string
		whole, node    netip.Prefix
		is             func(netip.Addr) bool
	}{
		{"prefix", "nodePrefix", s.Prefix, s.NodePrefix, netip.Addr.Is4},
		{"prefix6", "nodePrefix6", s.Prefix6, s.NodePrefix6, is6},
	} {
		if !family.whole.IsValid() && !family.node.IsValid() {
			continue
		}
		if err := checkPrefix(family.name, family.whole, family.is); err != nil {
			return err
		}
		if err := checkPrefix(family.nodeName, family.node, family.is); err != nil {
			return err
		}
		if !within(family.node, family.whole) {
			return wrong(family.nodeName, "%s is not inside %s", family.node, family.whole)
		}
		if n := capacity(family.node); s.Endpoints > n {
			return wrong("endpoints", "%d is more than the %d that %s has room for: make %s larger", s.Endpoints, n, family.node, family.nodeName)
		}
	}
	if len(s.Peers) > 0 && !s.Underlay.Address.IsValid() {
		return wrong("underlay.address", "is missing: with peers, give the address by which they reach this node")
	}
	if s.Underlay.MTU != 0 && (s.Underlay.MTU < 1350 || s.Underlay.MTU > 65535) {
		return wrong("underlay.mtu", "%d is not between 1350 and 65535", s.Underlay.MTU)
	}
	return s.CheckPeers(s.Peers)
}

// CheckPeers checks that peers could be those of s: a *SpecError names the
// first that could not.
func (s Spec) CheckPeers(peers []Peer) error {
	for i, p := range peers {
		field := fmt.Sprintf("peers[%d].", i)
		switch {
		case !p.Underlay.IsValid():
			return wrong(field+"underlay", "is missing: give the address of the node's VTEP")
		case p.Underlay == s.Underlay.Address:
			return wrong(field+"underlay", "%s is this node's own", p.Underlay)
		case p.Underlay.Is4() != s.Underlay.Address.Is4():
			return wrong(field+"underlay", "%s is of another address family than this node's %s", p.Underlay, s.Underlay.Address)
		case p.MAC != nil && len(p.MAC) != 6:
			return wrong(field+"mac", "is no Ethernet address")
		}
		for _, f := range []struct {
			name               string
			prefix, own, whole netip.Prefix
		}{
			{"prefix", p.Prefix, s.NodePrefix, s.Prefix},
			{"prefix6", p.Prefix6, s.NodePrefix6, s.Prefix6},
		} {
			if !f.prefix.IsValid() {
				continue
			}
			if f.prefix != f.prefix.Masked() {
				return wrong(field+f.name, "%s has bits behind its length: did you mean %s?", f.prefix, f.prefix.Masked())
			}
			if !within(f.prefix, f.whole) {
				return wrong(field+f.name, "%s is not inside the job's %s", f.prefix, f.whole)
			}
			if f.prefix.Overlaps(f.own) {
				return wrong(field+f.name, "%s overlaps this node's %s", f.prefix, f.own)
			}
			for j, q := range peers[:i] {
				if other := map[string]netip.Prefix{"prefix": q.Prefix, "prefix6": q.Prefix6}[f.name]; other.IsValid() && other.Overlaps(f.prefix) {
					return wrong(field+f.name, "%s overlaps that of peers[%d]", f.prefix, j)
				}
			}
		}
	}
	return nil
}

func disciplines() []Discipline {
	return []Discipline{DisciplineAuto, DisciplineBPF, DisciplineSeccomp, DisciplinePreload, DisciplineNone}
}

func join[T ~string](names []T) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

func checkPrefix(field string, p netip.Prefix, family func(netip.Addr) bool) error {
	switch {
	case !p.IsValid():
		return wrong(field, "is missing")
	case !family(p.Addr()):
		return wrong(field, "%s is of the wrong address family", p)
	case p != p.Masked():
		return wrong(field, "%s has bits behind its length: did you mean %s?", p, p.Masked())
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Bits() == 0:
		return wrong(field, "%s cannot be a job's", p)
	case capacity(p) < 1:
		return wrong(field, "%s has no room for an endpoint", p)
	}
	return nil
}

// within says whether inner is a part of outer.
func within(inner, outer netip.Prefix) bool {
	return outer.IsValid() && inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// reserved is how many addresses of a node's prefix come before the first
// endpoint's: the prefix itself, and the node's.
const reserved = 2

// capacity is how many endpoints a node's prefix has room for, at most 2^24.
func capacity(p netip.Prefix) int {
	bits := p.Addr().BitLen() - p.Bits()
	if bits > 24 {
		return 1 << 24
	}
	return 1<<bits - reserved - 1
}

// Room is how many endpoints this node's prefixes have addresses for. Call it on
// a Spec with defaults.
func (s Spec) Room() int {
	room := 1 << 24
	for _, node := range []netip.Prefix{s.NodePrefix, s.NodePrefix6} {
		if node.IsValid() {
			room = min(room, capacity(node))
		}
	}
	return room
}

// GatewayAddr is the address of the node itself in its prefix.
func GatewayAddr(node netip.Prefix) netip.Addr { return offset(node, 1) }

// EndpointAddr is the address of endpoint i (from 0) in a node's prefix, or
// the zero Addr if node is.
func EndpointAddr(node netip.Prefix, i int) netip.Addr {
	if !node.IsValid() {
		return netip.Addr{}
	}
	return offset(node, uint64(reserved+i))
}

// offset is the n-th address of p.
func offset(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+n)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// IndexOf returns the endpoint of this node that has that address.
func (s Spec) IndexOf(a netip.Addr) (i int, ok bool) {
	node := s.NodePrefix
	if is6(a) {
		node = s.NodePrefix6
	}
	if !node.IsValid() || !node.Contains(a) {
		return 0, false
	}
	first, this := node.Masked().Addr().As16(), a.As16()
	n := binary.BigEndian.Uint64(this[8:]) - binary.BigEndian.Uint64(first[8:])
	if n < reserved || n-reserved >= uint64(s.Endpoints) {
		return 0, false
	}
	return int(n - reserved), true
}
