// Package job runs a pipeline from inputs to a playable output: it probes the
// inputs, plans, starts the coordinator, publishes what comes out, and keeps
// what a later run needs to continue.
package job

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/coordinator"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/store"
)

// Options are the settings of a run. They are stored with it.
type Options struct {
	Spec   *sprocket.Spec `json:"spec"`
	Inputs []string       `json:"inputs"`
	// Chunk is the length of a chunk, 0 to let the plan choose.
	Chunk        time.Duration `json:"chunk"`
	Format       media.Format  `json:"format"`
	NoFuse       bool          `json:"no_fuse"`
	FramesFormat string        `json:"frames_format"`
	// WorkURL is the store between stages; empty means a folder of the output.
	WorkURL string `json:"work_url,omitempty"`
}

// Config is where and how a run happens.
type Config struct {
	Options Options
	// OutputURL is a directory or an s3:// address.
	OutputURL string
	// Force replaces an earlier result; Resume continues an unfinished run, and
	// then takes Options from it.
	Force, Resume bool
	Workers       int
	Attempts      int
	Catalog       *sprocket.Catalog
	Deliveries    delivery.Registry
	// Platform makes the platform that starts workers; they may keep files in
	// dir.
	Platform func(dir string) coordinator.Platform
	FFmpeg   string
	// Progress, if not nil, is called several times a second.
	Progress func(Progress)
	Log      *slog.Logger
}

// Progress is the state of a run for display.
type Progress struct {
	coordinator.Stats
	// Published is how much of the output can be played, of Planned.
	Published, Planned time.Duration
	FirstPlayable      time.Duration // 0: not yet
}

// Result is how a run ended. It is also what result.json holds.
type Result struct {
	Pipeline string   `json:"pipeline"`
	Inputs   []string `json:"inputs"`
	Format   string   `json:"format"`
	// Outputs are the main files, relative to the output's place.
	Outputs  []string `json:"outputs"`
	Output   string   `json:"output"`
	Complete bool     `json:"complete"`
	Frames   int      `json:"frames"`
	// DurationSeconds is the length of the first output.
	DurationSeconds      float64 `json:"duration_seconds"`
	ElapsedSeconds       float64 `json:"elapsed_seconds"`
	FirstPlayableSeconds float64 `json:"first_playable_seconds"`
	// The time of all workers together (thesis figure 2.6).
	ProcessSeconds   float64 `json:"process_seconds"`
	ReadWriteSeconds float64 `json:"read_write_seconds"`
	WaitSeconds      float64 `json:"wait_seconds"`
	Workers          int     `json:"workers"`
	WorkersLost      int     `json:"workers_lost"`
	Tasks            int     `json:"tasks"`
	TasksReplayed    int     `json:"tasks_replayed"`
	BytesWritten     int64   `json:"bytes_written"`
}

// run is one run on its way.
type run struct {
	cfg     Config
	begun   time.Time
	output  *outputPlace
	work    store.Store
	workURL string
	sources []*media.Source
	infos   []*media.Info
	plan    *sprocket.Plan
	coord   *coordinator.Coordinator

	publishers []*media.Publisher
	playable   time.Duration
}

// Run does the whole run. The output is complete exactly if the error is nil.
// After an error that a later try can overcome (interruption, full disk, lost
// workers) the finished part is kept for Resume; after others nothing is left.
//
// Errors to tell apart: *sprocket.SpecError, *media.InputError,
// *coordinator.TaskError, *OutputError, and the context's.
func Run(ctx context.Context, cfg Config) (res *Result, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &run{cfg: cfg, begun: time.Now()}
	r.output, err = openOutput(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.output.release()) }()
	if cfg.Resume {
		if err := r.output.loadState(ctx, &r.cfg.Options, &r.plan); err != nil {
			return nil, err
		}
	}
	keep := cfg.Resume
	defer func() {
		if err != nil && !keep {
			// Nothing of use was done: leave no trace.
			err = errors.Join(err, r.output.undo(context.WithoutCancel(ctx)))
		}
	}()
	if err := r.cfg.Options.Spec.Validate(cfg.Catalog); err != nil {
		return nil, err
	}
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.makePlan(ctx); err != nil {
		return nil, err
	}
	keep = true
	err = r.execute(ctx)
	if err != nil {
		keep = worthKeeping(err)
		return nil, r.outputError(err)
	}
	return r.finish(ctx)
}

