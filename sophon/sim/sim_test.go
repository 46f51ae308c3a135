package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/policy"
)

func newPolicy(t testing.TB, name string) sophon.Policy {
	t.Helper()
	p, err := policy.New(name, policy.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// uneven is a workload of functions of several sizes, in which some are
// invoked much more often than others.
func uneven(n int, rate float64) Workload {
	w := Workload{Window: time.Duration(float64(n) / rate * float64(time.Second))}
	for i := range 12 {
		w.Functions = append(w.Functions, Function{Name: fmt.Sprintf("f%d", i), MemoryMB: int64(64 * (1 + i%4))})
	}
	for i := range n {
		f := (i * i) % 12
		if i%2 == 0 {
			f = 0
		}
		w.Invocations = append(w.Invocations, Invocation{
			At: time.Duration(float64(i) / rate * float64(time.Second)), Function: f, Duration: time.Duration(20+(i*37)%400) * time.Millisecond,
		})
	}
	return w
}

var model = invoker.Model{ColdStart: 300 * time.Millisecond, Init: 100 * time.Millisecond, CreationsPerSecond: 10} // constant

func TestLatencyIsMessagesAndColdStart(t *testing.T) {
	const delay = 2 * time.Millisecond
	w := Workload{Window: 10 * time.Second, Functions: []Function{{"a", 100}}, Invocations: []Invocation{
		{At: time.Second, Duration: 50 * time.Millisecond}, {At: 3 * time.Second, Duration: 50 * time.Millisecond},
	}}
	r, err := Run(t.Context(), Config{Policy: newPolicy(t, "ma-mc"), Invokers: 2, MemoryMB: 200, Model: model, MessageDelay: delay}, w)
	if err != nil {
		t.Fatal(err)
	}
	want := []Outcome{
		{At: time.Second, Latency: delay + 400*time.Millisecond, ColdStart: 400 * time.Millisecond},
		{At: 3 * time.Second, Latency: delay},
	}
	if d := cmp.Diff(want, r.Invocations); d != "" {
		t.Error(d)
	}
	if s := r.Between(0, w.Window); s.Cold != 1 || s.Invocations != 2 || s.ColdShare() != 0.5 || s.MeanColdStart != 400*time.Millisecond || s.MaxLatency != want[0].Latency {
		t.Errorf("span %+v", s)
	}
	if sec := r.Seconds[1]; sec.Arrived != 1 || sec.Started != 1 || sec.Cold != 1 || sec.Completed != 1 || len(sec.ActiveMB) != 2 || sec.IdleMB != 100 {
		t.Errorf("second 1: %+v", sec)
	}
}

func TestInvocationsThatDoNotFitWaitInOrder(t *testing.T) {
	w := Workload{Window: 10 * time.Second, Functions: []Function{{"a", 100}}}
	for range 3 {
		w.Invocations = append(w.Invocations, Invocation{At: time.Second, Duration: time.Second})
	}
	r, err := Run(t.Context(), Config{Policy: newPolicy(t, "sticky-random"), Invokers: 1, MemoryMB: 150, MessageDelay: -1}, w)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range r.Invocations {
		if o.Latency != time.Duration(i)*time.Second {
			t.Errorf("invocation %d waited %v, want %d s", i, o.Latency, i)
		}
	}
	if r.Seconds[1].Waiting != 2 || r.Seconds[2].Waiting != 1 || r.Seconds[3].Waiting != 0 {
		t.Errorf("waiting: %d, %d, %d; want 2, 1, 0", r.Seconds[1].Waiting, r.Seconds[2].Waiting, r.Seconds[3].Waiting)
	}
}

func TestADecisionOnAnExpiredContainerIsStaleAndStillServed(t *testing.T) {
	w := Workload{Window: 8 * time.Second, Functions: []Function{{"a", 100}}, Invocations: []Invocation{
		{At: 0, Duration: 10 * time.Millisecond},
		// The container ends at 5 s, and the controller hears of it 2 ms later.
		{At: 5*time.Second + time.Millisecond, Duration: 10 * time.Millisecond},
	}}
	r, err := Run(t.Context(), Config{Policy: newPolicy(t, "ma-mc"), Invokers: 2, MemoryMB: 200, Model: model, KeepAlive: 4 * time.Second, MessageDelay: 2 * time.Millisecond}, w)
	if err != nil {
		t.Fatal(err)
	}
	if r.Stale != 1 || r.Expired != 1 || r.Placements != 2 {
		t.Errorf("stale %d, expired %d, placements %d; want 1, 1, 2", r.Stale, r.Expired, r.Placements)
	}
	if o := r.Invocations[1]; o.ColdStart != 400*time.Millisecond {
		t.Errorf("the second invocation: %+v, want a cold start", o)
	}
}

func TestManyCreationsAtOnceTakeLonger(t *testing.T) {
	w := Workload{Window: 60 * time.Second, Functions: []Function{{"a", 1}}}
	for range 100 {
		w.Invocations = append(w.Invocations, Invocation{Duration: time.Minute})
	}
	r, err := Run(t.Context(), Config{Policy: newPolicy(t, "ma-ma"), Invokers: 1, MemoryMB: 1000, Model: model}, w)
	if err != nil {
		t.Fatal(err)
	}
	last := r.Between(0, w.Window).MaxLatency
	if last < 9*time.Second || last > 11*time.Second {
		t.Errorf("100 containers at 10 a second were ready after %v, want about 10 s", last)
	}
}

func TestSaturationEndsARunThatMayEndEarly(t *testing.T) {
	w := uneven(20000, 200)
	c := Config{Policy: newPolicy(t, "random"), Invokers: 1, MemoryMB: 512, Model: model, StopQueue: 5 * time.Second}
	r, err := Run(t.Context(), c, w)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Saturated || r.Window >= w.Window || len(r.Seconds) != int(r.Window/time.Second) || len(r.Invocations) >= len(w.Invocations) {
		t.Errorf("saturated %v after %v of %v, %d seconds, %d invocations", r.Saturated, r.Window, w.Window, len(r.Seconds), len(r.Invocations))
	}
	if completed, arrived := r.MaxThroughput(); completed <= 0 || completed > 200 || arrived != 200 {
		t.Errorf("maximum throughput %g at %g", completed, arrived)
	}
}

func TestEqualRunsAreEqual(t *testing.T) {
	w := uneven(3000, 60)
	for _, name := range policy.Names() {
		t.Run(name, func(t *testing.T) {
			run := func() *Result {
				r, err := Run(t.Context(), Config{Policy: newPolicy(t, name), Invokers: 4, MemoryMB: 512, Model: model, KeepAlive: 20 * time.Second}, w)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			if d := cmp.Diff(run(), run()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEveryInvocationEndsOnceAndMemoryIsNeverOverCapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := Workload{Window: 20 * time.Second}
		capacity := rapid.Int64Range(64, 1024).Draw(t, "capacity")
		for i := range rapid.IntRange(1, 6).Draw(t, "functions") {
			w.Functions = append(w.Functions, Function{fmt.Sprint("f", i), rapid.Int64Range(1, capacity).Draw(t, "memory")})
		}
		at := time.Duration(0)
		for range rapid.IntRange(0, 150).Draw(t, "invocations") {
			at += time.Duration(rapid.IntRange(0, 200).Draw(t, "gap")) * time.Millisecond
			w.Invocations = append(w.Invocations, Invocation{
				At: at, Function: rapid.IntRange(0, len(w.Functions)-1).Draw(t, "function"),
				Duration: time.Duration(rapid.IntRange(0, 3000).Draw(t, "duration")) * time.Millisecond,
			})
		}
		name := rapid.SampledFrom(policy.Names()).Draw(t, "policy")
		p, err := policy.New(name, policy.Options{Seed: rapid.Uint64().Draw(t, "seed"), Sample: rapid.IntRange(0, 3).Draw(t, "sample")})
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(context.Background(), Config{
			Policy: p, Invokers: rapid.IntRange(1, 5).Draw(t, "invokers"), MemoryMB: capacity, Model: model,
			KeepAlive:    time.Duration(rapid.IntRange(1, 10).Draw(t, "keep alive")) * time.Second,
			Eviction:     rapid.SampledFrom(invoker.Evictions()).Draw(t, "eviction"),
			MessageDelay: time.Duration(rapid.IntRange(-1, 300).Draw(t, "delay")) * time.Millisecond,
		}, w)
		if err != nil {
			t.Fatal(err) // ending twice, or memory over capacity
		}
		if len(r.Invocations) != len(w.Invocations) {
			t.Fatalf("%d invocations arrived, want %d", len(r.Invocations), len(w.Invocations))
		}
		for i, o := range r.Invocations {
			if o.Latency < 0 || o.ColdStart > o.Latency {
				t.Fatalf("invocation %d: %+v", i, o)
			}
		}
		if r.Placements < len(w.Invocations) || r.Placements > len(w.Invocations)+r.Refused {
			t.Fatalf("%d placements and %d refusals of %d invocations", r.Placements, r.Refused, len(w.Invocations))
		}
		for _, s := range r.Seconds {
			for _, mb := range s.ActiveMB {
				if mb < 0 || mb > capacity {
					t.Fatalf("a node has %d MiB of %d in use", mb, capacity)
				}
			}
		}
	})
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	good := func() (Config, Workload) {
		return Config{Policy: newPolicy(t, "ma-mc"), Invokers: 1, MemoryMB: 100}, Workload{Window: time.Second, Functions: []Function{{"a", 100}}}
	}
	for message, change := range map[string]func(*Config, *Workload){
		"no policy":           func(c *Config, _ *Workload) { c.Policy = nil },
		"0 invokers":          func(c *Config, _ *Workload) { c.Invokers = 0 },
		"0 MiB":               func(c *Config, _ *Workload) { c.MemoryMB = 0 },
		"no window":           func(_ *Config, w *Workload) { w.Window = 0 },
		"needs 101 MiB":       func(_ *Config, w *Workload) { w.Functions[0].MemoryMB = 101 },
		"out of order":        func(_ *Config, w *Workload) { w.Invocations = []Invocation{{At: 2}, {At: 1}} },
		"invocation 0":        func(_ *Config, w *Workload) { w.Invocations = []Invocation{{Function: 1}} },
		"\"mru\" is unknown":  func(c *Config, _ *Workload) { c.Eviction = "mru" },
		"invocation 0 of the": func(_ *Config, w *Workload) { w.Invocations = []Invocation{{Duration: -1}} },
	} {
		c, w := good()
		change(&c, &w)
		if _, err := Run(t.Context(), c, w); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("error %v, want %q", err, message)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, w := good()
	if _, err := Run(ctx, c, w); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v of a context that has ended", err)
	}
}

func TestSpreadIsMeanAndStandardDeviation(t *testing.T) {
	if mean, deviation := spread([]int64{10, 30}, 100); math.Abs(mean-0.2) > 1e-12 || math.Abs(deviation-0.1) > 1e-12 {
		t.Errorf("mean %g, deviation %g; want 0.2, 0.1", mean, deviation)
	}
	if mean, deviation := spread(nil, 100); mean != 0 || deviation != 0 {
		t.Errorf("of no nodes: %g, %g", mean, deviation)
	}
}

func BenchmarkRun(b *testing.B) {
	w := uneven(120000, 200)
	for _, name := range []string{"sticky-random", "ma-mc"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Run(b.Context(), Config{Policy: newPolicy(b, name), Invokers: 10, MemoryMB: 20480, Model: model}, w); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
