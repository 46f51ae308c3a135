package controller

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// async works off the queue of asynchronous invocations, on the leader.
//
// An item is answered with Done only after its outcome was written under its
// request id by KV.Create, so that there is exactly one outcome whatever is
// delivered twice or runs twice. What follows from the outcome (dead letter,
// destination) is done after that and before Done, and is safe to repeat.
type async struct {
	c       *Controller
	queue   bus.Queue
	records bus.KV
	dead    bus.KV

	mu sync.Mutex
	// inProgress are the items that are worked on, by request id.
	inProgress map[string]*progress
}

// progress is an item at work.
type progress struct {
	item  bus.Item
	since time.Time
}

// queued is what an item of the queue holds.
type queued struct {
	function.Invocation
	// Depth counts the destinations that led to this invocation.
	Depth int `json:"depth,omitempty"`
	// redelivered tells that it was delivered before.
	redelivered bool
}

// waitingFactor is how many times as many invocations may be taken out of the
// queue as may run at once: the others wait to be tried again, and must not
// hold up those behind them.
const waitingFactor = 4

// maxDepth ends loops of functions that are each other's destination.
const maxDepth = 16

func newAsync(c *Controller) *async {
	return &async{c: c, inProgress: map[string]*progress{}}
}

func (a *async) open(ctx context.Context, b bus.Bus) (err error) {
	t := a.c.cfg.Timing
	if a.queue, err = b.Queue(ctx, wire.AsyncQueue, bus.QueueOptions{
		AckWait: t.AckWait, MaxPending: waitingFactor * a.c.cfg.Limits.AsyncRunning, DedupeWindow: 2 * time.Minute,
	}); err != nil {
		return fmt.Errorf("open queue %s: %w", wire.AsyncQueue, err)
	}
	if a.records, err = b.KV(ctx, wire.RecordsBucket, bus.KVOptions{TTL: t.RecordAge}); err != nil {
		return fmt.Errorf("open bucket %s: %w", wire.RecordsBucket, err)
	}
	if a.dead, err = b.KV(ctx, wire.DeadBucket, bus.KVOptions{}); err != nil {
		return fmt.Errorf("open bucket %s: %w", wire.DeadBucket, err)
	}
	return nil
}

func (a *async) len(ctx context.Context) (int, error) { return a.queue.Len(ctx) }

// InvokeAsync accepts an invocation to be run later, and returns once it is
// stored: from then on it ends in exactly one Record, whatever fails. Errors
// are *function.Error: NotFound, TooLarge, InvalidParameter, Unavailable. An empty ID and a zero
// Received are filled in; a second invocation of the same ID within two
// minutes is dropped.
func (c *Controller) InvokeAsync(ctx context.Context, inv function.Invocation) error {
	if err := c.awaitOpen(ctx); err != nil {
		return err
	}
	if _, err := c.registry.lookup(inv.Function); err != nil {
		return err
	}
	if len(inv.Payload) > function.MaxAsyncPayloadBytes {
		return function.Errorf(function.TooLarge, "the payload of an asynchronous invocation has %d bytes; use at most %d",
			len(inv.Payload), function.MaxAsyncPayloadBytes)
	}
	if inv.ID == "" {
		inv.ID = newRequestID()
	}
	if !validRequestID(inv.ID) {
		return &function.Error{Code: function.InvalidParameter, Field: "id",
			Message: "a request id is 1 to 128 letters, digits, '-' and '_'"}
	}
	if inv.Received.IsZero() {
		inv.Received = c.cfg.WallClock()
	}
	inv.Type, inv.Attempt = function.Event, 1
	return c.async.put(ctx, queued{Invocation: inv})
}

// validRequestID reports whether an id can be a key on the bus.
func validRequestID(id string) bool {
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return id != "" && len(id) <= 128
}

func (a *async) put(ctx context.Context, q queued) error {
	data, err := json.Marshal(q)
	if err != nil {
		return function.Errorf(function.Internal, "encode invocation: %v", err)
	}
	ctx, cancel := onBus(ctx)
	defer cancel()
	if err := a.queue.Put(ctx, q.ID, data); err != nil {
		return busError("store invocation "+q.ID, err)
	}
	return nil
}

