package rtnl

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The attributes of rules (linux/fib_rules.h).
const (
	fraSrc      = 2
	fraIIFName  = 3
	fraGoto     = 4
	fraPriority = 6
	fraTable    = 15
)

// What a rule does (linux/fib_rules.h).
const (
	frToTable   = 1
	frGoto      = 2
	frBlackhole = 6
)

// Rule says how packets are routed. The kernel goes through the rules of an
// address family by Priority, from 0.
type Rule struct {
	Priority uint32
	// IPv6 is the family, where From is invalid.
	IPv6 bool
	// In and From are what it is for: packets that come in by that link, which
	// need not be there, and from that prefix. Empty and invalid: all.
	In   string
	From netip.Prefix
	// Goto, if not 0, is the priority of the rule to go on with.
	Goto uint32
	// Local looks for a route among those to the namespace's own addresses. A
	// rule with neither Goto nor Local drops the packet.
	Local bool
}

func (r Rule) String() string { return fmt.Sprintf("%d (from %s by %q)", r.Priority, r.From, r.In) }

// AddRule adds a rule. The same one twice is ErrExists.
func (b *Batch) AddRule(r Rule) {
	b.rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add rule", r)
}

// DeleteRule deletes a rule.
func (b *Batch) DeleteRule(r Rule) {
	b.rule(unix.RTM_DELRULE, 0, "delete rule", r)
	b.lenient()
}

func (b *Batch) rule(typ, flags uint16, op string, r Rule) {
	b.begin(typ, flags, op, r)
	inet, bits := uint8(unix.AF_INET), 0
	switch {
	case r.From.IsValid():
		inet, bits = family(r.From.Addr()), r.From.Bits()
	case r.IPv6:
		inet = unix.AF_INET6
	}
	table, action := uint8(unix.RT_TABLE_UNSPEC), uint8(frBlackhole)
	switch {
	case r.Goto != 0:
		action = frGoto
	case r.Local:
		table, action = unix.RT_TABLE_LOCAL, frToTable
	}
	b.u8(inet, 0, uint8(bits), 0, table, 0, 0, action)
	b.u32(0)
	b.attr32(fraPriority, r.Priority)
	if r.From.IsValid() {
		b.attr(fraSrc, r.From.Addr().AsSlice())
	}
	if r.In != "" {
		b.attrString(fraIIFName, r.In)
	}
	if r.Goto != 0 {
		b.attr32(fraGoto, r.Goto)
	}
	if r.Local {
		b.attr32(fraTable, unix.RT_TABLE_LOCAL)
	}
	b.end()
}
