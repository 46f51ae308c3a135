package trace

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Trace is what was recorded of a set of functions over some minutes.
type Trace struct {
	// Name is the name of the directory that it came from.
	Name string
	// FirstMinute is the number of the first minute, as the file's columns
	// count them; Minutes is how many there are.
	FirstMinute, Minutes int
	// Functions are in the order of the file of invocations.
	Functions []*Function
	// Invocations is the sum over all functions and minutes.
	Invocations int64
	// Unjoined says that the identifiers are placeholders (owner, app and
	// function are the same in every row), so that the files' rows do not
	// belong together, and all durations and memory were drawn.
	Unjoined bool
	// DurationsDrawn and MemoryDrawn count the functions whose durations or
	// memory no row gives: they have those of a random row.
	DurationsDrawn, MemoryDrawn int
}

// Function is one function of a Trace.
type Function struct {
	// ID is its HashFunction, unique in the trace; Owner and App are the
	// hashes of whom and what it belongs to.
	ID, Owner, App string
	// Trigger is the group of its trigger ("http", "timer"), or empty.
	Trigger string
	// PerMinute has the number of invocations in each minute of the trace.
	PerMinute []uint32
	// Invocations is the sum of PerMinute.
	Invocations int64
	// DurationMS is the distribution of its run time in milliseconds, without
	// cold starts.
	DurationMS Distribution
	// MemoryMB is the distribution of its allocated memory in MB.
	MemoryMB Distribution
}

// Window returns the part of the trace that begins at a minute, numbered as in
// the file, and lasts so many minutes. It shares the functions' distributions
// with t, and keeps functions without an invocation.
func (t *Trace) Window(start, minutes int) (*Trace, error) {
	from := start - t.FirstMinute
	if minutes < 1 || from < 0 || from+minutes > t.Minutes {
		return nil, fmt.Errorf("window of %d minutes from minute %d is not in trace %s, which has minutes %d to %d",
			minutes, start, t.Name, t.FirstMinute, t.FirstMinute+t.Minutes-1)
	}
	w := *t
	w.FirstMinute, w.Minutes, w.Invocations = start, minutes, 0
	w.Functions = make([]*Function, len(t.Functions))
	for i, f := range t.Functions {
		part := *f
		part.PerMinute = f.PerMinute[from : from+minutes]
		part.Invocations = sum(part.PerMinute)
		w.Invocations += part.Invocations
		w.Functions[i] = &part
	}
	return &w, nil
}

// RandomWindows returns the first minutes of n windows that do not overlap and
// have invocations, in ascending order, chosen by the seed.
func (t *Trace) RandomWindows(n, minutes int, seed uint64) ([]int, error) {
	if n < 1 || minutes < 1 || n*minutes > t.Minutes {
		return nil, fmt.Errorf("trace %s has %d minutes: too few for %d windows of %d minutes", t.Name, t.Minutes, n, minutes)
	}
	rng := rand.New(rand.NewPCG(seed, windowStream))
	// Gaps between n ordered windows are uniform where n of the places that
	// are left are.
	const tries = 1000
	for range tries {
		starts := make([]int, n)
		for i := range starts {
			starts[i] = rng.IntN(t.Minutes - n*minutes + 1)
		}
		slices.Sort(starts)
		busy := true
		for i := range starts {
			starts[i] += t.FirstMinute + i*minutes
			w, err := t.Window(starts[i], minutes)
			if err != nil {
				return nil, err
			}
			busy = busy && w.Invocations > 0
		}
		if busy {
			return starts, nil
		}
	}
	return nil, fmt.Errorf("trace %s has too few busy minutes for %d windows of %d minutes", t.Name, n, minutes)
}

// Rate is the mean number of invocations a second.
func (t *Trace) Rate() float64 { return float64(t.Invocations) / (60 * float64(t.Minutes)) }

// Active counts the functions with at least one invocation.
func (t *Trace) Active() int {
	n := 0
	for _, f := range t.Functions {
		if f.Invocations > 0 {
			n++
		}
	}
	return n
}

// TopShare is the share of the n most invoked functions in all invocations.
func (t *Trace) TopShare(n int) float64 {
	if t.Invocations == 0 {
		return 0
	}
	counts := make([]int64, len(t.Functions))
	for i, f := range t.Functions {
		counts[i] = -f.Invocations
	}
	slices.Sort(counts)
	top := int64(0)
	for _, c := range counts[:min(n, len(counts))] {
		top -= c
	}
	return float64(top) / float64(t.Invocations)
}

func sum(counts []uint32) (n int64) {
	for _, c := range counts {
		n += int64(c)
	}
	return n
}

// The streams of the random source, so that one seed serves several purposes.
const (
	windowStream = iota + 1
	drawStream
	workloadStream
)
