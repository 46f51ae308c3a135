package microvm

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPolicyKeepsWhatPaysOff(t *testing.T) {
	p := DefaultPolicy()
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		load Load
		want Choice
	}{
		{"never invoked", Load{New: true}, Choice{}},
		{"invoked for the first time", Load{PerDay: 0.7, New: true}, Choice{Snapshot: FaaSnap}},
		{"every second", Load{PerDay: 86400}, Choice{2 * time.Second, FaaSnap}},
		{"every minute", Load{PerDay: 1440}, Choice{2 * time.Minute, FaaSnap}},
		{"every nine minutes", Load{PerDay: 160}, Choice{10 * time.Minute, FaaSnap}},
		{"every hour", Load{PerDay: 24}, Choice{Snapshot: FaaSnap}},
		{"every ten hours", Load{PerDay: 2.4}, Choice{Snapshot: FaaSnap}},
		{"every day", Load{PerDay: 1}, Choice{Snapshot: Plain}},
		{"every week", Load{PerDay: 1. / 7}, Choice{}},
		{"every ten hours, in 2 GiB", Load{PerDay: 2.4, SnapshotBytes: 2 << 30}, Choice{}},
		{"every hour, in 2 GiB", Load{PerDay: 24, SnapshotBytes: 2 << 30}, Choice{Snapshot: Plain}},
		{"every week, but it takes minutes to boot", Load{PerDay: 1. / 7, Saving: 3 * time.Minute}, Choice{Snapshot: FaaSnap}},
		{"every hour, and it boots as fast", Load{PerDay: 24, Saving: -time.Second}, Choice{}},
	} {
		if got := p.Choose(tc.load); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func loads() *rapid.Generator[Load] {
	return rapid.Custom(func(t *rapid.T) Load {
		return Load{
			PerDay: rapid.Float64Range(0, 1e6).Draw(t, "per day"), New: rapid.Bool().Draw(t, "new"),
			SnapshotBytes: rapid.Int64Range(0, 8<<30).Draw(t, "bytes"),
			Saving:        time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "saving")),
		}
	})
}

func TestWhatIsInvokedMoreIsNeverWorthLess(t *testing.T) {
	p := DefaultPolicy()
	rapid.Check(t, func(t *rapid.T) {
		l := loads().Draw(t, "load")
		before := p.Choose(l)
		more := l
		more.PerDay *= rapid.Float64Range(1, 100).Draw(t, "factor")
		if after := p.Choose(more); after.Snapshot < before.Snapshot {
			t.Fatalf("%+v is worth %v, %+v only %v", l, before.Snapshot, more, after.Snapshot)
		}
		if smaller := (Load{l.PerDay, l.New, max(l.SnapshotBytes/2, 1), l.Saving}); l.SnapshotBytes > 1 && p.Choose(smaller).Snapshot < before.Snapshot {
			t.Fatalf("half the size of %+v is worth less", l)
		}
		if before.KeepWarm < 0 || before.KeepWarm > p.MaxWarm || before.KeepWarm > 0 && before.Snapshot == None && l.SnapshotBytes == 0 && l.Saving == 0 {
			t.Fatalf("%+v: %+v", l, before)
		}
	})
}