// consume works until the term ends, and returns when nothing of it is at work
// any more.
func (a *async) consume(ctx context.Context, t *term) {
	var works sync.WaitGroup
	works.Go(func() { a.heartbeat(ctx) })
	running := make(chan struct{}, a.c.cfg.Limits.AsyncRunning)
	for ctx.Err() == nil {
		err := a.queue.Consume(ctx, func(item bus.Item) {
			var q queued
			if err := json.Unmarshal(item.Data, &q); err != nil || q.ID == "" {
				a.c.log.Error("dropped an asynchronous invocation that cannot be read", "bytes", len(item.Data), "error", err)
				works.Go(func() { a.remove(ctx, "", item) })
				return
			}
			if !a.enter(q.ID, item) {
				return
			}
			q.redelivered = item.Deliveries > 1
			works.Go(func() {
				select {
				case running <- struct{}{}:
					a.work(ctx, t, &q)
					<-running
				case <-ctx.Done():
				}
				if item, ok := a.leave(q.ID); ok {
					// The term has ended: whoever leads next shall go on at once.
					a.putBack(q.ID, item, 0)
				}
			})
		})
		if err != nil && ctx.Err() == nil {
			a.c.log.Warn("cannot read asynchronous invocations", "error", err)
			sleep(ctx, a.c.cfg.Timing.AckWait/4)
		}
	}
	works.Wait()
}

// enter notes an item as at work. One that is already, and was delivered again,
// replaces the item to answer.
func (a *async) enter(id string, item bus.Item) bool {
	a.mu.Lock()
	p := a.inProgress[id]
	if p == nil {
		a.inProgress[id] = &progress{item: item, since: time.Now()}
		a.mu.Unlock()
		return true
	}
	p.item = item
	a.mu.Unlock()
	a.working(id, item)
	return false
}

// leave ends the work on an item, before it is answered: what is delivered
// from then on is work anew. It returns the latest delivery, which is the one
// to answer; ok is false if that was done before.
func (a *async) leave(id string) (item bus.Item, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.inProgress[id]
	if p == nil {
		return bus.Item{}, false
	}
	delete(a.inProgress, id)
	return p.item, true
}

func (a *async) working(id string, item bus.Item) {
	if err := item.Working(); err != nil {
		a.c.log.Debug("cannot extend the time of an asynchronous invocation; it will be delivered again", "request", id, "error", err)
	}
}

// heartbeat keeps what is at work from being delivered again.
func (a *async) heartbeat(ctx context.Context) {
	every := a.c.cfg.Timing.AckWait / 4
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		items := map[string]bus.Item{}
		a.mu.Lock()
		for id, p := range a.inProgress {
			if time.Since(p.since) >= every {
				items[id] = p.item
			}
		}
		a.mu.Unlock()
		for id, item := range items {
			a.working(id, item)
		}
	}
}

// work brings one invocation as far as it goes now: to its outcome, or back
// into the queue.
func (a *async) work(ctx context.Context, t *term, q *queued) {
	id := q.ID
	used := attempts{}
	if q.redelivered {
		rec, err := a.outcome(ctx, id)
		if err == nil && rec == nil {
			used, err = a.attempts(ctx, id)
		}
		switch {
		case err != nil:
			a.again(id, a.c.cfg.Timing.RetryDelay)
			return
		case rec != nil: // recorded before; what follows from it may be missing
			a.conclude(ctx, q, rec)
			return
		}
	}
	q.Attempt = used.Failed + 1
	e, err := a.c.registry.lookup(q.Function)
	if err != nil {
		a.record(ctx, q, a.newRecord(q, function.Result{}, asError(err), used.Failed))
		return
	}
	config := e.function.Async
	if age := a.c.cfg.WallClock().Sub(q.Received); age > config.MaxAge {
		rec := a.newRecord(q, function.Result{}, function.Errorf(function.TooManyRequests, "the invocation is %v old and could not be run before", age.Round(time.Second)), used.Failed)
		rec.Condition = EventAgeExceeded
		a.record(ctx, q, rec)
		return
	}
	res, ferr := a.attempt(ctx, t, q)
	if ctx.Err() != nil {
		return // the next leader goes on, with or without the result
	}
	switch {
	case ferr == nil && res.FunctionError == "":
		a.record(ctx, q, a.newRecord(q, res, nil, q.Attempt))
	case ferr != nil && !permanent(ferr):
		// The platform's failures cost no attempt.
		used.Platform++
		a.retry(ctx, q, used, used.Platform)
	case ferr == nil && used.Failed < config.MaxRetries:
		used.Failed++
		used.Platform = 0
		a.retry(ctx, q, used, used.Failed)
	default:
		a.record(ctx, q, a.newRecord(q, res, ferr, q.Attempt))
	}
}

