package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "Measure Volley on this machine",
		Long:    "Measure one of Volley's systems against what it competes with, on this machine,\nin one run with the modes taking turns.",
		Example: "  volley bench sprocket --input film.mp4",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBenchSprocketCommand(), newBenchInvokeCommand(), newBenchSophonCommand(), newBenchParticleCommand(), newBenchFaaSnapCommand())
	return cmd
}

type benchOptions struct {
	input  string
	rounds int
	out    string
	modes  []string
	preset string
	json   bool
}

func newBenchSprocketCommand() *cobra.Command {
	var o benchOptions
	names := make([]string, 0, len(benchModes()))
	for _, m := range benchModes() {
		names = append(names, m.name)
	}
	cmd := &cobra.Command{
		Use:   "sprocket",
		Short: "Measure the grayscale pipeline against plain ffmpeg",
		Long: `Run the grayscale filter over a video with plain ffmpeg and with Sprocket, fused
and with each hand-over format between separate workers, all with the same
encoder settings. The modes take turns; figures are medians over the rounds,
ratios are taken round by round. CPU time is that of all processes together.

The table goes to standard output; JSON lines (one a run) and plots (SVG, PNG)
into --out. Quality is the luma PSNR against the losslessly filtered source.`,
		Example: `  volley bench sprocket
  volley bench sprocket --input film.mp4 --rounds 5 --modes ffmpeg,fused`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.rounds < 1 || o.rounds > 100 {
				return usagef("--rounds %d: must be 1 to 100", o.rounds)
			}
			return benchSprocket(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.input, "input", "", "video to process (default: a made-up clip of 20 s)")
	f.IntVar(&o.rounds, "rounds", 3, "how often each mode runs")
	f.StringVar(&o.out, "out", "bench-sprocket", "directory for JSON lines and plots")
	f.StringSliceVar(&o.modes, "modes", names, "which modes to run")
	f.StringVar(&o.preset, "preset", "medium", "the encoder's preset, for all modes")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON instead of a table")
	return cmd
}

// benchMode is one way to do the job.
type benchMode struct {
	name string
	// args are further arguments of volley run; nil for plain ffmpeg.
	args []string
	doc  string
}

func benchModes() []benchMode {
	return []benchMode{
		{"ffmpeg", nil, "one ffmpeg process"},
		{"fused", []string{}, "decode, filter and encode fused in each worker"},
		{"raw", []string{"--no-fuse", "--frames", "raw"}, "separate workers, raw frames"},
		{"ffv1", []string{"--no-fuse", "--frames", "ffv1"}, "separate workers, FFV1"},
		{"png", []string{"--no-fuse", "--frames", "png"}, "separate workers, PNG (as in the thesis)"},
	}
}

// benchRun is the outcome of one run: a line of runs.jsonl.
type benchRun struct {
	Mode           string  `json:"mode"`
	Round          int     `json:"round"`
	WallSeconds    float64 `json:"wall_seconds"`
	CPUSeconds     float64 `json:"cpu_seconds"`
	PeakBytes      int64   `json:"peak_rss_bytes"`
	FirstPlayable  float64 `json:"first_playable_seconds,omitempty"`
	VideoBytes     int64   `json:"video_bytes"`
	LumaPSNR       float64 `json:"luma_psnr_db,omitempty"`
	ProcessShare   float64 `json:"process_share,omitempty"`
	ReadWriteShare float64 `json:"read_write_share,omitempty"`
	WaitShare      float64 `json:"wait_share,omitempty"`
}

func benchSprocket(ctx context.Context, o benchOptions, stdout, stderr io.Writer) error {
	var modes []benchMode
	for _, name := range o.modes {
		i := slices.IndexFunc(benchModes(), func(m benchMode) bool { return m.name == name })
		if i < 0 {
			return usagef("--modes: there is no mode %q; see volley bench sprocket --help", name)
		}
		modes = append(modes, benchModes()[i])
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	dir, err := os.MkdirTemp(o.out, "tmp-")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	b := &benchSession{o: o, dir: dir, stderr: stderr}
	runs, err := b.run(ctx, modes)
	if rmErr := os.RemoveAll(dir); err == nil {
		err = rmErr
	}
	if err != nil {
		return err
	}
	summary := summarise(modes, runs)
	summary.Machine, summary.Input = machine(ctx), b.inputName
	if err := writeBenchFiles(o.out, runs, summary); err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, summary)
	}
	return summary.print(stdout)
}

