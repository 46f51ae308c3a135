// Package coordinator is the control plane of one pipeline run (thesis 2.2.4
// and 2.2.5): it starts workers, drives each as a state machine, turns their
// reports into dataflow events and those into tasks, and gets work done again
// when a worker fails.
//
// There is no barrier between stages: as soon as a delivery function has the
// input of a task together, the task can run. Tasks of earlier chunks go first,
// and among those of one chunk the ones nearest to the output, so that results
// can be watched early and little lies around between stages.
package coordinator

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/sprocket/workerpb"
	"github.com/volley-run/volley/store"
)

// WorkerSpec is what a new worker must know.
type WorkerSpec struct {
	// ID names the worker within the run.
	ID string
	// Address, Token and Fingerprint are for connecting back.
	Address, Token, Fingerprint string
}

// Platform is where workers run.
type Platform interface {
	// Start begins one worker and returns at once. The context bounds the start
	// only.
	Start(ctx context.Context, spec WorkerSpec) (Handle, error)
}

// Handle is a started worker.
type Handle interface {
	// Wait blocks until the worker is gone and returns why, nil for an orderly
	// end. It is called once.
	Wait() error
	// Kill ends the worker and what it started. It may be called at any time
	// and again.
	Kill() error
	// LogTail returns the last lines that the worker logged.
	LogTail() []string
}

// Journal remembers finished tasks across runs.
type Journal interface {
	// Lookup returns what an earlier run recorded.
	Lookup(node string, seq int64) (stage.Result, bool)
	// Record adds a finished task.
	Record(node string, seq int64, res stage.Result) error
}

// Config is what a Coordinator needs before the plan is known.
type Config struct {
	Platform Platform
	// Workers is how many are kept running.
	Workers int
	// Listen is the address for workers, "127.0.0.1:0" if empty.
	Listen string
	// Attempts bounds how often a task is given to a worker; 3 if zero.
	Attempts int
	// Silence is how long a working worker may say nothing; 30 s if zero.
	Silence time.Duration
	Log     *slog.Logger
}

// Job is the work of one run.
type Job struct {
	Plan *sprocket.Plan
	// Roles are the nodes' roles, by index; Sound, if not nil, that of the
	// task which carries the sound over.
	Roles []stage.Role
	Sound *stage.Role
	// Deliveries are the delivery functions to choose from.
	Deliveries delivery.Registry
	// Journal may be nil.
	Journal Journal
	// Work is the store between stages; frames are deleted from it once all
	// their consumers are done.
	Work store.Store
	// InputNames are for messages.
	InputNames []string
	// OnOutput takes each item of output n, in any order; OnSound takes sound,
	// in order, possibly again after a restart. They are called from the
	// coordinator's own goroutine and must not block for long.
	OnOutput func(ctx context.Context, n int, it sprocket.Item) error
	OnSound  func(ctx context.Context, s stage.Sound) error
	// OnTick, if not nil, is called several times a second.
	OnTick func(ctx context.Context) error
}

// soundNode is the name of the sound task in the journal and in messages.
const soundNode = "audio"

// How often OnTick is called.
const tickEvery = 200 * time.Millisecond

// Coordinator runs one Job.
type Coordinator struct {
	cfg Config
	srv *server

	workers map[string]*workerState
	started int
	// badStarts counts workers that ended before they connected, since the last
	// one that did.
	badStarts int
	lastTail  []string
	waiters   sync.WaitGroup

	job       Job
	nodes     []*nodeState
	pending   taskQueue
	replay    []*taskState // finished by the journal, not yet handed on
	objects   map[string]*objectUse
	commandID uint64

	stats stats
}

type nodeState struct {
	index    int
	name     string
	depth    int
	deliver  delivery.Func
	role     stage.Role
	outputs  []edge // consumers
	done     int64
	running  int
	total    int64 // -1 until known
	announce bool  // consumers were told the total
}

// edge leads to port of node.
type edge struct{ node, port int }

