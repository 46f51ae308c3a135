package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/sim"
	"github.com/volley-run/volley/sophon/trace"
)

// In search of the maximum throughput the rate rises from and to such multiples
// of the rate at which running functions alone would fill the memory, and the
// run ends when more invocations wait than arrive in saturation.
const (
	riseFrom, riseTo = 0.03, 5
	saturation       = 10 * time.Second
)

// Report is the outcome of a comparison.
type Report struct {
	Options  Options
	Pressure []Pressure // of the windows
	// Records are those of Options.Policies, Scale those of Options.Scale, both
	// in a fixed order.
	Records, Scale []Record
	// Series are of the first window and seed, Latency of all of them together.
	Series  []*Series
	Latency map[LatencyKey]*Histogram
}

// LatencyKey names a Histogram of a Report.
type LatencyKey struct {
	Policy, Load string
	MemoryMB     int64
}

// group is what runs one after the other: all policies with one window, seed
// and cluster.
type group struct {
	index    int // into the order of records
	start    int
	seed     uint64
	invokers int
	memoryMB int64
	// contenders are the policies; loads those of this group.
	contenders []contender
	throughput bool
	loads      []Load
	keep       bool // the series
	scale      bool
}

// contender is a policy with its parameters.
type contender struct {
	name   string
	sample int
}

// outcome is what a group comes to.
type outcome struct {
	group   group
	records []Record
	series  []*Series
	latency map[LatencyKey]*Histogram
}

// Run makes the comparison. It returns an error if the options do not make
// sense or the context ends.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("compare policies: %w", err)
	}
	r := &runner{options: o, functions: o.functions()}
	report := &Report{Options: o, Latency: map[LatencyKey]*Histogram{}}
	for _, start := range o.Starts {
		w, err := o.Trace.Window(start, o.Minutes)
		if err != nil {
			return nil, fmt.Errorf("compare policies: %w", err)
		}
		report.Pressure = append(report.Pressure, pressure(w, r.functions))
	}
	outcomes, err := r.all(ctx, o.groups())
	if err != nil {
		return nil, fmt.Errorf("compare policies: %w", err)
	}
	for _, out := range outcomes {
		if out.group.scale {
			report.Scale = append(report.Scale, out.records...)
			continue
		}
		report.Records = append(report.Records, out.records...)
		report.Series = append(report.Series, out.series...)
		for key, h := range out.latency {
			if report.Latency[key] == nil {
				report.Latency[key] = &Histogram{}
			}
			report.Latency[key].Merge(h)
		}
	}
	return report, nil
}

func (o *Options) groups() []group {
	var groups []group
	contenders := make([]contender, len(o.Policies))
	for i, name := range o.Policies {
		contenders[i] = contender{name, o.Sample}
	}
	for _, memoryMB := range o.MemoryMB {
		for i, start := range o.Starts {
			for j, seed := range o.Seeds {
				groups = append(groups, group{
					index: len(groups), start: start, seed: seed, invokers: o.Invokers, memoryMB: memoryMB, contenders: contenders,
					throughput: o.Throughput || o.needsBaseline(), loads: o.Loads, keep: i == 0 && j == 0,
				})
			}
		}
	}
	if s := o.Scale; s != nil {
		for _, start := range o.Starts {
			for _, seed := range o.Seeds[:min(s.Seeds, len(o.Seeds))] {
				groups = append(groups, group{
					index: len(groups), start: start, seed: seed, invokers: s.Invokers, memoryMB: o.MemoryMB[0], scale: true,
					contenders: []contender{{Baseline, 0}, {s.Policy, 0}, {s.Policy, s.Sample}}, throughput: true, loads: []Load{s.Load},
				})
			}
		}
	}
	return groups
}

// runner carries out groups.
type runner struct {
	options   Options
	functions []sim.Function

	mu                   sync.Mutex
	done, running, total int
}

