package oci

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
)

// container is a sandbox.
type container struct {
	driver   *Driver
	id       string
	function *function.Function
	group    *group
	// cancel ends create; created is closed when it has returned.
	cancel  context.CancelFunc
	created chan struct{}

	// What create makes; fixed from then on.
	agent     *agent.Agent
	processes []*sys.Process
	// undo takes away what create has made, in the order in which it was made.
	undo []func(context.Context) error

	// oomKills is how many processes had been killed for want of memory when
	// the last invocation ended.
	oomKills atomic.Int64
	// measured is when peakMemory last looked, and peakBytes what it saw.
	measured  time.Time
	peakBytes int64

	// pausing guards paused and serialises changes.
	pausing sync.Mutex
	paused  bool

	closeOnce sync.Once
	closeErr  error
}

func (c *container) ID() string { return c.id }

func (c *container) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	return c.agent.Invoke(ctx, req)
}

func (c *container) Done() <-chan struct{} { return c.agent.Done() }

// outOfMemory reports whether a process was killed for want of memory since
// the last invocation ended.
func (c *container) outOfMemory() bool { return c.group.oomKills() > c.oomKills.Load() }

// measureEvery is how often the kernel is asked for what it keeps of a control
// group: reading its files at the end of every short invocation would be a
// tenth of all that Volley does for it.
const measureEvery = 200 * time.Millisecond

// peakMemory is called at the end of every invocation, by one goroutine at a
// time.
func (c *container) peakMemory() int64 {
	if now := time.Now(); now.Sub(c.measured) > measureEvery {
		c.measured = now
		c.oomKills.Store(c.group.oomKills())
		c.peakBytes = c.group.peak()
	}
	return c.peakBytes
}

func (c *container) Pause(ctx context.Context) error { return c.pause(ctx, true) }

func (c *container) Resume(ctx context.Context) error { return c.pause(ctx, false) }

// pauseTime bounds how long it may take to pause or resume a sandbox.
const pauseTime = 5 * time.Second

func (c *container) pause(ctx context.Context, pause bool) error {
	c.pausing.Lock()
	defer c.pausing.Unlock()
	if c.paused == pause {
		return nil
	}
	change := func(ctx context.Context, pause bool) error {
		ctx, cancel := context.WithTimeout(ctx, pauseTime)
		defer cancel()
		if c.driver.engine.pauses {
			return c.driver.engine.pause(ctx, c.id, pause)
		}
		return c.group.freeze(ctx, pause)
	}
	err := change(ctx, pause)
	if err == nil {
		c.paused = pause
		return nil
	}
	err = fmt.Errorf("pause or resume sandbox %s: %w", c.id, err)
	if pause {
		// Half of its processes may have stopped.
		err = errors.Join(err, change(context.WithoutCancel(ctx), false))
	}
	return err
}

func (c *container) Usage(context.Context) (sandbox.Usage, error) {
	u, err := c.group.usage()
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read usage of sandbox %s: %w", c.id, err)
	}
	return u, nil
}

// Close may also be called while create runs, which it ends.
func (c *container) Close(ctx context.Context) error {
	c.closeOnce.Do(func() {
		c.cancel()
		<-c.created
		c.closeErr = c.remove(ctx)
		c.driver.unregister(c.id)
	})
	return c.closeErr
}

// shutdownTime is how long volley-init may take to end the function, its grace
// included.
const shutdownTime = agentGrace + time.Second

// remove ends the function and takes away what create has made. ctx bounds how
// long the function may take to end by itself, and nothing else.
func (c *container) remove(ctx context.Context) error {
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	var errs []error
	if c.agent != nil {
		// One that is frozen can neither end by itself nor be killed.
		if err := c.Resume(cleanup); err != nil {
			errs = append(errs, err)
		}
		gentle, cancel := context.WithTimeout(ctx, shutdownTime)
		defer cancel()
		if err := c.agent.Shutdown(gentle); err != nil {
			c.driver.log.Debug("the function had to be killed", "container", c.id, "function", c.function.Name, "err", err)
		}
	}
	for _, undo := range slices.Backward(c.undo) {
		if err := undo(cleanup); err != nil {
			errs = append(errs, err)
		}
	}
	// Those of this container may not have ended yet: then the next one to be
	// closed takes them along.
	if leaves := c.driver.engine.leaves; leaves != "" {
		sys.ReapAdopted(leaves)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close sandbox %s: %w", c.id, err)
	}
	return nil
}
