//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
)

// faasnapRun is one test: a line of runs.jsonl. Times are in milliseconds.
type faasnapRun struct {
	Kind     string       `json:"kind"` // "test"
	Part     string       `json:"part"`
	Function string       `json:"function"`
	Recorded string       `json:"recorded_with"`
	Tested   string       `json:"tested_with"`
	Ratio    float64      `json:"ratio,omitempty"`
	Mode     faasnap.Mode `json:"mode"`
	Round    int          `json:"round"`

	Total      float64 `json:"total_ms"`
	VMM        float64 `json:"vmm_ms"`
	Setup      float64 `json:"setup_ms"`
	Invocation float64 `json:"invocation_ms"`

	MinorFaults   int64 `json:"minor_faults"`
	MajorFaults   int64 `json:"major_faults"`
	MajorInvoked  int64 `json:"major_faults_in_invocation"`
	VMMReadBytes  int64 `json:"vmm_read_bytes"`
	HostReadBytes int64 `json:"host_read_bytes"`

	Fetch       float64 `json:"fetch_ms"`
	FetchBytes  int64   `json:"fetch_bytes"`
	Handled     int64   `json:"faults_handled_outside"`
	CopiedBytes int64   `json:"fault_bytes_copied_outside"`

	AnonymousBytes int64 `json:"vmm_anonymous_bytes"`
	CachedBytes    int64 `json:"page_cache_bytes"`

	FaultTime   float64 `json:"fault_service_ms,omitempty"`
	FaultCounts []int64 `json:"fault_counts_by_log2_us,omitempty"`
}

// faasnapRecord is one snapshot: a line of runs.jsonl too.
type faasnapRecord struct {
	Kind     string  `json:"kind"` // "record"
	Function string  `json:"function"`
	Input    string  `json:"recorded_with"`
	Took     float64 `json:"took_ms"`
	Memory   int64   `json:"memory_bytes"`
	Working  int64   `json:"working_set_bytes"`
	Loading  int64   `json:"loading_set_bytes"`
	Reap     int64   `json:"reap_bytes"`
}

// faasnapBurst is one burst: a line of runs.jsonl too.
type faasnapBurst struct {
	Kind     string       `json:"kind"` // "burst"
	Function string       `json:"function"`
	Same     bool         `json:"same_snapshot"`
	Machines int          `json:"machines"`
	Mode     faasnap.Mode `json:"mode"`
	Round    int          `json:"round"`
	Times    []float64    `json:"times_ms"`
}

// faasnapRuns are all measurements so far.
type faasnapRuns struct {
	tests   []faasnapRun
	records []faasnapRecord
	bursts  []faasnapBurst
}

// faasnapSession holds what the parts share.
type faasnapSession struct {
	o      benchFaaSnapOptions
	bench  *bench.Bench
	disk   bench.Disk
	vmm    string
	timer  bool // page faults can be timed
	stderr io.Writer
	lines  *json.Encoder

	runs     faasnapRuns
	failures []string
}

func (s *faasnapSession) run(ctx context.Context, workloads []bench.Workload, stdout io.Writer) (err error) {
	f, err := os.Create(filepath.Join(s.o.out, "runs.jsonl"))
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s.lines = json.NewEncoder(f)
	var sum faasnapSummary
	for i, w := range workloads {
		fmt.Fprintf(s.stderr, "%s (%d of %d): build\n", w.Name, i+1, len(workloads))
		err := s.function(ctx, w)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			// What the others give is not lost for it.
			fmt.Fprintf(s.stderr, "%s fails: %v\n", w.Name, err)
			s.failures = append(s.failures, fmt.Sprintf("%s: %v", w.Name, err))
		}
		sum = s.summarise(ctx, workloads)
		if err := sum.write(s.o.out); err != nil {
			return err
		}
	}
	if s.o.json {
		err = writeJSON(stdout, sum)
	} else {
		err = sum.print(stdout)
	}
	if err == nil && len(s.failures) > 0 {
		err = fmt.Errorf("%s failed; what was measured is in %s", plural(len(s.failures), "function"), s.o.out)
	}
	return err
}

func (s *faasnapSession) wants(figure string) bool { return slices.Contains(s.o.figures, figure) }

