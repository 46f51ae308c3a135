package invoker

import (
	"container/heap"
	"slices"
	"strings"
	"time"

	"github.com/volley-run/volley/sophon"
)

// DefaultKeepAlive is how long an idle container is kept (thesis 4.2).
const DefaultKeepAlive = 10 * time.Minute

// PoolConfig says how a Pool keeps its containers.
type PoolConfig struct {
	Name string
	// CapacityMB is the memory for containers, in MiB.
	CapacityMB int64
	// KeepAlive ends a container that was idle for so long; 0 is
	// DefaultKeepAlive, negative never.
	KeepAlive time.Duration
	// PauseAfter has a container paused that was idle for so long; 0 never.
	PauseAfter time.Duration
	// Eviction orders the idle containers; nil is least recently used first.
	Eviction sophon.KeepAlive
}

// Order is what the controller asks of a Pool: to run a job, or to start a
// container in advance. See wire.Run.
type Order struct {
	// Job is the id of the invocation; empty starts a container in advance.
	Job string
	// Function is whose container it takes. The Pool reads its key, name and
	// memory, and hands the pointer back in its changes; so a caller that
	// applies these to a Scheduler gives it the Scheduler's own Function.
	Function *sophon.Function
	// Expect names the idle container to use; empty for a cold start.
	Expect string
	// Container is the name for a new container.
	Container string
	// AnyWarm takes any idle container of the function before a new one.
	AnyWarm bool
	// Evict names the containers that make room.
	Evict []string
	// KeepAlive, if not 0, is this container's own instead of the Pool's;
	// negative is for ever.
	KeepAlive time.Duration
}

// OrderOf returns the order that carries out a scheduler's placement.
func OrderOf(p sophon.Placement) Order {
	o := Order{Function: p.Function, Expect: p.Expect, Container: p.Container, AnyWarm: p.AnyWarm, Evict: p.Evict}
	if p.Job != nil {
		o.Job = p.Job.ID
	}
	return o
}

// Verdict is what a Pool makes of an Order.
type Verdict uint8

// The verdicts.
const (
	// Warm: the job runs in a container that was idle.
	Warm Verdict = iota + 1
	// Cold: a container is to be started.
	Cold
	// Refused: it does not fit, even without all idle containers.
	Refused
)

// Outcome is what is to be done about an Order.
type Outcome struct {
	Verdict Verdict
	// Container is the container to use or to start; empty if refused.
	Container string
	// Paused says that the warm container has to be resumed.
	Paused bool
	// Wait says that a cold start must not begin before Ready names it: the
	// memory that it was given is still being freed.
	Wait bool
	// Close are the containers to close, which are no longer in the pool.
	// Closed is due for each.
	Close []string
	// Stale says that the controller expected something that was not so.
	Stale bool
}

// Pool decides about the containers of one node. It keeps two accounts. In the
// first, an evicted container's memory is free at once: that is what the
// controller reckons with, and starting plus busy plus idle containers never
// exceed the capacity. The second holds what is really there: memory is taken
// when a start may begin, and free when the container has been closed. A start
// for which there is room in the first account only has to wait, so that the
// second one does not exceed the capacity either.
//
// Every method that takes the time expects it not to go back by much; order in
// the pool is by the calls. A Pool is not safe for concurrent use.
type Pool struct {
	config  PoolConfig
	cluster *sophon.Cluster
	node    *sophon.Node
	slots   map[string]*slot
	due     dueQueue
	changes []sophon.Change

	// The second account.
	takenMB int64
	closing map[string]int64 // memory of containers being closed
	waiting []*slot          // starts for which there is no room yet, in order
	ready   []string
}

// slot is one container of the pool.
type slot struct {
	*sophon.Container
	owner     *sophon.Function // the caller's
	job       string
	keepAlive time.Duration
	ending    bool // to be ended when it is no longer in use
	waits     bool // is in Pool.waiting
	cold      time.Duration
	due       time.Time // when Expire looks at it again
	index     int       // in Pool.due, or -1
}

