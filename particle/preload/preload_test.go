package preload

import (
	"net/netip"
	"slices"
	"testing"
)

func TestTheEnvironmentLoadsTheLibraryBeforeOthers(t *testing.T) {
	address, address6 := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")
	for _, c := range []struct {
		name              string
		library           string
		env               []string
		address, address6 netip.Addr
		want              []string
	}{
		{"both addresses", "/lib/a.so", []string{"A=1"}, address, address6,
			[]string{"A=1", "LD_PRELOAD=/lib/a.so", "VOLLEY_ADDRESS=10.88.0.2", "VOLLEY_ADDRESS6=fd88::2"}},
		{"others are loaded too", "/lib/a.so", []string{"LD_PRELOAD=/lib/b.so"}, address, netip.Addr{},
			[]string{"LD_PRELOAD=/lib/a.so:/lib/b.so", "VOLLEY_ADDRESS=10.88.0.2"}},
		{"no library", "", []string{"LD_PRELOAD=/lib/b.so"}, netip.Addr{}, address6,
			[]string{"LD_PRELOAD=/lib/b.so", "VOLLEY_ADDRESS6=fd88::2"}},
		{"addresses of another endpoint", "", []string{"VOLLEY_ADDRESS=10.88.0.9", "VOLLEY_ADDRESS6=fd88::9"}, address, netip.Addr{},
			[]string{"VOLLEY_ADDRESS=10.88.0.2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := slices.Clone(c.env)
			if got := Env(c.library, c.env, c.address, c.address6); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if !slices.Equal(c.env, before) {
				t.Errorf("it has changed its argument to %q", c.env)
			}
		})
	}
}
