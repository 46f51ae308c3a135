package faasnap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
)

// A working set of one input is a guess at what the next will want. These bound
// what a snapshot remembers of recorded runs: a page that none of the last
// plannedRuns wanted is not loaded any longer.
const (
	keptRuns    = 16
	plannedRuns = 8
)

// Run is one recorded invocation.
type Run struct {
	Recorded time.Time
	Working  pages.WorkingSet
}

// runsFile has a snapshot's runs, the oldest first: for each, when it was
// recorded (seconds since 1970) and the size of its working set in 8 bytes each,
// little-endian, and the working set.
const runsFile = "runs"

func encodeRuns(runs []Run) ([]byte, error) {
	var b []byte
	for _, r := range runs {
		w, err := r.Working.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encode runs: %w", err)
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Recorded.Unix()))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(w)))
		b = append(b, w...)
	}
	return b, nil
}

// errRuns says that bytes are no encoded runs.
var errRuns = errors.New("decode runs: they are cut short")

func decodeRuns(b []byte) ([]Run, error) {
	var runs []Run
	for len(b) > 0 {
		if len(b) < 16 {
			return nil, errRuns
		}
		seconds, n := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		b = b[16:]
		if n > uint64(len(b)) {
			return nil, errRuns
		}
		r := Run{Recorded: time.Unix(int64(seconds), 0)}
		if err := r.Working.UnmarshalBinary(bytes.Clone(b[:n])); err != nil {
			return nil, fmt.Errorf("decode runs: %w", err)
		}
		runs, b = append(runs, r), b[n:]
	}
	return runs, nil
}

// merged is the working set that runs make together.
func merged(runs []Run) pages.WorkingSet {
	var sets []pages.WorkingSet
	for _, r := range runs[max(0, len(runs)-plannedRuns):] {
		sets = append(sets, r.Working)
	}
	return pages.Merge(sets...)
}

// Runs returns what is remembered of a snapshot's recorded invocations, the
// oldest first.
func (s *Service) Runs(ctx context.Context, name string) ([]Run, error) {
	snap, err := s.Snapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	return readRuns(snap)
}

func readRuns(snap *snapshot.Snapshot) ([]Run, error) {
	b, err := os.ReadFile(snap.Path(runsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // written without a recording
	}
	if err != nil {
		return nil, fmt.Errorf("read runs: %w", err)
	}
	return decodeRuns(b)
}

// LearnOptions are how a snapshot learns.
type LearnOptions struct {
	StartOptions
	// Inputs are the events that are recorded, one after the other.
	Inputs [][]byte
	// Progress is told what is being done. May be nil.
	Progress func(step string)
}

// Learn records further invocations of a snapshot, and plans it anew from the
// latest runs. It returns how good the plan was for each input before. Machines
// that were restored from the snapshot go on; a function that fails on an input
// is an error (ErrFunction), and changes nothing.
func (s *Service) Learn(ctx context.Context, name string, o LearnOptions) (*snapshot.Snapshot, []pages.Accuracy, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	s.learning.Lock()
	defer s.learning.Unlock()
	snap, accuracy, err := s.learn(ctx, name, o)
	if err != nil {
		return nil, nil, fmt.Errorf("learn from inputs of snapshot %s: %w", name, err)
	}
	return snap, accuracy, nil
}

func (s *Service) learn(ctx context.Context, name string, o LearnOptions) (*snapshot.Snapshot, []pages.Accuracy, error) {
	src, err := s.wholeSource(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	runs, err := readRuns(src.snapshot)
	if err != nil {
		return nil, nil, err
	}
	recorded, err := s.recordRuns(ctx, src, o.Inputs, o.StartOptions, o.Progress)
	if err != nil {
		return nil, nil, err
	}
	var accuracy []pages.Accuracy
	for _, r := range recorded {
		accuracy = append(accuracy, pages.Measure(src.plan, r.Working.Set()))
	}
	runs = append(runs, recorded...)
	o.Progress("plan")
	snap, err := s.write(ctx, name, true, func(d *snapshot.Draft) (snapshot.Contents, error) {
		meta := src.snapshot.Meta()
		c := snapshot.Contents{MemoryBytes: meta.MemoryBytes, Options: pages.DefaultOptions(), Labels: meta.Labels}
		for _, file := range append(src.snapshot.Files(), snapshot.MemoryFile) {
			if file == runsFile {
				continue
			}
			if err := d.Link(src.snapshot, file); err != nil {
				return c, err
			}
		}
		return putRuns(d, c, runs)
	})
	return snap, accuracy, err
}

// recordRuns records one invocation for each input.
func (s *Service) recordRuns(ctx context.Context, src *source, inputs [][]byte, o StartOptions, progress func(step string)) ([]Run, error) {
	var runs []Run
	for i, input := range inputs {
		progress(fmt.Sprintf("record input %d of %d", i+1, len(inputs)))
		w, err := s.recordResident(ctx, src, input, o)
		if err != nil {
			return nil, err
		}
		runs = append(runs, Run{Recorded: time.Now(), Working: w})
	}
	return runs, nil
}

// putRuns writes runs into a draft, and plans by them.
func putRuns(d *snapshot.Draft, c snapshot.Contents, runs []Run) (snapshot.Contents, error) {
	runs = runs[max(0, len(runs)-keptRuns):]
	encoded, err := encodeRuns(runs)
	if err == nil {
		err = os.WriteFile(d.Path(runsFile), encoded, 0o600)
	}
	c.Working = merged(runs)
	return c, err
}
