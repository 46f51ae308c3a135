package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/coordinator"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/store"
)

// Names in an output's place.
const (
	// ResultFile is there exactly if the output is complete.
	ResultFile = "result.json"
	stateDir   = ".volley/"
	stateFile  = stateDir + "run.json"
	journalDir = stateDir + "journal/"
	lockName   = ".volley.lock"
)

// stateVersion is that of run.json; another one cannot be resumed.
const stateVersion = 1

// outputPlace is where a run's output goes, with what it keeps there while it
// is unfinished: docs/formats/output.md.
type outputPlace struct {
	store store.Store
	// dir is set for local places.
	dir     string
	made    bool // this run made dir
	tempDir string
	lock    io.Closer
}

// state is run.json.
type state struct {
	Version    int            `json:"version"`
	Options    Options        `json:"options"`
	Plan       *sprocket.Plan `json:"plan"`
	Identities []string       `json:"identities"`
}

// openOutput opens the place and makes sure that nothing else is harmed.
func openOutput(ctx context.Context, cfg Config) (*outputPlace, error) {
	o := &outputPlace{}
	if name, ok := localDir(cfg.OutputURL); ok {
		dir, err := filepath.Abs(name)
		if err != nil {
			return nil, &OutputError{Err: err}
		}
		o.dir = dir
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			if cfg.Resume {
				return nil, &OutputError{Err: fmt.Errorf("there is no directory %s to resume", dir)}
			}
			o.made = true
		}
	}
	var err error
	if o.store, err = store.Open(ctx, cfg.OutputURL); err != nil {
		return nil, &OutputError{Err: err}
	}
	if err := o.acquire(); err != nil {
		return nil, err
	}
	if err := o.claim(ctx, cfg); err != nil {
		return nil, errors.Join(err, o.release())
	}
	return o, nil
}

// localDir returns the directory that an output's address means, if it is one
// of this machine.
func localDir(address string) (string, bool) {
	if strings.HasPrefix(address, "s3://") {
		return "", false
	}
	return strings.TrimPrefix(address, "file://"), true
}

// acquire locks a local place against a second run.
func (o *outputPlace) acquire() (err error) {
	if o.dir == "" {
		return nil
	}
	if o.lock, err = sys.LockFile(filepath.Join(o.dir, lockName)); err != nil {
		if errors.Is(err, sys.ErrLocked) {
			return &OutputError{Err: fmt.Errorf("another run is writing to %s; wait for it, or choose another directory with -o", o.dir)}
		}
		return &OutputError{Err: err}
	}
	return nil
}

// claim checks what is in the place already and makes room.
func (o *outputPlace) claim(ctx context.Context, cfg Config) error {
	where := cfg.OutputURL
	unfinished, err := o.exists(ctx, stateFile)
	if err != nil {
		return &OutputError{Err: fmt.Errorf("look into %s: %w", where, err)}
	}
	switch {
	case cfg.Resume && !unfinished:
		if done, err := o.exists(ctx, ResultFile); err == nil && done {
			return &OutputError{Err: fmt.Errorf("the run in %s is finished already; there is nothing to resume", where)}
		}
		return &OutputError{Err: fmt.Errorf("there is no unfinished run in %s", where)}
	case cfg.Resume:
	case cfg.Force:
		if err := o.clear(ctx); err != nil {
			return &OutputError{Err: err}
		}
	case unfinished:
		return &OutputError{Err: fmt.Errorf("%s holds an unfinished run; continue it with \"volley run --resume %s\", or start anew with --force", where, where)}
	default:
		for info, err := range o.store.List(ctx, "") {
			if errors.Is(err, store.ErrNotFound) {
				return &OutputError{Err: fmt.Errorf("%s: there is no such bucket; make it first, or correct the address: %w", where, err)}
			}
			if err != nil {
				return &OutputError{Err: fmt.Errorf("look into %s: %w", where, err)}
			}
			if info.Key == lockName {
				continue
			}
			if finished, err := o.exists(ctx, ResultFile); err == nil && finished {
				return &OutputError{Err: fmt.Errorf("%s holds a finished result; replace it with --force, or choose another place with -o", where)}
			}
			return &OutputError{Err: fmt.Errorf("%s is not empty (%s is there); choose another place with -o, or let --force put the result beside it", where, info.Key)}
		}
	}
	if o.dir == "" {
		o.tempDir, err = os.MkdirTemp("", "volley-")
	} else {
		o.tempDir, err = tempIn(filepath.Join(o.dir, stateDir, "tmp"))
	}
	return err
}

