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
)

type benchInvokeOptions struct {
	driver      string
	echo        string
	rie         string
	rate        int
	connections int
	duration    time.Duration
	rounds      int
	cold        int
	burst       int
	out         string
	json        bool
}

func newBenchInvokeCommand() *cobra.Command {
	var o benchInvokeOptions
	cmd := &cobra.Command{
		Use:   "invoke",
		Short: "Measure invocations over the Lambda API, warm and cold",
		Long: `Start a server of its own and measure it over the Lambda API, with signed
requests over connections that are kept open. The function is an echo in Go on
AWS's library, so what is measured is the platform:

  latency     requests at a steady rate (--rate), whether or not earlier ones
              have been answered
  throughput  as many as --connections clients can do one after the other
  cold        invocations that each need a new container, one at a time
  burst       different functions that are all called at once for the first time

With --rie the AWS Lambda runtime interface emulator serves the same function,
taking turns with Volley in latency and in throughput with one client ("volley,
1 client" beside it): it runs one invocation at a time, in no sandbox, so
requests that come too early wait.

The table goes to standard output; JSON lines and plots (SVG, PNG) into --out.

Exit statuses: 0 done, 1 an invocation failed, 2 wrong usage.`,
		Example: `  volley bench invoke
  scripts/setup bench && volley bench invoke --rie .tools/bin/aws-lambda-rie
  volley bench invoke --driver process --duration 3s --cold 0 --burst 0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, n := range []struct {
				name        string
				value, from int
			}{{"rate", o.rate, 1}, {"connections", o.connections, 1}, {"rounds", o.rounds, 1}, {"cold", o.cold, 0}, {"burst", o.burst, 0}} {
				if n.value < n.from || n.value > 100_000 {
					return usagef("--%s %d: must be %d to 100000", n.name, n.value, n.from)
				}
			}
			if o.duration < time.Second {
				return usagef("--duration %s: must be at least 1s", o.duration)
			}
			return benchInvoke(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.driver, "driver", "runc", "the sandbox: runc, runsc or process")
	f.StringVar(&o.echo, "echo", "", "the echo function's bootstrap (default: the one that was built with this program)")
	f.StringVar(&o.rie, "rie", "", "program of the AWS Lambda runtime interface emulator to compare with")
	f.IntVar(&o.rate, "rate", 200, "requests a second for latency")
	f.IntVar(&o.connections, "connections", 8, "clients for throughput")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "how long each measurement takes")
	f.IntVar(&o.rounds, "rounds", 3, "how often each is measured")
	f.IntVar(&o.cold, "cold", 20, "cold invocations, one at a time")
	f.IntVar(&o.burst, "burst", 100, "functions that are first called all at once")
	f.StringVar(&o.out, "out", "bench-invoke", "directory for JSON lines and plots")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON instead of a table")
	return cmd
}

// invokeRun is one measurement: a line of runs.jsonl.
type invokeRun struct {
	Measure string `json:"measure"`
	Target  string `json:"target"`
	Round   int    `json:"round"`
	// Requests is how many were answered, in Seconds; Failed how many were not,
	// or with an error.
	Requests int     `json:"requests"`
	Failed   int     `json:"failed"`
	Seconds  float64 `json:"seconds"`
	// The latency of requests in milliseconds, at these shares of them.
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p999_ms"`
	Max  float64 `json:"max_ms"`
}

func newInvokeRun(measure, target string, round int, took []time.Duration, failed int, wall time.Duration) invokeRun {
	slices.Sort(took)
	at := func(q float64) float64 {
		if len(took) == 0 {
			return 0
		}
		i := min(len(took)-1, int(q*float64(len(took))))
		return float64(took[i]) / float64(time.Millisecond)
	}
	return invokeRun{Measure: measure, Target: target, Round: round, Requests: len(took), Failed: failed,
		Seconds: wall.Seconds(), P50: at(.5), P90: at(.9), P99: at(.99), P999: at(.999), Max: at(1)}
}

// perSecond is the rate of answered requests.
func (r invokeRun) perSecond() float64 { return float64(r.Requests) / r.Seconds }

func benchInvoke(ctx context.Context, o benchInvokeOptions, stdout, stderr io.Writer) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	dir, err := os.MkdirTemp("", "volley-bench-")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if o.echo, err = findProgram(o.echo, "--echo", filepath.Join("examples", "echo", "bootstrap")); err != nil {
		return err
	}
	b, err := startInvokeBench(ctx, o, dir, stderr)
	if err != nil {
		return err
	}
	runs, err := b.run(ctx)
	if closeErr := b.close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	s := summariseInvokes(runs, o)
	s.Machine = machine(ctx)
	if err := writeInvokeFiles(o.out, runs, s); err != nil {
		return err
	}
	if o.json {
		err = writeJSON(stdout, s)
	} else {
		err = s.print(stdout)
	}
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.Failed > 0 {
			return fmt.Errorf("%d of %d invocations failed in %s, %s", r.Failed, r.Failed+r.Requests, r.Measure, r.Target)
		}
	}
	return nil
}

