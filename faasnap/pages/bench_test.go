package pages_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/volley-run/volley/faasnap/pages"
)

// BenchmarkMake plans 2 GiB of guest memory, from usual to as bad as can be.
func BenchmarkMake(b *testing.B) {
	const n = 2 << 30 / pages.Size
	for _, bc := range []struct {
		name          string
		content, read int // the mean length of runs of non-zero and of resident pages
		max           int
	}{
		{"a Python function", 64, 24, pages.DefaultMaxMappings},
		{"scattered pages", 4, 4, 1 << 19},
		{"scattered pages made coarser", 2, 2, pages.DefaultMaxMappings},
	} {
		b.Run(bc.name, func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			random := func(run, gap int) pages.Set {
				s := pages.NewSet(n)
				for at := rng.IntN(gap); at < n; at += 1 + rng.IntN(2*gap) {
					end := min(n, at+1+rng.IntN(2*run))
					s.AddRange(pages.Range{Start: at, End: end})
					at = end
				}
				return s
			}
			nonZero := random(bc.content, 4*bc.content)
			w, seen := pages.WorkingSet{Pages: n}, pages.NewSet(n)
			for range 16 {
				w.Add(seen, random(bc.read, 64*bc.read))
			}
			var p *pages.Plan
			for b.Loop() {
				var err error
				if p, err = pages.Make(nonZero, w, pages.Options{MergeGap: pages.DefaultMergeGap, MaxMappings: bc.max}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(p.Regions)), "regions")
			b.ReportMetric(float64(p.LoadingPages), "loading-pages")
		})
	}
	b.Run("every other page", func(b *testing.B) {
		nonZero := pages.NewSet(n)
		for i := 0; i < n; i += 2 {
			nonZero.Add(i)
		}
		for b.Loop() {
			if _, err := pages.Make(nonZero, pages.WorkingSet{}, pages.DefaultOptions()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func ExampleMake() {
	nonZero := pages.NewSet(64)
	nonZero.AddRange(pages.Range{Start: 8, End: 24})
	working := pages.WorkingSet{Pages: 64, Groups: []pages.Group{{{Start: 16, End: 20}, {Start: 40, End: 44}}}}
	plan, err := pages.Make(nonZero, working, pages.DefaultOptions())
	if err != nil {
		panic(err)
	}
	for _, r := range plan.Regions {
		fmt.Println(r.Range, r.Source)
	}
	// Output:
	// [0,8) zero
	// [8,16) memory
	// [16,20) loading
	// [20,24) memory
	// [24,64) zero
}
