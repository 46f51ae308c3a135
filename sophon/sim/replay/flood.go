package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/sim"
)

// Load is what Flood puts on the platform.
type Load struct {
	// Callers invoke functions one after the other, without a pause.
	Callers int
	// Functions is how many there are; callers take them in turns.
	Functions int
	// Duration is for how long, after every function has containers.
	Duration time.Duration
}

// FloodResult is how many invocations a platform gets through.
type FloodResult struct {
	Invocations int `json:"invocations"`
	Cold        int `json:"cold_starts"`
	// PerSecond is the rate of invocations that ended.
	PerSecond float64 `json:"per_second"`
	// P50 and P99 are how long an invocation took, as its caller sees it.
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
}

// floodMemoryMB is the memory of the functions that Flood makes.
const floodMemoryMB = 128

// Flood measures how many invocations a second go from a caller through the
// controller, NATS and an invoker and back. The functions take no time. All of
// it, callers included, runs in this process.
func Flood(ctx context.Context, c Config, l Load) (_ FloodResult, err error) {
	dir, err := os.MkdirTemp("", "volley-flood-")
	if err != nil {
		return FloodResult{}, fmt.Errorf("flood platform: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := start(ctx, c.withLog(), dir)
	if err != nil {
		return FloodResult{}, fmt.Errorf("flood platform: %w", err)
	}
	defer p.stop()
	w := sim.Workload{}
	for i := range l.Functions {
		w.Functions = append(w.Functions, sim.Function{Name: "flood-" + strconv.Itoa(i), MemoryMB: floodMemoryMB})
		w.Invocations = append(w.Invocations, sim.Invocation{Function: i})
	}
	if err := p.deploy(ctx, w); err != nil {
		return FloodResult{}, fmt.Errorf("flood platform: %w", err)
	}
	// Containers are made before time is taken.
	if _, err := p.flood(ctx, l, time.Second); err != nil {
		return FloodResult{}, err
	}
	return p.flood(ctx, l, l.Duration)
}

// flood lets the callers call for a while.
func (p *platform) flood(ctx context.Context, l Load, d time.Duration) (FloodResult, error) {
	var mu sync.Mutex
	var res FloodResult
	var took []time.Duration
	var failed error
	var callers sync.WaitGroup
	begun := time.Now()
	for caller := range l.Callers {
		callers.Go(func() {
			var own []time.Duration
			cold := 0
			for n := caller; time.Since(begun) < d; n++ {
				posted := time.Now()
				r, err := p.controller.Invoke(ctx, function.Invocation{
					Function: p.keys[n%l.Functions], Type: function.RequestResponse, Received: posted, Payload: []byte(`{}`),
				})
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				if r.Cold {
					cold++
				}
				own = append(own, time.Since(posted))
			}
			mu.Lock()
			defer mu.Unlock()
			took, res.Cold = append(took, own...), res.Cold+cold
		})
	}
	callers.Wait()
	wall := time.Since(begun)
	if failed != nil {
		return res, fmt.Errorf("flood platform: %w", failed)
	}
	slices.Sort(took)
	res.Invocations, res.PerSecond = len(took), float64(len(took))/wall.Seconds()
	res.P50, res.P99 = took[len(took)/2], took[len(took)*99/100]
	return res, nil
}
