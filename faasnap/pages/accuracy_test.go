package pages

import (
	"math/rand/v2"
	"testing"
)

func TestAccuracyOfAPlanForItsOwnWorkingSetIsComplete(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		nonZero, resident := NewSet(2000), NewSet(2000)
		for range 300 {
			nonZero.Add(random.IntN(2000))
			resident.Add(random.IntN(2000))
		}
		var w WorkingSet
		w.Pages = 2000
		w.Add(NewSet(2000), resident)
		p, err := Make(nonZero, w, Options{MergeGap: 0, MaxMappings: 8192})
		if err != nil {
			t.Fatal(err)
		}
		a := Measure(p, resident)
		if a.Recall() != 1 || a.Precision() != 1 || a.UsedPages != nonZero.Intersect(resident).Count() {
			t.Fatalf("accuracy %+v, recall %v, precision %v", a, a.Recall(), a.Precision())
		}
		if a := Measure(p, NewSet(2000)); a.Recall() != 1 || a.Precision() != part(0, p.LoadingPages) {
			t.Fatalf("nothing was wanted: accuracy %+v", a)
		}
	}
}

func TestMergedWorkingSetsHaveEveryPageInItsEarliestGroup(t *testing.T) {
	a := WorkingSet{Pages: 100, Groups: []Group{{{0, 2}}, {{10, 12}}}}
	b := WorkingSet{Pages: 100, Groups: []Group{{{11, 13}}, {{0, 3}}, {{50, 51}}}}
	got := Merge(a, b)
	want := []Group{{{0, 2}, {11, 13}}, {{2, 3}, {10, 11}}, {{50, 51}}}
	if len(got.Groups) != len(want) {
		t.Fatalf("groups %v; want %v", got.Groups, want)
	}
	for i := range want {
		if len(got.Groups[i]) != len(want[i]) {
			t.Fatalf("groups %v; want %v", got.Groups, want)
		}
		for j := range want[i] {
			if got.Groups[i][j] != want[i][j] {
				t.Errorf("groups %v; want %v", got.Groups, want)
			}
		}
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
	if got := Merge(); got.Pages != 0 || got.Groups != nil {
		t.Errorf("nothing merged is %v", got)
	}
}
