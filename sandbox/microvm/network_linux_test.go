package microvm_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/microvm"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// Machines have their addresses, booted or restored, and give them back.
func TestMachinesHaveTheAddressesOfTheirPlaces(t *testing.T) {
	s, places := newService(t, t.TempDir()), sandboxtest.NewLoosePlaces(t)
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
	f.Network = function.JobNetwork(sandboxtest.LooseNetwork)
	first := create(t, d, "first", f)
	if a, resp := invoke(t, first, "{}"); a.Env != "10.77.0.1 fd77::1" || a.MTU != sandboxtest.LooseMTU || a.Restored != 0 {
		t.Errorf("the machine that was booted answers %s", resp.Payload)
	}
	awaitSnapshots(t, s, 1)
	for i := 2; i < 4; i++ {
		begin := time.Now()
		box := create(t, d, fmt.Sprint("restored-", i), f)
		a, resp := invoke(t, box, "{}")
		t.Logf("created and answered in %v", time.Since(begin))
		if want := fmt.Sprintf("10.77.0.%d fd77::%d", i, i); a.Env != want || a.MTU != sandboxtest.LooseMTU || a.Restored != 1 {
			t.Errorf("a machine that was restored answers %s; want %s", resp.Payload, want)
		}
	}
	// Nothing better is to be had than the snapshot that there is.
	invoke(t, first, "{}")
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if given, taken := places.Count(); given != 3 || taken > 0 {
		t.Errorf("%d places were given, and %d are left; want 3 and none", given, taken)
	}

	d = newDriver(t, s, microvm.DefaultPolicy(), func(c *microvm.Config) { c.Networks = places })
	f.Network = function.JobNetwork("none")
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "x", Function: f}); function.CodeOf(err) != function.InvalidParameter {
		t.Errorf("a network that there is not: %v", err)
	}
}
