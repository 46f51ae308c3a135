package particle

import (
	"context"
	"net/netip"
)

// Member is a node's part of a network, as a control plane tells the others.
type Member struct {
	// Network is the tenant's and the job's name, "tenant/job"; VNI is its
	// segment's number. Members meet when both are the same; a control plane
	// whose protocol carries no names (EVPN) goes by VNI.
	Network string
	VNI     uint32
	// Self is what the others need to know. Its MAC is filled in.
	Self Peer
}

// Member returns what a node tells of its part of the network that s, with
// defaults, declares. A node without a name is known by its underlay address.
func (s Spec) Member(node string) Member {
	self := Peer{Node: node, Underlay: s.Underlay.Address, Prefix: s.NodePrefix, Prefix6: s.NodePrefix6, MAC: GatewayMAC(s.VNI, s.Underlay.Address)}
	if node == "" {
		self.Node = s.Underlay.Address.String()
	}
	return Member{Network: s.Tenant + "/" + s.Name, VNI: s.VNI, Self: self}
}

// ControlPlane spreads which node serves which part of a network. Its methods
// may be called concurrently. Package controltest has the suite that every
// implementation passes.
type ControlPlane interface {
	// Announce makes this node's part known, or replaces what it said before
	// under the same Network and Node. It is known to the others for as long as
	// the control plane reaches them and Withdraw has not been called: after
	// Close, or after the process died, at most for a time that the
	// implementation states.
	Announce(ctx context.Context, m Member) error
	// Withdraw takes it back. It is no error if there was nothing.
	Withdraw(ctx context.Context, m Member) error
	// Watch calls changed with all other members of m's network, ordered by
	// underlay address, first as soon as it knows them (perhaps none) and then
	// after every change, never concurrently, until ctx ends; it returns then,
	// with ctx's error, or earlier with what made it stop. m.Self says who
	// "others" are. It does not need Announce to have been called.
	Watch(ctx context.Context, m Member, changed func([]Peer)) error
	// Close ends all watches and leaves announcements to their end.
	Close() error
}

// PrefixClaimer is a ControlPlane that can also hand out parts of a prefix.
type PrefixClaimer interface {
	// Claim returns the part of whole, bits long, that belongs to the node
	// named in m.Self. The same node gets the same part again. A node is never
	// given a part that another has, until that has given it back by Release.
	// ErrNoPrefixLeft, wrapped, when all are taken.
	Claim(ctx context.Context, m Member, whole netip.Prefix, bits int) (netip.Prefix, error)
	// Release gives back what Claim gave. It is no error if there was nothing.
	Release(ctx context.Context, m Member) error
}
