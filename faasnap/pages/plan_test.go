package pages_test

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/faasnap/pages"
)

// guest is what a plan is made from.
type guest struct {
	nonZero pages.Set
	working pages.WorkingSet
}

// guests draws guests whose memory is scattered or in large pieces, recorded
// or not.
func guests() *rapid.Generator[guest] {
	return rapid.Custom(func(t *rapid.T) guest {
		n := rapid.IntRange(0, 1500).Draw(t, "pages")
		g := guest{nonZero: scattered(n).Draw(t, "nonZero"), working: pages.WorkingSet{Pages: n}}
		seen := pages.NewSet(n)
		for range rapid.IntRange(0, 4).Draw(t, "rounds") {
			g.working.Add(seen, scattered(n).Draw(t, "resident"))
		}
		return g
	})
}

// scattered draws a set with runs of pages of some typical length in and out.
func scattered(n int) *rapid.Generator[pages.Set] {
	return rapid.Custom(func(t *rapid.T) pages.Set {
		s := pages.NewSet(n)
		in := rapid.SampledFrom([]int{1, 3, 40, 300}).Draw(t, "in")
		out := rapid.SampledFrom([]int{1, 3, 40, 300}).Draw(t, "out")
		for at := rapid.IntRange(0, out).Draw(t, "first"); at < n; {
			end := min(n, at+rapid.IntRange(1, in).Draw(t, "run"))
			s.AddRange(pages.Range{Start: at, End: end})
			at = end + rapid.IntRange(1, out).Draw(t, "gap")
		}
		return s
	})
}

func TestEveryPageIsServedByExactlyOneSource(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := guests().Draw(t, "guest")
		o := pages.Options{
			MergeGap:    rapid.SampledFrom([]int{0, 1, 2, 32, 2000}).Draw(t, "gap"),
			MaxMappings: rapid.SampledFrom([]int{pages.MinMappings, 8, 20, 100, 10000}).Draw(t, "mappings"),
		}
		checkPlan(t, g, o)
	})
}

