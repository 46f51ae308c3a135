package sim

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/invoker"
)

// run is one invocation on its way.
type run struct {
	sophon.Job
	index int // in the workload
	// container is where it runs; the controller may still think otherwise.
	container  string
	cold, done bool
}

// start is a container in the making.
type start struct {
	container string
	run       *run // or nil, if started in advance
	begun     time.Duration
}

// message is what a controller and an invoker say to each other.
type message struct {
	// To an invoker: an order with its run, or a container to end.
	order invoker.Order
	run   *run
	end   string
	// To the controller.
	changes           []sophon.Change
	finished, refused *run
}

// node is one invoker.
type node struct {
	pool      *invoker.Pool
	view      *sophon.Node // the controller's
	creations *invoker.Creations
	making    map[uint64]*start // by creation
	waiting   map[string]*start // for room, by container
	version   uint64            // of the creations; older events are outdated
}

// engine is a run of the simulator.
type engine struct {
	config    Config
	workload  Workload
	delay     time.Duration
	agenda    agenda
	now       time.Duration
	scheduler *sophon.Scheduler
	prewarmer sophon.Prewarmer // or nil
	plan      time.Duration    // when it is asked next; 0 if only at ticks
	functions []*sophon.Function
	nodes     []*node
	arrived   int // invocations so far
	ended     int
	idleTicks int // since an invocation ended
	result    *Result
}

// epoch is the real time that virtual time starts at. It only has to be the
// same in every run.
var epoch = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC) // constant

func newEngine(c Config, w Workload) (*engine, error) {
	e := &engine{config: c, workload: w, delay: c.MessageDelay}
	switch {
	case e.delay == 0:
		e.delay = DefaultMessageDelay
	case e.delay < 0:
		e.delay = 0
	}
	eviction, err := invoker.NewKeepAlive(c.Eviction)
	if err != nil {
		return nil, err
	}
	containers := 0
	cluster := sophon.NewCluster(eviction)
	e.scheduler = sophon.NewScheduler(cluster, c.Policy, func() string {
		containers++
		return strconv.Itoa(containers)
	})
	e.prewarmer, _ = c.Policy.(sophon.Prewarmer)
	for _, f := range w.Functions {
		e.functions = append(e.functions, cluster.Intern(f.Name, f.Name, f.MemoryMB))
	}
	for i := range c.Invokers {
		name := "invoker" + strconv.Itoa(i)
		own, err := invoker.NewKeepAlive(c.Eviction)
		if err != nil {
			return nil, err
		}
		e.nodes = append(e.nodes, &node{
			pool:      invoker.NewPool(invoker.PoolConfig{Name: name, CapacityMB: c.MemoryMB, KeepAlive: c.KeepAlive, Eviction: own}),
			view:      cluster.AddNode(name, c.MemoryMB),
			creations: invoker.NewCreations(c.Model),
			making:    map[uint64]*start{},
			waiting:   map[string]*start{},
		})
	}
	e.result = newResult(c, w)
	return e, nil
}

// maxIdleTicks is for how many seconds invocations may wait with none running:
// on an empty cluster everything fits.
const maxIdleTicks = 5

func (e *engine) time() time.Time { return epoch.Add(e.now) }

// run goes on until every invocation has ended and the window is over.
func (e *engine) run(ctx context.Context) error {
	e.agenda.add(event{at: time.Second, kind: ticked})
	for steps := 0; ; steps++ {
		if steps%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if e.arrived < len(e.workload.Invocations) {
			inv := &e.workload.Invocations[e.arrived]
			if e.agenda.empty() || inv.At <= e.agenda.heap[0].at {
				e.now = inv.At
				e.arrive(inv)
				continue
			}
		} else if e.ended == e.arrived && e.now >= e.workload.Window {
			return nil
		}
		ev := e.agenda.take()
		e.now = ev.at
		if err := e.happen(ev); err != nil {
			return err
		}
		if e.result.Saturated {
			return nil
		}
	}
}

