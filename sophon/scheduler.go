package sophon

import (
	"slices"
	"time"
)

// Job is one invocation on its way through a Scheduler. The caller makes it
// and fills in the exported fields; one job is submitted once.
type Job struct {
	ID       string
	Function *Function
	Arrived  time.Time
	// Deadline is until when it may wait for a place; zero is for ever.
	Deadline time.Time
	// Seq is the number of the message that sent it to its node, counted by
	// the caller for each node; see Sync.
	Seq uint64
	// Value is the caller's.
	Value any

	node      *Node
	container *Container
}

// Node is where the job runs or is being sent, or nil.
func (j *Job) Node() *Node { return j.node }

// Container is the container that the job is thought to run in, or nil.
func (j *Job) Container() *Container { return j.container }

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
}

// Scheduler commits a policy's choices to a Cluster and keeps the jobs that
// fit nowhere in a queue for each function. It is not safe for concurrent use.
type Scheduler struct {
	cluster  *Cluster
	policy   Policy
	observer Observer // the policy, if it observes
	newID    func() string

	running map[string]*Job
	waiting map[*Function][]*Job
	queued  int
}

// NewScheduler returns a scheduler. newID gives each new container a name that
// no other container of the cluster ever had.
func NewScheduler(c *Cluster, p Policy, newID func() string) *Scheduler {
	o, _ := p.(Observer)
	return &Scheduler{cluster: c, policy: p, observer: o, newID: newID,
		running: map[string]*Job{}, waiting: map[*Function][]*Job{}}
}

// Cluster is the state that the scheduler commits to.
func (s *Scheduler) Cluster() *Cluster { return s.cluster }

// Queued is how many jobs wait.
func (s *Scheduler) Queued() int { return s.queued }

// Running is how many jobs are placed and not finished.
func (s *Scheduler) Running() int { return len(s.running) }

// Job returns a placed job, or nil.
func (s *Scheduler) Job(id string) *Job { return s.running[id] }

// Submit places a new job, or queues it where it fits nowhere or others of its
// function wait before it; ok tells which.
func (s *Scheduler) Submit(j *Job, now time.Time) (p Placement, ok bool) {
	if s.observer != nil {
		s.observer.Arrived(j.Function, now)
	}
	if len(s.waiting[j.Function]) == 0 {
		if p, ok = s.place(j, now); ok {
			return p, true
		}
	}
	s.waiting[j.Function] = append(s.waiting[j.Function], j)
	s.queued++
	return Placement{}, false
}

// Requeue puts a placed job that did not run back at the head of its queue.
func (s *Scheduler) Requeue(j *Job) {
	s.Finish(j)
	s.waiting[j.Function] = slices.Insert(s.waiting[j.Function], 0, j)
	s.queued++
}

// place asks the policy and commits its choice.
func (s *Scheduler) place(j *Job, now time.Time) (Placement, bool) {
	d := s.policy.Choose(View{s.cluster}, Request{Function: j.Function, Now: now})
	if d.Node == nil {
		return Placement{}, false
	}
	p := Placement{Job: j, Node: d.Node, Container: s.newID(), Function: j.Function}
	if d.Container != nil {
		p.Expect = d.Container.id
		s.setState(d.Container, Busy, now)
		s.claim(j, d.Container)
		s.running[j.ID] = j
		return p, true
	}
	if s.policy.Grain() == NodeGrained {
		p.AnyWarm = true
	} else {
		p.Evict = s.evict(d, j.Function.MemoryMB, now)
	}
	s.claim(j, s.start(d.Node, j.Function, p.Container, now))
	s.running[j.ID] = j
	return p, true
}

// evict makes room for a cold start and names the containers to end.
func (s *Scheduler) evict(d Decision, memoryMB int64, now time.Time) []string {
	victims := d.Victims
	if victims == nil {
		victims, _ = d.Node.Victims(memoryMB)
	}
	var names []string
	for _, v := range victims {
		names = append(names, v.id)
		s.cluster.Evict(v)
		s.became(v, Gone, now)
	}
	return names
}

func (s *Scheduler) claim(j *Job, c *Container) {
	s.unclaim(j)
	j.node, j.container = c.node, c
	c.claim = j
}

func (s *Scheduler) unclaim(j *Job) {
	if j.container != nil && j.container.claim == j {
		j.container.claim = nil
	}
	j.container = nil
}

func (s *Scheduler) start(n *Node, f *Function, id string, now time.Time) *Container {
	c := s.cluster.Start(n, f, id, f.MemoryMB, now)
	s.became(c, Starting, now)
	return c
}

func (s *Scheduler) setState(c *Container, st State, now time.Time) {
	s.cluster.SetState(c, st, now)
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
// container's new state comes by Apply.
func (s *Scheduler) Finish(j *Job) {
	delete(s.running, j.ID)
	s.unclaim(j)
	j.node = nil
}

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
}

// Apply takes in what an invoker reports, in the order it happened. Finish
// comes first for jobs whose results came with the report.
func (s *Scheduler) Apply(n *Node, changes []Change, now time.Time) {
	for _, ch := range changes {
		s.apply(n, ch, now)
	}
}

