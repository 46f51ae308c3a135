package microvm

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
)

// leaveTime bounds giving a place on a network back.
const leaveTime = 10 * time.Second

// checkNetwork refuses what a machine cannot be given.
func (d *Driver) checkNetwork(f *function.Function) error {
	if f.Network == function.NetworkHost {
		return function.Errorf(function.InvalidParameter,
			"function %s: a virtual machine does not share the host's network: use network %q, or the driver runc", f.Name, function.NetworkNone)
	}
	if _, ok := f.Network.Job(); ok && d.cfg.Networks == nil {
		return function.Errorf(function.InvalidParameter, "function %s: there are no job networks here: use network %q", f.Name, function.NetworkNone)
	}
	return nil
}

// join gives the machine its place on the function's network, if that has one.
func (b *box) join(ctx context.Context, f *function.Function, o *faasnap.StartOptions) error {
	network, ok := f.Network.Job()
	if !ok {
		return nil
	}
	place, err := b.driver.cfg.Networks.Join(ctx, network, b.id)
	if err != nil {
		return err
	}
	b.network = network
	if place.Tap == "" {
		return fmt.Errorf("network %s has no taps", network)
	}
	o.Join(place)
	return nil
}

// leave gives the place back once the machine has ended.
func (b *box) leave() error {
	if b.network == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	return b.driver.cfg.Networks.Leave(ctx, b.network, b.id)
}

// nowhere is a place for a machine that is written down: it has a network device,
// and no address. What it sends is lost. Closing the file gives it back.
func nowhere() (sandbox.Place, *os.File, error) {
	const tap = "tap0"
	namespace, err := sys.LooseTap(tap)
	if err != nil {
		return sandbox.Place{}, nil, err
	}
	return sandbox.Place{Namespace: fmt.Sprintf("/proc/self/fd/%d", namespace.Fd()), Tap: tap}, namespace, nil
}
