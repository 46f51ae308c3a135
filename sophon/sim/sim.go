package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/invoker"
)

// Function is a function of a workload.
type Function struct {
	Name string
	// MemoryMB is the memory of one of its containers, in MiB.
	MemoryMB int64
}

// Invocation is one invocation of a workload.
type Invocation struct {
	// At is when it is posted to the controller, since the start.
	At time.Duration
	// Function is an index in Workload.Functions.
	Function int
	// Duration is how long it runs, without a cold start.
	Duration time.Duration
}

// Workload is what a simulated cluster has to do.
type Workload struct {
	Functions []Function
	// Invocations are in order of At.
	Invocations []Invocation
	// Window is how long it lasts: what is counted by the second is counted so
	// long. Invocations that are not done by then are followed to their end.
	Window time.Duration
}

// Config describes the cluster. The zero value of a field is its default,
// where there is one.
type Config struct {
	// Policy places invocations. It must be new: a run uses it up.
	Policy sophon.Policy
	// Invokers is how many nodes there are, MemoryMB the memory for containers
	// on each, in MiB.
	Invokers int
	MemoryMB int64
	// Model is how long starting containers takes; the zero value takes no time.
	Model invoker.Model
	// KeepAlive and Eviction are those of invoker.PoolConfig and
	// invoker.NewKeepAlive.
	KeepAlive time.Duration
	Eviction  string
	// MessageDelay is how long a message between controller and invoker
	// takes, one way; default DefaultMessageDelay, negative none.
	MessageDelay time.Duration
	// StopQueue ends the run early, as saturated, once the invocations that
	// wait for a place are more than arrive in this time at the rate of the
	// last ten seconds; 0 never does.
	StopQueue time.Duration
}

// DefaultMessageDelay is what a message takes one way: container states reach
// the scheduler in less than a millisecond (thesis 4.5.1).
const DefaultMessageDelay = 500 * time.Microsecond

// Run simulates the workload on the cluster. It returns an error if either does
// not make sense, a function fits no node, or the context ends.
func Run(ctx context.Context, c Config, w Workload) (*Result, error) {
	if err := check(c, w); err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	e, err := newEngine(c, w)
	if err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	if err := e.run(ctx); err != nil {
		return nil, fmt.Errorf("simulate policy %s: %w", c.Policy.Name(), err)
	}
	return e.result, nil
}

func check(c Config, w Workload) error {
	switch {
	case c.Policy == nil:
		return errors.New("there is no policy")
	case c.Invokers < 1:
		return fmt.Errorf("%d invokers: there must be at least one", c.Invokers)
	case c.MemoryMB < 1:
		return fmt.Errorf("%d MiB on each invoker: there must be some", c.MemoryMB)
	case w.Window <= 0:
		return errors.New("the workload has no window")
	}
	for _, f := range w.Functions {
		if f.MemoryMB < 1 || f.MemoryMB > c.MemoryMB {
			return fmt.Errorf("function %s needs %d MiB: an invoker has %d MiB", f.Name, f.MemoryMB, c.MemoryMB)
		}
	}
	last := time.Duration(0)
	for i, inv := range w.Invocations {
		if inv.Function < 0 || inv.Function >= len(w.Functions) || inv.Duration < 0 || inv.At < last {
			return fmt.Errorf("invocation %d of the workload is not valid or out of order", i)
		}
		last = inv.At
	}
	return nil
}
