package microvm

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Policy says which functions are worth a snapshot, and which are worth a
// machine that is kept (thesis 5.6.1). Functions that are invoked often are
// served by warm machines, and need a snapshot for bursts and after evictions;
// those that are invoked less are restored; those that hardly ever are do not
// pay for the room on disk (5.6.2), and boot.
//
// It only decides: it has no clock, and does nothing.
type Policy struct {
	// HalfLife is how long an invocation ago counts half as much.
	HalfLife time.Duration
	// Trial is how long a function is new: nothing is known of it, and its first
	// invocation is taken for the first of many.
	Trial time.Duration
	// FaaSnapPerDay is how often a function has to be invoked for a snapshot with
	// a recorded working set, which costs another start of the function and the
	// loading set's room; PlainPerDay for one without. Both are for a snapshot of
	// ReferenceBytes that saves ReferenceSaving at each start; one that is twice
	// as large, or saves half as much, is worth it from twice as often.
	FaaSnapPerDay, PlainPerDay float64
	ReferenceBytes             int64
	ReferenceSaving            time.Duration
	// MaxWarm bounds how long a machine is worth keeping idle.
	MaxWarm time.Duration
	// MaxBytes bounds how much disk all snapshots have together.
	MaxBytes int64
	// MaxStandby bounds how many VMMs wait for restores (faasnap.Service.Standby),
	// at some tens of MB each; 0 is none.
	MaxStandby int
}

// DefaultPolicy takes a FaaSnap snapshot of a usual function that is invoked once
// in twelve hours or more, a plain one down to once in two days, and none below.
// Less than half of Azure's functions are invoked every hour, and less than a
// tenth every minute (thesis 5.6.1): warm machines are for the latter, with an
// interval to the next invocation of at most MaxWarm. A usual snapshot is one of
// 160 MiB that saves 5 s, as an emulated guest's with Python does.
func DefaultPolicy() Policy {
	return Policy{
		HalfLife: 24 * time.Hour, Trial: 12 * time.Hour, FaaSnapPerDay: 2, PlainPerDay: 0.5,
		ReferenceBytes: 160 << 20, ReferenceSaving: 5 * time.Second,
		MaxWarm: 10 * time.Minute, MaxBytes: 8 << 30,
	}
}

// check refuses what makes no sense.
func (p Policy) check() error {
	switch {
	case p.HalfLife <= 0 || p.ReferenceBytes <= 0 || p.ReferenceSaving <= 0:
		return errors.New("policy: HalfLife, ReferenceBytes and ReferenceSaving must be positive")
	case p.PlainPerDay < 0 || p.FaaSnapPerDay < p.PlainPerDay:
		return fmt.Errorf("policy: %v invocations a day for a FaaSnap snapshot are less than %v for a plain one", p.FaaSnapPerDay, p.PlainPerDay)
	case p.MaxWarm < 0 || p.MaxBytes < 0 || p.MaxStandby < 0:
		return errors.New("policy: MaxWarm, MaxBytes and MaxStandby must not be negative")
	}
	return nil
}

// Kind is what is kept of a function on disk.
type Kind int

// The kinds, from the cheapest.
const (
	// None is no snapshot: the function boots.
	None Kind = iota
	// Plain is a snapshot without a recorded working set.
	Plain
	// FaaSnap is one with.
	FaaSnap
)