func TestEvictionKeepsWithinTheBudgetAndRemovesTheLeastWorthFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := DefaultPolicy()
		p.MaxBytes = rapid.Int64Range(0, 20<<30).Draw(t, "budget")
		var kept []Kept
		for i, l := range rapid.SliceOfN(loads(), 0, 12).Draw(t, "loads") {
			l.SnapshotBytes++ // one that is there is known
			kept = append(kept, Kept{Name: fmt.Sprint(i), Load: l, Worthless: rapid.IntRange(0, 9).Draw(t, "worthless") == 0})
		}
		adding := rapid.Int64Range(0, 4<<30).Draw(t, "adding")
		remove := p.Evict(kept, adding)
		total, best, worst := adding, math.Inf(-1), math.Inf(1)
		for _, k := range kept {
			worth := k.PerDay / p.cost(k.Load)
			useless := k.Worthless || p.Choose(k.Load).Snapshot == None
			switch removed := slices.Contains(remove, k.Name); {
			case !removed && useless:
				t.Fatalf("%+v is kept", k)
			case !removed:
				total += k.SnapshotBytes
				worst = min(worst, worth)
			case !useless:
				best = max(best, worth)
			}
		}
		if total > p.MaxBytes && len(remove) < len(kept) {
			t.Fatalf("%d bytes of %d, and %d of %d are kept", total, p.MaxBytes, len(kept)-len(remove), len(kept))
		}
		if best > worst {
			t.Fatalf("one worth %v is removed, one worth %v kept", best, worst)
		}
	})
}

func TestVMMsWaitForWhatIsInvokedMost(t *testing.T) {
	kept := []Kept{
		{Name: "often", Kind: FaaSnap, Load: Load{PerDay: 100}},
		{Name: "plain", Kind: Plain, Load: Load{PerDay: 1000}},
		{Name: "seldom", Kind: FaaSnap, Load: Load{PerDay: 1}},
		{Name: "old", Kind: FaaSnap, Load: Load{PerDay: 500}, Worthless: true},
		{Name: "most", Kind: FaaSnap, Load: Load{PerDay: 200}},
	}
	for n, want := range [][]string{nil, {"most"}, {"most", "often"}, {"most", "often", "seldom"}, {"most", "often", "seldom"}} {
		p := DefaultPolicy()
		p.MaxStandby = n
		if got := p.Standby(kept); !slices.Equal(got, want) {
			t.Errorf("%d VMMs are for %v; want %v", n, got, want)
		}
	}
}

func TestPoliciesThatMakeNoSenseAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Policy){
		"no half-life":             func(p *Policy) { p.HalfLife = 0 },
		"FaaSnap before plain":     func(p *Policy) { p.FaaSnapPerDay = p.PlainPerDay / 2 },
		"a negative budget":        func(p *Policy) { p.MaxBytes = -1 },
		"less than no VMM":         func(p *Policy) { p.MaxStandby = -1 },
		"no size to compare with":  func(p *Policy) { p.ReferenceBytes = 0 },
		"a negative time of grace": func(p *Policy) { p.MaxWarm = -1 },
	} {
		p := DefaultPolicy()
		change(&p)
		if p.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestARegularFunctionHasItsRate(t *testing.T) {
	p := DefaultPolicy()
	for _, every := range []time.Duration{time.Minute, time.Hour, 10 * time.Hour} {
		var r rate
		begin := time.Unix(1e9, 0)
		now := begin
		for now.Sub(begin) < 30*24*time.Hour {
			now = now.Add(every)
			r.note(now, p.HalfLife)
		}
		got, want := r.perDay(now.Add(every/2), p.HalfLife), 24*time.Hour.Seconds()/every.Seconds()
		if math.Abs(got-want) > 0.1*want {
			t.Errorf("every %v: %.2f a day, want %.2f", every, got, want)
		}
		if r.isNew(now, p.Trial) {
			t.Errorf("every %v: new after a month", every)
		}
	}
}

func TestRatesAgeByHalfEachHalfLife(t *testing.T) {
	var r rate
	now := time.Unix(1e9, 0)
	r.note(now, time.Hour)
	for n := range 20 {
		if got, want := r.aged(now.Add(time.Duration(n)*time.Hour), time.Hour), math.Exp2(-float64(n)); math.Abs(got-want) > 1e-9 {
			t.Errorf("after %d half-lives: %v, want %v", n, got, want)
		}
	}
	// A clock that is set back does not make invocations grow.
	if got := r.aged(now.Add(-time.Hour), time.Hour); got != 1 {
		t.Errorf("before it was: %v", got)
	}
}
