package invoker

import (
	"context"
	"errors"
	"time"

	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sophon"
)

// Why containers end, as the metric of evictions tells it.
const (
	endedForMemory    = "memory"
	endedByKeepAlive  = "keep-alive"
	endedByController = "controller"
	endedByShutdown   = "shutdown"
	endedBroken       = "broken"
	endedByItself     = "self"
)

const (
	// closeAttempts is how often closing a sandbox is tried before its memory
	// is given to others regardless.
	closeAttempts = 5
	// usagePerRound is how many containers are asked for their memory at a time.
	usagePerRound = 32
)

// container is one container of the pool. Fields are the Invoker's mutex's.
type container struct {
	id       string
	function *functionEntry
	sandbox  sandbox.Sandbox // nil while it starts
	// invocation is what it starts for or runs, or nil.
	invocation *invocation
	uses       int
	rssBytes   int64

	// freeze is full while the sandbox is being paused or resumed, and guards
	// frozen.
	freeze chan struct{}
	frozen bool
}

func newContainer(id string, f *functionEntry) *container {
	return &container{id: id, function: f, freeze: make(chan struct{}, 1)}
}

// begin starts a container.
func (v *Invoker) begin(c *container) {
	v.tasks.Go(func() { v.start(c) })
}

// beginReady begins the starts for which there is room now.
func (v *Invoker) beginReady() {
	for _, id := range v.pool.Ready() {
		if c := v.containers[id]; c != nil {
			v.begin(c)
		}
	}
}

// start makes a container's sandbox, and runs in it what it was made for.
func (v *Invoker) start(c *container) {
	ctx, cancel := context.WithTimeout(v.starts, v.config.StartTimeout)
	defer cancel()
	v.mu.Lock()
	endSpan := v.startSpan(c.invocation, "start")
	v.mu.Unlock()
	began := time.Now()
	box, err := v.create(ctx, c)
	took := time.Since(began)
	endSpan(err)
	if err != nil {
		v.startFailed(c, err)
		return
	}
	v.metrics.coldStarts.Observe(took.Seconds())

	v.mu.Lock()
	c.sandbox = box
	keep := v.pool.Started(c.id, took, time.Now())
	inv := c.invocation
	switch {
	case !keep:
		v.close(c.id, endedByController)
	case inv != nil:
		inv.start = time.Since(inv.taken)
		v.arm(inv)
	}
	v.mu.Unlock()
	v.signal()
	if inv != nil {
		v.invoke(inv, c)
	}
}

func (v *Invoker) create(ctx context.Context, c *container) (sandbox.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return v.config.Driver.Create(ctx, sandbox.Spec{ID: c.id, Function: c.function.Function, Log: v.logs.write})
}

func (v *Invoker) startFailed(c *container, err error) {
	v.metrics.startFailures.Inc()
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.containers, c.id)
	v.pool.StartFailed(c.id)
	v.beginReady()
	inv := c.invocation
	switch _, init := errors.AsType[*sandbox.InitError](err); {
	case v.leaving && v.starts.Err() != nil && !init:
		if inv != nil {
			v.giveBack(inv, "the invoker is leaving")
		}
	case inv != nil:
		inv.start = time.Since(inv.taken)
		v.conclude(inv, notStarted(inv, err))
	default:
		v.log.Warn("start a container in advance", "function", c.function.Name, "error", err)
	}
	v.signal()
}

// close closes a container that is no longer in the pool.
func (v *Invoker) close(id, reason string) {
	c := v.containers[id]
	if c == nil {
		return
	}
	delete(v.containers, id)
	v.metrics.evictions(reason).Inc()
	v.tasks.Go(func() {
		v.closeSandbox(c)
		v.mu.Lock()
		v.pool.Closed(id)
		v.beginReady()
		v.mu.Unlock()
	})
}

