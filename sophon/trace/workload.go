package trace

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Invocation is one invocation of a workload.
type Invocation struct {
	// At is when it arrives, since the start of the workload.
	At time.Duration
	// Function is the index in Trace.Functions.
	Function int
	// Duration is how long the function runs, without a cold start.
	Duration time.Duration
}

// Shape is how a workload's rate goes: a factor from 0 to 1 of the rate at x, the
// part from 0 to 1 of the workload's time that has passed.
type Shape func(x float64) float64

// Steady is the same rate all the time.
func Steady(float64) float64 { return 1 }

// SlowStart grows from nothing in the first half and then stays, so that warm
// containers build up before the measurement (thesis 4.2).
func SlowStart(x float64) float64 { return min(1, 2*x) }

// Rise returns the shape that grows exponentially from a share of the rate to
// all of it, so that the rate doubles in equal times: it finds the most that a
// system can take (thesis 4.6.1), equally well for slow and for fast ones.
func Rise(from float64) Shape {
	return func(x float64) float64 { return math.Pow(from, 1-x) }
}

// Spacing is how the invocations of a function lie within a minute.
type Spacing int

// The spacings.
const (
	// Even puts them at equal distances from a random phase.
	Even Spacing = iota
	// Poisson puts each at random.
	Poisson
)

// Workload tells how to make invocations of a Trace.
type Workload struct {
	// Rate is the mean number of invocations a second where Shape is 1.
	Rate float64
	// Shape is how the rate goes; nil is Steady.
	Shape   Shape
	Spacing Spacing
	Seed    uint64
}

// Sample returns the workload in order of time, all within the trace's
// minutes. Each recorded invocation is taken with a probability that brings
// their mean rate to w.Rate; where that is more than was recorded, each is taken
// several times, at times and with durations of its own. The functions' shares
// and the fluctuation from minute to minute stay those of the trace.
func (t *Trace) Sample(w Workload) ([]Invocation, error) {
	if !(w.Rate > 0) || math.IsInf(w.Rate, 0) {
		return nil, fmt.Errorf("make workload: rate %g is not above 0", w.Rate)
	}
	if t.Invocations == 0 {
		return nil, fmt.Errorf("make workload: trace %s has no invocations in minutes %d to %d", t.Name, t.FirstMinute, t.FirstMinute+t.Minutes-1)
	}
	shape := w.Shape
	if shape == nil {
		shape = Steady
	}
	keep := w.Rate / t.Rate() // of each recorded invocation
	copies := int(math.Ceil(keep))
	keep /= float64(copies)
	rng := rand.New(rand.NewPCG(w.Seed, workloadStream))
	whole := time.Duration(t.Minutes) * time.Minute
	invocations := make([]Invocation, 0, int(w.Rate*whole.Seconds()))
	for i, f := range t.Functions {
		for m, count := range f.PerMinute {
			n := int(count) * copies
			phase := rng.Float64()
			for k := range n {
				place := (float64(k) + phase) / float64(n)
				if w.Spacing == Poisson {
					place = rng.Float64()
				}
				at := time.Duration((float64(m) + place) * float64(time.Minute))
				if rng.Float64() >= keep*shape(float64(at)/float64(whole)) {
					continue
				}
				ms := f.DurationMS.At(100 * rng.Float64())
				invocations = append(invocations, Invocation{At: at, Function: i, Duration: time.Duration(ms * float64(time.Millisecond))})
			}
		}
	}
	slices.SortFunc(invocations, func(a, b Invocation) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Function, b.Function), cmp.Compare(a.Duration, b.Duration))
	})
	return invocations, nil
}
