package replay

import (
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// steady is a workload that needs more memory than there is: every function
// comes back when its container may have been evicted.
func steady() sim.Workload {
	w := sim.Workload{Window: 4 * time.Second}
	for i := range 30 {
		w.Functions = append(w.Functions, sim.Function{Name: "function-" + string(rune('a'+i%26)) + string(rune('a'+i/26)), MemoryMB: int64(128 * (1 + i%3))})
	}
	for i := range 400 {
		w.Invocations = append(w.Invocations, sim.Invocation{
			At: time.Duration(i) * 10 * time.Millisecond, Function: (i * i) % 30, Duration: time.Duration(5+i%40) * time.Millisecond,
		})
	}
	return w
}

func TestReplayAgreesWithTheSimulator(t *testing.T) {
	w := steady()
	model := invoker.Model{ColdStart: 40 * time.Millisecond, Init: 10 * time.Millisecond, CreationsPerSecond: 50}
	for _, name := range []string{"ma-mc", "sticky-random"} {
		t.Run(name, func(t *testing.T) {
			p, err := policy.New(name, policy.Options{Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			live, err := Run(t.Context(), Config{Policy: p, Invokers: 3, MemoryMB: 1024, Model: model}, w)
			if err != nil {
				t.Fatal(err)
			}
			if live.Invocations != 400 || live.Failed != 0 {
				t.Fatalf("%d of %d invocations failed: %v", live.Failed, live.Invocations, live.FirstError)
			}
			if p, err = policy.New(name, policy.Options{Seed: 1}); err != nil {
				t.Fatal(err)
			}
			res, err := sim.Run(t.Context(), sim.Config{Policy: p, Invokers: 3, MemoryMB: 1024, Model: model}, w)
			if err != nil {
				t.Fatal(err)
			}
			want := res.Between(0, w.Window)
			t.Logf("cold: live %d, simulated %d; latency: live %v, simulated %v; latest posted %v late", live.Cold, want.Cold, live.MeanLatency, want.MeanLatency, live.MaxLate)
			// A machine that is busy with other things posts late, and then more
			// containers are needed at once. The wide bound is for that.
			if difference := math.Abs(float64(live.Cold - want.Cold)); difference > max(10, 0.3*float64(want.Cold)) {
				t.Errorf("%d cold starts, the simulator has %d", live.Cold, want.Cold)
			}
		})
	}
}
