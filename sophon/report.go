package sophon

import (
	"cmp"
	"slices"
	"time"
)

// Change is a container's new state, as its invoker reports it.
type Change struct {
	Container string
	State     State
	// Function and MemoryMB describe the container, in case it is not known.
	Function *Function
	MemoryMB int64
	// Job is the id of the job that it starts or runs, if any.
	Job string
	// Cold is how long the container took to start, on the change that ends
	// the start.
	Cold time.Duration
	// Used and Made are when an idle container was last used and made, and
	// Uses how often it was used, in full reports; zero if not known. They
	// keep the order of eviction over a change of the controller.
	Used, Made time.Time
	Uses       int
}

// Apply takes in what an invoker reports, in the order it happened. Finish
// comes first for jobs whose results came with the report, Requeue for those
// that it gives back.
func (s *Scheduler) Apply(n *Node, changes []Change, now time.Time) {
	s.last = now
	for i := range changes {
		s.apply(n, &changes[i], now)
	}
	s.dropOrphans(n, now)
}

// dropOrphans removes the containers that were asked for by jobs that have
// ended, and that the invoker has not mentioned.
func (s *Scheduler) dropOrphans(n *Node, now time.Time) {
	for i, c := range n.orphans {
		if c.order != nil && c.claim == nil && c.state != Gone {
			s.remove(c, now)
		}
		n.orphans[i] = nil
	}
	n.orphans = n.orphans[:0]
}

func (s *Scheduler) apply(n *Node, ch *Change, now time.Time) {
	c := s.cluster.Lookup(n, ch.Container)
	if ch.State == Gone {
		if c != nil {
			s.remove(c, now)
		}
		return
	}
	if c == nil {
		c = s.cluster.Start(n, ch.Function, ch.Container, ch.MemoryMB, now)
		if !ch.Made.IsZero() {
			c.made = ch.Made
		}
		c.uses = ch.Uses
		s.became(c, Starting, now)
	}
	c.order = nil
	if ch.Cold > 0 && s.observer != nil {
		s.observer.ColdStarted(c.group.function, ch.Cold, now)
	}
	idle := ch.State.evictable()
	if idle && c.claim != nil {
		return // reported before the message that gave it to a job came
	}
	if ch.Job != "" && !idle && (c.claim == nil || c.claim.ID != ch.Job) {
		if j := n.jobs.find(ch.Job); j != nil {
			s.redirect(j, c, now)
		}
	}
	if c.state != ch.State {
		at := now
		if idle && !ch.Used.IsZero() && ch.Used.Before(now) {
			at = ch.Used
		}
		s.setState(c, ch.State, at)
	}
}

// redirect notes that the invoker runs a job elsewhere than it was told to.
func (s *Scheduler) redirect(j *Job, c *Container, now time.Time) {
	old, other := j.container, c.claim
	s.claim(j, c)
	if old != nil && old.order != nil && old.claim == nil && old.state != Gone {
		s.remove(old, now) // asked for, and not made
	}
	if other != nil { // is on its way, and will have to use its spare
		s.useSpare(other, now)
	}
}

// useSpare gives a job the new container that it falls back to.
func (s *Scheduler) useSpare(j *Job, now time.Time) {
	c := s.cluster.Lookup(j.node, j.spare)
	if c == nil {
		c = s.start(j.node, j.Function, j.spare, nil, now)
	}
	s.claim(j, c)
}

// Sync replaces what is known of a node by a full report. seen is the Seq of
// the last message that the invoker had received when it wrote the report. The
// result is the jobs that were sent before that, but that the invoker does not
// know: they are lost, and no longer placed. Jobs that were sent later, or are
// not sent yet, keep their containers, and so do containers that were asked for
// in advance; containers that such a message ends stay forgotten.
func (s *Scheduler) Sync(n *Node, full []Change, seen uint64, now time.Time) (lost []*Job) {
	s.last = now
	reported, runs := make(map[string]bool, len(full)), make(map[string]bool)
	for _, ch := range full {
		if ch.State == Gone {
			continue
		}
		reported[ch.Container] = true
		if ch.Job != "" {
			runs[ch.Job] = true
		}
	}
	var flying []*Job
	for j := n.jobs.first; j != nil; {
		next := j.next
		switch sent := j.Seq != 0 && j.Seq <= seen; {
		case runs[j.ID]:
			s.unclaim(j) // until the report names its container
		case sent:
			lost = append(lost, j)
			s.finish(j)
			s.settle(j)
		default:
			flying = append(flying, j)
		}
		j = next
	}
	ending := map[string]bool{}
	for _, c := range n.sorted() {
		switch {
		case s.flies(c, reported, seen):
			for _, id := range c.order.evict {
				ending[id] = true
			}
		case !reported[c.id]:
			s.remove(c, now)
		}
	}
	for i := range full {
		if !ending[full[i].Container] {
			s.apply(n, &full[i], now)
		}
	}
	for _, j := range flying {
		if j.reservedMB == 0 && (j.container == nil || j.container.state == Gone) { // it will find that out
			s.useSpare(j, now)
		}
	}
	s.dropOrphans(n, now)
	slices.SortFunc(lost, bySeq)
	return lost
}

// flies reports whether a container is missing in a full report because the
// invoker had not been asked for it when it wrote the report.
func (s *Scheduler) flies(c *Container, reported map[string]bool, seen uint64) bool {
	o := c.order
	switch {
	case o == nil || reported[c.id]:
		return false
	case !o.advance: // its job has not arrived either, if it still has one
		return c.claim != nil
	case o.seq != 0:
		return o.seq > seen
	}
	spare := !o.spared
	o.spared = true
	return spare
}

func bySeq(a, b *Job) int {
	return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.number, b.number))
}

// Lose marks a node offline, forgets its containers, and returns the jobs that
// were placed there; they are no longer placed.
func (s *Scheduler) Lose(n *Node, now time.Time) (lost []*Job) {
	s.last = now
	for j := n.jobs.first; j != nil; j = n.jobs.first {
		lost = append(lost, j)
		s.finish(j)
		s.settle(j)
	}
	slices.SortFunc(lost, bySeq)
	for _, c := range n.sorted() {
		s.remove(c, now)
	}
	clear(n.orphans)
	n.orphans = n.orphans[:0]
	s.cluster.SetOnline(n, false)
	if s.saved.node == n {
		s.giveBack()
	}
	return lost
}
