package faasnap

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
)

// ErrNetwork says, wrapped, that a machine cannot be restored with that network
// device, or without one: hardware has to be what it was when it was saved.
var ErrNetwork = errors.New("not the network device of the snapshot")

// Join makes a place on a network of a job the machine's network device. The place
// has to have a tap, and is given back when the machine has ended.
func (o *StartOptions) Join(p sandbox.Place) {
	o.Network = &vmm.Network{Namespace: p.Namespace, Tap: p.Tap, MAC: sandbox.TapMAC()}
	o.Addresses = &agent.Network{MTU: p.MTU, Address: p.Address, Address6: p.Address6}
}

// bootNetwork returns the device with an address, if there is a device.
func bootNetwork(n *vmm.Network) *vmm.Network {
	if n == nil || len(n.MAC) > 0 {
		return n
	}
	with := *n
	with.MAC = make(net.HardwareAddr, 6)
	_, _ = rand.Read(with.MAC)       // does not fail
	with.MAC[0] = with.MAC[0]&^1 | 2 // of one device, and locally administered
	return &with
}

// restoreNetwork returns the device with the address that it had when the
// machine was saved; mac is empty if there was none.
func restoreNetwork(n *vmm.Network, mac string) (*vmm.Network, error) {
	switch {
	case n == nil && mac == "":
		return nil, nil
	case n == nil:
		return nil, fmt.Errorf("%w: there was one, so name a tap", ErrNetwork)
	case mac == "":
		return nil, fmt.Errorf("%w: there was none, so name no tap", ErrNetwork)
	}
	with := *n
	var err error
	if with.MAC, err = net.ParseMAC(mac); err != nil {
		return nil, fmt.Errorf("read the snapshot's network device: %w", err)
	}
	if len(n.MAC) > 0 && n.MAC.String() != mac {
		return nil, fmt.Errorf("%w: its address is %s, not %s", ErrNetwork, mac, n.MAC)
	}
	return &with, nil
}
