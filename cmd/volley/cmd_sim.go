package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/internal/progress"
	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/sim/compare"
	"github.com/volley-run/volley/sophon/trace"
)

// allOf stands for every policy or figure there is.
const allOf = "all"

type simOptions struct {
	dir, marginals string
	day            int
	traceSeed      uint64

	rates      []string
	policies   []string
	sample     int
	seeds      int
	windows    int
	starts     []int
	minutes    int
	poisson    bool
	invokers   int
	memory     []string
	memoryStep megabytes
	model      invoker.Model
	keepAlive  time.Duration
	eviction   string
	figures    []string
	parallel   int
	out        string
	json       bool

	live     bool
	liveTime time.Duration
}

func newSimCommand() *cobra.Command {
	model := invoker.ThesisModel()
	o := simOptions{memoryStep: compare.DefaultStepMB}
	var names strings.Builder
	for _, name := range policy.Names() {
		fmt.Fprintf(&names, "  %-21s %s\n", name, policy.Describe(name))
	}
	cmd := &cobra.Command{
		Use:   "sim --trace DIR",
		Short: "Compare scheduling policies on a trace, in virtual time",
		Long: `Run invocations from a trace of serverless functions on a simulated cluster,
once with each scheduling policy, and compare: throughput, cold starts, latency
and memory. The scheduler, the policies and the containers' life cycle are the
code of the live platform; only time is virtual, and containers pretend.

The trace is a directory with files of the Azure Functions data set of 2019, or
samples of it: *invocations*.csv, *durations*.csv and *memory*.csv, plain or
compressed with gzip. For each window and seed, invocations are drawn from it to
match each of the rates, with a slow start in the first half, and then the rate
is raised until each policy is saturated. A rate such as 0.9x is a share of what
` + compare.Baseline + ` (OpenWhisk's policy) can take.

Tables go to standard output; JSON lines and plots (SVG, PNG) into --out.
docs/sim.md describes both, and the models.

With --live the first rate is played in real time as well: through a controller,
NATS and invokers whose containers are stubs, and compared with the simulator.

Policies:
` + names.String() + `
Exit statuses: 0 done; 2 wrong usage; 4 the trace is missing or a row of it is
bad; 5 the output cannot be written; 130 interrupted.`,
		Example: `  volley sim --trace azure2019 --rate 100,200,0.93x --out results
  volley sim --trace azure2019 --policy sticky-random,ma-mc --memory 20GB,5GB,2.5GB --seeds 1
  volley sim --trace azure2019 --policy ma-mc --rate 100 --live --live-time 1m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return simulate(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "trace", "", "directory of the trace (required)")
	f.IntVar(&o.day, "day", 0, "which day to read, where the directory has several")
	f.StringVar(&o.marginals, "marginals", "", "directory with durations and memory for functions that have none in the trace")
	f.Uint64Var(&o.traceSeed, "trace-seed", 1, "seed for the windows, and for what is missing in the trace")
	f.StringSliceVar(&o.rates, "rate", []string{"100", "200", "0.93x"}, "invocations a second; 0.9x is a share of what "+compare.Baseline+" can take")
	f.StringSliceVar(&o.policies, "policy", []string{allOf}, "which policies")
	f.IntVar(&o.sample, "sample", 0, "how many invokers a decision looks at; 0 is all")
	f.IntVar(&o.seeds, "seeds", 5, "how many seeds")
	f.IntVar(&o.windows, "windows", 3, "how many windows of the trace, chosen at random")
	f.IntSliceVar(&o.starts, "start", nil, "first minutes of the windows, instead of random ones")
	f.IntVar(&o.minutes, "minutes", 10, "length of a window")
	f.BoolVar(&o.poisson, "poisson", false, "arrivals at random within a minute, instead of evenly spaced")
	f.IntVar(&o.invokers, "invokers", 10, "how many invokers")
	f.StringSliceVar(&o.memory, "memory", []string{"20GB"}, "memory for containers on each invoker; several are compared")
	f.Var(&o.memoryStep, "memory-step", "a container has its function's largest memory, rounded up to a multiple of this")
	f.DurationVar(&o.model.ColdStart, "cold-start", model.ColdStart, "how long making a container takes")
	f.DurationVar(&o.model.Init, "init", model.Init, "how long initialising it takes")
	f.Float64Var(&o.model.CreationsPerSecond, "creations", model.CreationsPerSecond, "the most containers that an invoker makes in a second; 0 is no bound")
	f.Float64Var(&o.model.ContendedPerSecond, "contended", model.ContendedPerSecond, "to how many that falls when it makes many at once; 0 does not fall")
	f.DurationVar(&o.keepAlive, "keep-alive", invoker.DefaultKeepAlive, "how long an idle container is kept")
	f.StringVar(&o.eviction, "eviction", invoker.LRU, "which containers make room first: "+strings.Join(invoker.Evictions(), " or "))
	f.StringSliceVar(&o.figures, "figures", []string{allOf}, "which figures: "+strings.Join(compare.Figures(), ", "))
	f.IntVar(&o.parallel, "parallel", runtime.GOMAXPROCS(0), "how many simulations at once")
	f.StringVar(&o.out, "out", "sim", "directory for JSON lines and plots")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON instead of tables")
	f.BoolVar(&o.live, "live", false, "play the first rate in real time too, and compare")
	f.DurationVar(&o.liveTime, "live-time", time.Minute, "how long to play, in whole minutes")
	return cmd
}

// comparison checks the options and makes those of a comparison.
func (o *simOptions) comparison() (compare.Options, error) {
	c := compare.Options{
		Policies: o.policies, Sample: o.sample, Minutes: o.minutes, Invokers: o.invokers, StepMB: int64(o.memoryStep),
		Model: o.model, KeepAlive: o.keepAlive, Eviction: o.eviction, Parallel: o.parallel,
	}
	if slices.Contains(o.policies, allOf) {
		c.Policies = policy.Names()
	}
	for _, name := range c.Policies {
		if _, err := policy.New(name, policy.Options{}); err != nil {
			return c, usagef("--policy: %w", err)
		}
	}
	for _, text := range o.rates {
		load, err := compare.ParseLoad(text)
		if err != nil {
			return c, usagef("--rate: %w", err)
		}
		if load.Relative && !slices.Contains(c.Policies, compare.Baseline) {
			return c, usagef("--rate %s is a share of what %s can take: add it to --policy", text, compare.Baseline)
		}
		c.Loads = append(c.Loads, load)
	}
	for _, text := range o.memory {
		var mb megabytes
		if err := mb.Set(text); err != nil {
			return c, usagef("--memory: %w", err)
		}
		c.MemoryMB = append(c.MemoryMB, int64(mb))
	}
	if _, err := invoker.NewKeepAlive(o.eviction); err != nil {
		return c, usagef("--eviction: %w", err)
	}
	if slices.Contains(o.figures, allOf) {
		o.figures = compare.Figures()
	}
	for _, name := range o.figures {
		if !slices.Contains(compare.Figures(), name) {
			return c, usagef("--figures: there is no figure %q; there are %s", name, strings.Join(compare.Figures(), ", "))
		}
	}
	for _, n := range []struct {
		flag           string
		value, low, up int
	}{
		{"--seeds", o.seeds, 1, 1000}, {"--windows", o.windows, 1, 1000}, {"--minutes", o.minutes, 1, 1440}, {"--invokers", o.invokers, 1, 10000},
		{"--sample", o.sample, 0, 10000}, {"--parallel", o.parallel, 1, 1024}, {"--rate", len(c.Loads), 1, 100}, {"--memory", len(c.MemoryMB), 1, 100},
		{"--policy", len(c.Policies), 1, 100}, {"--day", o.day, 0, 14}, {"--live-time", int(o.liveTime / time.Minute), 1, 60},
	} {
		if n.value < n.low || n.value > n.up {
			return c, usagef("%s: %d is out of range, use %d to %d", n.flag, n.value, n.low, n.up)
		}
	}
	if m := o.model; m.ColdStart < 0 || m.Init < 0 || m.CreationsPerSecond < 0 || m.ContendedPerSecond < 0 {
		return c, usagef("--cold-start, --init, --creations and --contended must not be negative")
	}
	if o.liveTime%time.Minute != 0 {
		return c, usagef("--live-time %v: must be whole minutes", o.liveTime)
	}
	if o.poisson {
		c.Spacing = trace.Poisson
	}
	for i := range o.seeds {
		c.Seeds = append(c.Seeds, uint64(i+1))
	}
	c.Throughput = slices.Contains(o.figures, compare.ThroughputFigure)
	if slices.Contains(o.figures, compare.ScaleFigure) {
		c.Scale = compare.DefaultScale()
	}
	return c, nil
}

func simulate(ctx context.Context, o simOptions, stdout, stderr io.Writer) error {
	if o.dir == "" {
		return usagef("--trace is missing: name the directory of a trace")
	}
	c, err := o.comparison()
	if err != nil {
		return err
	}
	if o.live && c.Loads[0].Relative {
		return usagef("--live plays the first --rate, which must be in invocations a second, not %s", c.Loads[0])
	}
	c.Trace, err = trace.Open(o.dir, trace.OpenOptions{Day: o.day, Marginals: o.marginals, Seed: o.traceSeed})
	if err != nil {
		return withStatus(exitInput, err)
	}
	if c.Starts = o.starts; len(c.Starts) == 0 {
		if c.Starts, err = c.Trace.RandomWindows(o.windows, o.minutes, o.traceSeed); err != nil {
			return usagef("--windows and --minutes: %w", err)
		}
	}
	for _, start := range c.Starts {
		if _, err := c.Trace.Window(start, o.minutes); err != nil {
			return usagef("--start: %w", err)
		}
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return withStatus(exitOutput, fmt.Errorf("make output directory: %w", err))
	}
	if o.live {
		return simulateLive(ctx, o, c, stdout, stderr)
	}
	report, err := runComparison(ctx, c, stderr)
	if err != nil {
		return err
	}
	if err := report.WriteFiles(o.out); err != nil {
		return withStatus(exitOutput, err)
	}
	if err := report.Draw(o.out, o.figures); err != nil {
		return withStatus(exitOutput, err)
	}
	if o.json {
		return writeJSON(stdout, report.Summary())
	}
	return report.WriteText(stdout)
}

// runComparison shows how far it is.
func runComparison(ctx context.Context, c compare.Options, stderr io.Writer) (*compare.Report, error) {
	display := progress.New(stderr, progress.Options{})
	defer display.Close()
	begun := time.Now()
	c.Progress = func(done, running, total int) {
		s := progress.Snapshot{Rows: []progress.Row{{Name: "simulations", Done: done, Running: running, Total: total}}}
		if elapsed := time.Since(begun); done > 0 && done < total {
			s.Line = fmt.Sprintf("about %s left", shortDuration(elapsed*time.Duration(total-done)/time.Duration(done)))
		}
		display.Update(s)
	}
	return compare.Run(ctx, c)
}