// function does all parts for a function.
func (s *faasnapSession) function(ctx context.Context, w bench.Workload) error {
	f, err := s.bench.Build(ctx, w)
	if err != nil {
		return err
	}
	inputA, inputB := w.Inputs()
	if !w.Variable() {
		inputB.Name = inputA.Name
	}
	return s.recorded(ctx, w, f, inputA, func(r bench.Recorded) error {
		for _, part := range []func() error{
			func() error { return s.times(ctx, w, r, inputB) },
			func() error { return s.ratios(ctx, w, r) },
			func() error { return s.remote(ctx, w, r, inputB) },
			func() error { return s.burst(ctx, w, r) },
		} {
			if err := part(); err != nil {
				return err
			}
		}
		if !w.Variable() || !s.wants(figTimes) {
			return nil
		}
		return s.recorded(ctx, w, f, inputB, func(r bench.Recorded) error {
			return s.tests(ctx, w, r, inputA, figTimes, 0, s.modes())
		})
	})
}

// recorded calls do with a snapshot that is there for as long.
func (s *faasnapSession) recorded(ctx context.Context, w bench.Workload, f *faasnap.Function, in bench.Input, do func(bench.Recorded) error) error {
	fmt.Fprintf(s.stderr, "%s: record with %s\n", w.Name, in.Name)
	r, err := s.bench.Record(ctx, w, f, in, w.Name+"-"+in.Name)
	if err != nil {
		return err
	}
	line := faasnapRecord{
		Kind: "record", Function: w.Name, Input: in.Name, Took: ms(r.Took),
		Memory: r.MemoryBytes, Working: r.WorkingBytes, Loading: r.LoadingBytes, Reap: r.Reap,
	}
	s.runs.records = append(s.runs.records, line)
	return errors.Join(s.lines.Encode(line), do(r), s.bench.Remove(r))
}

func (s *faasnapSession) modes() []faasnap.Mode {
	var modes []faasnap.Mode
	for _, m := range s.o.modes {
		modes = append(modes, faasnap.Mode(m))
	}
	return modes
}

// without returns those of modes that are none of others.
func without(modes []faasnap.Mode, others ...faasnap.Mode) []faasnap.Mode {
	return slices.DeleteFunc(slices.Clone(modes), func(m faasnap.Mode) bool { return slices.Contains(others, m) })
}

// stepModes are FaaSnap's steps (figure 5.9).
func stepModes() []faasnap.Mode {
	return []faasnap.Mode{faasnap.Full, faasnap.Concurrent, faasnap.Groups, faasnap.HostRecording, faasnap.Regions, faasnap.FaaSnap}
}

func (s *faasnapSession) times(ctx context.Context, w bench.Workload, r bench.Recorded, other bench.Input) error {
	if w.Name == bench.Image && s.wants(figSteps) {
		if err := s.tests(ctx, w, r, other, figSteps, 0, stepModes()); err != nil {
			return err
		}
	}
	if !s.wants(figTimes) {
		return nil
	}
	if w.Name == bench.Image {
		// Figure 5.1 has it with one input, too.
		if err := s.tests(ctx, w, r, r.Input, figTimes, 0, s.modes()); err != nil {
			return err
		}
	}
	return s.tests(ctx, w, r, other, figTimes, 0, s.modes())
}

func (s *faasnapSession) ratios(ctx context.Context, w bench.Workload, r bench.Recorded) error {
	if !w.Variable() || !s.wants(figRatios) {
		return nil
	}
	for _, ratio := range s.o.ratios {
		if err := s.tests(ctx, w, r, w.Ratio(ratio), figRatios, ratio, without(s.modes(), bench.Warm, faasnap.Boot)); err != nil {
			return err
		}
	}
	return nil
}

func (s *faasnapSession) remote(ctx context.Context, w bench.Workload, r bench.Recorded, other bench.Input) (err error) {
	if !s.wants(figRemote) {
		return nil
	}
	t, err := bench.NewThrottle(s.disk, s.o.remoteMBs*1e6, s.o.remoteOps)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return s.tests(ctx, w, r, other, figRemote, 0, without(s.modes(), bench.Warm, faasnap.Boot, faasnap.Cached))
}