func (e *engine) happen(ev event) error {
	switch ev.kind {
	case ordered:
		e.atInvoker(ev.node, ev.message)
	case reported:
		e.atController(ev.node, ev.message)
	case created:
		e.creationDue(ev.node, ev.version)
	case initialised:
		e.ready(ev.node, ev.start)
	case finished:
		return e.finish(ev.node, ev.run)
	case ticked:
		return e.tick()
	case planned:
		if ev.at == e.plan {
			e.ask()
		}
	}
	return nil
}

// arrive posts an invocation to the controller.
func (e *engine) arrive(inv *Invocation) {
	r := &run{index: e.arrived}
	r.ID = strconv.Itoa(e.arrived)
	r.Function = e.functions[inv.Function]
	r.Arrived = e.time()
	r.Value = r
	e.arrived++
	e.result.arrive(e.now)
	if p, ok := e.scheduler.Submit(&r.Job, e.time()); ok {
		e.send(p)
	}
}

func (e *engine) send(p sophon.Placement) {
	m := &message{order: invoker.OrderOf(p)}
	if p.Job != nil {
		m.run = p.Job.Value.(*run)
		e.result.Placements++
	}
	e.agenda.add(event{at: e.now + e.delay, kind: ordered, node: e.nodes[p.Node.Index()], message: m})
}

func (e *engine) atInvoker(n *node, m *message) {
	now := e.time()
	if m.end != "" {
		for _, c := range n.pool.End([]string{m.end}) {
			n.pool.Closed(c)
		}
		e.beginReady(n)
		e.flush(n)
		return
	}
	out := n.pool.Run(m.order, now)
	if out.Stale {
		e.result.Stale++
	}
	e.result.evict(e.now, len(out.Close))
	if m.run != nil {
		m.run.container = out.Container
	}
	switch out.Verdict {
	case invoker.Warm:
		e.begin(n, m.run)
	case invoker.Cold:
		s := &start{container: out.Container, run: m.run, begun: e.now}
		if m.run != nil {
			m.run.cold = true
		} else {
			e.result.Prewarmed++
		}
		if out.Wait {
			n.waiting[s.container] = s
		} else {
			e.create(n, s)
		}
	case invoker.Refused:
		e.result.Refused++
		e.report(n, nil, m.run)
		return
	}
	for _, c := range out.Close {
		n.pool.Closed(c) // closing takes no time
	}
	e.beginReady(n)
	e.flush(n)
}

// beginReady begins the starts that have waited for room.
func (e *engine) beginReady(n *node) {
	for _, c := range n.pool.Ready() {
		s := n.waiting[c]
		delete(n.waiting, c)
		e.create(n, s)
	}
}

func (e *engine) create(n *node, s *start) {
	n.making[n.creations.Begin(e.time(), e.config.Model.ColdStart)] = s
	e.await(n)
}

// await schedules the end of the creation that is done first.
func (e *engine) await(n *node) {
	n.version++
	if _, at, ok := n.creations.Next(); ok {
		e.agenda.add(event{at: at.Sub(epoch), kind: created, node: n, version: n.version})
	}
}

func (e *engine) creationDue(n *node, version uint64) {
	if version != n.version {
		return
	}
	id, _, _ := n.creations.Next()
	n.creations.End(e.time(), id)
	s := n.making[id]
	delete(n.making, id)
	e.agenda.add(event{at: e.now + e.config.Model.Init, kind: initialised, node: n, start: s})
	e.await(n)
}

// ready puts a new container to use.
func (e *engine) ready(n *node, s *start) {
	took := e.now - s.begun
	if !n.pool.Started(s.container, took, e.time()) {
		n.pool.Closed(s.container)
		e.beginReady(n)
	} else if s.run != nil {
		e.result.coldStart(s.run.index, took)
		e.begin(n, s.run)
	}
	e.flush(n)
}

// begin starts the function.
func (e *engine) begin(n *node, r *run) {
	inv := &e.workload.Invocations[r.index]
	e.result.begin(r, inv, e.now)
	e.agenda.add(event{at: e.now + inv.Duration, kind: finished, node: n, run: r})
}