// idle reports whether the container can be given to a job.
func (s *slot) idle() bool { return s.State() == sophon.Idle || s.State() == sophon.Paused }

// NewPool returns an empty pool.
func NewPool(c PoolConfig) *Pool {
	if c.KeepAlive == 0 {
		c.KeepAlive = DefaultKeepAlive
	}
	p := &Pool{config: c, cluster: sophon.NewCluster(c.Eviction), slots: map[string]*slot{}, closing: map[string]int64{}}
	p.node = p.cluster.AddNode(c.Name, c.CapacityMB)
	return p
}

// Node shows the pool's memory and containers. It belongs to the pool.
func (p *Pool) Node() *sophon.Node { return p.node }

// Len is how many containers there are.
func (p *Pool) Len() int { return len(p.slots) }

// TakenMB is the memory of the containers that really exist: those being
// closed count, those that wait for room do not.
func (p *Pool) TakenMB() int64 { return p.takenMB }

// Job is the job that a container starts for or runs, or empty.
func (p *Pool) Job(container string) string {
	if s := p.slots[container]; s != nil {
		return s.job
	}
	return ""
}

// Run decides about an order.
func (p *Pool) Run(o Order, now time.Time) Outcome {
	var out Outcome
	if s := p.warm(o, &out); s != nil {
		out.Verdict, out.Container, out.Paused = Warm, s.ID(), s.State() == sophon.Paused
		s.job = o.Job
		p.setState(s, sophon.Busy, now)
		if o.Expect == "" {
			p.gone(o.Container) // the controller counts on it
		}
		p.disown(o.Evict)
		return out
	}
	if !p.node.Fits(o.Function.MemoryMB) || p.slots[o.Container] != nil {
		out.Verdict = Refused
		p.cluster.Forget(p.function(o.Function)) // unless it has containers
		if p.slots[o.Container] == nil {
			p.gone(o.Container)
		}
		p.disown(o.Evict)
		return out
	}
	out.Verdict, out.Container = Cold, o.Container
	p.makeRoom(o, &out)
	out.Wait = p.start(o, now)
	return out
}