// tests measures one pair of inputs by all modes in turn.
func (s *faasnapSession) tests(ctx context.Context, w bench.Workload, r bench.Recorded, in bench.Input, part string, ratio float64, modes []faasnap.Mode) error {
	event, err := w.Event(in)
	if err != nil {
		return err
	}
	rounds := s.o.rounds
	if part == figRatios || part == figRemote {
		rounds = min(rounds, 3) // as the thesis has it
	}
	// Timing page faults costs time, so that is done in a round of its own.
	observed := s.timer && (part == figTimes && w.Name == bench.Image || part == figTimes && w.Name == bench.FFmpeg || part == figSteps)
	if observed {
		rounds++
	}
	answer := ""
	for round := range rounds {
		for i := range modes {
			mode := modes[(i+round)%len(modes)] // nobody is always first
			observe := observed && round == rounds-1
			fmt.Fprintf(s.stderr, "%s, %s: recorded %s, tested %s, round %d of %d, %s\n", w.Name, part, r.Input.Name, in.Name, round+1, rounds, mode)
			// Others may have changed it meanwhile.
			if err := s.disk.SetReadAheadKB(s.o.readAhead); err != nil {
				return err
			}
			m, err := s.bench.Test(ctx, bench.Test{Recorded: r, Mode: mode, Event: event, Populate: s.o.populate && mode == faasnap.FaaSnap, Observe: observe})
			if err != nil {
				return err
			}
			if answer == "" {
				answer = m.Answer
			}
			if m.Answer != answer {
				return fmt.Errorf("mode %s gives another answer: %.200s, not %.200s", mode, m.Answer, answer)
			}
			line := faasnapRun{
				Kind: "test", Part: part, Function: w.Name, Recorded: r.Input.Name, Tested: in.Name, Ratio: ratio, Mode: mode, Round: round,
				Total: ms(m.Total), VMM: ms(m.VMM), Setup: ms(m.Setup), Invocation: ms(m.Invocation),
				MinorFaults: m.MinorFaults, MajorFaults: m.MajorFaults, MajorInvoked: m.InvocationMajor,
				VMMReadBytes: m.VMMReadBytes, HostReadBytes: m.HostReadBytes,
				Fetch: ms(m.Fetch), FetchBytes: m.FetchBytes, Handled: m.Handled, CopiedBytes: m.CopiedBytes,
				AnonymousBytes: m.AnonymousBytes, CachedBytes: m.CachedBytes,
			}
			if observe {
				line.Part += " observed"
				if m.Faults == nil {
					continue // they cannot be timed here
				}
				line.FaultTime, line.FaultCounts = ms(m.Faults.Total), m.Faults.Counts
			}
			s.runs.tests = append(s.runs.tests, line)
			if err := s.lines.Encode(line); err != nil {
				return fmt.Errorf("write results: %w", err)
			}
		}
	}
	return nil
}

// burst restores many machines at once, of one snapshot and of as many.
func (s *faasnapSession) burst(ctx context.Context, w bench.Workload, r bench.Recorded) (err error) {
	if !s.wants(figBurst) || w.Name != bench.HelloWorld && w.Name != bench.JSON {
		return nil
	}
	event, err := w.Event(r.Input)
	if err != nil {
		return err
	}
	different := []bench.Recorded{r}
	defer func() {
		for _, c := range different[1:] {
			err = errors.Join(err, s.bench.Remove(c))
		}
	}()
	for len(different) < slices.Max(s.o.parallel) {
		c, err := s.bench.Copy(ctx, r, fmt.Sprintf("%s-%d", r.Name, len(different)))
		if err != nil {
			return err
		}
		different = append(different, c)
	}
	modes := without(s.modes(), bench.Warm, bench.Standby, faasnap.Boot, faasnap.Cached)
	for round := range min(s.o.rounds, 3) {
		for _, n := range s.o.parallel {
			for _, same := range []bool{true, false} {
				if n == 1 && !same {
					continue
				}
				snapshots := different[:n]
				if same {
					snapshots = slices.Repeat(different[:1], n)
				}
				for _, mode := range modes {
					fmt.Fprintf(s.stderr, "%s, burst: round %d, %s at once, one snapshot %t, %s\n", w.Name, round+1, plural(n, "machine"), same, mode)
					if err := s.disk.SetReadAheadKB(s.o.readAhead); err != nil {
						return err
					}
					times, err := s.bench.Burst(ctx, snapshots, mode, event)
					if err != nil {
						return err
					}
					line := faasnapBurst{Kind: "burst", Function: w.Name, Same: same, Machines: n, Mode: mode, Round: round}
					for _, t := range times {
						line.Times = append(line.Times, ms(t))
					}
					s.runs.bursts = append(s.runs.bursts, line)
					if err := s.lines.Encode(line); err != nil {
						return fmt.Errorf("write results: %w", err)
					}
				}
			}
		}
	}
	return nil
}
