package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/internal/progress"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/coordinator"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/job"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/pipelines"
	"github.com/volley-run/volley/sprocket/platform"
	"github.com/volley-run/volley/sprocket/stage"
)

type runOptions struct {
	output  string
	set     []string
	chunk   string
	workers int
	format  string
	frames  string
	work    string
	noFuse  bool
	force   bool
	resume  string
	json    bool
	quiet   bool
	verbose bool
}

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run PIPELINE INPUT... [-o DIR]",
		Short: "Run a pipeline on videos",
		Long: `Run a pipeline on one or more videos.

PIPELINE is the name of a built-in (see "volley pipelines") or a pipespec file.
An INPUT is a file, an http(s):// address (read by ranges, not downloaded
first), or s3://bucket/key.

The video is cut into chunks that are worked on side by side. The result can be
watched as soon as the first chunk is done: "volley serve DIR".

Sound is carried over once and whole: copied where MP4 players know the codec
(AAC, Opus, MP3), else encoded as AAC. With several inputs it is that of the
first; the inputs start together, and the output ends with the shortest unless
the stage is told "end=first".

An unfinished run (Ctrl-C, a crash, a full disk) is continued by
"volley run --resume DIR" without doing finished chunks again.

Exit statuses: 0 done, 2 wrong usage, 3 pipespec not valid, 4 input missing or
damaged, 5 output cannot be written, 130 interrupted, 1 anything else.`,
		Example: `  volley run grayscale in.mp4 -o out
  volley run scale in.mp4 -o small --set scale.width=640 --format mp4
  volley run filter https://host/film.mp4 -o out --set "filter.vf=hue=s=0,vignette"
  volley run blend a.mp4 b.mp4 -o out --set blend.opacity=0.7
  volley run my-pipeline.json in.mkv -o s3://bucket/films/1
  volley run --resume out`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case o.resume != "" && len(args) > 0:
				return errors.New("--resume DIR takes pipeline, inputs and settings from the unfinished run; leave them out")
			case o.resume == "" && len(args) == 0:
				return errors.New("which pipeline? \"volley pipelines\" lists the built-in ones")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPipeline(cmd.Context(), o, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "", "directory or s3://bucket/prefix for the result (default volley-out/PIPELINE-INPUT)")
	f.StringArrayVar(&o.set, "set", nil, "set a stage's parameter: NODE.PARAM=VALUE (may be repeated)")
	f.StringVar(&o.chunk, "chunk", "auto", "length of a chunk, such as 1s; auto chooses by key frames and workers")
	f.IntVar(&o.workers, "workers", runtime.NumCPU(), "number of workers")
	f.StringVar(&o.format, "format", "dash", "dash, hls (both manifests are written for either) or mp4")
	f.StringVar(&o.frames, "frames", stage.FormatRaw, "how frames go from worker to worker: raw, ffv1 or png")
	f.StringVar(&o.work, "store", "", "where frames lie between workers: a directory or s3://bucket/prefix (default: inside the output)")
	f.BoolVar(&o.noFuse, "no-fuse", false, "give every stage workers of its own")
	f.BoolVar(&o.force, "force", false, "replace an earlier result")
	f.StringVar(&o.resume, "resume", "", "continue the unfinished run in this directory")
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress display")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what workers do")
	return cmd
}

func runPipeline(ctx context.Context, o runOptions, args []string, stdout, stderr io.Writer) error {
	cfg, err := o.config(args)
	if err != nil {
		return err
	}
	display := progress.New(io.Discard, progress.Options{})
	logTo := stderr
	if !o.quiet {
		display.Close()
		display = progress.New(stderr, progress.Options{})
		logTo = display
	}
	defer display.Close()
	level := slog.LevelError
	if o.verbose {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: level}))
	cfg.Progress = func(p job.Progress) { display.Update(snapshot(p)) }
	res, err := job.Run(ctx, cfg)
	display.Close()
	if err != nil {
		if ctx.Err() != nil && job.CanResume(context.WithoutCancel(ctx), cfg.OutputURL) {
			fmt.Fprintf(stderr, "Stopped. To go on: volley run --resume %s\n", cfg.OutputURL)
		}
		return err
	}
	if o.json {
		return writeJSON(stdout, res)
	}
	printResult(stdout, cfg.OutputURL, res)
	return nil
}

