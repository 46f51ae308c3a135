package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// Keys in the leader's and the epoch's bucket.
const (
	leaseKey = "leader"
	epochKey = "epoch"
)

// lease is the leader's lease as it is stored.
type lease struct {
	ID        string `json:"id"`
	Epoch     uint64 `json:"epoch"` // 0 until the leader has drawn its number
	Advertise string `json:"advertise"`
}

// leaseView is the lease as it was last seen.
type leaseView struct {
	mu       sync.Mutex
	lease    lease
	revision uint64 // 0: there is none
	seen     time.Time
	change   chan struct{}
}

func (v *leaseView) init() { v.change = make(chan struct{}) }

// take applies an entry of the watch.
func (v *leaseView) take(e bus.Entry) {
	if e.Key != leaseKey {
		return
	}
	var l lease
	if !e.Deleted && json.Unmarshal(e.Value, &l) != nil {
		l = lease{} // whoever wrote this does not lead
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case e.Deleted:
		v.revision = 0
	case e.Revision == v.revision:
		return // told again: this renews nothing
	default:
		v.revision = e.Revision
	}
	v.lease, v.seen = l, time.Now()
	v.wake()
}

func (v *leaseView) wake() {
	close(v.change)
	v.change = make(chan struct{})
}

// notify wakes who waits for changed.
func (v *leaseView) notify() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wake()
}

// changed returns a channel that is closed at the next change.
func (v *leaseView) changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.change
}

func (v *leaseView) get() lease {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lease
}

// vacancy tells whether the lease may be taken, since nobody has it or its
// holder has not renewed it: it returns the revision to replace, 0 for none, and
// how long to wait before that.
func (v *leaseView) vacancy(own string, ttl time.Duration) (revision uint64, wait time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.revision == 0 || v.lease.ID == own || v.lease.ID == "" {
		return v.revision, 0
	}
	return v.revision, time.Until(v.seen.Add(ttl))
}

// lead waits for the lease, leads while it has it, and starts again, until the
// context ends.
func (c *Controller) lead(ctx context.Context) error {
	leases, err := c.cfg.Bus.KV(ctx, wire.LeaderBucket, bus.KVOptions{TTL: c.cfg.Timing.Lease})
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", wire.LeaderBucket, err)
	}
	epochs, err := c.cfg.Bus.KV(ctx, wire.EpochBucket, bus.KVOptions{})
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", wire.EpochBucket, err)
	}
	ready := make(chan struct{})
	stop, err := leases.Watch(ctx, c.lease.take, func() { close(ready) })
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", wire.LeaderBucket, err)
	}
	defer stop()
	select {
	case <-ready:
	case <-ctx.Done():
		return nil
	}
	for ctx.Err() == nil {
		h, err := c.acquire(ctx, leases, epochs)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Warn("cannot take the lead", "error", err)
				sleep(ctx, c.cfg.Timing.Lease/8)
			}
			continue
		}
		if h != nil {
			c.serve(ctx, h)
		}
	}
	return nil
}

// sleep waits, and not longer than the context lasts.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// held is a lease that this controller has.
type held struct {
	kv       bus.KV
	value    []byte
	revision uint64
	epoch    uint64
	// until is when it must count as lost if it was not renewed.
	until time.Time
}

// acquire waits until the lease is free and takes it. Without an error, nil
// means that another was faster.
func (c *Controller) acquire(ctx context.Context, leases, epochs bus.KV) (*held, error) {
	changed := c.lease.changed()
	revision, wait := c.lease.vacancy(c.cfg.ID, c.cfg.Timing.Lease)
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Lease)
	defer cancel()
	h := &held{kv: leases}
	// First the lease, then the number, then both: so whoever is slow in
	// between cannot come to lead under a number that others have passed.
	if err := h.write(ctx, lease{ID: c.cfg.ID, Advertise: c.cfg.Advertise}, revision, c.cfg.Timing.Lease); err != nil {
		if errors.Is(err, bus.ErrExists) || errors.Is(err, bus.ErrNotFound) {
			// The view is behind, or the entry has expired unseen.
			return nil, c.lookAtLease(ctx, leases)
		}
		return nil, fmt.Errorf("take the lease: %w", err)
	}
	epoch, err := nextEpoch(ctx, epochs)
	if err != nil {
		return nil, err
	}
	h.epoch = epoch
	if err := h.write(ctx, lease{ID: c.cfg.ID, Epoch: epoch, Advertise: c.cfg.Advertise}, h.revision, c.cfg.Timing.Lease); err != nil {
		if errors.Is(err, bus.ErrExists) || errors.Is(err, bus.ErrNotFound) {
			return nil, nil
		}
		return nil, fmt.Errorf("take the lease: %w", err)
	}
	return h, nil
}

