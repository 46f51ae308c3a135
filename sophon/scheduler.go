package sophon

import (
	"fmt"
	"time"
)

// How the Scheduler is fair to those that wait (see Drain).
const (
	// DefaultPatience is how long a job that fits nowhere waits before a node
	// is saved for it.
	DefaultPatience = 5 * time.Second
	// agedAfter is how long a job waits before it may be overtaken by warm
	// starts only maxOvertakes times in a row.
	agedAfter    = 2 * time.Second
	maxOvertakes = 16
)

// Placement is what an invoker is to be told.
type Placement struct {
	// Job is the invocation; nil for a container that is started in advance.
	Job  *Job
	Node *Node
	// Expect names the idle container to use, or is empty.
	Expect string
	// Container is the name for a new container: what a cold start makes.
	// With Expect it is a spare, for when that container is gone.
	Container string
	// AnyWarm asks the invoker to use an idle container of the function if it
	// has one, rather than to make Container: node-grained policies do not
	// know.
	AnyWarm bool
	// Evict are the containers that make room.
	Evict []string
	// Function is what the container is for.
	Function *Function

	made *Container
}

// Sent notes the number of the message that carries the placement to its node
// (Job.Seq). For a container that is started in advance it must be called, or
// the second full report (Sync) without that container takes it for lost.
func (p Placement) Sent(seq uint64) {
	if p.Job != nil {
		p.Job.Seq = seq
	}
	if p.made != nil && p.made.order != nil {
		p.made.order.seq = seq
	}
}

// Scheduler commits a policy's choices to a Cluster and keeps the jobs that
// fit nowhere in a queue for each function. It is not safe for concurrent use.
//
// The times that its methods are given must not go back.
type Scheduler struct {
	cluster  *Cluster
	policy   Policy
	grain    Grain
	observer Observer // the policy, if it observes
	newID    func() string
	patience time.Duration

	running int // jobs that are placed
	waits   waits
	jobs    uint64 // submitted
	// overtakes counts the warm starts since an aged job was last tried.
	overtakes int
	saved     saved
	last      time.Time // that a method was given
}

// saved is a node that is kept free for a job that fits nowhere.
type saved struct {
	node  *Node
	job   *Job
	since time.Time
}

// NewScheduler returns a scheduler. newID gives each new container a name that
// no other container of the cluster ever had. A policy that is a KeepAlive too
// orders eviction in a cluster that has no nodes yet and no other KeepAlive.
func NewScheduler(c *Cluster, p Policy, newID func() string) *Scheduler {
	if r, ok := p.(Restarter); ok {
		r.Restart()
	}
	o, _ := p.(Observer)
	if f, ok := p.(Forgetter); ok {
		c.forgot = f.Forgot
	}
	if k, ok := p.(KeepAlive); ok && c.keepAlive == nil && len(c.nodes) == 0 {
		c.keepAlive = k
	}
	return &Scheduler{cluster: c, policy: p, grain: p.Grain(), observer: o, newID: newID,
		patience: DefaultPatience}
}

// SetPatience sets how long a job that fits nowhere waits before a node is
// saved for it; 0 is for ever.
func (s *Scheduler) SetPatience(d time.Duration) { s.patience = d }

// Cluster is the state that the scheduler commits to.
func (s *Scheduler) Cluster() *Cluster { return s.cluster }

// Queued is how many jobs wait.
func (s *Scheduler) Queued() int { return s.waits.len }

// Running is how many jobs are placed and not finished.
func (s *Scheduler) Running() int { return s.running }

// Job returns a placed job, or nil. It looks at all jobs that are placed.
func (s *Scheduler) Job(id string) *Job {
	for _, n := range s.cluster.nodes {
		if j := n.jobs.find(id); j != nil {
			return j
		}
	}
	return nil
}

// Submit places a new job, or queues it where it fits nowhere or others of its
// function wait before it; ok tells which.
func (s *Scheduler) Submit(j *Job, now time.Time) (p Placement, ok bool) {
	s.last = now
	s.jobs++
	j.number = s.jobs
	j.Function.jobs++
	if s.observer != nil {
		s.observer.Arrived(j.Function, now)
	}
	if j.Function.queue == nil {
		if d := s.choose(j, now); d.Node != nil {
			return s.commit(j, d, now), true
		}
	}
	s.waits.add(j)
	return Placement{}, false
}

// Requeue puts a job that did not run back into its queue, in the order of
// arrival: a placed one, or one that Lose or Sync returned. A new container that was asked for it and not reported is taken
// for not made.
func (s *Scheduler) Requeue(j *Job) {
	switch {
	case j.waiting:
		return
	case j.node != nil:
		c := j.container
		s.finish(j)
		if c != nil && c.order != nil {
			s.remove(c, s.last)
		}
	default:
		j.Function.jobs++
	}
	j.Seq = 0
	s.waits.add(j)
}

