package microvm

import (
	"math"
	"time"
)

// Policy says which functions are worth a snapshot (thesis 5.6.1). Functions
// that are invoked often are served by virtual machines that the invoker keeps,
// and need one for bursts and after evictions; those that are invoked seldom are
// restored; those that hardly ever are do not pay for the room on disk, and boot.
type Policy struct {
	// HalfLife is how long an invocation ago counts half as much.
	HalfLife time.Duration
	// FaaSnapPerDay is how often a function has to be invoked for a snapshot with
	// a recorded working set, which costs another start of the function and the
	// loading set's room; PlainPerDay for one without.
	FaaSnapPerDay, PlainPerDay float64
	// MaxSnapshots bounds how many snapshots are kept: those of the functions
	// that are invoked most.
	MaxSnapshots int
}

// DefaultPolicy takes a FaaSnap snapshot of every function that is invoked once
// in twelve hours or more, and drops it when it is invoked less than once in two
// days. Azure's functions that are invoked less are half of all (thesis 5.6.1).
func DefaultPolicy() Policy {
	return Policy{HalfLife: 24 * time.Hour, FaaSnapPerDay: 2, PlainPerDay: 0.5, MaxSnapshots: 64}
}

// Kind is what is kept of a function.
type Kind int

// The kinds, from the cheapest.
const (
	// None is no snapshot: the function boots.
	None Kind = iota
	// Plain is a snapshot of an idle machine, taken when it is let go.
	Plain
	// Recorded is a FaaSnap snapshot.
	Recorded
)

// rate is how often a function is invoked: a count that ages.
type rate struct {
	count float64
	at    time.Time
	// since is when the first invocation was.
	since time.Time
}

// note counts an invocation.
func (r *rate) note(now time.Time, halfLife time.Duration) {
	if r.since.IsZero() {
		r.since = now
	}
	r.count = r.aged(now, halfLife) + 1
	r.at = now
}

func (r *rate) aged(now time.Time, halfLife time.Duration) float64 {
	if r.at.IsZero() || now.Before(r.at) {
		return r.count
	}
	return r.count * math.Exp2(-now.Sub(r.at).Seconds()/halfLife.Seconds())
}

// perDay is the rate that would give this count for ever.
func (r *rate) perDay(now time.Time, halfLife time.Duration) float64 {
	return r.aged(now, halfLife) * math.Ln2 * (24 * time.Hour).Seconds() / halfLife.Seconds()
}

// choose returns what is worth keeping. Of a function that is new, nothing is
// known; one invocation is taken for the first of many.
func (p Policy) choose(r *rate, now time.Time) Kind {
	if r.count == 0 {
		return None
	}
	perDay := r.perDay(now, p.HalfLife)
	switch {
	case perDay >= p.FaaSnapPerDay || now.Sub(r.since) < p.HalfLife/2:
		return Recorded
	case perDay >= p.PlainPerDay:
		return Plain
	}
	return None
}