// benchSession holds what the runs share.
type benchSession struct {
	o         benchOptions
	dir       string
	stderr    io.Writer
	input     string
	inputName string
}

func (b *benchSession) run(ctx context.Context, modes []benchMode) ([]benchRun, error) {
	b.input, b.inputName = b.o.input, filepath.Base(b.o.input)
	if b.input == "" {
		b.input, b.inputName = filepath.Join(b.dir, "sample.mp4"), "made-up clip: testsrc2 640x360, 24 fps, 20 s"
		err := command(ctx, "ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=24", "-f", "lavfi", "-i", "sine",
			"-t", "20", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", b.input)
		if err != nil {
			return nil, err
		}
	}
	var runs []benchRun
	for round := range b.o.rounds {
		for _, m := range modes {
			fmt.Fprintf(b.stderr, "round %d of %d: %s (%s)\n", round+1, b.o.rounds, m.name, m.doc)
			r, err := b.one(ctx, m, round)
			if err != nil {
				return nil, fmt.Errorf("mode %s: %w", m.name, err)
			}
			runs = append(runs, r)
		}
	}
	return runs, nil
}

// one does the job once.
func (b *benchSession) one(ctx context.Context, m benchMode, round int) (benchRun, error) {
	r := benchRun{Mode: m.name, Round: round}
	out := filepath.Join(b.dir, m.name)
	var cmd *exec.Cmd
	file := out + ".mp4"
	if m.args == nil {
		cmd = exec.CommandContext(ctx, "ffmpeg", "-nostdin", "-v", "error", "-y", "-i", b.input, "-vf", "hue=s=0", "-c:v", "libx264", "-preset", b.o.preset, "-c:a", "copy", file)
	} else {
		self, err := os.Executable()
		if err != nil {
			return r, err
		}
		args := append([]string{"run", "grayscale", b.input, "-o", out, "--force", "--quiet", "--json", "--set", "encode.preset=" + b.o.preset}, m.args...)
		cmd = exec.CommandContext(ctx, self, args...)
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		return r, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	r.WallSeconds = time.Since(begun).Seconds()
	r.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	r.PeakBytes = peakBytes(cmd.ProcessState)
	if m.args != nil {
		var res struct {
			First     float64 `json:"first_playable_seconds"`
			Process   float64 `json:"process_seconds"`
			ReadWrite float64 `json:"read_write_seconds"`
			Wait      float64 `json:"wait_seconds"`
		}
		if err := json.Unmarshal([]byte(stdout.String()), &res); err != nil {
			return r, fmt.Errorf("read result: %w", err)
		}
		r.FirstPlayable = res.First
		if total := res.Process + res.ReadWrite + res.Wait; total > 0 {
			r.ProcessShare, r.ReadWriteShare, r.WaitShare = res.Process/total, res.ReadWrite/total, res.Wait/total
		}
		file = filepath.Join(out, "playlist.m3u8")
	}
	var err error
	if r.VideoBytes, err = videoBytes(ctx, file); err != nil {
		return r, err
	}
	if round == 0 {
		r.LumaPSNR, err = lumaPSNR(ctx, file, b.input)
	}
	return r, err
}

// benchSummary is the table: medians, and ratios to plain ffmpeg.
type benchSummary struct {
	Machine string        `json:"machine"`
	Input   string        `json:"input"`
	Rounds  int           `json:"rounds"`
	Modes   []modeSummary `json:"modes"`
}

type modeSummary struct {
	Mode       string  `json:"mode"`
	Wall       float64 `json:"wall_seconds"`
	CPU        float64 `json:"cpu_seconds"`
	WallRatio  float64 `json:"wall_ratio,omitempty"`
	CPURatio   float64 `json:"cpu_ratio,omitempty"`
	First      float64 `json:"first_playable_seconds,omitempty"`
	FirstShare float64 `json:"first_playable_share,omitempty"`
	PeakBytes  float64 `json:"peak_rss_bytes"`
	VideoBytes float64 `json:"video_bytes"`
	SizeRatio  float64 `json:"size_ratio,omitempty"`
	LumaPSNR   float64 `json:"luma_psnr_db"`
	Process    float64 `json:"process_share,omitempty"`
	ReadWrite  float64 `json:"read_write_share,omitempty"`
	Wait       float64 `json:"wait_share,omitempty"`
}

func summarise(modes []benchMode, runs []benchRun) benchSummary {
	of := func(mode string, get func(benchRun) float64) []float64 {
		var v []float64
		for _, r := range runs {
			if r.Mode == mode {
				v = append(v, get(r))
			}
		}
		return v
	}
	ratios := func(mode string, get func(benchRun) float64) float64 {
		own, base := of(mode, get), of("ffmpeg", get)
		var v []float64
		for i := range min(len(own), len(base)) {
			v = append(v, own[i]/base[i])
		}
		return median(v)
	}
	var s benchSummary
	wall := func(r benchRun) float64 { return r.WallSeconds }
	cpu := func(r benchRun) float64 { return r.CPUSeconds }
	size := func(r benchRun) float64 { return float64(r.VideoBytes) }
	for _, m := range modes {
		s.Rounds = len(of(m.name, wall))
		s.Modes = append(s.Modes, modeSummary{
			Mode: m.name, Wall: median(of(m.name, wall)), CPU: median(of(m.name, cpu)),
			WallRatio: ratios(m.name, wall), CPURatio: ratios(m.name, cpu), SizeRatio: ratios(m.name, size),
			First:      median(of(m.name, func(r benchRun) float64 { return r.FirstPlayable })),
			FirstShare: median(of(m.name, func(r benchRun) float64 { return r.FirstPlayable / r.WallSeconds })),
			PeakBytes:  median(of(m.name, func(r benchRun) float64 { return float64(r.PeakBytes) })),
			VideoBytes: median(of(m.name, size)),
			LumaPSNR:   slices.Max(of(m.name, func(r benchRun) float64 { return r.LumaPSNR })),
			Process:    median(of(m.name, func(r benchRun) float64 { return r.ProcessShare })),
			ReadWrite:  median(of(m.name, func(r benchRun) float64 { return r.ReadWriteShare })),
			Wait:       median(of(m.name, func(r benchRun) float64 { return r.WaitShare })),
		})
	}
	return s
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func (s benchSummary) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s; %s, medians\n\n", s.Machine, s.Input, plural(s.Rounds, "round"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "mode\twall s\tCPU s\twall x\tCPU x\tplayable s\tof wall\tvideo MB\tsize x\tPSNR-Y dB\tpeak MB\tprocess\tr/w\twait\t")
	cell := func(format string, v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf(format, v)
	}
	for _, m := range s.Modes {
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%s\t%s\t%s\t%s\t%.3f\t%s\t%s\t%.0f\t%s\t%s\t%s\t\n", m.Mode, m.Wall, m.CPU,
			cell("%.3f", m.WallRatio), cell("%.3f", m.CPURatio), cell("%.2f", m.First), cell("%.0f %%", 100*m.FirstShare),
			m.VideoBytes/1e6, cell("%.3f", m.SizeRatio), cell("%.2f", m.LumaPSNR), m.PeakBytes/1e6,
			cell("%.0f %%", 100*m.Process), cell("%.0f %%", 100*m.ReadWrite), cell("%.0f %%", 100*m.Wait))
	}
	return t.Flush()
}