// worthKeeping reports whether resuming can succeed where this run did not.
func worthKeeping(err error) bool {
	if te := coordinator.AsTaskError(err); te != nil {
		return te.Kind != stage.FailureInput && te.Kind != stage.FailureConfig
	}
	return true
}

// open starts workers and probes the inputs, at the same time.
func (r *run) open(ctx context.Context) error {
	r.sources = make([]*media.Source, len(r.cfg.Options.Inputs))
	r.infos = make([]*media.Info, len(r.cfg.Options.Inputs))
	g, gctx := errgroup.WithContext(ctx)
	for i, uri := range r.cfg.Options.Inputs {
		g.Go(func() error {
			// The source outlives the group: it takes the run's context.
			src, err := media.OpenSource(ctx, uri)
			if err != nil {
				return err
			}
			r.sources[i] = src
			r.infos[i], err = media.Probe(gctx, src)
			return err
		})
	}
	g.Go(func() (err error) {
		r.coord, err = coordinator.New(ctx, coordinator.Config{
			Platform: r.cfg.Platform(r.output.tempDir), Workers: r.cfg.Workers, Attempts: r.cfg.Attempts, Log: r.cfg.Log,
		})
		return err
	})
	if err := g.Wait(); err != nil {
		return errors.Join(err, r.close())
	}
	return nil
}

