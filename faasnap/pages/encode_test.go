package pages_test

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/faasnap/pages"
)

func TestPlansAndWorkingSetsSurviveTheirEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := guests().Draw(t, "guest")
		p, err := pages.Make(g.nonZero, g.working, pages.DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if want := 32 + 32*len(p.Regions); len(b) != want {
			t.Errorf("plan of %d bytes; want %d", len(b), want)
		}
		var plan pages.Plan
		if err := plan.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if plan.Pages != p.Pages || plan.LoadingPages != p.LoadingPages || len(p.Regions) != 0 && !reflect.DeepEqual(plan.Regions, p.Regions) {
			t.Errorf("got %v; want %v", plan, p)
		}
		b, err = g.working.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var w pages.WorkingSet
		if err := w.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(w, g.working) {
			t.Errorf("got %v; want %v", w, g.working)
		}
	})
}

func TestTruncatedEncodingsAreRefused(t *testing.T) {
	working := pages.WorkingSet{Pages: 300, Groups: []pages.Group{{{Start: 3, End: 9}, {Start: 200, End: 210}}}}
	p, err := pages.Make(set(300, pages.Range{Start: 2, End: 220}), working, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	plan, err := p.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for n := range plan {
		if new(pages.Plan).UnmarshalBinary(plan[:n]) == nil {
			t.Errorf("took a plan of %d bytes of %d", n, len(plan))
		}
	}
	groups, err := working.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for n := range groups {
		if new(pages.WorkingSet).UnmarshalBinary(groups[:n]) == nil {
			t.Errorf("took a working set of %d bytes of %d", n, len(groups))
		}
	}
	if new(pages.Plan).UnmarshalBinary(groups) == nil || new(pages.WorkingSet).UnmarshalBinary(plan) == nil {
		t.Error("took one for the other")
	}
}

// What a decoder takes is right, and encodes to the same bytes.
func FuzzDecodePlan(f *testing.F) {
	p, err := pages.Make(set(300, pages.Range{Start: 2, End: 220}),
		pages.WorkingSet{Pages: 300, Groups: []pages.Group{{{Start: 3, End: 9}}, {{Start: 100, End: 210}}}}, pages.DefaultOptions())
	if err != nil {
		f.Fatal(err)
	}
	b, err := p.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p pages.Plan
		if p.UnmarshalBinary(b) != nil {
			return
		}
		if again, err := p.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x (%v)", b, again, err)
		}
	})
}

func FuzzDecodeWorkingSet(f *testing.F) {
	b, err := pages.WorkingSet{Pages: 300, Groups: []pages.Group{{{Start: 3, End: 9}, {Start: 200, End: 210}}, {{Start: 0, End: 1}}}}.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var w pages.WorkingSet
		if w.UnmarshalBinary(b) != nil {
			return
		}
		if again, err := w.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x (%v)", b, again, err)
		}
	})
}