func (e *engine) finish(n *node, r *run) error {
	if r.done {
		return fmt.Errorf("invocation %d ended twice", r.index)
	}
	r.done = true
	e.ended++
	e.idleTicks = 0
	e.result.finish(e.now)
	if job := n.pool.Job(r.container); job != r.ID {
		return fmt.Errorf("invocation %d ended in container %s, which runs %q", r.index, r.container, job)
	}
	if !n.pool.Finished(r.container, false, e.time()) {
		n.pool.Closed(r.container)
	}
	e.report(n, r, nil)
	return nil
}

// flush reports changes that no result went with.
func (e *engine) flush(n *node) {
	if n.pool.Pending() {
		e.report(n, nil, nil)
	}
}

// report sends a result, or none, with what has changed to the controller.
func (e *engine) report(n *node, done, refused *run) {
	m := &message{changes: n.pool.Changes(), finished: done, refused: refused}
	e.agenda.add(event{at: e.now + e.delay, kind: reported, node: n, message: m})
}

func (e *engine) atController(n *node, m *message) {
	now := e.time()
	if m.finished != nil {
		e.scheduler.Finish(&m.finished.Job)
	}
	if m.refused != nil {
		e.scheduler.Requeue(&m.refused.Job)
	}
	e.scheduler.Apply(n.view, m.changes, now)
	e.drain()
}

func (e *engine) drain() {
	if e.scheduler.Queued() == 0 {
		return
	}
	for _, p := range e.scheduler.Drain(e.time()) {
		e.send(p)
	}
}

// tick does what is done every second.
func (e *engine) tick() error {
	for _, n := range e.nodes {
		if busy := n.pool.Node().BusyMB() + n.pool.Node().IdleMB(); busy > e.config.MemoryMB || n.pool.TakenMB() > e.config.MemoryMB {
			return fmt.Errorf("%s holds %d MiB of %d", n.pool.Node().Name(), busy, e.config.MemoryMB)
		}
		ended, _ := n.pool.Expire(e.time())
		for _, c := range ended {
			n.pool.Closed(c)
		}
		e.result.Expired += len(ended)
		e.beginReady(n)
		e.flush(n)
	}
	e.result.sample(e.now, e.nodes, e.scheduler.Queued())
	if e.config.StopQueue > 0 {
		e.result.checkSaturation(e.now, e.scheduler.Queued(), e.config.StopQueue)
	}
	e.ask()
	if e.idleTicks++; e.scheduler.Running() > 0 || e.scheduler.Queued() == 0 {
		e.idleTicks = 0
	} else if e.idleTicks > maxIdleTicks {
		return fmt.Errorf("%d invocations wait and none is placed", e.scheduler.Queued())
	}
	if e.now < e.workload.Window || e.ended < e.arrived || e.arrived < len(e.workload.Invocations) {
		e.agenda.add(event{at: e.now + time.Second, kind: ticked})
	}
	return nil
}

// ask carries out what a sophon.Prewarmer plans.
func (e *engine) ask() {
	if e.prewarmer == nil {
		return
	}
	now := e.time()
	actions, next := e.prewarmer.Plan(sophon.ViewOf(e.scheduler.Cluster()), now)
	for _, a := range actions {
		if a.End != nil {
			m := &message{end: a.End.ID()}
			e.agenda.add(event{at: e.now + e.delay, kind: ordered, node: e.nodes[a.End.Node().Index()], message: m})
			e.scheduler.Apply(a.End.Node(), []sophon.Change{{Container: a.End.ID(), State: sophon.Gone}}, now)
			continue
		}
		if p, ok := e.scheduler.Prewarm(a.Function, a.Node, now); ok {
			e.send(p)
		}
	}
	e.plan = 0
	if at := next.Sub(epoch); !next.IsZero() && at > e.now {
		e.plan = at
		e.agenda.add(event{at: at, kind: planned})
	}
	e.drain()
}