// lookAtLease reads the lease where the watch has not told of it: removal by
// age is silent.
func (c *Controller) lookAtLease(ctx context.Context, leases bus.KV) error {
	e, err := leases.Get(ctx, leaseKey)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		c.lease.take(bus.Entry{Key: leaseKey, Deleted: true})
	case err != nil:
		return fmt.Errorf("read the lease: %w", err)
	default:
		c.lease.take(e)
	}
	return nil
}

// write writes the lease over the given revision, or anew if that is 0.
func (h *held) write(ctx context.Context, l lease, over uint64, ttl time.Duration) error {
	value, err := json.Marshal(l)
	if err != nil {
		return err
	}
	began := time.Now()
	var rev uint64
	if over == 0 {
		rev, err = h.kv.Create(ctx, leaseKey, value)
	} else {
		rev, err = h.kv.Update(ctx, leaseKey, value, over)
	}
	if err != nil {
		return err
	}
	// Others wait a whole lease from the moment that they see it; the tenth
	// that is taken off here is for clocks that do not run alike.
	h.value, h.revision, h.until = value, rev, began.Add(ttl-ttl/10)
	return nil
}

// nextEpoch draws the number of a new term.
func nextEpoch(ctx context.Context, epochs bus.KV) (uint64, error) {
	for {
		e, err := epochs.Get(ctx, epochKey)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return 0, fmt.Errorf("read the epoch: %w", err)
		}
		var next uint64 = 1
		if err == nil {
			last, err := strconv.ParseUint(string(e.Value), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the epoch: %w", err)
			}
			next = last + 1
			_, err = epochs.Update(ctx, epochKey, strconv.AppendUint(nil, next, 10), e.Revision)
			if err == nil {
				return next, nil
			}
			if !errors.Is(err, bus.ErrExists) {
				return 0, fmt.Errorf("write the epoch: %w", err)
			}
			continue
		}
		_, err = epochs.Create(ctx, epochKey, strconv.AppendUint(nil, next, 10))
		if err == nil {
			return next, nil
		}
		if !errors.Is(err, bus.ErrExists) {
			return 0, fmt.Errorf("write the epoch: %w", err)
		}
	}
}

// keep renews the lease until it is lost or the context ends.
func (c *Controller) keep(ctx context.Context, h *held) {
	every := c.cfg.Timing.Lease / 4
	wait := every
	for {
		sleep(ctx, min(wait, time.Until(h.until)))
		if ctx.Err() != nil {
			return
		}
		if !time.Now().Before(h.until) {
			c.log.Error("lost the lead: the lease could not be renewed in time")
			return
		}
		var l lease
		_ = json.Unmarshal(h.value, &l) // it is our own
		attempt, cancel := context.WithDeadline(ctx, h.until)
		err := h.write(attempt, l, h.revision, c.cfg.Timing.Lease)
		cancel()
		switch {
		case err == nil:
			wait = every
		case errors.Is(err, bus.ErrExists), errors.Is(err, bus.ErrNotFound):
			// Either another has it, or our own last try arrived after all.
			if !c.reclaim(ctx, h) {
				c.log.Error("lost the lead: another controller has the lease, or it expired")
				return
			}
			wait = every
		default:
			c.log.Warn("cannot renew the lease", "error", err)
			wait = every / 5
		}
	}
}

// reclaim finds out whether the lease is still ours after a write whose answer
// was lost.
func (c *Controller) reclaim(ctx context.Context, h *held) bool {
	ctx, cancel := context.WithDeadline(ctx, h.until)
	defer cancel()
	e, err := h.kv.Get(ctx, leaseKey)
	if err != nil || string(e.Value) != string(h.value) {
		return false
	}
	h.revision = e.Revision
	return true
}

