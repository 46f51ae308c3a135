package microvm_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/microvm"
)

// loosePlaces gives sandboxes taps that nothing is connected to.
type loosePlaces struct {
	mu    sync.Mutex
	given int
	taken map[string]*os.File
}

const looseMTU = 1430

func (p *loosePlaces) Join(_ context.Context, network, id string) (sandbox.Place, error) {
	if network != "loose" {
		return sandbox.Place{}, function.Errorf(function.InvalidParameter, "there is no network %s", network)
	}
	namespace, err := sys.LooseTap("tap7")
	if err != nil {
		return sandbox.Place{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.given++
	p.taken[id] = namespace
	return sandbox.Place{
		Namespace: fmt.Sprintf("/proc/self/fd/%d", namespace.Fd()), Tap: "tap7", MTU: looseMTU,
		Address: netip.AddrFrom4([4]byte{10, 77, 0, byte(p.given)}), Address6: netip.MustParseAddr(fmt.Sprintf("fd77::%d", p.given)),
	}, nil
}

func (p *loosePlaces) Leave(_ context.Context, _, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	namespace := p.taken[id]
	if namespace == nil {
		return errors.New("it has no place")
	}
	delete(p.taken, id)
	return namespace.Close()
}

// Machines have their addresses, booted or restored, and give them back.
func TestMachinesHaveTheAddressesOfTheirPlaces(t *testing.T) {
	s, places := newService(t, t.TempDir()), &loosePlaces{taken: make(map[string]*os.File)}
	d := newDriver(t, s, microvm.DefaultPolicy(), func(c *microvm.Config) { c.Networks = places })
	f := functionOf(t, `
import os, socket

restored = 0

def after_restore():
    global restored
    restored += 1

def handler(event, context):
    for address in os.environ["VOLLEY_ADDRESS"], os.environ["VOLLEY_ADDRESS6"]:
        socket.create_server((address, 8080), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    return {"restored": restored, "mtu": int(open("/sys/class/net/eth0/mtu").read()), "env": os.environ["VOLLEY_ADDRESS"] + " " + os.environ["VOLLEY_ADDRESS6"]}
`)
	f.Network = function.JobNetwork("loose")
	first := create(t, d, "first", f)
	if a, resp := invoke(t, first, "{}"); a.Env != "10.77.0.1 fd77::1" || a.MTU != looseMTU || a.Restored != 0 {
		t.Errorf("the machine that was booted answers %s", resp.Payload)
	}
	awaitSnapshots(t, s, 1)
	for i := 2; i < 4; i++ {
		begin := time.Now()
		box := create(t, d, fmt.Sprint("restored-", i), f)
		a, resp := invoke(t, box, "{}")
		t.Logf("created and answered in %v", time.Since(begin))
		if want := fmt.Sprintf("10.77.0.%d fd77::%d", i, i); a.Env != want || a.MTU != looseMTU || a.Restored != 1 {
			t.Errorf("a machine that was restored answers %s; want %s", resp.Payload, want)
		}
	}
	// Nothing better is to be had than the snapshot that there is.
	invoke(t, first, "{}")
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if len(places.taken) > 0 || places.given != 3 {
		t.Errorf("%d places were given, and %v are left", places.given, places.taken)
	}

	d = newDriver(t, s, microvm.DefaultPolicy(), func(c *microvm.Config) { c.Networks = places })
	f.Network = function.JobNetwork("none")
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "x", Function: f}); function.CodeOf(err) != function.InvalidParameter {
		t.Errorf("a network that there is not: %v", err)
	}
}