// warm finds the idle container for an order, if it may use one and there is one.
func (p *Pool) warm(o Order, out *Outcome) *slot {
	if o.Job == "" {
		return nil
	}
	if o.Expect != "" {
		if s := p.slots[o.Expect]; s != nil && s.idle() && s.Function().Key == o.Function.Key {
			return s
		}
		out.Stale = true
	} else if !o.AnyWarm {
		return nil
	}
	var best *sophon.Container
	for _, c := range p.function(o.Function).Idle() {
		if best == nil || warmer(c, best) {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	return p.slots[best.ID()]
}

// warmer orders containers for use: those that need no resume, then the one
// that was used last, which leaves the others to expire.
func warmer(a, b *sophon.Container) bool {
	if a.State() != b.State() {
		return a.State() == sophon.Idle
	}
	if c := a.LastUsed().Compare(b.LastUsed()); c != 0 {
		return c > 0
	}
	return a.ID() > b.ID()
}

// makeRoom evicts what the controller named, as far as it is idle, and then as
// much as it takes.
func (p *Pool) makeRoom(o Order, out *Outcome) {
	for _, id := range o.Evict {
		switch s := p.slots[id]; {
		case s != nil && s.idle():
			out.Close = append(out.Close, p.evict(s))
		case s != nil:
			p.changed(s) // it is still there
			out.Stale = true
		default:
			out.Stale = true
		}
	}
	victims, _ := p.node.Victims(o.Function.MemoryMB) // Run has checked that it fits
	for _, v := range victims {
		out.Close = append(out.Close, p.evict(p.slots[v.ID()]))
	}
}

// Decline reports that nothing comes of an order: the controller gets its view
// of the containers back that the order names, and of the one that has the job
// already, if there is one.
func (p *Pool) Decline(o Order, running string) {
	if s := p.slots[running]; s != nil {
		p.changed(s)
	}
	if s := p.slots[o.Expect]; s != nil {
		p.changed(s)
	}
	if p.slots[o.Container] == nil {
		p.gone(o.Container)
	}
	p.disown(o.Evict)
}

// disown reports containers that the controller took for evicted.
func (p *Pool) disown(ids []string) {
	for _, id := range ids {
		if s := p.slots[id]; s != nil {
			p.changed(s)
		}
	}
}

// start adds a container, and tells whether its start must wait.
func (p *Pool) start(o Order, now time.Time) (wait bool) {
	s := &slot{
		Container: p.cluster.Start(p.node, p.function(o.Function), o.Container, o.Function.MemoryMB, now),
		owner:     o.Function, job: o.Job, keepAlive: o.KeepAlive, index: -1,
	}
	if s.keepAlive == 0 {
		s.keepAlive = p.config.KeepAlive
	}
	p.slots[o.Container] = s
	p.changed(s)
	if len(p.waiting) > 0 || p.takenMB+s.MemoryMB() > p.config.CapacityMB {
		s.waits = true
		p.waiting = append(p.waiting, s)
		return true
	}
	p.takenMB += s.MemoryMB()
	return false
}

// Started tells that a container has been started, which took so long. Its
// state is now Busy with its job, or Idle. It reports false if the container
// is to be closed instead: it was ended meanwhile.
func (p *Pool) Started(container string, took time.Duration, now time.Time) (keep bool) {
	s := p.slots[container]
	if s == nil {
		return false
	}
	s.cold = took
	if l, ok := p.config.Eviction.(learner); ok {
		l.ColdStarted(s.Function(), took)
	}
	if s.job != "" {
		p.setState(s, sophon.Busy, now)
		return true
	}
	return p.release(s, now)
}

// StartFailed tells that a container could not be started, or that its start
// was given up; nothing of it is left. Ask Ready afterwards.
func (p *Pool) StartFailed(container string) {
	s := p.slots[container]
	if s == nil {
		p.Closed(container) // it was ended meanwhile
		return
	}
	waited := s.waits
	p.remove(s)
	if waited {
		p.waiting = slices.DeleteFunc(p.waiting, func(w *slot) bool { return w == s })
		s.waits = false
		delete(p.closing, container)
		p.admit()
		return
	}
	p.Closed(container)
}

// Detach takes the job from a container that is still starting: nobody waits
// for it any longer. The container goes on, and will be idle.
func (p *Pool) Detach(container string) {
	if s := p.slots[container]; s != nil && s.State() == sophon.Starting {
		s.job = ""
		p.changed(s)
	}
}

// Finished tells that a container's job has ended. It reports false if the
// container is to be closed: it is broken, or was to be ended.
func (p *Pool) Finished(container string, broken bool, now time.Time) (keep bool) {
	s := p.slots[container]
	if s == nil {
		return false
	}
	s.job = ""
	if broken {
		p.remove(s)
		return false
	}
	return p.release(s, now)
}

// release makes a container idle, or removes one that was to be ended.
func (p *Pool) release(s *slot, now time.Time) (keep bool) {
	if s.ending {
		p.remove(s)
		return false
	}
	p.setState(s, sophon.Idle, now)
	p.watch(s)
	return true
}

// Ended tells that an idle container has ended by itself. It reports false if
// the container was in use, in which case its end comes with Finished, or not
// there. Where it reports true, Closed is due as always.
func (p *Pool) Ended(container string) bool {
	s := p.slots[container]
	if s == nil || !s.idle() {
		return false
	}
	p.remove(s)
	return true
}

// End ends containers: at once those that are idle, which are returned to be
// closed, and the others as soon as they are no longer in use.
func (p *Pool) End(containers []string) (toClose []string) {
	for _, id := range containers {
		s := p.slots[id]
		switch {
		case s == nil:
			p.gone(id)
		case s.idle():
			p.remove(s)
			toClose = append(toClose, id)
		default:
			s.ending = true
			p.changed(s)
		}
	}
	return toClose
}

// Paused tells that an idle container has been paused.
func (p *Pool) Paused(container string) {
	if s := p.slots[container]; s != nil && s.State() == sophon.Idle {
		p.cluster.SetState(s.Container, sophon.Paused, s.LastUsed())
		p.changed(s)
	}
}

// Closed tells that a container that was to be closed is really gone. Ask
// Ready afterwards.
func (p *Pool) Closed(container string) {
	memoryMB, ok := p.closing[container]
	if !ok {
		return
	}
	delete(p.closing, container)
	p.takenMB -= memoryMB
	p.admit()
}

// admit lets waiting starts begin as far as there is room, in order.
func (p *Pool) admit() {
	for len(p.waiting) > 0 {
		s := p.waiting[0]
		if p.takenMB+s.MemoryMB() > p.config.CapacityMB {
			return
		}
		p.takenMB += s.MemoryMB()
		s.waits = false
		p.ready = append(p.ready, s.ID())
		p.waiting[0] = nil
		p.waiting = p.waiting[1:]
	}
}

// Ready returns the starts that had to wait and may begin now, each once.
func (p *Pool) Ready() []string {
	ready := p.ready
	p.ready = nil
	return ready
}

// Changes returns what has changed since the last call, in order. Reported to
// a Scheduler, they make its view of the node the pool's. The slice is the
// caller's.
func (p *Pool) Changes() []sophon.Change {
	changes := p.changes
	p.changes = nil
	return changes
}

// Pending reports whether there are changes to report.
func (p *Pool) Pending() bool { return len(p.changes) > 0 }

// Snapshot returns a change for every container there is, the least recently
// used first. It replaces the changes that were not yet taken.
func (p *Pool) Snapshot() []sophon.Change {
	all := make([]*slot, 0, len(p.slots))
	for _, s := range p.slots {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *slot) int {
		if c := a.LastUsed().Compare(b.LastUsed()); c != 0 {
			return c
		}
		return strings.Compare(a.ID(), b.ID())
	})
	p.changes = make([]sophon.Change, 0, len(all))
	for i, s := range all {
		p.changed(s)
		ch := &p.changes[i]
		ch.Used, ch.Made, ch.Uses = s.LastUsed(), s.Made(), s.Uses()
	}
	return p.Changes()
}

// function is the pool's own Function for a caller's.
func (p *Pool) function(f *sophon.Function) *sophon.Function {
	return p.cluster.Intern(f.Key, f.Name, f.MemoryMB)
}

func (p *Pool) setState(s *slot, st sophon.State, now time.Time) {
	p.cluster.SetState(s.Container, st, now)
	p.changed(s)
}

// evict removes an idle container to make room, and returns its name.
func (p *Pool) evict(s *slot) string {
	if k := p.config.Eviction; k != nil {
		k.Evicted(s.Container)
	}
	p.remove(s)
	return s.ID()
}

// remove takes a container out of the first account.
func (p *Pool) remove(s *slot) {
	f := s.Function()
	p.cluster.Remove(s.Container)
	delete(p.slots, s.ID())
	if s.index >= 0 {
		heap.Remove(&p.due, s.index)
	}
	p.closing[s.ID()] = s.MemoryMB()
	p.gone(s.ID())
	if p.cluster.Forget(f) {
		if l, ok := p.config.Eviction.(learner); ok {
			l.Forgotten(f)
		}
	}
}

// changed reports a container's state.
func (p *Pool) changed(s *slot) {
	p.changes = append(p.changes, sophon.Change{
		Container: s.ID(), State: s.State(), Function: s.owner, MemoryMB: s.MemoryMB(), Job: s.job, Cold: s.cold,
	})
	s.cold = 0
}

// gone reports that there is no such container.
func (p *Pool) gone(id string) {
	p.changes = append(p.changes, sophon.Change{Container: id, State: sophon.Gone})
}