// serve leads: from the announcement until the lease is lost or the context
// ends, when the lease is given back.
func (c *Controller) serve(ctx context.Context, h *held) {
	leading, cancel := context.WithCancel(ctx)
	defer cancel()
	t := newTerm(leading, c, h.epoch)
	known := c.heard.since(c.cfg.Timing.OfflineAfter)
	c.reporting.Store(t)

	var owned sync.WaitGroup
	owned.Go(func() { // the lease comes first: without it, nothing else counts
		defer cancel()
		c.keep(leading, h)
	})
	owned.Go(t.runSender)
	c.announce(t)
	c.awaitReports(leading, t, known)
	if leading.Err() == nil {
		c.log.Info("leading", "id", c.cfg.ID, "epoch", h.epoch, "invokers", len(known))
		c.term.Store(t)
		t.catchUp()
		c.lease.notify()
		owned.Go(t.run)
		owned.Go(func() { c.async.consume(leading, t) })
	}
	<-leading.Done()

	c.term.Store(nil)
	c.reporting.Store(nil)
	t.end()
	for _, name := range t.invokers() {
		c.heard.note(name, false)
	}
	owned.Wait()
	if ctx.Err() != nil {
		c.giveBack(h)
	}
	c.lease.notify()
	c.log.Info("not leading any more", "id", c.cfg.ID, "epoch", h.epoch)
}

// giveBack removes the lease, so that a standby need not wait for its end.
func (c *Controller) giveBack(h *held) {
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Timing.Lease)
	defer cancel()
	e, err := h.kv.Get(ctx, leaseKey)
	if err == nil && e.Revision == h.revision {
		err = h.kv.Delete(ctx, leaseKey)
	}
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		c.log.Warn("cannot give the lease back; it will expire", "error", err)
	}
}

// announce asks all invokers for full reports.
func (c *Controller) announce(t *term) {
	data, err := proto.Marshal(&wire.ToInvoker{Epoch: t.epoch, Resync: true})
	if err == nil {
		err = c.cfg.Bus.Publish(wire.AnnounceSubject, data)
	}
	if err != nil {
		c.log.Warn("cannot announce the new leader; invokers will hear when they report", "error", err)
	}
}

// awaitReports waits until the known invokers have sent full reports, and not
// longer than a new leader may let invocations wait.
func (c *Controller) awaitReports(ctx context.Context, t *term, known []string) {
	if t.epoch == 1 {
		return // nobody can know more than this controller
	}
	deadline := time.Now().Add(c.cfg.Timing.SyncWait)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if len(known) > 0 && t.synced(known) {
			return
		}
		sleep(ctx, c.cfg.Timing.SyncWait/30)
	}
}

// synced reports whether all of the named invokers have sent full reports.
func (t *term) synced(names []string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		if p := t.peers[name]; p == nil || p.synced.IsZero() {
			return false
		}
	}
	return true
}

// invokers names the invokers that are online.
func (t *term) invokers() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for name, p := range t.peers {
		if !p.lost && !p.leaving {
			names = append(names, name)
		}
	}
	return names
}

// reconnected asks for full reports: messages were lost.
func (c *Controller) reconnected() {
	if t := c.reporting.Load(); t != nil {
		c.log.Info("the bus is connected again: asking invokers for full reports")
		c.announce(t)
	}
}

// run does what is due from time to time, until the term ends.
func (t *term) run() {
	tick := time.NewTicker(t.c.cfg.Timing.Tick)
	defer tick.Stop()
	plan := time.NewTimer(0)
	defer plan.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
			t.tick()
			plan.Reset(0)
		case <-t.replan:
			plan.Reset(0)
		case <-plan.C:
			if next := t.plan(); next > 0 {
				plan.Reset(next)
			}
		}
	}
}

// tick gives up invokers that are silent, acknowledges, and asks for full
// reports now and then.
func (t *term) tick() {
	timing := t.c.cfg.Timing
	t.mu.Lock()
	defer t.release()
	now := time.Now()
	if t.ended {
		return
	}
	for _, p := range t.peers {
		if p.node == nil {
			continue
		}
		if now.Sub(p.heard) > timing.OfflineAfter && (p.node.Online() || p.leaving) {
			t.c.log.Warn("invoker is offline", "invoker", p.name, "silent", now.Sub(p.heard))
			t.lose(p, now)
			continue
		}
		if p.lost {
			continue
		}
		if now.Sub(p.synced) > timing.Resync {
			t.askResync(p, now)
		}
		if p.acked != p.taken {
			p.tick = true
			t.touch(p)
		}
	}
	t.drain(now)
	t.orphans.purge(now)
	t.forgetRetired()
}

// catchUp takes in what the registry was told before the term was current.
func (t *term) catchUp() {
	for _, e := range t.c.registry.all() {
		t.functionChanged(e.function.Name, e)
	}
}