// invokeSummary has the median over the rounds of each measurement.
type invokeSummary struct {
	Machine string      `json:"machine"`
	Driver  string      `json:"driver"`
	Rounds  int         `json:"rounds"`
	Rows    []invokeRow `json:"rows"`
}

type invokeRow struct {
	Measure   string  `json:"measure"`
	Target    string  `json:"target"`
	Requests  int     `json:"requests"`
	Failed    int     `json:"failed"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P90       float64 `json:"p90_ms"`
	P99       float64 `json:"p99_ms"`
	P999      float64 `json:"p999_ms"`
	Max       float64 `json:"max_ms"`
}

func summariseInvokes(runs []invokeRun, o benchInvokeOptions) invokeSummary {
	s := invokeSummary{Driver: o.driver, Rounds: o.rounds}
	for _, r := range runs {
		if slices.ContainsFunc(s.Rows, func(row invokeRow) bool { return row.Measure == r.Measure && row.Target == r.Target }) {
			continue
		}
		of := func(get func(invokeRun) float64) float64 {
			var v []float64
			for _, other := range runs {
				if other.Measure == r.Measure && other.Target == r.Target {
					v = append(v, get(other))
				}
			}
			return median(v)
		}
		row := invokeRow{Measure: r.Measure, Target: r.Target, PerSecond: of(invokeRun.perSecond),
			P50: of(func(r invokeRun) float64 { return r.P50 }), P90: of(func(r invokeRun) float64 { return r.P90 }),
			P99: of(func(r invokeRun) float64 { return r.P99 }), P999: of(func(r invokeRun) float64 { return r.P999 }),
			Max: of(func(r invokeRun) float64 { return r.Max })}
		for _, other := range runs {
			if other.Measure == r.Measure && other.Target == r.Target {
				row.Requests += other.Requests
				row.Failed += other.Failed
			}
		}
		s.Rows = append(s.Rows, row)
	}
	return s
}

func (s invokeSummary) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\ndriver %s; %s, medians; milliseconds from request to response\n\n", s.Machine, s.Driver, plural(s.Rounds, "round"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "measure\ttarget\trequests\tfailed\tper second\tp50\tp90\tp99\tp99.9\tmax\t")
	for _, r := range s.Rows {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", r.Measure, r.Target, r.Requests, r.Failed,
			r.PerSecond, r.P50, r.P90, r.P99, r.P999, r.Max)
	}
	return t.Flush()
}

func writeInvokeFiles(dir string, runs []invokeRun, s invokeSummary) error {
	if err := writeRunsAndSummary(dir, runs, s); err != nil {
		return err
	}
	var latency, rates []string
	var p50, p99, perSecond []float64
	for _, r := range s.Rows {
		if r.Measure == measureThroughput {
			rates, perSecond = append(rates, r.Target), append(perSecond, r.PerSecond)
			continue
		}
		latency = append(latency, r.Measure+", "+r.Target)
		p50, p99 = append(p50, r.P50), append(p99, r.P99)
	}
	err := plot.Bars(filepath.Join(dir, "latency"), plot.Figure{Title: "Invocation latency", YLabel: "milliseconds"}, latency,
		[]plot.Series{{Name: "p50", Values: p50}, {Name: "p99", Values: p99}})
	if err != nil {
		return err
	}
	return plot.Bars(filepath.Join(dir, "throughput"), plot.Figure{Title: "Invocations a second", YLabel: "invocations/s"}, rates,
		[]plot.Series{{Name: "sustained", Values: perSecond}})
}
