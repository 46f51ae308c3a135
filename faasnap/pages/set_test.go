package pages_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/faasnap/pages"
)

func TestASetIsTheSameAsAListOfItsPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 300).Draw(t, "pages")
		draw := func(label string) (pages.Set, []bool) {
			s, list := pages.NewSet(n), make([]bool, n)
			for range rapid.IntRange(0, 6).Draw(t, label) {
				start := rapid.IntRange(0, n).Draw(t, "start")
				end := rapid.IntRange(start, n).Draw(t, "end")
				s.AddRange(pages.Range{Start: start, End: end})
				for i := start; i < end; i++ {
					list[i] = true
				}
			}
			return s, list
		}
		a, inA := draw("a")
		b, inB := draw("b")
		union := a.Clone()
		union.AddSet(b)
		check := func(name string, got pages.Set, has func(i int) bool) {
			var want []pages.Range
			count := 0
			for i := range n {
				if got.Has(i) != has(i) {
					t.Errorf("%s: Has(%d) = %v", name, i, got.Has(i))
				}
				if !has(i) {
					continue
				}
				count++
				if len(want) > 0 && want[len(want)-1].End == i {
					want[len(want)-1].End++
				} else {
					want = append(want, pages.Range{Start: i, End: i + 1})
				}
			}
			if ranges := slices.Collect(got.Ranges()); !slices.Equal(ranges, want) {
				t.Errorf("%s: ranges %v; want %v", name, ranges, want)
			}
			if got.Count() != count {
				t.Errorf("%s: %d pages; want %d", name, got.Count(), count)
			}
		}
		check("a", a, func(i int) bool { return inA[i] })
		check("union", union, func(i int) bool { return inA[i] || inB[i] })
		check("intersection", a.Intersect(b), func(i int) bool { return inA[i] && inB[i] })
		check("difference", a.Without(b), func(i int) bool { return inA[i] && !inB[i] })
		if !a.Equal(a.Clone()) || a.Has(-1) || a.Has(n) {
			t.Error("a set differs from its copy or has pages that do not exist")
		}
	})
}

func TestARoundBecomesAGroupOfWhatIsNew(t *testing.T) {
	w := pages.WorkingSet{Pages: 100}
	seen := pages.NewSet(100)
	for i, tc := range []struct {
		resident pages.Range
		want     int
	}{
		{pages.Range{Start: 10, End: 20}, 10},
		{pages.Range{Start: 12, End: 18}, 0}, // nothing new: no group
		{pages.Range{Start: 5, End: 25}, 10},
	} {
		if n := w.Add(seen, set(100, tc.resident)); n != tc.want {
			t.Errorf("round %d: %d pages; want %d", i, n, tc.want)
		}
	}
	want := []pages.Group{{{Start: 10, End: 20}}, {{Start: 5, End: 10}, {Start: 20, End: 25}}}
	if !slices.EqualFunc(w.Groups, want, func(a, b pages.Group) bool { return slices.Equal(a, b) }) {
		t.Errorf("groups %v; want %v", w.Groups, want)
	}
}
