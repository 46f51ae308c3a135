package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/store"
)

// Role is what a worker is told to be: a node of the plan, and everything that
// tasks of it have in common. It travels as JSON.
type Role struct {
	Node     sprocket.Node     `json:"node"`
	TimeBase sprocket.Rational `json:"time_base"`
	// Inputs are the job's inputs by index.
	Inputs []Input `json:"inputs"`
	// OutputURL and WorkURL are the stores for results and for what passes
	// between stages. OutputPrefix is put before results' keys.
	OutputURL    string `json:"output_url"`
	OutputPrefix string `json:"output_prefix"`
	WorkURL      string `json:"work_url"`
	// Audio is set for the worker that carries the sound over.
	Audio *AudioRole `json:"audio,omitempty"`
}

// Input is how a worker reads one of the job's inputs.
type Input struct {
	// URL is what FFmpeg opens. It may hold a temporary signature: it is never
	// logged.
	URL    string          `json:"url"`
	Name   string          `json:"name"`
	Stream int             `json:"stream"`
	Clock  sprocket.Clock  `json:"clock"`
	Pixels sprocket.Pixels `json:"pixels"`
}

// AudioRole describes the sound to carry over.
type AudioRole struct {
	Input  int    `json:"input"`
	Stream int    `json:"stream"`
	Codec  string `json:"codec"`
	// SampleRate and Channels are as in the source.
	SampleRate int `json:"sample_rate"`
	Channels   int `json:"channels"`
	// EndSeconds cuts the sound where the output ends; 0 keeps all of it.
	EndSeconds float64 `json:"end_seconds"`
}

// Env is what a worker gives to its tasks.
type Env struct {
	Output, Work store.Store
	// Dir is an empty directory of the task's own.
	Dir    string
	FFmpeg string
	// Progress is told how many frames the task has finished. It is called
	// from the goroutine that runs Process.
	Progress func(frames int)
	// Partial is told of results before the task is done (sound only).
	Partial func(Sound)
}

// Sound is a stretch of encoded sound, or all of it.
type Sound struct {
	Track    media.AudioTrack  `json:"track"`
	Segments []sprocket.Object `json:"segments"`
}

// Result is what a task leaves.
type Result struct {
	Item  sprocket.Item `json:"item"`
	Sound *Sound        `json:"sound,omitempty"`
	// Frames is how many frames went through, and Bytes how much was read from
	// and written to stores by the task itself.
	Frames       int   `json:"frames"`
	BytesRead    int64 `json:"bytes_read"`
	BytesWritten int64 `json:"bytes_written"`
}

// Executor runs one task, step by step. Each step may be repeated after an
// error. Close removes what the task left on this machine.
type Executor interface {
	Fetch(ctx context.Context) error
	Process(ctx context.Context) error
	Emit(ctx context.Context) (Result, error)
	Close() error
}

// FailureKind says what a failed step means for the run.
type FailureKind string

// The kinds of failures.
const (
	// FailureInput: the input video is damaged or not what was announced.
	FailureInput FailureKind = "input"
	// FailureNoSpace: a disk or store is full.
	FailureNoSpace FailureKind = "no-space"
	// FailureConfig: a stage's parameters do not work, e.g. an unknown filter.
	FailureConfig FailureKind = "config"
	// FailureTransient: anything that another attempt may mend.
	FailureTransient FailureKind = "transient"
)

// Failure is an error of a step with what the coordinator must know of it.
type Failure struct {
	Kind FailureKind
	// Stage is the node in the pipespec whose stage failed, if known.
	Stage string
	// LogTail is the last output of the program that failed.
	LogTail []string
	Err     error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// KindOf returns the kind of err, looking through wrapping.
func KindOf(err error) FailureKind {
	var f *Failure
	switch {
	case errors.As(err, &f):
		return f.Kind
	case errors.Is(err, store.ErrNoSpace), errors.Is(err, syscall.ENOSPC):
		return FailureNoSpace
	}
	return FailureTransient
}

// New returns the executor for a task. The directory in env must be empty.
func New(env Env, role Role, task sprocket.Task) (Executor, error) {
	if role.Audio != nil {
		return newSoundTask(env, role), nil
	}
	if len(role.Node.Stages) == 0 {
		return nil, errors.New("start task: the role has no stage")
	}
	if len(task.Inputs) != len(role.Node.Upstreams) {
		return nil, fmt.Errorf("start task: %d input lists for %d streams", len(task.Inputs), len(role.Node.Upstreams))
	}
	if role.Node.Stages[0].Stage == "exec" {
		return newExecTask(env, role, task), nil
	}
	return newFFmpegTask(env, role, task), nil
}

// fetched is the local form of a frames object.
type fetched struct {
	path string
	temp bool
}

// localFile returns a file with the object's content: the object itself in a
// local store, else a copy in dir.
func localFile(ctx context.Context, st store.Store, key, dir string) (fetched, int64, error) {
	if local, ok := st.(store.LocalPather); ok {
		return fetched{path: local.LocalPath(key)}, 0, nil
	}
	r, err := st.Get(ctx, key, 0, -1)
	if err != nil {
		return fetched{}, 0, err
	}
	defer r.Close()
	f, err := os.CreateTemp(dir, "in-")
	if err != nil {
		return fetched{}, 0, err
	}
	n, err := f.ReadFrom(r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fetched{}, n, fmt.Errorf("fetch %s: %w", key, err)
	}
	return fetched{path: f.Name(), temp: true}, n, nil
}