// asError makes any error one of the platform's.
func asError(err error) *function.Error {
	if e, ok := errors.AsType[*function.Error](err); ok {
		return e
	}
	return function.Errorf(function.Internal, "%v", err)
}

// permanent reports whether trying again cannot help.
func permanent(err *function.Error) bool {
	switch err.Code {
	case function.TooManyRequests, function.InvokerLost, function.Unavailable, function.Internal, function.Conflict:
		return false
	}
	return true
}

// attempt runs the invocation once.
func (a *async) attempt(ctx context.Context, t *term, q *queued) (function.Result, *function.Error) {
	k, err := a.c.newCall(q.Invocation)
	if err != nil {
		return function.Result{}, asError(err)
	}
	k.async = true
	k.trace = a.c.tracing.begin(ctx, k)
	if err = t.submit(k); err != nil {
		a.c.metrics.refused(k, err)
		k.trace.end(t, k, err)
		return function.Result{}, asError(err)
	}
	<-k.done // ends with the term at the latest
	if k.err != nil {
		err = k.err
	}
	a.c.metrics.observe(k, err)
	k.trace.end(t, k, err)
	return k.result, k.err
}

// attempts counts what was spent on an invocation. It is stored under its
// request id while it waits to be tried again.
type attempts struct {
	// Failed attempts ended in the function's failure.
	Failed int `json:"failed"`
	// Platform counts the platform's failures since.
	Platform int `json:"platform"`
}

// attemptsKey is where the attempts of a request are kept among the records.
func attemptsKey(id string) string { return "attempts." + id }

func (a *async) attempts(ctx context.Context, id string) (attempts, error) {
	var used attempts
	e, err := a.records.Get(ctx, attemptsKey(id))
	if errors.Is(err, bus.ErrNotFound) {
		return used, nil
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &used)
	}
	return used, err
}

// retry stores what was spent and puts the invocation back, to come again
// after a delay that doubles with every time.
func (a *async) retry(ctx context.Context, q *queued, used attempts, times int) {
	value, err := json.Marshal(used)
	if err == nil {
		_, err = a.records.Put(ctx, attemptsKey(q.ID), value)
	}
	if err != nil {
		// It is tried again nevertheless: once too often is better than never.
		a.c.log.Warn("cannot note an attempt", "request", q.ID, "error", err)
	}
	delay := a.c.cfg.Timing.RetryDelay
	for i := 1; i < times && delay < a.c.cfg.Timing.MaxRetryDelay; i++ {
		delay *= 2
	}
	a.c.metrics.countRetry()
	a.again(q.ID, min(delay, a.c.cfg.Timing.MaxRetryDelay))
}

// again ends the work on an invocation and puts it back into the queue.
func (a *async) again(id string, delay time.Duration) {
	if item, ok := a.leave(id); ok {
		a.putBack(id, item, delay)
	}
}

func (a *async) putBack(id string, item bus.Item, delay time.Duration) {
	if err := item.Again(delay); err != nil {
		a.c.log.Debug("cannot put an asynchronous invocation back; it will be delivered again", "request", id, "error", err)
	}
}

// remove takes an item that is done with out of the queue.
func (a *async) remove(ctx context.Context, id string, item bus.Item) {
	if err := item.Done(ctx); err != nil && ctx.Err() == nil {
		a.c.log.Warn("cannot remove an asynchronous invocation that is done; it will be delivered again", "request", id, "error", err)
	}
}