// step is where a worker's state machine stands.
type step int

const (
	stepIdle step = iota
	stepRole
	stepFetch
	stepProcess
	stepEmit
)

func (s step) String() string {
	return [...]string{"idle", "role", "fetch", "process", "emit"}[s]
}

type taskState struct {
	node     *nodeState
	task     sprocket.Task
	chunk    int64
	attempts int   // workers that it was given to
	tries    int   // times that it failed
	frames   int64 // so far, in this attempt
	result   stage.Result
}

type workerState struct {
	id      string
	handle  Handle
	sess    *session
	since   time.Time // attached
	heard   time.Time
	role    *nodeState
	step    step
	command uint64
	resent  bool
	task    *taskState
	// ending means that the worker was killed or hung up: it gets no more work.
	ending bool
	// dropped means that it was killed only because it failed at a task.
	dropped bool
}

// objectUse counts how many of an object's frames its consumers have done with.
type objectUse struct{ left int }

// New listens for workers and starts them. Close must be called.
func New(ctx context.Context, cfg Config) (*Coordinator, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 3
	}
	if cfg.Silence == 0 {
		cfg.Silence = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	srv, err := listen(ctx, cfg.Listen)
	if err != nil {
		return nil, err
	}
	c := &Coordinator{cfg: cfg, srv: srv, workers: map[string]*workerState{}, objects: map[string]*objectUse{}}
	c.stats.begun = time.Now()
	for range cfg.Workers {
		if err := c.startWorker(ctx); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// exit is a worker's end as its platform tells it.
type exit struct {
	err  error
	tail []string
}

func (c *Coordinator) startWorker(ctx context.Context) error {
	c.started++
	id := fmt.Sprintf("worker-%d", c.started)
	token, err := c.srv.admit(id)
	if err != nil {
		return err
	}
	h, err := c.cfg.Platform.Start(ctx, WorkerSpec{ID: id, Address: c.srv.address, Token: token, Fingerprint: c.srv.fingerprint})
	if err != nil {
		return fmt.Errorf("start %s: %w", id, err)
	}
	c.workers[id] = &workerState{id: id, handle: h}
	c.waiters.Go(func() {
		err := h.Wait()
		c.srv.post(event{worker: id, exited: &exit{err: err, tail: h.LogTail()}})
	})
	return nil
}

// Close ends all workers, by force if they do not end by themselves, and
// releases everything. It may be called again.
func (c *Coordinator) Close() {
	for _, w := range c.workers {
		if err := w.handle.Kill(); err != nil {
			c.cfg.Log.Warn("kill worker", "worker", w.id, "error", err)
		}
	}
	c.srv.close()
	c.waiters.Wait()
}

// Run does the job. The error is a *TaskError if a task could not be done. A
// Coordinator runs one job.
func (c *Coordinator) Run(ctx context.Context, job Job) error {
	c.job = job
	if err := c.prepare(); err != nil {
		return err
	}
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	if err := c.feedInputs(ctx); err != nil {
		return err
	}
	for {
		if err := c.settle(ctx); err != nil {
			return err
		}
		if c.finished() {
			return c.dismiss(ctx)
		}
		c.assign()
		c.publishStats()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-c.srv.events:
			if err := c.handle(ctx, e); err != nil {
				return err
			}
		case <-tick.C:
			if err := c.checkSilence(); err != nil {
				return err
			}
			if job.OnTick != nil {
				if err := job.OnTick(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// prepare makes the nodes' states.
func (c *Coordinator) prepare() error {
	for i, n := range c.job.Plan.Nodes {
		f, err := c.job.Deliveries.New(n.Delivery, len(n.Upstreams), delivery.Options{FramesPerTask: n.FramesPerTask})
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		c.nodes = append(c.nodes, &nodeState{index: i, name: n.Name, depth: n.Depth, deliver: f, role: c.job.Roles[i], total: -1})
	}
	for i, n := range c.job.Plan.Nodes {
		for port, up := range n.Upstreams {
			if up.Node >= 0 {
				c.nodes[up.Node].outputs = append(c.nodes[up.Node].outputs, edge{i, port})
			}
		}
	}
	if c.job.Sound != nil {
		c.nodes = append(c.nodes, &nodeState{index: len(c.nodes), name: soundNode, depth: -1, role: *c.job.Sound, total: 1})
	}
	return nil
}

// feedInputs gives the chunks of the inputs to the nodes that read them.
func (c *Coordinator) feedInputs(ctx context.Context) error {
	for i, n := range c.job.Plan.Nodes {
		for port, up := range n.Upstreams {
			if up.Node >= 0 {
				continue
			}
			for _, it := range c.job.Plan.Chunks[up.Input] {
				if err := c.deliver(ctx, edge{i, port}, it); err != nil {
					return err
				}
			}
			if err := c.endOfStream(edge{i, port}, int64(len(c.job.Plan.Chunks[up.Input]))); err != nil {
				return err
			}
		}
	}
	if c.job.Sound != nil {
		c.newTask(c.nodes[len(c.nodes)-1], delivery.Delivery{})
	}
	return nil
}

func (c *Coordinator) deliver(ctx context.Context, to edge, it sprocket.Item) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n := c.nodes[to.node]
	deliveries, err := n.deliver.Deliver(to.port, it)
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name, err)
	}
	for _, d := range deliveries {
		c.newTask(n, d)
	}
	return nil
}

func (c *Coordinator) endOfStream(to edge, count int64) error {
	n := c.nodes[to.node]
	deliveries, err := n.deliver.Close(to.port, count)
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name, err)
	}
	for _, d := range deliveries {
		c.newTask(n, d)
	}
	n.total = n.deliver.Total()
	return nil
}

// newTask makes a task of a delivery, or takes its result from the journal.
func (c *Coordinator) newTask(n *nodeState, d delivery.Delivery) {
	t := &taskState{node: n, task: sprocket.Task{Node: n.index, Seq: d.Seq, Inputs: d.Inputs}}
	t.chunk = t.task.Chunk()
	if c.job.Journal != nil {
		if res, ok := c.job.Journal.Lookup(n.name, d.Seq); ok {
			t.result = res
			c.replay = append(c.replay, t)
			return
		}
	}
	heap.Push(&c.pending, t)
}

// settle hands on what finished, and tells consumers of streams that ended,
// until nothing more follows from it.
func (c *Coordinator) settle(ctx context.Context) error {
	for again := true; again; {
		again = false
		for len(c.replay) > 0 {
			t := c.replay[0]
			c.replay = c.replay[1:]
			again = true
			c.stats.replayed++
			if err := c.finish(ctx, t); err != nil {
				return err
			}
		}
		for _, n := range c.nodes {
			if n.announce || n.total < 0 || n.done < n.total {
				continue
			}
			n.announce, again = true, true
			for _, to := range n.outputs {
				if err := c.endOfStream(to, n.total); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// finish counts a task as done and hands its result on.
func (c *Coordinator) finish(ctx context.Context, t *taskState) error {
	n := t.node
	n.done++
	c.stats.add(n, t.result)
	if t.result.Sound != nil {
		return c.job.OnSound(ctx, *t.result.Sound)
	}
	plan := c.job.Plan.Nodes[n.index]
	for _, r := range t.result.Item.Frames {
		c.objects[r.Key] = &objectUse{left: len(r.PTS) * len(n.outputs)}
	}
	for _, to := range n.outputs {
		if err := c.deliver(ctx, to, t.result.Item); err != nil {
			return err
		}
	}
	if plan.OutputIndex >= 0 {
		if err := c.job.OnOutput(ctx, plan.OutputIndex, t.result.Item); err != nil {
			return err
		}
	}
	return c.releaseInputs(ctx, t)
}

// releaseInputs deletes the frames that nobody needs any more. It runs after
// the task was recorded, so that a resumed run never misses them.
func (c *Coordinator) releaseInputs(ctx context.Context, t *taskState) error {
	for _, items := range t.task.Inputs {
		for _, it := range items {
			for _, r := range it.Frames {
				use, ok := c.objects[r.Key]
				if !ok {
					continue
				}
				if use.left -= len(r.PTS); use.left > 0 {
					continue
				}
				delete(c.objects, r.Key)
				if err := c.job.Work.Delete(ctx, r.Key); err != nil {
					return fmt.Errorf("delete frames that were used: %w", err)
				}
			}
		}
	}
	return nil
}

func (c *Coordinator) finished() bool {
	for _, n := range c.nodes {
		if !n.announce {
			return false
		}
	}
	return true
}

// assign gives pending tasks to idle workers.
func (c *Coordinator) assign() {
	for len(c.pending) > 0 {
		w := c.idleWorker(c.pending[0].node)
		if w == nil {
			return
		}
		t := heap.Pop(&c.pending).(*taskState)
		t.attempts++
		t.frames = 0
		t.node.running++
		w.task, w.resent = t, false
		c.cfg.Log.Debug("task assigned", "worker", w.id, "node", t.node.name, "task", t.task.Seq, "chunk", t.chunk)
		if w.role != t.node {
			w.role = t.node
			w.step = stepRole
		} else {
			w.step = stepFetch
		}
		c.command(w)
	}
}

// idleWorker returns one that has the role already, if there is one.
func (c *Coordinator) idleWorker(n *nodeState) *workerState {
	var found *workerState
	for _, w := range c.workers {
		if w.sess == nil || w.ending || w.step != stepIdle {
			continue
		}
		if w.role == n {
			return w
		}
		if found == nil || w.id < found.id {
			found = w
		}
	}
	return found
}

// command sends the command of the worker's current step.
func (c *Coordinator) command(w *workerState) {
	c.commandID++
	cmd := &workerpb.Command{Id: c.commandID}
	switch w.step {
	case stepRole:
		text, err := json.Marshal(w.task.node.role)
		if err != nil {
			panic(fmt.Sprintf("coordinator: role cannot be written as JSON: %v", err))
		}
		cmd.Kind = &workerpb.Command_Role{Role: &workerpb.Role{Role: text}}
	case stepFetch:
		text, err := json.Marshal(w.task.task)
		if err != nil {
			panic(fmt.Sprintf("coordinator: task cannot be written as JSON: %v", err))
		}
		cmd.Kind = &workerpb.Command_Fetch{Fetch: &workerpb.Fetch{Task: text}}
	case stepProcess:
		cmd.Kind = &workerpb.Command_Process{Process: &workerpb.Process{}}
	case stepEmit:
		cmd.Kind = &workerpb.Command_Emit{Emit: &workerpb.Emit{}}
	case stepIdle:
		return
	}
	w.command, w.heard = cmd.Id, time.Now()
	w.send(cmd)
}

// send queues a command; a stream that is broken shows by its end.
func (w *workerState) send(cmd *workerpb.Command) {
	select {
	case w.sess.commands <- cmd:
	case <-w.sess.done:
	}
}

// dismiss lets the workers end by themselves, for a moment.
func (c *Coordinator) dismiss(ctx context.Context) error {
	c.publishStats()
	left := 0
	for _, w := range c.workers {
		if w.sess == nil {
			if err := w.handle.Kill(); err != nil {
				return err
			}
		} else {
			w.send(&workerpb.Command{Kind: &workerpb.Command_Exit{Exit: &workerpb.Exit{}}})
		}
		left++
	}
	patience := time.NewTimer(3 * time.Second)
	defer patience.Stop()
	for left > 0 {
		select {
		case e := <-c.srv.events:
			if e.exited != nil {
				left--
			}
		case <-patience.C:
			return nil // Close kills the rest
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ErrNoWorkers means that workers end as soon as they are started.
var ErrNoWorkers = errors.New("workers do not start")