// config checks the command line and turns it into a run.
func (o runOptions) config(args []string) (job.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return job.Config{}, fmt.Errorf("find this program: %w", err)
	}
	ffmpeg, err := exec.LookPath("ffmpeg")
	if err != nil {
		return job.Config{}, errors.New("ffmpeg is not installed; on Debian: apt-get install ffmpeg")
	}
	if o.workers < 1 || o.workers > 1000 {
		return job.Config{}, usagef("--workers %d: must be 1 to 1000", o.workers)
	}
	cfg := job.Config{
		Force: o.force, Workers: o.workers, Catalog: catalog(), Deliveries: delivery.Builtin(), FFmpeg: ffmpeg,
		Platform: func(dir string) coordinator.Platform {
			return &platform.Local{Program: self, Args: []string{"worker"}, Dir: dir, FFmpeg: ffmpeg}
		},
	}
	if o.resume != "" {
		cfg.Resume, cfg.OutputURL = true, o.resume
		return cfg, nil
	}
	cfg.Options = job.Options{Inputs: args[1:], NoFuse: o.noFuse, WorkURL: o.work}
	if cfg.Options.Spec, err = loadSpec(args[0]); err != nil {
		return cfg, err
	}
	// A value that the pipespec lacks may come from --set.
	var setErr error
	for _, s := range o.set {
		if err := sprocket.ParseSet(cfg.Options.Spec, cfg.Catalog, s); err != nil {
			setErr = &usageError{fmt.Errorf("--set %s: %w", s, err)}
		}
	}
	if err := cfg.Options.Spec.Validate(cfg.Catalog); err != nil {
		return cfg, err
	}
	if setErr != nil {
		return cfg, setErr
	}
	if want := cfg.Options.Spec.Inputs(); want != len(args)-1 {
		return cfg, usagef("pipeline %s takes %s, %d given", args[0], plural(want, "input"), len(args)-1)
	}
	if cfg.Options.Chunk, err = parseChunk(o.chunk); err != nil {
		return cfg, err
	}
	cfg.Options.Format = media.Format(o.format)
	switch cfg.Options.Format {
	case media.FormatDASH, media.FormatHLS, media.FormatMP4:
	default:
		return cfg, usagef("--format %s: must be dash, hls or mp4", o.format)
	}
	cfg.Options.FramesFormat = o.frames
	switch o.frames {
	case stage.FormatRaw, stage.FormatFFV1, stage.FormatPNG:
	default:
		return cfg, usagef("--frames %s: must be raw, ffv1 or png", o.frames)
	}
	if cfg.Options.WorkURL != "" && !strings.Contains(cfg.Options.WorkURL, "://") {
		if cfg.Options.WorkURL, err = filepath.Abs(cfg.Options.WorkURL); err != nil {
			return cfg, err
		}
	}
	for i, in := range cfg.Options.Inputs {
		// A resumed run may be started from elsewhere.
		if !strings.Contains(in, "://") {
			if cfg.Options.Inputs[i], err = filepath.Abs(in); err != nil {
				return cfg, err
			}
		}
	}
	cfg.OutputURL = o.output
	if cfg.OutputURL == "" {
		cfg.OutputURL = defaultOutput(cfg.Options.Spec, args)
	}
	return cfg, nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// parseChunk reads --chunk: "auto", a duration, or a number of seconds.
func parseChunk(s string) (time.Duration, error) {
	if s == "auto" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		d, err = time.ParseDuration(s + "s")
	}
	if err != nil {
		return 0, usagef("--chunk %s: must be auto or a duration such as 1s or 500ms", s)
	}
	if d < 10*time.Millisecond || d > 5*time.Minute {
		return 0, usagef("--chunk %s: must be between 10ms and 5m (a chunk is held in memory while it is encoded)", s)
	}
	return d, nil
}

// defaultOutput names a directory after pipeline and input.
func defaultOutput(spec *sprocket.Spec, args []string) string {
	base := func(s string) string {
		s, _, _ = strings.Cut(s, "?")
		s = filepath.Base(s)
		return strings.TrimSuffix(s, filepath.Ext(s))
	}
	name := spec.Name
	if name == "" {
		name = base(args[0])
	}
	if len(args) > 1 {
		name += "-" + base(args[1])
	}
	return filepath.Join("volley-out", name)
}