// newRecord makes the record of an outcome.
func (a *async) newRecord(q *queued, res function.Result, err *function.Error, attempts int) *Record {
	r := &Record{
		RequestID: q.ID, Function: q.Function, Status: Succeeded, Condition: Success, Attempts: attempts,
		Received: q.Received, Ended: a.c.cfg.WallClock(), FunctionError: res.FunctionError, Error: err,
		Invoker: res.Invoker, Container: res.Container, Cold: res.Cold, Run: res.Run, Payload: res.Payload,
	}
	if err != nil || res.FunctionError != "" {
		r.Status, r.Condition = Failed, RetriesExhausted
	}
	return r
}

// record writes an outcome, unless there is one, and does what follows from
// the one that there is.
func (a *async) record(ctx context.Context, q *queued, r *Record) {
	value, err := json.Marshal(r)
	if err == nil && int64(len(value)) > a.c.cfg.Bus.MaxMessageBytes()/2 {
		r.Payload, r.Truncated = nil, true
		value, err = json.Marshal(r)
	}
	if err == nil {
		_, err = a.records.Create(ctx, r.RequestID, value)
	}
	if errors.Is(err, bus.ErrExists) {
		var have *Record
		if have, err = a.outcome(ctx, r.RequestID); err == nil && have != nil {
			r = have
		}
	} else if err == nil {
		a.c.metrics.countRecord(r)
	}
	if err != nil {
		a.c.log.Warn("cannot record an outcome; the invocation will be delivered again", "request", r.RequestID, "error", err)
		a.again(r.RequestID, a.c.cfg.Timing.RetryDelay)
		return
	}
	a.conclude(ctx, q, r)
}

// conclude does what follows from an outcome, and removes the item.
func (a *async) conclude(ctx context.Context, q *queued, r *Record) {
	if err := a.follow(ctx, q, r); err != nil {
		a.c.log.Warn("cannot do what follows from an outcome; it will be tried again", "request", q.ID, "error", err)
		a.again(q.ID, a.c.cfg.Timing.RetryDelay)
		return
	}
	if item, ok := a.leave(q.ID); ok {
		a.remove(ctx, q.ID, item)
	}
	if q.redelivered {
		if err := a.records.Delete(ctx, attemptsKey(q.ID)); err != nil && ctx.Err() == nil {
			a.c.log.Debug("cannot remove the note of attempts; it will expire", "request", q.ID, "error", err)
		}
	}
}

// follow writes the dead letter and invokes the destination. It may be
// repeated: the same keys and ids are used.
func (a *async) follow(ctx context.Context, q *queued, r *Record) error {
	if r.Status == Failed {
		value, err := json.Marshal(DeadLetter{Record: *r, Invocation: q.Invocation})
		if err != nil {
			return fmt.Errorf("encode dead letter: %w", err)
		}
		if _, err := a.dead.Put(ctx, q.ID, value); err != nil {
			return fmt.Errorf("write dead letter: %w", err)
		}
	}
	e, err := a.c.registry.lookup(q.Function)
	if err != nil {
		return nil // deleted, and its destinations with it
	}
	to := e.function.Async.OnSuccess
	if r.Status == Failed {
		to = e.function.Async.OnFailure
	}
	if to == "" {
		return nil
	}
	if _, err := a.c.registry.lookup(to); err != nil || q.Depth >= maxDepth {
		a.c.log.Warn("a destination is not invoked: it does not exist, or is part of a loop", "function", q.Function, "destination", to, "depth", q.Depth)
		return nil
	}
	payload, err := json.Marshal(r.destination(q))
	if err != nil {
		return fmt.Errorf("encode the record for destination %s: %w", to, err)
	}
	return a.put(ctx, queued{Depth: q.Depth + 1, Invocation: function.Invocation{
		ID: derivedID(q.ID, to), Function: to, Type: function.Event, Payload: payload,
		Received: r.Ended, Attempt: 1, TraceParent: q.TraceParent,
	}})
}

// derivedID is the request id of the destination's invocation: always the same,
// so that it runs once.
func derivedID(id, destination string) string {
	sum := sha256.Sum256([]byte(id + " " + destination))
	u, err := uuid.FromBytes(sum[:16])
	if err != nil {
		panic(err) // only for another length
	}
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // version 8
	return u.String()
}
