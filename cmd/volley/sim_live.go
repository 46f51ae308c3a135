package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/volley-run/volley/internal/progress"
	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/sim"
	"github.com/volley-run/volley/sophon/sim/compare"
	"github.com/volley-run/volley/sophon/sim/replay"
)

// liveLongest is the longest that an invocation runs in a live run, and in the
// simulation beside it, so that the run ends soon after the workload.
const liveLongest = 20 * time.Second

// liveRow is one policy, live and simulated: a line of live.jsonl.
type liveRow struct {
	Policy              string  `json:"policy"`
	Load                string  `json:"load"`
	MemoryMB            int64   `json:"memory_mb"`
	Invocations         int     `json:"invocations"`
	Failed              int     `json:"failed,omitempty"`
	LiveCold            int     `json:"live_cold_starts"`
	SimCold             int     `json:"simulated_cold_starts"`
	ColdDifference      float64 `json:"cold_difference"` // live to simulated, minus 1
	LiveLatencyMS       float64 `json:"live_mean_latency_ms"`
	SimLatencyMS        float64 `json:"simulated_mean_latency_ms"`
	LiveColdStartMS     float64 `json:"live_mean_cold_start_ms"`
	SimColdStartMS      float64 `json:"simulated_mean_cold_start_ms"`
	LatestPostedLateMS  float64 `json:"latest_posted_late_ms"`
	FirstErrorIfAnyFail string  `json:"first_error,omitempty"`
}

// simulateLive plays a workload in real time, policy by policy, and simulates
// the same.
func simulateLive(ctx context.Context, o simOptions, c compare.Options, stdout, stderr io.Writer) error {
	minutes := int(o.liveTime / time.Minute)
	w, err := c.Workload(c.Starts[0], minutes, c.Loads[0].Rate, c.Seeds[0], liveLongest)
	if err != nil {
		return usagef("--start and --live-time: %w", err)
	}
	display := progress.New(stderr, progress.Options{})
	defer display.Close()
	var rows []liveRow
	for _, memoryMB := range c.MemoryMB {
		for _, name := range c.Policies {
			row, err := liveOne(ctx, c, w, name, memoryMB, func(ended, running int) {
				display.Update(progress.Snapshot{Rows: []progress.Row{{Name: name, Done: ended, Running: running, Total: len(w.Invocations), Note: "live"}}})
			})
			if err != nil {
				return err
			}
			row.Load = c.Loads[0].String()
			rows = append(rows, row)
		}
	}
	display.Close()
	if err := writeLiveRows(filepath.Join(o.out, "live.jsonl"), rows); err != nil {
		return withStatus(exitOutput, err)
	}
	if o.json {
		return writeJSON(stdout, rows)
	}
	return printLive(stdout, c, minutes, rows)
}

// liveOne compares one policy.
func liveOne(ctx context.Context, c compare.Options, w sim.Workload, name string, memoryMB int64, tell func(ended, running int)) (liveRow, error) {
	row := liveRow{Policy: name, MemoryMB: memoryMB, Invocations: len(w.Invocations)}
	p, err := policy.New(name, policy.Options{Seed: c.Seeds[0], Sample: c.Sample})
	if err != nil {
		return row, err
	}
	live, err := replay.Run(ctx, replay.Config{
		Policy: p, Invokers: c.Invokers, MemoryMB: memoryMB, Model: c.Model, KeepAlive: c.KeepAlive, Eviction: c.Eviction,
		Progress: func(arrived, ended, _ int) { tell(ended, arrived-ended) },
	}, w)
	if err != nil {
		return row, err
	}
	if p, err = policy.New(name, policy.Options{Seed: c.Seeds[0], Sample: c.Sample}); err != nil {
		return row, err
	}
	res, err := sim.Run(ctx, sim.Config{
		Policy: p, Invokers: c.Invokers, MemoryMB: memoryMB, Model: c.Model, KeepAlive: c.KeepAlive, Eviction: c.Eviction,
	}, w)
	if err != nil {
		return row, err
	}
	simulated := res.Between(0, w.Window)
	row.LiveCold, row.SimCold, row.Failed = live.Cold, simulated.Cold, live.Failed
	if simulated.Cold > 0 {
		row.ColdDifference = float64(live.Cold)/float64(simulated.Cold) - 1
	}
	milliseconds := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	row.LiveLatencyMS, row.SimLatencyMS = milliseconds(live.MeanLatency), milliseconds(simulated.MeanLatency)
	row.LiveColdStartMS, row.SimColdStartMS = milliseconds(live.MeanColdStart), milliseconds(simulated.MeanColdStart)
	row.LatestPostedLateMS = milliseconds(live.MaxLate)
	if live.FirstError != nil {
		row.FirstErrorIfAnyFail = live.FirstError.Error()
	}
	return row, nil
}

func writeLiveRows(path string, rows []liveRow) error {
	var data []byte
	for _, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		data = append(append(data, line...), '\n')
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

func printLive(w io.Writer, c compare.Options, minutes int, rows []liveRow) error {
	fmt.Fprintf(w, "%s at %s for %s from minute %d, %d invokers; live: controller, NATS and stub invokers in real time; no invocation runs longer than %v.\n\n",
		c.Trace.Name, c.Loads[0], plural(minutes, "minute"), c.Starts[0], c.Invokers, liveLongest)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "policy\tmemory\tinvocations\tcold live\tsimulated\tdifference\tlatency ms live\tsimulated\tcold start ms live\tsimulated\tfailed\tposted late ms\t")
	for _, r := range rows {
		memory := megabytes(r.MemoryMB)
		fmt.Fprintf(t, "%s\t%s\t%d\t%.2f %%\t%.2f %%\t%+.1f %%\t%.4g\t%.4g\t%.4g\t%.4g\t%d\t%.3g\t\n", r.Policy, &memory, r.Invocations,
			100*float64(r.LiveCold)/float64(r.Invocations), 100*float64(r.SimCold)/float64(r.Invocations), 100*r.ColdDifference,
			r.LiveLatencyMS, r.SimLatencyMS, r.LiveColdStartMS, r.SimColdStartMS, r.Failed, r.LatestPostedLateMS)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Failed > 0 {
			fmt.Fprintf(w, "%s: %s failed, the first with: %s\n", r.Policy, plural(r.Failed, "invocation"), r.FirstErrorIfAnyFail)
		}
	}
	return nil
}
