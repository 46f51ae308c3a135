package sandbox

import (
	"context"
	"net"
	"net/netip"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

// Networks gives sandboxes their places on the networks of jobs
// (function.JobNetwork). Its methods may be called concurrently.
type Networks interface {
	// Join gives the sandbox with that id a place on the network of that name.
	// A sandbox that has one gets the same again. A network that this node
	// does not have, or that has no place left, is a *function.Error.
	Join(ctx context.Context, network, id string) (Place, error)
	// Leave gives it back, once nothing of the sandbox runs any more. It is no
	// error if there was none.
	Leave(ctx context.Context, network, id string) error
}

// Place is where on a network a sandbox is.
type Place struct {
	// Namespace is the path of the network namespace to join. Other sandboxes
	// of the network may be in it.
	Namespace string
	// Cgroup, if not empty, is the absolute path of the cgroup v2 group below
	// which all that the sandbox runs must be: it is what holds the sandbox to
	// its addresses where others are in the namespace.
	Cgroup string
	// Tap, if not empty, is the name of a tap device in Namespace: what the sandbox
	// is connected by if it is a virtual machine. Both ends are to have the
	// Ethernet address TapMAC, and ask nobody for others. What the machine sends
	// from another address than its own is dropped.
	Tap string
	// MTU is the largest packet of the network in bytes; 0 is not known.
	MTU int
	// Address and Address6 are the sandbox's own; one of them may be invalid.
	Address, Address6 netip.Addr
}

// TapMAC is the Ethernet address of both ends of every tap. Machines that are
// restored from one snapshot have the same, which is no harm, as each is alone
// with its tap.
func TapMAC() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, 1} }

// Env returns what a function finds of its place in its environment.
func (p Place) Env() []string {
	return (&frame.Network{Address: p.Address, Address6: p.Address6}).Env()
}