func (v *Invoker) closeSandbox(c *container) {
	for attempt := 1; ; attempt++ {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(v.runs), closeTimeout)
		err := c.sandbox.Close(ctx)
		cancel()
		if err == nil {
			return
		}
		v.log.Error("cannot close a sandbox", "container", c.id, "attempt", attempt, "error", err)
		if attempt == closeAttempts {
			return
		}
		select {
		case <-time.After(time.Second << attempt):
		case <-v.runs.Done():
		}
	}
}

// keepLoop looks after the idle containers until the context ends.
func (v *Invoker) keepLoop(ctx context.Context) {
	timer := time.NewTimer(v.config.Ping)
	defer timer.Stop()
	var asked []*container
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		now := time.Now()
		v.mu.Lock()
		v.sweep()
		toClose, toPause := v.pool.Expire(now)
		for _, id := range toClose {
			v.close(id, endedByKeepAlive)
		}
		for _, id := range toPause {
			v.pause(v.containers[id])
		}
		v.outbox.trim(now)
		wait := v.config.Ping
		if at, ok := v.pool.NextExpiry(); ok {
			wait = min(wait, max(at.Sub(now), time.Millisecond))
		}
		report := v.pool.Pending()
		if len(asked) == 0 {
			asked = v.started()
		}
		v.mu.Unlock()
		if report {
			v.signal()
		}
		n := min(len(asked), usagePerRound)
		v.measure(ctx, asked[:n])
		asked = asked[n:]
		timer.Reset(wait)
	}
}

// sweep finds the idle containers that have ended by themselves.
func (v *Invoker) sweep() {
	for id, c := range v.containers {
		if c.sandbox == nil || c.invocation != nil {
			continue
		}
		select {
		case <-c.sandbox.Done():
			if v.pool.Ended(id) {
				v.close(id, endedByItself)
			}
		default:
		}
	}
}

// started returns the containers that have a sandbox.
func (v *Invoker) started() []*container {
	var out []*container
	for _, c := range v.containers {
		if c.sandbox != nil {
			out = append(out, c)
		}
	}
	return out
}

// measure asks containers for the memory that they use.
func (v *Invoker) measure(ctx context.Context, cs []*container) {
	for _, c := range cs {
		u, err := c.sandbox.Usage(ctx)
		if err != nil {
			continue // it has probably ended
		}
		v.mu.Lock()
		c.rssBytes = u.MemoryBytes
		v.mu.Unlock()
	}
}

// pause pauses an idle container in the background, unless it is used first.
func (v *Invoker) pause(c *container) {
	if c == nil {
		return
	}
	uses := c.uses
	v.tasks.Go(func() {
		c.freeze <- struct{}{}
		defer func() { <-c.freeze }()
		if !v.unused(c, uses) {
			return
		}
		ctx, cancel := context.WithTimeout(v.runs, closeTimeout)
		defer cancel()
		err := c.sandbox.Pause(ctx)
		c.frozen = err == nil
		v.mu.Lock()
		defer v.mu.Unlock()
		switch {
		case c.uses != uses: // whoever uses it waits for freeze
		case err == nil:
			v.pool.Paused(c.id)
		case v.pool.Ended(c.id):
			v.log.Warn("cannot pause a container", "container", c.id, "error", err)
			v.close(c.id, endedBroken)
		}
		v.signal()
	})
}

// unused reports whether a container is still in the pool and was not used
// since it had so many uses.
func (v *Invoker) unused(c *container, uses int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.containers[c.id] == c && c.uses == uses
}

// thaw resumes a container that is paused, or about to be.
func (c *container) thaw(ctx context.Context) error {
	select {
	case c.freeze <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.freeze }()
	if !c.frozen {
		return nil
	}
	if err := c.sandbox.Resume(ctx); err != nil {
		return err
	}
	c.frozen = false
	return nil
}

// count returns how many containers are in a state.
func (v *Invoker) count(s sophon.State) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for c := range v.pool.Node().Containers {
		if c.State() == s {
			n++
		}
	}
	return n
}
