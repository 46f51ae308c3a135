package bench

import (
	"errors"
	"time"
)

// FaultTimes is how long page faults took.
type FaultTimes struct {
	// Counts is how many took less than 1, 2, 4, ... microseconds, but not less
	// than half of it; the last has all that took longer.
	Counts []int64
	Total  time.Duration
}

// FaultTimer sees how long page faults take.
type FaultTimer struct{}

// NewFaultTimer is not there yet.
func NewFaultTimer() (*FaultTimer, error) { return nil, errors.New("not implemented") }

// Observe begins to see those of a process; what it returns ends that.
func (*FaultTimer) Observe(pid int) (func() (*FaultTimes, error), error) {
	return func() (*FaultTimes, error) { return nil, nil }, nil
}

// Close ends it.
func (*FaultTimer) Close() error { return nil }