func (s *Scheduler) apply(n *Node, ch Change, now time.Time) {
	c := s.cluster.Lookup(n, ch.Container)
	if ch.State == Gone {
		if c != nil {
			s.remove(c, now)
		}
		return
	}
	if c == nil {
		c = s.cluster.Start(n, ch.Function, ch.Container, ch.MemoryMB, now)
		s.became(c, Starting, now)
	}
	if ch.Cold > 0 && s.observer != nil {
		s.observer.ColdStarted(c.function, ch.Cold, now)
	}
	idle := ch.State == Idle || ch.State == Paused
	if idle && c.claim != nil {
		return // reported before the message that gave it to a job came
	}
	if j := s.running[ch.Job]; j != nil && !idle && j.container != c {
		s.claim(j, c)
	}
	if c.state != ch.State {
		s.setState(c, ch.State, now)
	}
}

// Sync replaces what is known of a node by a full report. seen is the Seq of
// the last message that the invoker had received when it wrote the report. The
// result is the jobs that were sent before that, but that the invoker does not
// know: they are lost, and no longer placed.
func (s *Scheduler) Sync(n *Node, full []Change, seen uint64, now time.Time) (lost []*Job) {
	var placed []*Job
	for _, j := range s.running {
		if j.node == n {
			placed = append(placed, j)
		}
	}
	slices.SortFunc(placed, func(a, b *Job) int { return int(int64(a.Seq) - int64(b.Seq)) })
	wanted := map[*Job]string{}
	for _, j := range placed {
		if j.container != nil {
			wanted[j] = j.container.id
		}
		s.unclaim(j)
	}
	s.clear(n, now)
	s.Apply(n, full, now)
	for _, j := range placed {
		switch {
		case j.container != nil: // the report knows it
		case j.Seq <= seen:
			s.Finish(j)
			lost = append(lost, j)
		default: // on its way
			c := s.cluster.Lookup(n, wanted[j])
			if c == nil {
				c = s.start(n, j.Function, wanted[j], now)
			} else if c.evictable() {
				s.setState(c, Busy, now)
			}
			s.claim(j, c)
		}
	}
	return lost
}

func (s *Scheduler) clear(n *Node, now time.Time) {
	for _, c := range n.containers {
		s.remove(c, now)
	}
}

// Lose marks a node offline, forgets its containers, and returns the jobs that
// were placed there; they are no longer placed.
func (s *Scheduler) Lose(n *Node, now time.Time) (lost []*Job) {
	for _, j := range s.running {
		if j.node == n {
			lost = append(lost, j)
		}
	}
	slices.SortFunc(lost, func(a, b *Job) int { return int(int64(a.Seq) - int64(b.Seq)) })
	for _, j := range lost {
		s.Finish(j)
	}
	s.clear(n, now)
	s.cluster.SetOnline(n, false)
	return lost
}

// Drain places waiting jobs, the longest waiting first, as far as they fit.
func (s *Scheduler) Drain(now time.Time) []Placement {
	var out []Placement
	for s.queued > 0 {
		n := len(out)
		out = s.drainOnce(out, now)
		if len(out) == n {
			break
		}
	}
	return out
}

// drainOnce tries the head of every queue that could fit.
func (s *Scheduler) drainOnce(out []Placement, now time.Time) []Placement {
	most := int64(-1)
	for _, n := range s.cluster.nodes {
		if n.online {
			most = max(most, n.AvailableMB())
		}
	}
	var heads []*Job
	for f, q := range s.waiting {
		if f.MemoryMB <= most {
			heads = append(heads, q[0])
		}
	}
	slices.SortFunc(heads, func(a, b *Job) int {
		if c := a.Arrived.Compare(b.Arrived); c != 0 {
			return c
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	for _, j := range heads {
		if p, ok := s.place(j, now); ok {
			out = append(out, p)
			s.pop(j.Function)
		}
	}
	return out
}

func (s *Scheduler) pop(f *Function) *Job {
	q := s.waiting[f]
	j := q[0]
	q[0] = nil
	if len(q) == 1 {
		delete(s.waiting, f)
	} else {
		s.waiting[f] = q[1:]
	}
	s.queued--
	return j
}

// Expire removes and returns the waiting jobs whose deadline has passed.
func (s *Scheduler) Expire(now time.Time) []*Job {
	var out []*Job
	for f, q := range s.waiting {
		for len(q) > 0 && !q[0].Deadline.IsZero() && !now.Before(q[0].Deadline) {
			out = append(out, s.pop(f))
			q = s.waiting[f]
		}
	}
	return out
}

// Cancel removes a waiting job. It reports whether the job was waiting.
func (s *Scheduler) Cancel(j *Job) bool {
	q := s.waiting[j.Function]
	i := slices.Index(q, j)
	if i < 0 {
		return false
	}
	if q = slices.Delete(q, i, i+1); len(q) == 0 {
		delete(s.waiting, j.Function)
	} else {
		s.waiting[j.Function] = q
	}
	s.queued--
	return true
}

// Prewarm starts a container of f on n with nothing to run, and makes room for
// it. ok is false where it does not fit.
func (s *Scheduler) Prewarm(f *Function, n *Node, now time.Time) (p Placement, ok bool) {
	if !n.Fits(f.MemoryMB) {
		return Placement{}, false
	}
	p = Placement{Node: n, Container: s.newID(), Function: f}
	p.Evict = s.evict(Decision{Node: n}, f.MemoryMB, now)
	s.start(n, f, p.Container, now)
	return p, true
}
