package trace

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// OpenOptions tell how to read a trace.
type OpenOptions struct {
	// Day chooses among the files of a directory that has several days of the
	// full data set (".d01." to ".d14." in the names); 0 where there is one.
	Day int
	// Marginals is a directory with files of durations and of memory to draw
	// from, for functions without any of their own. Empty draws from the rows
	// of the trace's own files.
	Marginals string
	// Seed decides what is drawn.
	Seed uint64
}

// The parts of file names, in the full data set and in samples of it.
const (
	invocationsFile = "invocations"
	durationsFile   = "durations"
	memoryFile      = "memory"
)

// Open reads the trace in a directory: the files of invocations a minute, of
// percentiles of durations and of memory, plain or compressed with gzip. They
// are found by "invocations", "durations" and "memory" in their names, and
// their rows joined by HashFunction; memory that is given for an app is shared
// equally by the app's functions. Without a file of durations or memory,
// opts.Marginals must have one.
//
// Where the rows cannot be joined (see Trace.Unjoined), or lack a function,
// durations and memory are drawn, independently of each other. The error is a
// *ParseError where a file's contents are wrong.
func Open(dir string, opts OpenOptions) (*Trace, error) {
	path, err := find(dir, invocationsFile, opts.Day)
	if err != nil {
		return nil, err
	}
	t, err := readFile(path, readInvocations)
	if err != nil {
		return nil, err
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	t.Name = filepath.Base(dir)
	durations, spare, err := openDistributions(dir, durationsFile, durationPrefix, opts)
	if err != nil {
		return nil, err
	}
	t.DurationsDrawn = t.join(durations, spare, opts.Seed, func(f *Function) *Distribution { return &f.DurationMS })
	memory, spare, err := openDistributions(dir, memoryFile, memoryPrefix, opts)
	if err != nil {
		return nil, err
	}
	t.MemoryDrawn = t.join(memory, spare, opts.Seed+1, func(f *Function) *Distribution { return &f.MemoryMB })
	return t, nil
}

// openDistributions opens the trace's own file, or nil where there is none, and
// the one to draw from.
func openDistributions(dir, what, prefix string, opts OpenOptions) (own, spare *distributions, err error) {
	read := func(file string, r io.Reader) (*distributions, error) { return readDistributions(file, prefix, r) }
	path, err := find(dir, what, opts.Day)
	switch {
	case err == nil:
		if own, err = readFile(path, read); err != nil {
			return nil, nil, err
		}
	case !errors.Is(err, fs.ErrNotExist) || opts.Marginals == "":
		return nil, nil, err
	}
	if opts.Marginals == "" {
		return own, own, nil
	}
	if path, err = find(opts.Marginals, what, 0); err != nil {
		return nil, nil, err
	}
	spare, err = readFile(path, read)
	return own, spare, err
}

// join gives every function its distribution, and counts those that had to be
// drawn.
func (t *Trace) join(own, spare *distributions, seed uint64, field func(*Function) *Distribution) (drawn int) {
	sharing := map[string]int{} // functions of an app
	for _, f := range t.Functions {
		sharing[appKey(f.Owner, f.App)]++
	}
	for _, f := range t.Functions {
		var d Distribution
		found := false
		if own != nil && !t.Unjoined {
			if own.byApp {
				key := appKey(f.Owner, f.App)
				d, found = own.byKey[key]
				d = d.scale(1 / float64(sharing[key]))
			} else {
				d, found = own.byKey[f.ID]
			}
		}
		if !found {
			d = spare.draw(seed, f.ID)
			drawn++
		}
		*field(f) = d
	}
	return drawn
}

// scale returns the distribution of the values times a factor.
func (d Distribution) scale(by float64) Distribution {
	if by == 1 || len(d.values) == 0 {
		return d
	}
	values := make([]float64, len(d.values))
	for i, v := range d.values {
		values[i] = by * v
	}
	return Distribution{percents: d.percents, values: values}
}

// find returns the one file in dir with that word in its name.
func find(dir, what string, day int) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("open trace: %w", err)
	}
	var names []string
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".gz")
		if e.IsDir() || !strings.HasSuffix(name, ".csv") || !strings.Contains(name, what) {
			continue
		}
		if day > 0 && !strings.Contains(name, fmt.Sprintf(".d%02d.", day)) {
			continue
		}
		names = append(names, e.Name())
	}
	slices.Sort(names)
	switch {
	case len(names) == 0:
		return "", fmt.Errorf("open trace: no file *%s*.csv or *%s*.csv.gz in %s: %w", what, what, dir, fs.ErrNotExist)
	case len(names) > 1 && day == 0:
		return "", fmt.Errorf("open trace: several files of %s in %s (%s): name the day", what, dir, strings.Join(names, ", "))
	case len(names) > 1:
		return "", fmt.Errorf("open trace: several files of %s in %s (%s): keep one of them", what, dir, strings.Join(names, ", "))
	}
	return filepath.Join(dir, names[0]), nil
}

func readFile[T any](path string, read func(file string, r io.Reader) (T, error)) (_ T, err error) {
	f, err := os.Open(path)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("open trace: %w", err)
	}
	defer f.Close()
	return read(path, f)
}
