package sophon

import "time"

// Drain places waiting jobs as far as they fit. Call it whenever memory or an
// idle container may have become available.
//
// The longest waiting job that fits comes first, with two exceptions. With a
// container-grained policy, a job whose function has an idle container comes
// before those that would evict something: under overload that is what keeps
// functions from taking each other's containers in turns (container thrashing,
// thesis 4.2). A job that has waited for 2 s is overtaken in that way 16 times
// at most. And since small jobs would keep a large one waiting for ever, a node
// is saved for the longest waiting job once it has waited for the patience
// (SetPatience): the node with the most available memory takes no other work
// until the job fits there, or until it is another node's turn.
func (s *Scheduler) Drain(now time.Time) []Placement {
	s.last = now
	if s.waits.len == 0 {
		return nil
	}
	var out []Placement
	if s.saved.job != nil && (!s.saved.node.online || s.saved.node.AvailableMB() >= s.saved.job.Function.MemoryMB) {
		j := s.saved.job
		s.giveBack()
		if j.Function.queue.jobs.first == j {
			out = s.try(j.Function.queue, out, now)
		}
	}
	for q := s.next(now); q != nil; q = s.next(now) {
		out = s.try(q, out, now)
	}
	s.waits.restore()
	s.save(now)
	return out
}

// next returns the queue whose first job is to be tried, or nil.
func (s *Scheduler) next(now time.Time) *queue {
	oldest := s.waits.earliest(s.cluster.offers.most())
	if s.grain == NodeGrained || len(s.waits.ready) == 0 {
		return oldest
	}
	warm := s.waits.earliestReady()
	switch {
	case warm == nil || warm == oldest:
		return oldest
	case oldest == nil || now.Sub(oldest.jobs.first.Arrived) < agedAfter:
		return warm
	case s.overtakes >= maxOvertakes:
		s.overtakes = 0
		return oldest
	}
	s.overtakes++
	return warm
}

// try places the first job of a queue, or sets the queue aside.
func (s *Scheduler) try(q *queue, out []Placement, now time.Time) []Placement {
	j := q.jobs.first
	d := s.choose(j, now)
	if d.Node == nil {
		s.waits.setAside(q)
		return out
	}
	s.dequeue(j)
	return append(out, s.commit(j, d, now))
}

// dequeue takes a job out of its queue, for whatever reason.
func (s *Scheduler) dequeue(j *Job) {
	s.waits.remove(j)
	if s.saved.job == j {
		s.giveBack()
	}
}

// save keeps a node free for the longest waiting job if it has waited enough.
// A node that has not become free within the patience gives way to another:
// what runs there may take very long.
func (s *Scheduler) save(now time.Time) {
	if s.patience <= 0 {
		return
	}
	var tried *Node
	if s.saved.job != nil {
		if now.Sub(s.saved.since) < s.patience {
			return
		}
		tried = s.saved.node
		s.giveBack()
	}
	q := s.waits.earliest(s.cluster.LargestMB())
	if q == nil || now.Sub(q.jobs.first.Arrived) < s.patience || (View{s.cluster}).Fits(q.function.MemoryMB) {
		return
	}
	if n := s.roomiest(q.function.MemoryMB, tried); n != nil {
		s.saved = saved{node: n, job: q.jobs.first, since: now}
		s.cluster.hold(n, true)
	}
}

// roomiest returns the node with the most available memory of those that are
// large enough; not tried, unless there is no other.
func (s *Scheduler) roomiest(memoryMB int64, tried *Node) *Node {
	best := View{s.cluster}.MostAvailable()
	if best != nil && best != tried && best.capacityMB >= memoryMB {
		return best
	}
	if best = tried; tried != nil && !tried.open() {
		best = nil
	}
	for _, n := range s.cluster.nodes {
		if n.open() && n.capacityMB >= memoryMB && n != tried && (best == nil || best == tried || n.AvailableMB() > best.AvailableMB()) {
			best = n
		}
	}
	return best
}

// giveBack ends what save did.
func (s *Scheduler) giveBack() {
	s.cluster.hold(s.saved.node, false)
	s.saved = saved{}
}

// Expire removes and returns the waiting jobs whose deadline has passed.
func (s *Scheduler) Expire(now time.Time) []*Job {
	var out []*Job
	for d := s.waits.deadlines.next(); !d.IsZero() && !now.Before(d); d = s.waits.deadlines.next() {
		j := s.waits.deadlines[0]
		s.dequeue(j)
		s.settle(j)
		out = append(out, j)
	}
	return out
}

// NextDeadline is when Expire has something to do next; zero is never.
func (s *Scheduler) NextDeadline() time.Time { return s.waits.deadlines.next() }

// Cancel removes a waiting job. It reports whether the job was waiting.
func (s *Scheduler) Cancel(j *Job) bool {
	if !j.waiting {
		return false
	}
	s.dequeue(j)
	s.settle(j)
	return true
}
