package controltest

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/particle"
)

// RunClaims runs the suite for what also implements particle.PrefixClaimer.
func RunClaims(t *testing.T, open Open, opts Options) {
	if opts.Patience == 0 {
		opts.Patience = 20 * time.Second
	}
	s := suite{open: open, opts: opts}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"a node gets the same part again", s.testClaimAgain},
		{"nodes that claim at once get parts of their own", s.testClaimAtOnce},
		{"the last part is followed by none", s.testClaimExhausted},
		{"what is given back can be had by another", s.testClaimRelease},
		{"two networks have their own parts", s.testClaimTwoNetworks},
		{"parts of different lengths do not overlap", s.testClaimLengths},
		{"both address families can be claimed", s.testClaimFamilies},
		{"a length that is none is refused", s.testClaimRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			leakFree(t, opts)
			test.run(t)
		})
	}
}

// claimers opens a control plane for n nodes that can claim.
func (s suite) claimers(t testing.TB, n int) []particle.PrefixClaimer {
	t.Helper()
	var claimers []particle.PrefixClaimer
	for _, c := range s.open(t, n) {
		claimer, ok := c.(particle.PrefixClaimer)
		if !ok {
			t.Fatalf("%T is no PrefixClaimer", c)
		}
		claimers = append(claimers, claimer)
	}
	return claimers
}

func (s suite) claim(t testing.TB, c particle.PrefixClaimer, m particle.Member, whole string, bits int) netip.Prefix {
	t.Helper()
	part, err := c.Claim(s.within(t), m, netip.MustParsePrefix(whole), bits)
	s.must(t, err)
	if part.Bits() != bits || part != part.Masked() || !netip.MustParsePrefix(whole).Contains(part.Addr()) {
		t.Fatalf("%s is no part of %s that is %d bits long", part, whole, bits)
	}
	return part
}

func (s suite) testClaimAgain(t *testing.T) {
	nodes := s.claimers(t, 2)
	m := Member(network, vni, 0)
	first := s.claim(t, nodes[0], m, "10.77.0.0/16", 24)
	if again := s.claim(t, nodes[0], m, "10.77.0.0/16", 24); again != first {
		t.Errorf("got %s, and then %s", first, again)
	}
	// A node is known by its name, not by its connection.
	if again := s.claim(t, nodes[1], m, "10.77.0.0/16", 24); again != first {
		t.Errorf("got %s, and from another connection %s", first, again)
	}
}

func (s suite) testClaimAtOnce(t *testing.T) {
	const n = 20
	nodes := s.claimers(t, n)
	parts, errs := make([]netip.Prefix, n), make([]error, n)
	ctx := s.within(t)
	var wg sync.WaitGroup
	for i, c := range nodes {
		wg.Go(func() {
			parts[i], errs[i] = c.Claim(ctx, Member(network, vni, i), netip.MustParsePrefix("10.77.0.0/16"), 24)
		})
	}
	wg.Wait()
	s.must(t, errors.Join(errs...))
	slices.SortFunc(parts, netip.Prefix.Compare)
	if got := slices.Compact(slices.Clone(parts)); len(got) != n {
		t.Errorf("%d nodes have %d parts: %v", n, len(got), parts)
	}
}

func (s suite) testClaimExhausted(t *testing.T) {
	nodes := s.claimers(t, 1)
	for i := range 4 {
		s.claim(t, nodes[0], Member(network, vni, i), "10.77.0.0/22", 24)
	}
	if _, err := nodes[0].Claim(s.within(t), Member(network, vni, 4), netip.MustParsePrefix("10.77.0.0/22"), 24); !errors.Is(err, particle.ErrNoPrefixLeft) {
		t.Errorf("claiming a fifth quarter: %v", err)
	}
}

func (s suite) testClaimRelease(t *testing.T) {
	nodes := s.claimers(t, 2)
	s.must(t, nodes[0].Release(s.within(t), Member(network, vni, 0))) // there is nothing
	first := s.claim(t, nodes[0], Member(network, vni, 0), "10.77.0.0/24", 24)
	if _, err := nodes[1].Claim(s.within(t), Member(network, vni, 1), netip.MustParsePrefix("10.77.0.0/24"), 24); !errors.Is(err, particle.ErrNoPrefixLeft) {
		t.Errorf("claiming what another has: %v", err)
	}
	s.must(t, nodes[1].Release(s.within(t), Member(network, vni, 1))) // not its own
	if again := s.claim(t, nodes[0], Member(network, vni, 0), "10.77.0.0/24", 24); again != first {
		t.Errorf("got %s, and then %s", first, again)
	}
	s.must(t, nodes[0].Release(s.within(t), Member(network, vni, 0)))
	s.must(t, nodes[0].Release(s.within(t), Member(network, vni, 0)))
	if next := s.claim(t, nodes[1], Member(network, vni, 1), "10.77.0.0/24", 24); next != first {
		t.Errorf("got %s of what %s was released of", next, first)
	}
}

func (s suite) testClaimTwoNetworks(t *testing.T) {
	nodes := s.claimers(t, 2)
	first := s.claim(t, nodes[0], Member(network, vni, 0), "10.77.0.0/24", 24)
	if other := s.claim(t, nodes[1], Member("job/default/two", vni+1, 1), "10.77.0.0/24", 24); other != first {
		t.Errorf("got %s and %s", first, other)
	}
}

func (s suite) testClaimLengths(t *testing.T) {
	nodes := s.claimers(t, 1)
	var parts []netip.Prefix
	for i, bits := range []int{26, 24, 28, 25, 24, 26} {
		part := s.claim(t, nodes[0], Member(network, vni, i), "10.77.0.0/22", bits)
		for _, p := range parts {
			if p.Overlaps(part) {
				t.Errorf("%s overlaps %s", part, p)
			}
		}
		parts = append(parts, part)
	}
}

func (s suite) testClaimFamilies(t *testing.T) {
	nodes := s.claimers(t, 1)
	for i := range 2 {
		m := Member(network, vni, i)
		v4, v6 := s.claim(t, nodes[0], m, "10.77.0.0/16", 24), s.claim(t, nodes[0], m, "fd77::/48", 64)
		if again := s.claim(t, nodes[0], m, "10.77.0.0/16", 24); again != v4 {
			t.Errorf("got %s, and then %s", v4, again)
		}
		if again := s.claim(t, nodes[0], m, "fd77::/48", 64); again != v6 {
			t.Errorf("got %s, and then %s", v6, again)
		}
	}
}

func (s suite) testClaimRefused(t *testing.T) {
	nodes := s.claimers(t, 1)
	for _, bits := range []int{-1, 0, 15, 33} {
		if part, err := nodes[0].Claim(s.within(t), Member(network, vni, 0), netip.MustParsePrefix("10.77.0.0/16"), bits); err == nil {
			t.Errorf("a part of %d bits is %s", bits, part)
		}
	}
	if part, err := nodes[0].Claim(s.within(t), Member(network, vni, 0), netip.Prefix{}, 24); err == nil {
		t.Errorf("a part of nothing is %s", part)
	}
}
