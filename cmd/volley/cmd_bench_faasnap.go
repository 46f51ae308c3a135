//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
)

type benchFaaSnapOptions struct {
	functions []string
	modes     []string
	figures   []string
	sizes     []string
	rounds    int
	memoryMB  int64
	synthetic int
	ratios    []float64
	parallel  []int
	remoteMBs int64
	remoteOps int64
	readAhead int
	populate  bool
	dir, init string
	accel     string
	out       string
	json      bool
}

// The parts of the benchmark, by what the thesis shows them in.
const (
	figTimes  = "times"
	figSteps  = "steps"
	figRatios = "ratios"
	figBurst  = "burst"
	figRemote = "remote"
)

func faasnapFigures() []string { return []string{figTimes, figSteps, figRatios, figBurst, figRemote} }

func newBenchFaaSnapCommand() *cobra.Command {
	var o benchFaaSnapOptions
	var functions, sizes []string
	for _, w := range bench.Workloads() {
		functions = append(functions, w.Name)
		if w.Variable() {
			sizes = append(sizes, fmt.Sprintf("  %-12s %d, %d %s", w.Name, w.A, w.B, w.Unit))
		}
	}
	cmd := &cobra.Command{
		Use:   "faasnap",
		Short: "Measure how soon functions in restored microVMs answer",
		Long: `Measure, on real virtual machines, what chapter 5 of the thesis measured: the
functions of its table 5.2, each on a machine that is restored from a snapshot
for one invocation. A snapshot is recorded with one input and tested with
another. Modes take turns within a round; figures are medians over the rounds.
Before each test the snapshot's files are dropped from the page cache (or read,
for "cached" and "warm"), and read-ahead of the disk below --dir is --read-ahead
(as it was, afterwards).

  times   every function, recorded with input A and tested with B, and the
          reverse (figures 5.1, 5.2, 5.6 and 5.7, table 5.3, memory footprint)
  steps   FaaSnap's steps, each alone, on the function image (figure 5.9)
  ratios  tests with inputs of --ratios times the size of A (figure 5.8)
  burst   --parallel machines at once, of one snapshot and of different ones,
          for hello-world and json (figure 5.10)
  remote  reads throttled to --remote-mbs and --remote-iops by a control group,
          in place of remote storage (figure 5.11)

Inputs are made from seeds and come with the event. Sizes of A and B, unless
--sizes says otherwise, are such that an emulated CPU is busy for seconds at most:

` + strings.Join(sizes, "\n") + `

Tables go to standard output. JSON lines (one a test, written at once), the
summary and plots (SVG, PNG) go into --out; a function that fails is left out
and named, and the exit status is 1. It needs root, QEMU, a C compiler, and, for
the first run, mmdebstrap and access to Debian's packages. Where there is no
hardware virtualisation, all parts take about an hour and a half with the
defaults; one function with --figures times takes two to four minutes.

Exit statuses: 0 done, 1 failed (in part), 2 wrong usage.`,
		Example: `  sudo volley bench faasnap
  sudo volley bench faasnap --functions hello-world --modes full,cached,faasnap --figures times --rounds 1
  sudo volley bench faasnap --figures burst --parallel 1,8,32
  sudo volley bench faasnap --functions json,image --sizes json=20000:200000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			workloads, err := o.check()
			if err != nil {
				return err
			}
			return benchFaaSnap(cmd.Context(), o, workloads, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.functions, "functions", functions, "which functions to measure")
	f.StringSliceVar(&o.modes, "modes", []string{"warm", "full", "cached", "reap", "faasnap"}, "which modes to compare: warm, faasnap-standby, or those of volley vm restore")
	f.StringSliceVar(&o.figures, "figures", faasnapFigures(), "which parts to measure")
	f.StringSliceVar(&o.sizes, "sizes", nil, "sizes of inputs, each FUNCTION=A:B")
	f.IntVar(&o.rounds, "rounds", 5, "how often each is measured")
	f.Int64Var(&o.memoryMB, "memory", 2048, "memory of a guest, MiB")
	f.IntVar(&o.synthetic, "synthetic-mb", 0, "memory that read-list and mmap go over, MiB (default: a quarter of --memory)")
	f.Float64SliceVar(&o.ratios, "ratios", []float64{0.25, 0.5, 1, 2, 4}, "sizes of inputs for ratios")
	f.IntSliceVar(&o.parallel, "parallel", []int{1, 4, 16, 64}, "numbers of machines at once for burst")
	f.Int64Var(&o.remoteMBs, "remote-mbs", 100, "MB a second that remote storage delivers")
	f.Int64Var(&o.remoteOps, "remote-iops", 2000, "reads a second that remote storage does")
	f.IntVar(&o.readAhead, "read-ahead", 128, "read-ahead of the disk, KB")
	f.BoolVar(&o.populate, "populate", false, "put the loading set into the VMM's page tables as it arrives (mode faasnap)")
	f.StringVar(&o.dir, "dir", "", "directory for snapshots, on the disk to measure (default: in --out)")
	f.StringVar(&o.init, "init", "", "the program volley-init (default: the one beside this program)")
	f.StringVar(&o.accel, "accel", "", "how QEMU runs guests: kvm or tcg (default: kvm where it works)")
	f.StringVar(&o.out, "out", "bench-faasnap", "directory for JSON lines, summary and plots")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON instead of tables")
	return cmd
}

// check returns the workloads with the sizes that are wanted.
func (o *benchFaaSnapOptions) check() ([]bench.Workload, error) {
	var workloads []bench.Workload
	for _, name := range o.functions {
		w, ok := bench.Find(name)
		if !ok {
			return nil, usagef("--functions: there is no function %q; see volley bench faasnap --help", name)
		}
		workloads = append(workloads, w)
	}
	for _, mode := range o.modes {
		if !slices.Contains(bench.Modes(), faasnap.Mode(mode)) {
			return nil, usagef("--modes: there is no mode %q; there are %v", mode, bench.Modes())
		}
	}
	for _, figure := range o.figures {
		if !slices.Contains(faasnapFigures(), figure) {
			return nil, usagef("--figures: there is no part %q; there are %s", figure, strings.Join(faasnapFigures(), ", "))
		}
	}
	for _, text := range o.sizes {
		name, sizes, _ := strings.Cut(text, "=")
		a, b, _ := strings.Cut(sizes, ":")
		i := slices.IndexFunc(workloads, func(w bench.Workload) bool { return w.Name == name && w.Variable() })
		if i < 0 {
			return nil, usagef("--sizes %s: %q is no function of --functions with inputs", text, name)
		}
		var errs [2]error
		workloads[i].A, errs[0] = strconv.Atoi(a)
		workloads[i].B, errs[1] = strconv.Atoi(b)
		if errors.Join(errs[:]...) != nil || workloads[i].A < 1 || workloads[i].B < 1 {
			return nil, usagef("--sizes %s: want FUNCTION=A:B with whole numbers above 0", text)
		}
	}
	for _, r := range o.ratios {
		if r <= 0 || r > 16 {
			return nil, usagef("--ratios %g: must be above 0, and 16 at most", r)
		}
	}
	for _, n := range o.parallel {
		if n < 1 || n > 256 {
			return nil, usagef("--parallel %d: must be 1 to 256", n)
		}
	}
	switch {
	case len(o.modes) == 0 || len(workloads) == 0 || len(o.figures) == 0:
		return nil, usagef("--functions, --modes and --figures must each name at least one")
	case o.rounds < 1 || o.rounds > 100:
		return nil, usagef("--rounds %d: must be 1 to 100", o.rounds)
	case o.memoryMB < 128 || o.memoryMB > 1<<16:
		return nil, usagef("--memory %d: must be 128 to 65536 (MiB)", o.memoryMB)
	case o.synthetic < 0 || int64(o.synthetic) > o.memoryMB/2:
		return nil, usagef("--synthetic-mb %d: must be at most half of --memory", o.synthetic)
	case o.remoteMBs < 1 || o.remoteOps < 1 || o.readAhead < 0:
		return nil, usagef("--remote-mbs and --remote-iops must be above 0, and --read-ahead not below")
	case o.accel != "" && o.accel != qemu.KVM && o.accel != qemu.TCG:
		return nil, usagef("--accel %s: must be kvm or tcg", o.accel)
	}
	if o.synthetic == 0 {
		o.synthetic = int(o.memoryMB / 4)
	}
	return workloads, nil
}

// invocationLimit bounds an invocation, on an emulated CPU that others share.
const invocationLimit = 5 * time.Minute

func benchFaaSnap(ctx context.Context, o benchFaaSnapOptions, workloads []bench.Workload, stdout, stderr io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("building guests and dropping caches need root: run it with sudo")
	}
	// Before anything is made.
	if o.init, err = findProgram(o.init, "--init", "volley-init"); err != nil {
		return err
	}
	if o.dir == "" {
		o.dir = filepath.Join(o.out, "data")
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	for _, dir := range []string{o.out, o.dir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	vms := vmmOptions{accel: o.accel, init: o.init}
	service, _, err := vms.service(ctx, o.dir, needAll)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.Close()) }()
	version, err := service.Version(ctx)
	if err != nil {
		return err
	}
	s := &faasnapSession{o: o, stderr: stderr, vmm: version}
	if s.disk, err = bench.FindDisk(o.dir); err != nil {
		return err
	}
	before, err := s.disk.ReadAheadKB()
	if err != nil {
		return err
	}
	if err := s.disk.SetReadAheadKB(o.readAhead); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.disk.SetReadAheadKB(before)) }()
	faults, err := bench.NewFaultTimer()
	if err != nil {
		fmt.Fprintf(stderr, "page faults are not timed: %v\n", err)
	} else {
		s.timer = true
		defer faults.Close()
	}
	s.bench = bench.New(bench.Config{
		Service: service, MemoryBytes: o.memoryMB << 20, SyntheticMB: o.synthetic, Timeout: invocationLimit,
		CodeDir: filepath.Join(o.dir, "code"), Faults: faults,
	})
	return s.run(ctx, workloads, stdout)
}
