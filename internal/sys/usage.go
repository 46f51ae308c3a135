package sys

import "time"

// ProcessUsage is what one process uses.
type ProcessUsage struct {
	// MemoryBytes is its resident memory, MaxMemoryBytes the most of it so far.
	MemoryBytes, MaxMemoryBytes int64
	// CPU is the time it has used, without its children.
	CPU time.Duration
}

// Usage tells what a process uses. ok is false for a process that is gone, and
// where the system cannot tell (it can on Linux).
func Usage(pid int) (u ProcessUsage, ok bool) { return usage(pid) }

// Children returns the processes that a process has started and that live, as
// far as the system can tell cheaply (on Linux).
func Children(pid int) []int { return childrenOf(pid) }
