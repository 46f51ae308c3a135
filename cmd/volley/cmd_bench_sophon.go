package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/internal/plot"
	"github.com/volley-run/volley/sophon/policy"
)

type benchSophonOptions struct {
	invokers []int
	policies []string
	samples  []int
	memoryMB int64
	duration time.Duration
	rounds   int
	endToEnd time.Duration
	seed     uint64
	out      string
	json     bool
}

func newBenchSophonCommand() *cobra.Command {
	var o benchSophonOptions
	cmd := &cobra.Command{
		Use:   "sophon",
		Short: "Measure how fast the scheduler decides",
		Long: `Measure how many scheduling decisions one core makes in a second, for each
policy, number of invokers and sample size. The cluster is in a steady state:
its nodes are full of containers, functions are called as unequally as in the
Azure traces, and each invocation that arrives is followed by the end of an
earlier one. A decision is to take an invocation in, choose, and commit that. A
cycle is all that the scheduler does for an invocation, its end and its
container's changes included, and what drives the load. Policies take turns
within a round; the figures are medians over the rounds.

Then it measures invocations end to end (--end-to-end): callers, the controller,
NATS and stub invokers, whose functions take no time, all in this process; with
NATS within the process, and over loopback as between machines.

The tables go to standard output; JSON lines (one a measurement) and plots
(SVG, PNG) into --out. The thesis measured 3,828 decisions a second with
OpenWhisk, 3,255 with Sophon, and 3,542 with sampling, at 100 invokers.

Exit statuses: 0 done, 1 failed, 2 wrong usage.`,
		Example: `  volley bench sophon
  volley bench sophon --invokers 100 --policies ma-mc,sticky-random --sample 0,10,20`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return benchSophon(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&o.invokers, "invokers", []int{10, 100, 1000, 10_000}, "numbers of invokers")
	f.StringSliceVar(&o.policies, "policies", []string{"all"}, "which policies to measure")
	f.IntSliceVar(&o.samples, "sample", []int{0, policy.DefaultSample}, "sample sizes; 0 looks at all nodes")
	f.Int64Var(&o.memoryMB, "memory", 20<<10, "memory of each invoker in MiB")
	f.DurationVar(&o.duration, "duration", time.Second, "how long each measurement takes, after making the cluster")
	f.IntVar(&o.rounds, "rounds", 3, "how often each is measured")
	f.DurationVar(&o.endToEnd, "end-to-end", 5*time.Second, "how long to measure invocations end to end; 0 leaves it out")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the load and of the policies")
	f.StringVar(&o.out, "out", "bench-sophon", "directory for JSON lines and plots")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON instead of tables")
	return cmd
}

func (o *benchSophonOptions) check() error {
	if slices.Contains(o.policies, "all") {
		o.policies = policy.Names()
	}
	for _, name := range o.policies {
		if policy.Describe(name) == "" {
			return usagef("--policies: there is no policy %q; there are %v", name, policy.Names())
		}
	}
	for _, n := range o.invokers {
		if n < 1 || n > 100_000 {
			return usagef("--invokers %d: must be 1 to 100000", n)
		}
	}
	for _, k := range o.samples {
		if k < 0 || k > 100_000 {
			return usagef("--sample %d: must be 0 to 100000", k)
		}
	}
	switch {
	case len(o.invokers) == 0 || len(o.policies) == 0 || len(o.samples) == 0:
		return usagef("--invokers, --policies and --sample must each name at least one")
	case o.memoryMB < 1024 || o.memoryMB > 1<<20:
		return usagef("--memory %d: must be 1024 to 1048576 MiB", o.memoryMB)
	case o.duration < 10*time.Millisecond:
		return usagef("--duration %s: must be at least 10ms", o.duration)
	case o.endToEnd < 0:
		return usagef("--end-to-end %s: must not be negative", o.endToEnd)
	case o.rounds < 1 || o.rounds > 100:
		return usagef("--rounds %d: must be 1 to 100", o.rounds)
	}
	return nil
}

// decisionRun is one measurement: a line of runs.jsonl.
type decisionRun struct {
	policy.Measurement
	Round int `json:"round"`
}

// sophonSummary is what the tables show.
type sophonSummary struct {
	Machine   string            `json:"machine"`
	Rounds    int               `json:"rounds"`
	Decisions []decisionSummary `json:"decisions"`
	EndToEnd  []endToEnd        `json:"end_to_end,omitempty"`
}

// decisionSummary is the medians of one policy at one size.
type decisionSummary struct {
	Policy    string  `json:"policy"`
	Invokers  int     `json:"invokers"`
	Sample    int     `json:"sample"`
	PerSecond float64 `json:"decisions_per_second"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	Cycles    float64 `json:"cycles_per_second"`
	Warm      float64 `json:"warm_share"`
	Cold      float64 `json:"cold_share"`
	Evicting  float64 `json:"evicting_share"`
	// Ratio is to the first policy of the same size and sample, round by round.
	Ratio float64 `json:"rate_ratio"`
}

func benchSophon(ctx context.Context, o benchSophonOptions, stdout, stderr io.Writer) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	runs, err := measureDecisions(ctx, o, stderr)
	if err != nil {
		return err
	}
	s := sophonSummary{Machine: machine(ctx), Rounds: o.rounds, Decisions: summariseDecisions(o, runs)}
	if o.endToEnd > 0 {
		if s.EndToEnd, err = measureEndToEnd(ctx, o, stderr); err != nil {
			return err
		}
	}
	if err := writeRunsAndSummary(o.out, runs, s); err != nil {
		return err
	}
	if err := s.plot(o); err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, s)
	}
	return s.print(stdout, o)
}

func measureDecisions(ctx context.Context, o benchSophonOptions, stderr io.Writer) ([]decisionRun, error) {
	var runs []decisionRun
	for _, invokers := range o.invokers {
		for _, sample := range o.samples {
			for round := range o.rounds {
				fmt.Fprintf(stderr, "%s, sample %d: round %d of %d\n", plural(invokers, "invoker"), sample, round+1, o.rounds)
				for _, name := range o.policies {
					m, err := policy.Measure(ctx, name, policy.Options{Seed: o.seed, Sample: sample},
						policy.MeasureConfig{Invokers: invokers, MemoryMB: o.memoryMB, Duration: o.duration})
					if err != nil {
						return nil, err
					}
					runs = append(runs, decisionRun{m, round})
				}
			}
		}
	}
	return runs, nil
}

func summariseDecisions(o benchSophonOptions, runs []decisionRun) []decisionSummary {
	var out []decisionSummary
	for _, invokers := range o.invokers {
		for _, sample := range o.samples {
			of := func(name string, get func(decisionRun) float64) []float64 {
				var v []float64
				for _, r := range runs {
					if r.Policy == name && r.Invokers == invokers && r.Sample == sample {
						v = append(v, get(r))
					}
				}
				return v
			}
			rate := func(r decisionRun) float64 { return r.PerSecond }
			base := of(o.policies[0], rate)
			for _, name := range o.policies {
				var ratios []float64
				for i, v := range of(name, rate) {
					ratios = append(ratios, v/base[i])
				}
				out = append(out, decisionSummary{Policy: name, Invokers: invokers, Sample: sample,
					PerSecond: median(of(name, rate)), Ratio: median(ratios),
					Cycles:   median(of(name, func(r decisionRun) float64 { return r.CyclesPerSecond })),
					P50:      median(of(name, func(r decisionRun) float64 { return r.P50.Seconds() * 1e6 })),
					P99:      median(of(name, func(r decisionRun) float64 { return r.P99.Seconds() * 1e6 })),
					Warm:     median(of(name, func(r decisionRun) float64 { return r.Warm })),
					Cold:     median(of(name, func(r decisionRun) float64 { return r.Cold })),
					Evicting: median(of(name, func(r decisionRun) float64 { return r.Evicting })),
				})
			}
		}
	}
	return out
}

// at returns the figures of one policy at one size.
func (s sophonSummary) at(name string, invokers, sample int) decisionSummary {
	i := slices.IndexFunc(s.Decisions, func(d decisionSummary) bool {
		return d.Policy == name && d.Invokers == invokers && d.Sample == sample
	})
	return s.Decisions[i]
}

func (s sophonSummary) print(w io.Writer, o benchSophonOptions) error {
	fmt.Fprintf(w, "%s\none core; nodes of %d MiB, full; %s, medians\n", s.Machine, o.memoryMB, plural(s.Rounds, "round"))
	for _, sample := range o.samples {
		fmt.Fprintf(w, "\n%s\n", sampleName(sample))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprint(t, "policy\tinvokers\tdecisions/s\tof first\tcycles/s\tp50 us\tp99 us\twarm\tcold\tevicting\t\n")
		for _, invokers := range o.invokers {
			for _, name := range o.policies {
				d := s.at(name, invokers, sample)
				fmt.Fprintf(t, "%s\t%d\t%.0f\t%.2f\t%.0f\t%.2f\t%.2f\t%.1f %%\t%.1f %%\t%.1f %%\t\n", name, invokers, d.PerSecond, d.Ratio, d.Cycles,
					d.P50, d.P99, 100*d.Warm, 100*d.Cold, 100*d.Evicting)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return s.printEndToEnd(w)
}

// plot draws the rates over the number of invokers, one figure a sample size,
// and over the policies where there is only one number of invokers.
func (s sophonSummary) plot(o benchSophonOptions) error {
	if len(o.invokers) == 1 {
		var series []plot.Series
		for _, sample := range o.samples {
			one := plot.Series{Name: sampleName(sample)}
			for _, name := range o.policies {
				one.Values = append(one.Values, s.at(name, o.invokers[0], sample).PerSecond/1000)
			}
			series = append(series, one)
		}
		return plot.Bars(filepath.Join(o.out, "decisions"), plot.Figure{Title: fmt.Sprintf("Decisions on one core, %s", plural(o.invokers[0], "invoker")),
			YLabel: "1,000 decisions/s"}, o.policies, series)
	}
	for _, sample := range o.samples {
		var lines []plot.XY
		for _, name := range o.policies {
			l := plot.XY{Name: name}
			for _, invokers := range o.invokers {
				l.X = append(l.X, float64(invokers))
				l.Y = append(l.Y, s.at(name, invokers, sample).PerSecond/1000)
			}
			lines = append(lines, l)
		}
		err := plot.Lines(filepath.Join(o.out, fmt.Sprintf("decisions-sample%d", sample)), plot.Figure{Title: "Decisions on one core, " + sampleName(sample),
			XLabel: "invokers", YLabel: "1,000 decisions/s", LogX: true}, lines)
		if err != nil {
			return err
		}
	}
	return nil
}

func sampleName(sample int) string {
	if sample == 0 {
		return "all nodes looked at"
	}
	return fmt.Sprintf("%s sampled", plural(sample, "node"))
}
