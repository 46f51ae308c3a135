package particle

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/volley-run/volley/particle/rtnl"
)

// BenchmarkApply measures making and removing networks where the node has its
// VTEP. "settled" is until the kernel has finished with the namespaces.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct {
		design Design
		sizes  []int
	}{
		{AnyIP, []int{100, 1000, 10_000}},
		{Consolidated, []int{100, 1000}},
		{Batched, []int{100, 1000}},
		{Direct, []int{100}},
	} {
		for _, size := range c.sizes {
			for _, six := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%d/ipv6=%t", c.design, size, six), func(b *testing.B) { benchmarkApply(b, c.design, size, six) })
			}
		}
	}
}

func benchmarkApply(b *testing.B, design Design, size int, six bool) {
	n := newCluster(b, 1)[0]
	ctx := context.Background()
	var applied, closed, settled []time.Duration
	steps := map[string][]time.Duration{}
	for i := range b.N + 1 { // the first makes the VTEP
		s := Spec{
			Name: fmt.Sprint("bench", i), Endpoints: size, Design: design, Underlay: Underlay{Address: n.address},
			Prefix: netip.MustParsePrefix("10.77.0.0/16"), NodePrefix: netip.MustParsePrefix("10.77.0.0/17"),
			Peers: []Peer{{Underlay: netip.MustParseAddr("192.0.2.9"), Prefix: netip.MustParsePrefix("10.77.128.0/17")}},
		}
		if six {
			s.Prefix6, s.NodePrefix6 = netip.MustParsePrefix("fd77::/48"), netip.MustParsePrefix("fd77::/64")
		}
		nw, err := n.Declare(s)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := nw.Apply(ctx); err != nil {
			b.Fatal(err)
		}
		up := time.Now()
		if err := nw.Close(ctx); err != nil {
			b.Fatal(err)
		}
		gone := time.Now()
		if err := rtnl.Settle(ctx); err != nil {
			b.Fatal(err)
		}
		if i == 0 {
			continue
		}
		applied, closed, settled = append(applied, up.Sub(start)), append(closed, gone.Sub(up)), append(settled, time.Since(up))
		for _, step := range nw.Steps() {
			steps[step.Name] = append(steps[step.Name], step.Duration)
		}
	}
	report := func(what string, all []time.Duration) {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms-"+what)
	}
	b.ReportMetric(0, "ns/op")
	report("apply", applied)
	report("close", closed)
	report("settled", settled)
	for name, all := range steps {
		report(name, all)
	}
}
