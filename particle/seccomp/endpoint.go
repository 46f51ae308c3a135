package seccomp

import (
	"net/netip"
)

// Endpoint is what a program is kept to. One of the two may be invalid; the
// program then has no address of that family.
type Endpoint struct {
	Address, Address6 netip.Addr
}

// verdict is what becomes of an address.
type verdict int

const (
	refused   verdict = iota // not to be used
	asItIs                   // to be used unchanged
	rewritten                // to be replaced
)

// own returns the endpoint's address for a socket of IPv4 or IPv6. It is
// invalid if the endpoint cannot have such a socket.
func (e Endpoint) own(six bool) netip.Addr {
	switch {
	case !six:
		return e.Address
	case e.Address6.IsValid():
		return e.Address6
	case e.Address.IsValid():
		return mapped(e.Address)
	}
	return netip.Addr{}
}

// here says whether a is what a program on a host of its own would use for
// "this host".
func here(a netip.Addr) bool {
	plain := a.Unmap()
	return plain.IsUnspecified() || plain.IsLoopback()
}

// forBind decides what a socket of IPv4 or IPv6 that asks for a is bound to.
func (e Endpoint) forBind(six bool, a netip.Addr) (netip.Addr, verdict) {
	if a.Is4In6() {
		if !e.Address.IsValid() {
			return netip.Addr{}, refused
		}
		own, v := e.forBind(false, a.Unmap())
		return mapped(own), v
	}
	own := e.own(six)
	switch {
	case !own.IsValid():
		return netip.Addr{}, refused
	case here(a):
		return own, rewritten
	case a.WithZone("") == own:
		return own, asItIs
	}
	return netip.Addr{}, refused
}

// forConnect decides where a socket of IPv4 or IPv6 that asks for a is
// connected to. Any address may be asked for.
func (e Endpoint) forConnect(six bool, a netip.Addr) (netip.Addr, verdict) {
	if !here(a) {
		return a, asItIs
	}
	if a.Is4In6() && e.Address.IsValid() {
		return mapped(e.Address), rewritten
	}
	if own := e.own(six); own.IsValid() && !a.Is4In6() {
		return own, rewritten
	}
	return netip.Addr{}, refused
}

// mapped returns an IPv4 address as an IPv4-mapped IPv6 address, and another
// one unchanged.
func mapped(a netip.Addr) netip.Addr {
	if !a.Is4() {
		return a
	}
	return netip.AddrFrom16(a.As16())
}