// all carries out groups, several at once, and returns their outcomes in order.
func (r *runner) all(ctx context.Context, groups []group) ([]outcome, error) {
	for _, g := range groups {
		runs := len(g.loads)
		if g.throughput {
			runs++
		}
		r.total += runs * len(g.contenders)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The large ones come first, so that none of them is left over at the end.
	queue := make(chan group, len(groups))
	for _, g := range slices.SortedStableFunc(slices.Values(groups), func(a, b group) int { return b.invokers - a.invokers }) {
		queue <- g
	}
	close(queue)
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		outcomes []outcome
		failures []error
	)
	for range max(1, min(r.options.Parallel, len(groups))) {
		wg.Go(func() {
			for g := range queue {
				if ctx.Err() != nil {
					return
				}
				out, err := r.group(ctx, g)
				mu.Lock()
				if err != nil {
					failures = append(failures, err)
					cancel()
				} else {
					outcomes = append(outcomes, out)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// The first failure ended the others.
	for _, err := range failures {
		if !errors.Is(err, context.Canceled) {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(outcomes, func(a, b outcome) int { return cmp.Compare(a.group.index, b.group.index) })
	return outcomes, nil
}

func (r *runner) group(ctx context.Context, g group) (outcome, error) {
	out := outcome{group: g, latency: map[LatencyKey]*Histogram{}}
	w, err := r.options.Trace.Window(g.start, r.options.Minutes)
	if err != nil {
		return out, err
	}
	baseline := 0.0
	if g.throughput {
		full := pressure(w, r.functions).FullRate(int64(g.invokers) * g.memoryMB)
		load, err := r.workload(w, trace.Workload{Rate: riseTo * full, Shape: trace.Rise(riseFrom / riseTo), Seed: g.seed})
		if err != nil {
			return out, err
		}
		for _, c := range g.contenders {
			rec, _, err := r.simulate(ctx, g, c, load, saturation)
			if err != nil {
				return out, err
			}
			rec.Experiment, rec.Rate = MaxThroughput, riseTo*full
			out.records = append(out.records, rec)
			if c.name == Baseline {
				baseline = rec.Throughput
			}
		}
	}
	for _, l := range g.loads {
		rate := l.Rate
		if l.Relative {
			rate *= baseline
		}
		load, err := r.workload(w, trace.Workload{Rate: rate, Shape: trace.SlowStart, Seed: g.seed})
		if err != nil {
			return out, err
		}
		for _, c := range g.contenders {
			rec, res, err := r.simulate(ctx, g, c, load, 0)
			if err != nil {
				return out, err
			}
			rec.Experiment, rec.Load, rec.Rate = AtRate, l.String(), rate
			out.records = append(out.records, rec)
			h := &Histogram{}
			for _, inv := range res.Invocations {
				h.Add(inv.Latency)
			}
			out.latency[LatencyKey{c.name, rec.Load, g.memoryMB}] = h
			if g.keep {
				s := seriesOf(res)
				s.Load, s.MemoryMB, s.Start, s.Seed = rec.Load, g.memoryMB, g.start, g.seed
				out.series = append(out.series, s)
			}
		}
	}
	return out, nil
}

// workload makes a workload of a window.
func (r *runner) workload(w *trace.Trace, spec trace.Workload) (sim.Workload, error) {
	spec.Spacing = r.options.Spacing
	return makeWorkload(w, r.functions, spec)
}

func makeWorkload(w *trace.Trace, functions []sim.Function, spec trace.Workload) (sim.Workload, error) {
	sampled, err := w.Sample(spec)
	if err != nil {
		return sim.Workload{}, err
	}
	load := sim.Workload{
		Functions: functions, Window: time.Duration(w.Minutes) * time.Minute,
		Invocations: make([]sim.Invocation, len(sampled)),
	}
	for i, inv := range sampled {
		load.Invocations[i] = sim.Invocation(inv)
	}
	return load, nil
}

// Workload makes the workload of one run: some minutes of the trace at a rate
// after a slow start, with the memory that o gives the functions. No invocation
// runs longer than longest.
func (o *Options) Workload(start, minutes int, rate float64, seed uint64, longest time.Duration) (sim.Workload, error) {
	w, err := o.Trace.Window(start, minutes)
	if err != nil {
		return sim.Workload{}, err
	}
	load, err := makeWorkload(w, o.functions(), trace.Workload{Rate: rate, Shape: trace.SlowStart, Spacing: o.Spacing, Seed: seed})
	if err != nil {
		return sim.Workload{}, err
	}
	for i := range load.Invocations {
		load.Invocations[i].Duration = min(load.Invocations[i].Duration, longest)
	}
	return load, nil
}

// simulate runs one policy.
func (r *runner) simulate(ctx context.Context, g group, c contender, w sim.Workload, stop time.Duration) (Record, *sim.Result, error) {
	r.progress(0, 1)
	defer r.progress(1, -1)
	p, err := policy.New(c.name, policy.Options{Seed: g.seed, Sample: c.sample})
	if err != nil {
		return Record{}, nil, err
	}
	o := r.options
	res, err := sim.Run(ctx, sim.Config{
		Policy: p, Invokers: g.invokers, MemoryMB: g.memoryMB, Model: o.Model, KeepAlive: o.KeepAlive, Eviction: o.Eviction, StopQueue: stop,
	}, w)
	if err != nil {
		return Record{}, nil, err
	}
	rec := Record{Trace: o.Trace.Name, Start: g.start, Seed: g.seed, Policy: c.name, Sample: c.sample, Invokers: g.invokers, MemoryMB: g.memoryMB}
	rec.fill(res)
	return rec, res, nil
}

func (r *runner) progress(done, running int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += done
	r.running += running
	if r.options.Progress != nil {
		r.options.Progress(r.done, r.running, r.total)
	}
}
