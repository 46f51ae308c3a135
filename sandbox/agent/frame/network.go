package frame

import (
	"encoding/binary"
	"net/netip"
)

// Network is how a virtual machine is on a network: by a device whose other end
// has the same Ethernet address and takes whatever the machine sends. In a
// Restore it is MTU (8 bytes) and the addresses as strings of 0, 4 or 16 bytes.
type Network struct {
	// MTU is the largest packet in bytes; 0 is what the device has.
	MTU int `json:"mtu,omitempty"`
	// Address and Address6 are the machine's own. Without any it only has the
	// device, and gets its addresses by a Restore.
	Address  netip.Addr `json:"address,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
}

func (n *Network) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(n.MTU))
	b = appendString(b, n.Address.AsSlice())
	return appendString(b, n.Address6.AsSlice())
}

func (p *parser) network() *Network {
	return &Network{MTU: int(p.uint64()), Address: p.address(), Address6: p.address()}
}

// address takes an address, which is invalid where there is none.
func (p *parser) address() netip.Addr {
	b := p.bytes()
	a, ok := netip.AddrFromSlice(b)
	p.bad = p.bad || !ok && len(b) > 0
	return a
}

// Env returns the addresses as functions find them in their environment.
func (n *Network) Env() []string {
	var env []string
	if n.Address.IsValid() {
		env = append(env, "VOLLEY_ADDRESS="+n.Address.String())
	}
	if n.Address6.IsValid() {
		env = append(env, "VOLLEY_ADDRESS6="+n.Address6.String())
	}
	return env
}