// checkPlan makes a plan and looks at every page of it.
func checkPlan(t rapid.TB, g guest, o pages.Options) {
	t.Helper()
	p, err := pages.Make(g.nonZero, g.working, o)
	if err != nil {
		t.Fatal(err)
	}
	exact, err := pages.Make(g.nonZero, g.working, pages.Options{MergeGap: o.MergeGap, MaxMappings: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	coarse := len(exact.Regions) > o.MaxMappings
	if !coarse && !reflect.DeepEqual(p, exact) {
		t.Errorf("a plan of %d regions was made coarser, with %d allowed", len(exact.Regions), o.MaxMappings)
	}
	if len(p.Regions) > o.MaxMappings {
		t.Errorf("%d regions; want at most %d", len(p.Regions), o.MaxMappings)
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}

	loading := g.working.Set().Intersect(g.nonZero)
	served := make([]int, p.Pages)
	inFile := make([]int, p.LoadingPages)
	for _, r := range p.Regions {
		for page := r.Start; page < r.End; page++ {
			served[page]++
			switch {
			case r.Source == pages.Zero && g.nonZero.Has(page):
				t.Errorf("page %d is not zero, and served as zero", page)
			case r.Source == pages.Memory && !g.nonZero.Has(page) && !coarse:
				t.Errorf("page %d is zero, and read from the memory file", page)
			case r.Source != pages.Loading && loading.Has(page):
				t.Errorf("page %d is of the loading set, and served from %v", page, r.Source)
			}
			if r.Source == pages.Loading {
				inFile[r.Offset+page-r.Start]++
			}
		}
		if at, ok := p.At(r.Start); !ok || at != r {
			t.Errorf("At(%d) = %v, %v; want %v", r.Start, at, ok, r)
		}
	}
	for page, n := range served {
		if n != 1 {
			t.Errorf("page %d is served %d times", page, n)
		}
	}
	for page, n := range inFile {
		if n != 1 {
			t.Errorf("page %d of the loading-set file has %d uses", page, n)
		}
	}
	checkLoads(t, g, p, loading, o.MergeGap, coarse)
}

// checkLoads looks at the regions of the loading set: their ends, the gaps in
// them and between them, their groups and their order.
func checkLoads(t rapid.TB, g guest, p *pages.Plan, loading pages.Set, gap int, coarse bool) {
	t.Helper()
	group := map[int]int{}
	for i, ranges := range slices.Backward(g.working.Groups) {
		for _, r := range ranges {
			for page := r.Start; page < r.End; page++ {
				group[page] = i
			}
		}
	}
	loads := p.Loads()
	for _, r := range loads {
		if !loading.Has(r.Start) || !loading.Has(r.End-1) {
			t.Errorf("region %v does not begin and end with the loading set", r)
		}
		lowest, between := 1<<30, 0
		for page := r.Start; page < r.End; page++ {
			if !loading.Has(page) {
				between++
				if between > gap && !coarse {
					t.Errorf("region %v spans a gap of more than %d pages at page %d", r, gap, page)
				}
				continue
			}
			between = 0
			lowest = min(lowest, group[page])
		}
		if r.Group != lowest {
			t.Errorf("region %v: group %d; want %d", r, r.Group, lowest)
		}
	}
	if !slices.IsSortedFunc(loads, func(a, b pages.Region) int {
		if a.Group != b.Group {
			return a.Group - b.Group
		}
		return a.Start - b.Start
	}) {
		t.Errorf("loading set is not in the order of groups and addresses: %v", loads)
	}
	slices.SortFunc(loads, func(a, b pages.Region) int { return a.Start - b.Start })
	for i := 1; i < len(loads); i++ {
		if d := loads[i].Start - loads[i-1].End; d <= gap {
			t.Errorf("regions %v and %v are %d pages apart, and not made one", loads[i-1], loads[i], d)
		}
	}
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{4, 1}, uint8(3), uint8(9))
	f.Add([]byte{200, 0, 0, 1, 1, 1}, []byte{0, 250, 7}, uint8(0), uint8(7))
	f.Fuzz(func(t *testing.T, content, rounds []byte, gap, mappings uint8) {
		const n = 700
		g := guest{nonZero: alternating(n, content), working: pages.WorkingSet{Pages: n}}
		seen := pages.NewSet(n)
		for part := range slices.Chunk(rounds, 16) {
			g.working.Add(seen, alternating(n, part))
		}
		checkPlan(t, g, pages.Options{MergeGap: int(gap), MaxMappings: pages.MinMappings + int(mappings)})
	})
}

// alternating returns a set with, in turn, as many pages out and in as b says.
func alternating(n int, b []byte) pages.Set {
	s := pages.NewSet(n)
	at := 0
	for i, length := range b {
		end := min(n, at+int(length))
		if i%2 == 1 {
			s.AddRange(pages.Range{Start: at, End: end})
		}
		at = end
	}
	return s
}

func set(n int, ranges ...pages.Range) pages.Set {
	s := pages.NewSet(n)
	for _, r := range ranges {
		s.AddRange(r)
	}
	return s
}

func TestTheFourTypesOfPagesGoWhereTheThesisPutsThem(t *testing.T) {
	working := pages.WorkingSet{Pages: 1000, Groups: []pages.Group{
		{{Start: 500, End: 510}, {Start: 530, End: 540}},
		{{Start: 100, End: 120}, {Start: 700, End: 800}},
	}}
	nonZero := set(1000, pages.Range{Start: 50, End: 120}, pages.Range{Start: 500, End: 540}, pages.Range{Start: 600, End: 620})
	got, err := pages.Make(nonZero, working, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	region := func(start, end int, source pages.Source, offset, group int) pages.Region {
		return pages.Region{Range: pages.Range{Start: start, End: end}, Source: source, Offset: offset, Group: group}
	}
	want := &pages.Plan{Pages: 1000, LoadingPages: 60, Regions: []pages.Region{
		region(0, 50, pages.Zero, 0, 0),        // unused
		region(50, 100, pages.Memory, 50, 0),   // cold
		region(100, 120, pages.Loading, 40, 1), // loading set, second group
		region(120, 500, pages.Zero, 0, 0),     // unused
		region(500, 540, pages.Loading, 0, 0),  // loading set, made one over cold pages
		region(540, 600, pages.Zero, 0, 0),     // unused
		region(600, 620, pages.Memory, 600, 0), // cold
		region(620, 1000, pages.Zero, 0, 0),    // released, and unused
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestMakeRefusesWhatIsNoGuest(t *testing.T) {
	nonZero := set(100, pages.Range{Start: 1, End: 5})
	options := pages.DefaultOptions()
	for _, tc := range []struct {
		name    string
		working pages.WorkingSet
		change  func(*pages.Options)
	}{
		{"a working set of another size", pages.WorkingSet{Pages: 99, Groups: []pages.Group{{{Start: 1, End: 2}}}}, nil},
		{"a range past the end", pages.WorkingSet{Pages: 100, Groups: []pages.Group{{{Start: 99, End: 101}}}}, nil},
		{"ranges out of order", pages.WorkingSet{Pages: 100, Groups: []pages.Group{{{Start: 9, End: 10}, {Start: 1, End: 2}}}}, nil},
		{"a negative gap", pages.WorkingSet{}, func(o *pages.Options) { o.MergeGap = -1 }},
		{"too few mappings", pages.WorkingSet{}, func(o *pages.Options) { o.MaxMappings = pages.MinMappings - 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options
			if tc.change != nil {
				tc.change(&o)
			}
			if p, err := pages.Make(nonZero, tc.working, o); err == nil {
				t.Errorf("no error, and the plan %v", p)
			}
		})
	}
}
