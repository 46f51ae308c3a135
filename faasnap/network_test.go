package faasnap

import (
	"errors"
	"net"
	"testing"

	"github.com/volley-run/volley/faasnap/vmm"
)

func TestABootedMachineGetsAnAddressOfItsOwn(t *testing.T) {
	if n := bootNetwork(nil); n != nil {
		t.Errorf("a device out of nothing: %+v", n)
	}
	tap := &vmm.Network{Tap: "tap0"}
	a, b := bootNetwork(tap), bootNetwork(tap)
	if len(a.MAC) != 6 || a.MAC[0]&3 != 2 || a.MAC.String() == b.MAC.String() || len(tap.MAC) != 0 {
		t.Errorf("addresses %s and %s", a.MAC, b.MAC)
	}
}

func TestARestoredMachineHasTheDeviceThatWasSaved(t *testing.T) {
	const mac, other = "02:00:00:00:00:01", "02:00:00:00:00:02"
	hw := func(s string) net.HardwareAddr {
		a, err := net.ParseMAC(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, tc := range []struct {
		name  string
		n     *vmm.Network
		saved string
		ok    bool
	}{
		{"none as before", nil, "", true},
		{"another tap", &vmm.Network{Tap: "tap1"}, mac, true},
		{"another tap with the same address", &vmm.Network{Tap: "tap1", MAC: hw(mac)}, mac, true},
		{"another address", &vmm.Network{Tap: "tap1", MAC: hw(other)}, mac, false},
		{"no tap where one was", nil, mac, false},
		{"a tap where none was", &vmm.Network{Tap: "tap1"}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := restoreNetwork(tc.n, tc.saved)
			if tc.ok != (err == nil) || !tc.ok && !errors.Is(err, ErrNetwork) {
				t.Fatal(err)
			}
			if n != nil && n.MAC.String() != tc.saved {
				t.Errorf("address %s, want %s", n.MAC, tc.saved)
			}
		})
	}
}