// String returns the kind in words.
func (k Kind) String() string {
	switch k {
	case None:
		return "none"
	case Plain:
		return "plain"
	case FaaSnap:
		return "faasnap"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Load is what is known of a function.
type Load struct {
	// PerDay is how often it is invoked, and New says that it has not been known
	// for long enough to tell.
	PerDay float64
	New    bool
	// SnapshotBytes is the room of its snapshot, and Saving what a start from it
	// saves; 0 is not known, and taken for the reference.
	SnapshotBytes int64
	Saving        time.Duration
}

// Choice is what a function is worth.
type Choice struct {
	// KeepWarm is how long an idle machine is worth keeping; 0 is not at all.
	// Invokers, which do that, have a setting of their own for all functions.
	KeepWarm time.Duration
	// Snapshot is what to keep on disk.
	Snapshot Kind
}

// Choose decides.
func (p Policy) Choose(l Load) Choice {
	var c Choice
	// Twice the mean interval has the next invocation in it six times of seven.
	if l.PerDay > 0 {
		interval := 24 * time.Hour.Seconds() / l.PerDay
		if interval <= p.MaxWarm.Seconds() {
			c.KeepWarm = time.Duration(min(2*interval, p.MaxWarm.Seconds()) * float64(time.Second))
		}
	}
	worth := l.PerDay / p.cost(l)
	switch {
	case l.PerDay > 0 && (l.New || worth >= p.FaaSnapPerDay):
		c.Snapshot = FaaSnap
	case l.PerDay > 0 && worth >= p.PlainPerDay:
		c.Snapshot = Plain
	}
	return c
}

// cost is what a snapshot costs for what it saves; 1 is usual.
func (p Policy) cost(l Load) float64 {
	bytes, saving := cmp.Or(l.SnapshotBytes, p.ReferenceBytes), cmp.Or(l.Saving, p.ReferenceSaving)
	// What saves next to nothing is not worth it at any rate.
	saving = max(saving, time.Millisecond)
	return float64(bytes) / float64(p.ReferenceBytes) * float64(p.ReferenceSaving) / float64(saving)
}

// Kept is a snapshot that is there.
type Kept struct {
	Name string
	Kind Kind
	Load
	// Worthless says that nothing can use it.
	Worthless bool
}

// Evict returns the names of the snapshots to remove so that adding one of that
// many bytes keeps within MaxBytes: those that are not worth their room, and
// then, while it is too much, those that save the least for their room. More
// than there is room for can be added only if nothing else is left.
func (p Policy) Evict(kept []Kept, adding int64) []string {
	var remove []string
	total := adding
	var rest []Kept
	for _, k := range kept {
		if k.Worthless || p.Choose(k.Load).Snapshot == None {
			remove = append(remove, k.Name)
			continue
		}
		total += k.SnapshotBytes
		rest = append(rest, k)
	}
	slices.SortFunc(rest, func(a, b Kept) int {
		return cmp.Or(cmp.Compare(a.PerDay/p.cost(a.Load), b.PerDay/p.cost(b.Load)), cmp.Compare(a.Name, b.Name))
	})
	for _, k := range rest {
		if total <= p.MaxBytes {
			break
		}
		total -= k.SnapshotBytes
		remove = append(remove, k.Name)
	}
	return remove
}

// Standby returns the names of the snapshots that a VMM shall wait for: those of
// the functions that are invoked most often, whose bursts go beyond the machines
// that are warm, as far as FaaSnap restores them.
func (p Policy) Standby(kept []Kept) []string {
	kept = slices.DeleteFunc(slices.Clone(kept), func(k Kept) bool { return k.Worthless || k.Kind != FaaSnap })
	slices.SortFunc(kept, func(a, b Kept) int { return cmp.Or(cmp.Compare(b.PerDay, a.PerDay), cmp.Compare(a.Name, b.Name)) })
	var names []string
	for _, k := range kept[:min(len(kept), p.MaxStandby)] {
		names = append(names, k.Name)
	}
	return names
}

// rate is how often a function is invoked: a count that ages.
type rate struct {
	count float64
	at    time.Time
	// since is when the function became known.
	since time.Time
}

// note counts an invocation.
func (r *rate) note(now time.Time, halfLife time.Duration) {
	if r.since.IsZero() {
		r.since = now
	}
	r.count = r.aged(now, halfLife) + 1
	if now.After(r.at) {
		r.at = now
	}
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

// isNew reports whether the function has not been known for long.
func (r *rate) isNew(now time.Time, trial time.Duration) bool { return now.Sub(r.since) < trial }
