package microvm

import (
	"math"
	"testing"
	"time"
)

func TestPolicyKeepsWhatPaysOff(t *testing.T) {
	p := DefaultPolicy()
	for _, tc := range []struct {
		every time.Duration
		want  Kind
	}{
		{time.Second, Recorded}, {time.Hour, Recorded}, {10 * time.Hour, Recorded},
		{20 * time.Hour, Plain}, {30 * time.Hour, Plain},
		{6 * 24 * time.Hour, None},
	} {
		var r rate
		now := time.Unix(0, 0)
		for now.Before(time.Unix(0, 0).Add(60 * 24 * time.Hour)) {
			now = now.Add(tc.every)
			if tc.every < time.Hour {
				now = now.Add(time.Hour) // bursts of one
			}
			r.note(now, p.HalfLife)
		}
		// Midway to the next invocation.
		if got := p.choose(&r, now.Add(tc.every/2)); got != tc.want {
			t.Errorf("every %v (%.2f a day): %v, want %v", tc.every, r.perDay(now.Add(tc.every/2), p.HalfLife), got, tc.want)
		}
	}
}

func TestANewFunctionIsTakenForAFrequentOneAtFirst(t *testing.T) {
	p := DefaultPolicy()
	var r rate
	now := time.Unix(1e9, 0)
	if got := p.choose(&r, now); got != None {
		t.Errorf("never invoked: %v", got)
	}
	r.note(now, p.HalfLife)
	if got := p.choose(&r, now); got != Recorded {
		t.Errorf("just invoked: %v", got)
	}
	if got := p.choose(&r, now.Add(7*24*time.Hour)); got != None {
		t.Errorf("a week later: %v", got)
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