func (r *run) close() error {
	var errs []error
	if r.coord != nil {
		r.coord.Close()
		r.coord = nil
	}
	for _, s := range r.sources {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	r.sources = nil
	return errors.Join(errs...)
}

// makePlan plans, or takes the plan of the run that is resumed.
func (r *run) makePlan(ctx context.Context) error {
	if r.cfg.Options.WorkURL != "" && !r.cfg.Resume {
		// Several runs may share a store.
		r.cfg.Options.WorkURL = below(r.cfg.Options.WorkURL, "volley-"+rand.Text()[:12])
	}
	opts := r.cfg.Options
	r.workURL = opts.WorkURL
	if r.workURL == "" {
		r.workURL = r.output.workURL()
	}
	var err error
	if r.work, err = store.Open(ctx, r.workURL); err != nil {
		return &OutputError{Err: err}
	}
	if r.cfg.Resume && r.plan != nil {
		return r.output.checkInputs(r.sources)
	}
	inputs := make([]sprocket.InputMedia, len(r.infos))
	for i, info := range r.infos {
		inputs[i] = inputMedia(r.sources[i], info)
	}
	r.plan, err = sprocket.BuildPlan(opts.Spec, r.cfg.Catalog, inputs, sprocket.PlanOptions{
		Chunk: opts.Chunk, Workers: r.cfg.Workers, NoFuse: opts.NoFuse, FramesFormat: opts.FramesFormat,
	})
	if err != nil {
		return err
	}
	return r.output.saveState(ctx, opts, r.plan, r.sources)
}

func inputMedia(src *media.Source, info *media.Info) sprocket.InputMedia {
	v := info.Video
	origin := v.StartPTS
	if info.Audio != nil {
		// What FFmpeg subtracts from the sound: the earliest start of all.
		start := sprocket.Rational{Num: 1, Den: 1_000_000}.Rescale(int64(info.Audio.StartTime*1e6), v.TimeBase)
		origin = min(origin, start)
	}
	return sprocket.InputMedia{
		Name: src.Name(), Pixels: v.Pixels, EndPTS: v.EndPTS, Index: info.Index, Audio: info.Audio != nil,
		Clock: sprocket.Clock{TimeBase: v.TimeBase, OriginPTS: origin, StartPTS: v.StartPTS, Rate: v.FrameRate, Constant: v.Constant && !v.FrameRate.IsZero()},
	}
}

// execute runs the coordinator.
func (r *run) execute(ctx context.Context) error {
	roles, sound, err := r.roles(ctx)
	if err != nil {
		return err
	}
	longest := r.longestSegment()
	for i, out := range r.plan.Outputs {
		node := r.plan.Nodes[out.Node]
		clock := r.plan.Clocks[node.Follows]
		r.publishers = append(r.publishers, media.NewPublisher(media.PublisherConfig{
			Store: r.output.store, Prefix: media.OutputPrefix(i), Format: r.cfg.Options.Format, Type: out.Type,
			TimeBase: r.plan.TimeBase, FrameRate: clock.Rate, SampleAspect: r.plan.Pixels[node.Follows].SampleAspect,
			Start: r.plan.Start, End: r.plan.End, LongestSegment: longest,
			Audio: i == 0 && sound != nil, FFmpeg: r.cfg.FFmpeg, TempDir: r.output.tempDir,
		}))
	}
	names := make([]string, len(r.sources))
	for i, s := range r.sources {
		names[i] = s.Name()
	}
	err = r.coord.Run(ctx, coordinator.Job{
		Plan: r.plan, Roles: roles, Sound: sound, Deliveries: r.cfg.Deliveries, Journal: r.output.journal(ctx, r.work),
		Work: r.work, InputNames: names,
		OnOutput: func(ctx context.Context, n int, it sprocket.Item) error {
			defer r.notePlayable()
			return r.publishers[n].Add(ctx, it)
		},
		OnSound: func(ctx context.Context, s stage.Sound) error {
			defer r.notePlayable()
			return r.publishers[0].AddAudio(ctx, s.Track, s.Segments)
		},
		OnTick: r.tick,
	})
	for _, p := range r.publishers {
		// What is finished should be listed, also when the run is not.
		err = errors.Join(err, p.Flush(context.WithoutCancel(ctx), true))
	}
	return err
}

func (r *run) notePlayable() {
	if r.playable == 0 && r.publishers[0].Playable() {
		r.playable = time.Since(r.begun)
	}
}

func (r *run) tick(ctx context.Context) error {
	for _, p := range r.publishers {
		if err := p.Flush(ctx, false); err != nil {
			return err
		}
	}
	r.notePlayable()
	if r.cfg.Progress != nil {
		r.cfg.Progress(r.progress())
	}
	return nil
}

func (r *run) progress() Progress {
	_, end := r.publishers[0].Published()
	return Progress{
		Stats:     r.coord.Stats(),
		Published: r.plan.TimeBase.Duration(end), Planned: r.plan.TimeBase.Duration(r.plan.End - r.plan.Start),
		FirstPlayable: r.playable,
	}
}

func (r *run) longestSegment() time.Duration {
	longest := int64(0)
	for _, items := range r.plan.Chunks {
		for _, it := range items {
			longest = max(longest, it.End-it.Start)
		}
	}
	return r.plan.TimeBase.Duration(longest)
}

// roles are what the workers will be told, by node.
func (r *run) roles(ctx context.Context) ([]stage.Role, *stage.Role, error) {
	base := stage.Role{TimeBase: r.plan.TimeBase, OutputURL: r.output.store.URL(), WorkURL: r.workURL}
	for i, src := range r.sources {
		url, err := src.FFmpegURL(ctx)
		if err != nil {
			return nil, nil, err
		}
		base.Inputs = append(base.Inputs, stage.Input{
			URL: url, Name: src.Name(), Stream: r.infos[i].Video.StreamIndex, Clock: r.plan.Clocks[i], Pixels: r.plan.Pixels[i],
		})
	}
	roles := make([]stage.Role, len(r.plan.Nodes))
	for i, n := range r.plan.Nodes {
		roles[i] = base
		roles[i].Node = n
		if n.OutputIndex >= 0 {
			roles[i].OutputPrefix = media.OutputPrefix(n.OutputIndex)
		}
	}
	if r.plan.AudioInput < 0 {
		return roles, nil, nil
	}
	sound := base
	sound.Node = sprocket.Node{Name: "audio", OutputIndex: 0}
	a := r.infos[r.plan.AudioInput].Audio
	sound.Audio = &stage.AudioRole{Input: r.plan.AudioInput, Stream: a.StreamIndex, Codec: a.Codec, SampleRate: a.SampleRate, Channels: a.Channels}
	if r.plan.Shortened(r.plan.AudioInput, r.infos[r.plan.AudioInput].Video.EndPTS) {
		sound.Audio.EndSeconds = r.plan.TimeBase.Seconds(r.plan.End)
	}
	return roles, &sound, nil
}

// finish completes the outputs and removes what only a resumed run would need.
func (r *run) finish(ctx context.Context) (*Result, error) {
	res := &Result{
		Pipeline: r.cfg.Options.Spec.Name, Format: string(r.cfg.Options.Format), Output: r.output.store.URL(), Complete: true, Workers: r.cfg.Workers,
	}
	for _, s := range r.sources {
		res.Inputs = append(res.Inputs, s.Name())
	}
	for i, p := range r.publishers {
		name, err := p.Finish(ctx)
		if err != nil {
			return nil, r.outputError(err)
		}
		res.Outputs = append(res.Outputs, name)
		frames, end := p.Published()
		res.Frames += frames
		if i == 0 {
			res.DurationSeconds = r.plan.TimeBase.Seconds(end - r.plan.Start)
		}
	}
	if r.playable == 0 {
		r.playable = time.Since(r.begun)
	}
	st := r.coord.Stats()
	for _, n := range st.Nodes {
		res.Tasks += n.Done
	}
	res.FirstPlayableSeconds = r.playable.Seconds()
	res.ProcessSeconds, res.ReadWriteSeconds, res.WaitSeconds = st.Process.Seconds(), st.ReadWrite.Seconds(), st.Wait.Seconds()
	res.WorkersLost, res.TasksReplayed, res.BytesWritten = st.Lost, st.Replayed, st.BytesWritten
	if err := r.close(); err != nil {
		return nil, err
	}
	if err := r.cleanWork(ctx); err != nil {
		return nil, r.outputError(err)
	}
	res.ElapsedSeconds = time.Since(r.begun).Seconds()
	text, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	if err := r.output.complete(ctx, append(text, '\n')); err != nil {
		return nil, r.outputError(err)
	}
	return res, nil
}

// cleanWork removes what is left between the stages.
func (r *run) cleanWork(ctx context.Context) error {
	if r.cfg.Options.WorkURL == "" {
		return nil // it goes with the run's state
	}
	if err := deleteAll(ctx, r.work, ""); err != nil {
		return err
	}
	if dir, ok := strings.CutPrefix(r.work.URL(), "file://"); ok {
		return os.RemoveAll(dir)
	}
	return nil
}

// below returns the address of a place inside the store at address.
func below(address, name string) string {
	base, query, found := strings.Cut(address, "?")
	base = strings.TrimSuffix(base, "/") + "/" + name
	if found {
		base += "?" + query
	}
	return base
}

// CanResume reports whether there is an unfinished run in the output's place.
func CanResume(ctx context.Context, outputURL string) bool {
	if dir, ok := localDir(outputURL); ok {
		// Opening a local store would make the directory.
		_, err := os.Stat(filepath.Join(dir, stateFile))
		return err == nil
	}
	if !strings.HasPrefix(outputURL, "s3://") {
		// Opening a local store would make the directory.
		_, err := os.Stat(filepath.Join(strings.TrimPrefix(outputURL, "file://"), stateFile))
		return err == nil
	}
	st, err := store.Open(ctx, outputURL)
	if err != nil {
		return false
	}
	_, err = st.Stat(ctx, stateFile)
	return err == nil
}

// outputError marks errors of the output's place as such.
func (r *run) outputError(err error) error {
	te := coordinator.AsTaskError(err)
	if errors.Is(err, store.ErrNoSpace) || (te != nil && te.Kind == stage.FailureNoSpace) {
		return &OutputError{Err: fmt.Errorf("%w; make room, then: volley run --resume %s", err, r.cfg.OutputURL)}
	}
	if errors.Is(err, store.ErrPermission) {
		return &OutputError{Err: err}
	}
	return err
}

// OutputError means that the output cannot be written.
type OutputError struct{ Err error }

// Error implements error.
func (e *OutputError) Error() string { return "output: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *OutputError) Unwrap() error { return e.Err }

func tempIn(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", &OutputError{Err: fmt.Errorf("make directory: %w", err)}
	}
	return filepath.Abs(dir)
}
