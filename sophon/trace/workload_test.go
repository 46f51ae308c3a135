package trace

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// made is a trace of one busy and one rare function.
func made(minutes int) *Trace {
	busy, rare := make([]uint32, minutes), make([]uint32, minutes)
	for i := range busy {
		busy[i], rare[i] = 5400, 600
	}
	fixed := NewDistribution([]float64{0, 100}, []float64{10, 30})
	return &Trace{Name: "made", FirstMinute: 7, Minutes: minutes, Invocations: int64(minutes) * 6000, Functions: []*Function{
		{ID: "busy", PerMinute: busy, Invocations: sum(busy), DurationMS: fixed, MemoryMB: fixed},
		{ID: "rare", PerMinute: rare, Invocations: sum(rare), DurationMS: fixed, MemoryMB: fixed},
	}}
}

func TestDistributionIsLinearBetweenItsPercentiles(t *testing.T) {
	d := NewDistribution([]float64{1, 25, 50, 100}, []float64{10, 20, 40, 100})
	for p, want := range map[float64]float64{0: 10, 1: 10, 13: 15, 25: 20, 37.5: 30, 50: 40, 75: 70, 100: 100} {
		if got := d.At(p); got != want {
			t.Errorf("percentile %g is %g, want %g", p, got, want)
		}
	}
	if want := (1*10 + 24*15 + 25*30 + 50*70) / 100.0; d.Mean() != want || d.Max() != 100 {
		t.Errorf("mean %g and maximum %g, want %g and 100", d.Mean(), d.Max(), want)
	}
}

func TestSampleKeepsRateSharesAndDurations(t *testing.T) {
	tr := made(10)
	for _, rate := range []float64{20, 100, 250} { // 100/s were recorded
		for _, spacing := range []Spacing{Even, Poisson} {
			got, err := tr.Sample(Workload{Rate: rate, Spacing: spacing, Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			n, rare, ms := float64(len(got)), 0.0, 0.0
			for _, inv := range got {
				rare += float64(inv.Function)
				ms += inv.Duration.Seconds() * 1000
			}
			if want := rate * 600; math.Abs(n-want) > 5*math.Sqrt(want) {
				t.Errorf("rate %g: %g invocations, want about %g", rate, n, want)
			}
			if share := rare / n; math.Abs(share-0.1) > 0.01 {
				t.Errorf("rate %g: the rare function has a share of %g, want 0.1", rate, share)
			}
			if mean := ms / n; math.Abs(mean-20) > 0.5 {
				t.Errorf("rate %g: the mean duration is %g ms, want 20", rate, mean)
			}
		}
	}
}

func TestSlowStartGrowsInTheFirstHalfAndThenStays(t *testing.T) {
	got, err := made(10).Sample(Workload{Rate: 100, Shape: SlowStart, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	perMinute := make([]float64, 10)
	for _, inv := range got {
		perMinute[int(inv.At/time.Minute)]++
	}
	for m, n := range perMinute {
		want := 6000 * min(1, (float64(m)+0.5)/5)
		if math.Abs(n-want) > 5*math.Sqrt(want) {
			t.Errorf("minute %d has %g invocations, want about %g", m, n, want)
		}
	}
}

func TestEvenSpacingIsEvenAndPoissonIsNot(t *testing.T) {
	gaps := func(s Spacing) (deviation float64) {
		got, err := made(1).Sample(Workload{Rate: 100, Spacing: s, Seed: 5})
		if err != nil {
			t.Fatal(err)
		}
		var at []float64
		for _, inv := range got {
			if inv.Function == 1 {
				at = append(at, inv.At.Seconds())
			}
		}
		mean := (at[len(at)-1] - at[0]) / float64(len(at)-1)
		for i := range at[1:] {
			d := (at[i+1] - at[i]) / mean
			deviation += (d - 1) * (d - 1) / float64(len(at)-1)
		}
		return math.Sqrt(deviation)
	}
	if d := gaps(Even); d > 1e-3 {
		t.Errorf("the gaps of even spacing vary by %g", d)
	}
	if d := gaps(Poisson); d < 0.8 || d > 1.2 {
		t.Errorf("the gaps of Poisson arrivals vary by %g of their mean, want 1", d)
	}
}

func TestSampleIsAFunctionOfItsSeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := made(rapid.IntRange(1, 3).Draw(t, "minutes"))
		w := Workload{
			Rate:    rapid.Float64Range(0.01, 300).Draw(t, "rate"),
			Shape:   rapid.SampledFrom([]Shape{nil, SlowStart, Rise(0.2)}).Draw(t, "shape"),
			Spacing: rapid.SampledFrom([]Spacing{Even, Poisson}).Draw(t, "spacing"),
			Seed:    rapid.Uint64().Draw(t, "seed"),
		}
		a, err := tr.Sample(w)
		if err != nil {
			t.Fatal(err)
		}
		b, err := tr.Sample(w)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a, b); d != "" {
			t.Fatal(d)
		}
		for i, inv := range a {
			if inv.At < 0 || inv.At >= time.Duration(tr.Minutes)*time.Minute || (i > 0 && inv.At < a[i-1].At) {
				t.Fatalf("invocation %d at %s is out of order or place", i, inv.At)
			}
			if inv.Duration < 10*time.Millisecond || inv.Duration > 30*time.Millisecond {
				t.Fatalf("invocation %d runs %s, want 10 to 30 ms", i, inv.Duration)
			}
		}
	})
}

func TestWindowsAreCutOut(t *testing.T) {
	tr := made(10)
	tr.Functions[1].PerMinute[3] = 0
	w, err := tr.Window(10, 2)
	if err != nil {
		t.Fatal(err)
	}
	if w.FirstMinute != 10 || w.Minutes != 2 || w.Invocations != 11400 || w.Functions[1].Invocations != 600 || w.Rate() != 95 || w.Active() != 2 {
		t.Errorf("window = %+v", w)
	}
	for _, bad := range [][2]int{{6, 1}, {7, 11}, {17, 1}, {7, 0}} {
		if _, err := tr.Window(bad[0], bad[1]); err == nil {
			t.Errorf("window of %d minutes from %d is no error", bad[1], bad[0])
		}
	}
}

func TestRandomWindowsDoNotOverlap(t *testing.T) {
	tr := made(60)
	first := map[int]bool{}
	for seed := range uint64(50) {
		starts, err := tr.RandomWindows(3, 10, seed)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSorted(starts) || len(starts) != 3 || starts[0] < 7 || starts[2]+10 > 67 {
			t.Fatalf("starts %v", starts)
		}
		for i := range starts[1:] {
			if starts[i+1] < starts[i]+10 {
				t.Fatalf("windows at %v overlap", starts)
			}
		}
		first[starts[0]] = true
	}
	if len(first) < 10 {
		t.Errorf("fifty seeds give only %d first windows", len(first))
	}
	if _, err := tr.RandomWindows(7, 10, 1); err == nil {
		t.Error("seven windows of ten minutes in an hour are no error")
	}
	if _, err := (&Trace{Name: "idle", Minutes: 30}).RandomWindows(1, 10, 1); err == nil {
		t.Error("a trace without invocations is no error")
	}
}

func TestSampleRefusesWhatItCannotMake(t *testing.T) {
	for _, rate := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		if _, err := made(1).Sample(Workload{Rate: rate}); err == nil {
			t.Errorf("rate %g is no error", rate)
		}
	}
	if _, err := (&Trace{Minutes: 1}).Sample(Workload{Rate: 1}); err == nil {
		t.Error("a trace without invocations is no error")
	}
}
