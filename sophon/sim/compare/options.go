package compare

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/sim"
	"github.com/volley-run/volley/sophon/trace"
)

// Baseline is the policy that the others are compared with: OpenWhisk's.
const Baseline = "sticky-random"

// Load is how much work a workload is.
type Load struct {
	// Rate is in invocations a second or, if Relative, a multiple of the
	// baseline's maximum throughput with the same window, seed and cluster.
	Rate     float64
	Relative bool
}

// ParseLoad reads "100" or "100/s", or "0.9x".
func ParseLoad(text string) (Load, error) {
	number, relative := strings.CutSuffix(strings.TrimSuffix(text, "/s"), "x")
	rate, err := strconv.ParseFloat(number, 64)
	if err != nil || !(rate > 0) || rate > 1e6 || (relative && strings.HasSuffix(text, "/s")) {
		return Load{}, fmt.Errorf("load %q is not a rate such as 100 (a second) or 0.9x (of what %s can take)", text, Baseline)
	}
	return Load{rate, relative}, nil
}

func (l Load) String() string {
	number := strconv.FormatFloat(l.Rate, 'g', -1, 64)
	if l.Relative {
		return number + "x"
	}
	return number + "/s"
}

// Options say what to compare. Defaults fills in what is left out.
type Options struct {
	Trace *trace.Trace
	// Policies are names that package policy knows, all different.
	Policies []string
	// Sample is how many nodes a decision looks at; 0 is all.
	Sample int
	// Loads are those of the runs at a constant rate after a slow start.
	Loads []Load
	// Throughput asks for the maximum throughput (thesis figure 4.10);
	// relative loads need it.
	Throughput bool
	// Starts are the first minutes of the windows, Minutes their length, Seeds
	// those of the workloads and policies.
	Starts  []int
	Minutes int
	Seeds   []uint64
	Spacing trace.Spacing
	// Invokers is the number of nodes; MemoryMB the memory of each, in MiB: all
	// is done for each number given.
	Invokers int
	MemoryMB []int64
	// Scale, if not nil, is the comparison with many nodes (thesis figure
	// 4.16), done at the first MemoryMB.
	Scale *Scale
	// StepMB is what the memory of a container is a multiple of: the least that
	// is not below the largest that the trace saw of the function.
	StepMB    int64
	Model     invoker.Model
	KeepAlive time.Duration
	Eviction  string
	// Parallel is how many simulations run at once.
	Parallel int
	// Progress, if not nil, is told whenever a simulation begins or ends. Calls
	// come one at a time.
	Progress func(done, running, total int)
}

// Scale is a comparison with and without sampling at many nodes.
type Scale struct {
	Invokers, Sample int
	// Policy is compared to itself with sampling, and to the baseline.
	Policy string
	// Load is that of the cold starts; relative is as everywhere.
	Load Load
	// Seeds is how many of the seeds to use.
	Seeds int
}

// DefaultScale is figure 4.16: 50 invokers, of which 10 are looked at, and cold
// starts at 900 a second, which was 0.93 of what OpenWhisk can take if it takes
// as much per node as at 10 nodes.
func DefaultScale() *Scale {
	return &Scale{Invokers: 50, Sample: policy.DefaultSample, Policy: policy.Default, Load: Load{0.93, true}, Seeds: 1}
}

// DefaultStepMB is the least memory, and the unit of it, that Lambda and
// OpenWhisk give a function.
const DefaultStepMB = 128

func (o *Options) check() error {
	switch {
	case o.Trace == nil:
		return errors.New("there is no trace")
	case len(o.Policies) == 0:
		return errors.New("there are no policies")
	case len(o.Starts) == 0 || len(o.Seeds) == 0 || len(o.MemoryMB) == 0:
		return errors.New("there must be at least one window, one seed and one size of memory")
	case o.StepMB < 1:
		return fmt.Errorf("memory in steps of %d MiB: must be at least 1", o.StepMB)
	}
	for i, name := range o.Policies {
		if slices.Contains(o.Policies[:i], name) {
			return fmt.Errorf("policy %s is named twice", name)
		}
		if _, err := policy.New(name, policy.Options{}); err != nil {
			return err
		}
	}
	if o.needsBaseline() && !slices.Contains(o.Policies, Baseline) {
		return fmt.Errorf("loads relative to %s need it among the policies", Baseline)
	}
	for _, start := range o.Starts {
		w, err := o.Trace.Window(start, o.Minutes)
		if err != nil {
			return err
		}
		if w.Invocations == 0 {
			return fmt.Errorf("window from minute %d has no invocations", start)
		}
	}
	return nil
}

// needsBaseline reports whether a load depends on the baseline's throughput.
func (o *Options) needsBaseline() bool {
	return slices.ContainsFunc(o.Loads, func(l Load) bool { return l.Relative })
}

// functions returns the trace's functions with the memory of their containers.
func (o *Options) functions() []sim.Function {
	all := make([]sim.Function, len(o.Trace.Functions))
	for i, f := range o.Trace.Functions {
		steps := max(1, math.Ceil(f.MemoryMB.Max()/float64(o.StepMB)))
		all[i] = sim.Function{Name: f.ID, MemoryMB: int64(steps) * o.StepMB}
	}
	return all
}

// Pressure is what a window asks of a cluster, whatever the policy.
type Pressure struct {
	Start int `json:"window_start_minute"`
	// Functions are those with an invocation.
	Functions int `json:"functions"`
	// RecordedRate is the mean number of invocations a second in the trace.
	RecordedRate float64 `json:"recorded_rate_per_second"`
	// Top1 and Top5 are the shares of the most invoked functions in all
	// invocations.
	Top1 float64 `json:"top_1_share"`
	Top5 float64 `json:"top_5_share"`
	// MBSeconds is the memory times run time of an invocation, on average.
	MBSeconds float64 `json:"mb_seconds_per_invocation"`
	// OneOfEachMB is the memory of one container of each of the functions.
	OneOfEachMB int64 `json:"one_of_each_mb"`
}

// pressure measures a window.
func pressure(w *trace.Trace, functions []sim.Function) Pressure {
	p := Pressure{Start: w.FirstMinute, Functions: w.Active(), RecordedRate: w.Rate(), Top1: w.TopShare(1), Top5: w.TopShare(5)}
	for i, f := range w.Functions {
		if f.Invocations == 0 {
			continue
		}
		share := float64(f.Invocations) / float64(w.Invocations)
		p.MBSeconds += share * float64(functions[i].MemoryMB) * f.DurationMS.Mean() / 1000
		p.OneOfEachMB += functions[i].MemoryMB
	}
	return p
}

// FullRate is the rate at which running functions alone fill so much memory.
func (p Pressure) FullRate(memoryMB int64) float64 { return float64(memoryMB) / p.MBSeconds }
