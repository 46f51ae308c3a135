package sandboxtest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
)

// LooseNetwork is the network that LoosePlaces has, and LooseMTU its MTU, in
// bytes.
const (
	LooseNetwork = "loose"
	LooseMTU     = 1430
)

// LoosePlaces is a sandbox.Networks with taps that nothing is connected to. Its
// places have the addresses 10.77.0.1, fd77::1 and so on.
type LoosePlaces struct {
	t     *testing.T
	mu    sync.Mutex
	given int
	taken map[string]*os.File
}

// NewLoosePlaces returns places that t fails for if one is given back twice.
func NewLoosePlaces(t *testing.T) *LoosePlaces {
	return &LoosePlaces{t: t, taken: make(map[string]*os.File)}
}

// Join implements sandbox.Networks.
func (p *LoosePlaces) Join(_ context.Context, network, id string) (sandbox.Place, error) {
	if network != LooseNetwork {
		return sandbox.Place{}, function.Errorf(function.InvalidParameter, "there is no network %s", network)
	}
	const tap = "tap7"
	namespace, err := sys.LooseTap(tap)
	if err != nil {
		return sandbox.Place{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.given++
	p.taken[id] = namespace
	return sandbox.Place{
		Namespace: fmt.Sprintf("/proc/self/fd/%d", namespace.Fd()), Tap: tap, MTU: LooseMTU,
		Address: netip.AddrFrom4([4]byte{10, 77, 0, byte(p.given)}), Address6: netip.MustParseAddr(fmt.Sprintf("fd77::%d", p.given)),
	}, nil
}

// Leave implements sandbox.Networks.
func (p *LoosePlaces) Leave(_ context.Context, _, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	namespace := p.taken[id]
	if namespace == nil {
		p.t.Errorf("place %s is given back, and nobody has it", id)
		return nil
	}
	delete(p.taken, id)
	return namespace.Close()
}

// Count returns how many places have been given, and how many of them are taken.
func (p *LoosePlaces) Count() (given, taken int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.given, len(p.taken)
}