// choose asks the policy, and checks its answer.
func (s *Scheduler) choose(j *Job, now time.Time) Decision {
	d := s.policy.Choose(View{s.cluster}, Request{Function: j.Function, Now: now})
	switch c := d.Container; {
	case d.Node == nil:
	case d.Node.index >= len(s.cluster.nodes) || s.cluster.nodes[d.Node.index] != d.Node:
		panic(fmt.Sprintf("policy %s chose node %s, which is not in the cluster", s.policy.Name(), d.Node.name))
	case !d.Node.Fits(j.Function.MemoryMB):
		panic(fmt.Sprintf("policy %s chose node %s, which does not fit", s.policy.Name(), d.Node.name))
	case c != nil && (!c.state.evictable() || c.group.node != d.Node || c.group.function != j.Function):
		panic(fmt.Sprintf("policy %s chose container %s, which is no idle one of the function on node %s", s.policy.Name(), c.id, d.Node.name))
	}
	return d
}

// commit carries out the policy's choice.
func (s *Scheduler) commit(j *Job, d Decision, now time.Time) Placement {
	p := Placement{Job: j, Node: d.Node, Container: s.newID(), Function: j.Function}
	c := d.Container
	switch {
	case c != nil:
		p.Expect = c.id
		s.setState(c, Busy, now)
	case s.grain == NodeGrained:
		p.AnyWarm = true
	default:
		p.Evict = s.evict(d, j.Function.MemoryMB, now)
		c = s.start(d.Node, j.Function, p.Container, p.Evict, now)
	}
	j.Seq, j.spare, j.node = 0, p.Container, d.Node
	d.Node.jobs.pushBack(j)
	s.running++
	if c != nil {
		s.claim(j, c)
	} else {
		s.cluster.reserve(j, j.Function.MemoryMB)
	}
	return p
}

// evict makes room for a cold start and names the containers to end.
func (s *Scheduler) evict(d Decision, memoryMB int64, now time.Time) []string {
	var names []string
	if d.Victims == nil {
		for v := d.Node.first; v != nil && d.Node.FreeMB() < memoryMB; v = d.Node.first {
			names = append(names, v.id)
			s.cluster.Evict(v)
			s.became(v, Gone, now)
		}
		return names
	}
	for _, v := range d.Victims {
		if !v.state.evictable() || v.group.node != d.Node {
			panic(fmt.Sprintf("policy %s evicts container %s, which is no idle one on node %s", s.policy.Name(), v.id, d.Node.name))
		}
		names = append(names, v.id)
		s.cluster.Evict(v)
		s.became(v, Gone, now)
	}
	return names
}

// claim gives a container to a job, in place of what it had.
func (s *Scheduler) claim(j *Job, c *Container) {
	s.unclaim(j)
	s.cluster.reserve(j, 0)
	j.container = c
	c.claim = j
}

func (s *Scheduler) unclaim(j *Job) {
	if j.container != nil && j.container.claim == j {
		j.container.claim = nil
	}
	j.container = nil
}

// start adds a container that an invoker is asked for.
func (s *Scheduler) start(n *Node, f *Function, id string, evict []string, now time.Time) *Container {
	c := s.cluster.Start(n, f, id, f.MemoryMB, now)
	c.order = &order{evict: evict}
	s.became(c, Starting, now)
	return c
}

func (s *Scheduler) setState(c *Container, st State, now time.Time) {
	s.cluster.SetState(c, st, now)
	if st.evictable() && c.group.function.queue != nil {
		s.waits.markReady(c.group.function.queue)
	}
	s.became(c, st, now)
}

func (s *Scheduler) remove(c *Container, now time.Time) {
	s.cluster.Remove(c)
	s.became(c, Gone, now)
}

func (s *Scheduler) became(c *Container, st State, now time.Time) {
	if s.observer != nil {
		s.observer.Became(c, st, now)
	}
}

// Finish forgets a placed job: it has ended, one way or another. Its
// container's new state comes by Apply. A job that is not placed is ignored.
func (s *Scheduler) Finish(j *Job) {
	if j.node == nil {
		return
	}
	if c := j.container; c != nil && c.order != nil {
		// Either the report that comes with the result names it, or it was
		// never made.
		n := c.group.node
		n.orphans = append(n.orphans, c)
	}
	s.finish(j)
	s.settle(j)
}

// finish takes a job off its node.
func (s *Scheduler) finish(j *Job) {
	s.running--
	s.unclaim(j)
	s.cluster.reserve(j, 0)
	j.node.jobs.remove(j)
	j.node = nil
}

// settle notes that a job is neither waiting nor running any more.
func (s *Scheduler) settle(j *Job) {
	j.Function.jobs--
	s.cluster.release(j.Function)
}

// Prewarm starts a container of f on n with nothing to run, and makes room for
// it. ok is false where it does not fit.
func (s *Scheduler) Prewarm(f *Function, n *Node, now time.Time) (p Placement, ok bool) {
	if !n.Fits(f.MemoryMB) {
		return Placement{}, false
	}
	s.last = now
	p = Placement{Node: n, Container: s.newID(), Function: f}
	p.Evict = s.evict(Decision{Node: n}, f.MemoryMB, now)
	p.made = s.start(n, f, p.Container, p.Evict, now)
	p.made.order.advance = true
	return p, true
}

// End forgets an idle container that its invoker is told to end, so that no
// job gets it any more. It reports whether the container was idle.
func (s *Scheduler) End(c *Container, now time.Time) bool {
	if !c.state.evictable() {
		return false
	}
	s.last = now
	s.remove(c, now)
	return true
}