// loadSpec reads a pipespec file, or takes a built-in pipeline. A name with a
// separator or ending in .json is a file.
func loadSpec(name string) (*sprocket.Spec, error) {
	if !strings.ContainsRune(name, os.PathSeparator) && filepath.Ext(name) != ".json" {
		spec, _, err := pipelines.Load(name)
		if err == nil || !errors.Is(err, pipelines.ErrUnknown) {
			return spec, err
		}
		if _, statErr := os.Stat(name); errors.Is(statErr, fs.ErrNotExist) {
			return nil, usagef("there is no pipeline %q; the built-in ones are %s, and a pipespec file may be given", name, strings.Join(pipelines.Names(), ", "))
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, usagef("read pipespec: %w", err)
	}
	return sprocket.ParseSpec(name, text)
}

// snapshot turns a run's progress into rows for the display.
func snapshot(p job.Progress) progress.Snapshot {
	var s progress.Snapshot
	seconds := p.Elapsed.Seconds()
	for _, n := range p.Nodes {
		row := progress.Row{Name: n.Name, Done: n.Done, Running: n.Running, Total: n.Total}
		if n.Frames > 0 && seconds > 0 {
			row.Note = fmt.Sprintf("%.0f frames/s", float64(n.Frames)/seconds)
		}
		s.Rows = append(s.Rows, row)
	}
	parts := []string{fmt.Sprintf("%.1f of %.1f s published", p.Published.Seconds(), p.Planned.Seconds()), byteCount(p.BytesWritten) + " written"}
	if p.FirstPlayable > 0 {
		parts = append(parts, fmt.Sprintf("playable after %.1f s", p.FirstPlayable.Seconds()))
	}
	if left, ok := remaining(p); ok {
		parts = append(parts, fmt.Sprintf("%.0f s left", left.Seconds()))
	}
	if p.Lost > 0 {
		parts = append(parts, plural(p.Lost, "worker")+" lost")
	}
	s.Line = strings.Join(parts, ", ")
	return s
}

// remaining guesses how long the run will still take: from the tasks that are
// left, or where their number is not known yet from what was published.
func remaining(p job.Progress) (time.Duration, bool) {
	var done, total int
	for _, n := range p.Nodes {
		if n.Total < 0 {
			if p.Published <= 0 {
				return 0, false
			}
			return time.Duration(float64(p.Elapsed) * float64(p.Planned-p.Published) / float64(p.Published)), true
		}
		done, total = done+n.Done, total+n.Total
	}
	if done == 0 || total == 0 {
		return 0, false
	}
	return time.Duration(float64(p.Elapsed) * float64(total-done) / float64(done)), true
}

func byteCount(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n > 0 && n < 1000:
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.0f kB", float64(n)/1e3)
}

func printResult(w io.Writer, place string, r *job.Result) {
	total := r.ProcessSeconds + r.ReadWriteSeconds + r.WaitSeconds
	share := func(s float64) string {
		if total == 0 {
			return "0 %"
		}
		return fmt.Sprintf("%.0f %%", 100*s/total)
	}
	speed := ""
	if r.DurationSeconds > 0 {
		speed = fmt.Sprintf(" (%.1f x real time)", r.DurationSeconds/r.ElapsedSeconds)
	}
	if r.DurationSeconds > 0 {
		fmt.Fprintf(w, "Done: %d frames, %.2f s of video in %.2f s%s.\nPlayable after %.2f s.\n", r.Frames, r.DurationSeconds, r.ElapsedSeconds, speed, r.FirstPlayableSeconds)
	} else {
		fmt.Fprintf(w, "Done: %s in %.2f s.\n", plural(r.Frames, "image"), r.ElapsedSeconds)
	}
	fmt.Fprintf(w, "Workers' time: process %.2f s (%s), read and write %.2f s (%s), wait %.2f s (%s).\n",
		r.ProcessSeconds, share(r.ProcessSeconds), r.ReadWriteSeconds, share(r.ReadWriteSeconds), r.WaitSeconds, share(r.WaitSeconds))
	if r.TasksReplayed > 0 {
		fmt.Fprintf(w, "Taken over from the earlier run: %d of %d tasks.\n", r.TasksReplayed, r.Tasks)
	}
	for _, out := range r.Outputs {
		base, query, found := strings.Cut(place, "?")
		if found {
			query = "?" + query
		}
		fmt.Fprintf(w, "Output: %s/%s%s\n", strings.TrimSuffix(base, "/"), out, query)
	}
	if !strings.HasPrefix(place, "s3://") {
		fmt.Fprintf(w, "To watch it: volley serve %s\n", place)
	}
}
