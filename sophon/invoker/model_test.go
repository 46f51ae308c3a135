package invoker

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// start0 is when virtual time begins in these tests.
var start0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) // constant

// burst returns when each of n creations that begin together is done.
func burst(m Model, n int) []time.Duration {
	c := NewCreations(m)
	for range n {
		c.Begin(start0, m.ColdStart)
	}
	var out []time.Duration
	for {
		id, at, ok := c.Next()
		if !ok {
			return out
		}
		c.End(at, id)
		out = append(out, at.Sub(start0))
	}
}

func TestCreationsWithoutABoundAllTakeTheirTime(t *testing.T) {
	for _, at := range burst(Model{ColdStart: 300 * time.Millisecond}, 50) {
		if at != 300*time.Millisecond {
			t.Fatalf("a creation took %v", at)
		}
	}
}

func TestCreationsInABurstShareTheNodesRate(t *testing.T) {
	m := Model{ColdStart: 500 * time.Millisecond, CreationsPerSecond: 10}
	tests := []struct {
		n    int
		last time.Duration
	}{
		{1, 500 * time.Millisecond},
		{5, 500 * time.Millisecond}, // as many as go at full speed
		{10, time.Second},
		{100, 10 * time.Second},
	}
	for _, tt := range tests {
		got := burst(m, tt.n)
		if last := got[len(got)-1]; (last - tt.last).Abs() > time.Millisecond {
			t.Errorf("the last of %d creations was done after %v, want %v", tt.n, last, tt.last)
		}
	}
}

func TestContentionTakesTheRateDownToTheContendedOne(t *testing.T) {
	m := Model{ColdStart: 500 * time.Millisecond, CreationsPerSecond: 10, ContendedPerSecond: 3}
	got := burst(m, 1000)
	// All of them go on until the very end, so the rate is that of 1000.
	rate := 1000 / got[len(got)-1].Seconds()
	if want := 3 + 7*5/1000.0; math.Abs(rate-want) > 0.01 {
		t.Errorf("1000 creations at once go at %.3f/s, want %.3f/s", rate, want)
	}
	if one := burst(m, 1)[0]; one != m.ColdStart {
		t.Errorf("a single creation took %v", one)
	}
}

func TestCreationGivenUpLetsTheOthersGoFaster(t *testing.T) {
	m := Model{ColdStart: time.Second, CreationsPerSecond: 1}
	c := NewCreations(m)
	a := c.Begin(start0, m.ColdStart)
	b := c.Begin(start0, m.ColdStart)
	c.End(start0.Add(time.Second), a) // each has got half a second
	id, at, ok := c.Next()
	if !ok || id != b || (at.Sub(start0)-1500*time.Millisecond).Abs() > time.Microsecond {
		t.Errorf("Next = %d at %v, %v; want %d at 1.5s", id, at.Sub(start0), ok, b)
	}
	c.End(at, a) // is not there
	c.End(at, b)
	if c.Len() != 0 {
		t.Errorf("%d creations are left", c.Len())
	}
}

func TestCreationsNeverBeatTheirWorkNorTheNodesRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Model{
			ColdStart:          time.Duration(rapid.IntRange(1, 2000).Draw(t, "cold")) * time.Millisecond,
			CreationsPerSecond: rapid.Float64Range(0, 30).Draw(t, "rate"),
			ContendedPerSecond: rapid.Float64Range(0, 30).Draw(t, "contended"),
		}
		c := NewCreations(m)
		now := start0
		began := map[uint64]time.Time{}
		var first time.Time
		ended := 0
		end := func() {
			id, at, ok := c.Next()
			if !ok {
				return
			}
			if at.Before(now) {
				t.Fatalf("a creation is done at %v, before now, %v", at, now)
			}
			if took := at.Sub(began[id]); took < m.ColdStart-time.Microsecond {
				t.Fatalf("a creation of %v took %v", m.ColdStart, took)
			}
			now = at
			c.End(now, id)
			delete(began, id)
			ended++
		}
		for _, gapMs := range rapid.SliceOfN(rapid.IntRange(0, 500), 1, 40).Draw(t, "gaps") {
			at := now.Add(time.Duration(gapMs) * time.Millisecond)
			for {
				if _, next, ok := c.Next(); !ok || next.After(at) {
					break
				}
				end()
			}
			now = at
			if first.IsZero() {
				first = now
			}
			began[c.Begin(now, m.ColdStart)] = now
		}
		for c.Len() > 0 {
			end()
		}
		if len(began) != 0 {
			t.Fatalf("%d creations were never done", len(began))
		}
		if m.CreationsPerSecond > 0 && m.CreationsPerSecond*m.ColdStart.Seconds() >= 1 {
			if least := float64(ended) / m.CreationsPerSecond; now.Sub(first).Seconds() < least-1e-3 {
				t.Fatalf("%d creations took %v at %v/s", ended, now.Sub(first), m.CreationsPerSecond)
			}
		}
	})
}