func (o *outputPlace) exists(ctx context.Context, key string) (bool, error) {
	_, err := o.store.Stat(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// clear removes an earlier run's files and no others.
func (o *outputPlace) clear(ctx context.Context) error {
	for _, key := range []string{ResultFile, media.DASHManifest, media.HLSPlaylist, "video.m3u8", "audio.m3u8", media.JoinedMP4, media.ImageList, media.ThumbnailVTT} {
		if err := o.store.Delete(ctx, key); err != nil {
			return err
		}
	}
	for _, prefix := range []string{"video/", "audio/", "images/", "output_", stateDir} {
		if err := deleteAll(ctx, o.store, prefix); err != nil {
			return err
		}
	}
	if o.dir == "" {
		return nil
	}
	for _, dir := range []string{"video", "audio", "images", stateDir} {
		if err := removeEmptyTree(filepath.Join(o.dir, dir)); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(o.dir, stateDir))
}

// removeEmptyTree removes dir if it holds nothing but directories.
func removeEmptyTree(dir string) error {
	files := false
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = true
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || files {
		return nil
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func deleteAll(ctx context.Context, st store.Store, prefix string) error {
	var keys []string
	for info, err := range st.List(ctx, prefix) {
		if err != nil {
			return err
		}
		keys = append(keys, info.Key)
	}
	for _, key := range keys {
		if err := st.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// workURL is the default store between stages.
func (o *outputPlace) workURL() string {
	if o.dir != "" {
		return filepath.Join(o.dir, stateDir, "work")
	}
	return below(o.store.URL(), stateDir+"work")
}

// saveState writes run.json.
func (o *outputPlace) saveState(ctx context.Context, opts Options, plan *sprocket.Plan, sources []*media.Source) error {
	s := state{Version: stateVersion, Options: opts, Plan: plan}
	for _, src := range sources {
		s.Identities = append(s.Identities, src.Identity())
	}
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save the run's state: %w", err)
	}
	if _, err := o.store.Put(ctx, stateFile, bytes.NewReader(text)); err != nil {
		return &OutputError{Err: fmt.Errorf("save the run's state: %w", err)}
	}
	return nil
}

func (o *outputPlace) readState(ctx context.Context) (*state, error) {
	text, err := readObject(ctx, o.store, stateFile)
	if err != nil {
		return nil, &OutputError{Err: fmt.Errorf("read the run's state: %w", err)}
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, &OutputError{Err: fmt.Errorf("read the run's state: %w; start anew with --force", err)}
	}
	if s.Version != stateVersion {
		return nil, &OutputError{Err: fmt.Errorf("the run was begun by another version of volley (state %d, this is %d); start anew with --force", s.Version, stateVersion)}
	}
	return &s, nil
}

func (o *outputPlace) loadState(ctx context.Context, opts *Options, plan **sprocket.Plan) error {
	s, err := o.readState(ctx)
	if err != nil {
		return err
	}
	*opts, *plan = s.Options, s.Plan
	return nil
}

// checkInputs makes sure that a resumed run reads what the first one read.
func (o *outputPlace) checkInputs(sources []*media.Source) error {
	s, err := o.readState(context.Background())
	if err != nil {
		return err
	}
	for i, src := range sources {
		if i >= len(s.Identities) || s.Identities[i] != src.Identity() {
			return &media.InputError{Input: src.Name(), Kind: media.Corrupt, Err: errors.New("has changed since the run began"), Remedy: "start anew with --force"}
		}
	}
	return nil
}

func readObject(ctx context.Context, st store.Store, key string) ([]byte, error) {
	r, err := st.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// journal returns the record of finished tasks. Each is an object of its own,
// so that it is there whole or not at all, on any store.
// work is the store between the stages.
func (o *outputPlace) journal(ctx context.Context, work store.Store) coordinator.Journal {
	return &journal{ctx: ctx, store: o.store, work: work}
}

type journal struct {
	ctx   context.Context
	store store.Store
	work  store.Store
	known map[string]bool // keys from earlier runs; nil until listed
}

func journalKey(node string, seq int64) string {
	return fmt.Sprintf("%s%s/%08d.json", journalDir, node, seq)
}

// Lookup implements coordinator.Journal. A record counts only if the chunks and
// images that it names are still there. Frames may be gone: they are deleted
// once the tasks that used them are recorded themselves.
func (j *journal) Lookup(node string, seq int64) (stage.Result, bool) {
	if j.known == nil {
		j.known = map[string]bool{}
		for info, err := range j.store.List(j.ctx, journalDir) {
			if err != nil {
				break
			}
			j.known[info.Key] = true
		}
	}
	key := journalKey(node, seq)
	if !j.known[key] {
		return stage.Result{}, false
	}
	text, err := readObject(j.ctx, j.store, key)
	if err != nil {
		return stage.Result{}, false
	}
	var res stage.Result
	if err := json.Unmarshal(text, &res); err != nil {
		return stage.Result{}, false
	}
	for _, obj := range res.Item.Objects {
		place := j.work
		if obj.Output {
			place = j.store
		}
		info, err := place.Stat(j.ctx, obj.Key)
		if err != nil || info.SizeBytes != obj.SizeBytes {
			return stage.Result{}, false
		}
	}
	return res, true
}

// Record implements coordinator.Journal.
func (j *journal) Record(node string, seq int64, res stage.Result) error {
	text, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("record task: %w", err)
	}
	if _, err := j.store.Put(j.ctx, journalKey(node, seq), bytes.NewReader(text)); err != nil {
		return fmt.Errorf("record task: %w", err)
	}
	return nil
}

// complete writes the result and drops the state: from here on the output is
// finished.
func (o *outputPlace) complete(ctx context.Context, result []byte) error {
	if _, err := o.store.Put(ctx, ResultFile, bytes.NewReader(result)); err != nil {
		return err
	}
	if o.dir != "" {
		return os.RemoveAll(filepath.Join(o.dir, stateDir))
	}
	return deleteAll(ctx, o.store, stateDir)
}

// undo removes everything that this run put into the place.
func (o *outputPlace) undo(ctx context.Context) error {
	if err := o.clear(ctx); err != nil {
		return err
	}
	return nil
}

// release unlocks the place and removes temporary files.
func (o *outputPlace) release() error {
	var errs []error
	if o.tempDir != "" {
		errs = append(errs, os.RemoveAll(o.tempDir))
	}
	if o.lock != nil {
		errs = append(errs, os.Remove(filepath.Join(o.dir, lockName)), o.lock.Close())
		o.lock = nil
	}
	if o.dir != "" {
		// The store's own, empty by now.
		_ = os.Remove(filepath.Join(o.dir, ".tmp"))
	}
	if o.made {
		// Left empty, it was of no use.
		_ = os.Remove(o.dir)
	}
	return errors.Join(errs...)
}
