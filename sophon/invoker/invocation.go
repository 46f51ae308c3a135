package invoker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sophon/wire"
)

// maxReroutes is how many containers may turn out to be dead under one
// invocation before it fails.
const maxReroutes = 3

// invocation is one invocation on this node. Its fields are the Invoker's
// mutex's until it is armed, then its goroutine's; cancelled stays the mutex's.
type invocation struct {
	run       *wire.Run
	function  *functionEntry
	container *container
	taken     time.Time
	start     time.Duration // until its container was ready; 0 if warm
	cold      bool
	reroutes  int
	cancelled bool

	// ctx bounds the run; nil with cancel until the invocation is armed.
	ctx      context.Context
	cancel   context.CancelFunc
	deadline time.Time
	stream   *stream // or nil
	span     trace.Span
}

func (v *Invoker) newInvocation(r *wire.Run, f *functionEntry, now time.Time) *invocation {
	inv := &invocation{run: r, function: f, taken: now, span: v.runSpan(r, now)}
	if s := r.GetStreamSubject(); s != "" {
		inv.stream = newStream(v.config.Bus, s, v.maxPayload)
	}
	v.invocations[r.GetRequestId()] = inv
	return inv
}

// place carries out what the pool decided for an invocation, or for a
// container that is started in advance, where inv is nil.
func (v *Invoker) place(inv *invocation, f *functionEntry, out Outcome) {
	for _, id := range out.Close {
		v.close(id, endedForMemory)
	}
	switch out.Verdict {
	case Warm:
		c := v.containers[out.Container]
		v.bind(inv, c)
		v.arm(inv)
		v.tasks.Go(func() { v.invoke(inv, c) })
	case Cold:
		c := newContainer(out.Container, f)
		v.containers[c.id] = c
		if inv != nil {
			inv.cold = true
			v.bind(inv, c)
		}
		if !out.Wait {
			v.begin(c)
		}
	case Refused:
		if inv != nil {
			v.giveBack(inv, "no room")
		}
	}
}

func (v *Invoker) bind(inv *invocation, c *container) {
	c.invocation, inv.container = inv, c
	c.uses++
}

// arm starts the invocation's clock.
func (v *Invoker) arm(inv *invocation) {
	timeout := time.Duration(inv.run.GetTimeoutNano())
	if timeout <= 0 {
		timeout = inv.function.Timeout
	}
	if timeout <= 0 {
		inv.ctx, inv.cancel = context.WithCancel(v.runs)
		return
	}
	inv.deadline = time.Now().Add(timeout)
	inv.ctx, inv.cancel = context.WithDeadline(v.runs, inv.deadline.Add(killGrace))
}

// invoke runs an armed invocation in its container, and says how it ended.
func (v *Invoker) invoke(inv *invocation, c *container) {
	defer inv.cancel()
	if err := v.prepare(inv, c); err != nil {
		v.reroute(inv, c, err)
		return
	}
	span := v.functionSpan(inv)
	resp, err := c.sandbox.Invoke(inv.ctx, v.request(inv, span))
	span.end(err, resp.FunctionError)
	if errors.Is(err, sandbox.ErrNotStarted) && !ended(inv.ctx) {
		v.reroute(inv, c, err)
		return
	}
	var res *wire.Result
	if err == nil {
		res = v.answered(inv, resp)
	} else {
		res = failed(inv.run, v.blame(inv, err))
	}
	if inv.stream != nil {
		res.Streamed = inv.stream.started()
		if err := inv.stream.close(res, resp.ContentType); err != nil {
			v.log.Debug("cannot end a stream", "request", inv.run.GetRequestId(), "error", err)
		}
	}
	v.finish(inv, c, res, err != nil || resp.Broken)
}

// prepare makes sure that the container can take an event.
func (v *Invoker) prepare(inv *invocation, c *container) error {
	select {
	case <-c.sandbox.Done():
		return sandbox.ErrNotStarted
	default:
	}
	if v.config.PauseAfter <= 0 {
		return nil // nothing is ever paused
	}
	if err := c.thaw(inv.ctx); err != nil {
		return fmt.Errorf("resume container: %w", err)
	}
	return nil
}

func (v *Invoker) request(inv *invocation, span functionSpan) sandbox.Request {
	r := inv.run
	req := sandbox.Request{
		ID: r.GetRequestId(), Payload: r.GetPayload(), ClientContext: r.GetClientContext(), LogTail: r.GetLogTail(),
		Deadline: inv.deadline, TraceParent: r.GetTraceParent(),
	}
	if span.traceParent != "" {
		req.TraceParent = span.traceParent
	}
	if s := inv.stream; s != nil {
		req.Stream = func(piece []byte) error { return s.write(inv.ctx, piece) }
	}
	return req
}

// reroute moves an invocation, of which function code has seen nothing, from a
// dead container to another one.
func (v *Invoker) reroute(inv *invocation, c *container, why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	defer v.signal()
	now := time.Now()
	v.pool.Finished(c.id, true, now)
	c.invocation = nil
	v.close(c.id, endedByItself)
	inv.ctx, inv.cancel = nil, nil
	switch inv.reroutes++; {
	case inv.cancelled:
		v.conclude(inv, failed(inv.run, errCancelled()))
	case v.leaving:
		v.giveBack(inv, "the invoker is leaving")
	case inv.reroutes > maxReroutes:
		v.conclude(inv, failed(inv.run, fmt.Errorf("run function: %d containers ended before they took the event: %w", inv.reroutes, why)))
	default:
		v.noteStale()
		v.place(inv, inv.function, v.pool.Run(Order{
			Job: inv.run.GetRequestId(), Function: inv.function.handle, AnyWarm: true,
			Container: v.spare(), KeepAlive: inv.function.keepAlive,
		}, now))
	}
}

// spare names a container that no controller has named.
func (v *Invoker) spare() string {
	v.spares++
	return v.config.Name + "-" + v.boot[:8] + "-" + strconv.Itoa(v.spares)
}

// finish ends an invocation that ran in a container.
func (v *Invoker) finish(inv *invocation, c *container, res *wire.Result, broken bool) {
	v.mu.Lock()
	keep := v.pool.Finished(c.id, broken, time.Now())
	c.invocation = nil
	v.conclude(inv, res)
	if !keep {
		reason := endedByController
		if broken {
			reason = endedBroken
		}
		v.close(c.id, reason)
	}
	v.mu.Unlock()
	v.signal()
}

// conclude forgets an invocation, and reports its result.
func (v *Invoker) conclude(inv *invocation, res *wire.Result) {
	r := inv.run
	delete(v.invocations, r.GetRequestId())
	res.Cold, res.Container = inv.cold, inv.container.id
	if received := r.GetReceivedUnixNano(); received > 0 {
		// Clocks of two machines differ; a wait is never negative.
		res.QueuedNano = max(0, inv.taken.UnixNano()-received)
	}
	if inv.cold {
		res.StartNano = int64(inv.start)
	}
	v.outbox.result(res, r.GetDurable())
	v.metrics.ran(res)
	endRunSpan(inv.span, res)
}

// giveBack forgets an invocation that did not run, and has the controller
// place it anew.
func (v *Invoker) giveBack(inv *invocation, reason string) {
	delete(v.invocations, inv.run.GetRequestId())
	v.refuse(inv.run, reason)
	if inv.span != nil {
		inv.span.AddEvent("refused: " + reason)
		inv.span.End()
	}
}

// answered is the result of an invocation that ended in function code.
func (v *Invoker) answered(inv *invocation, resp sandbox.Response) *wire.Result {
	res := &wire.Result{
		RequestId: inv.run.GetRequestId(), Payload: resp.Payload, FunctionError: resp.FunctionError,
		RunNano: int64(resp.Run), MaxMemoryBytes: resp.MaxMemoryBytes,
	}
	if inv.run.GetLogTail() {
		res.LogTail = tail(resp.LogTail)
	}
	if limit := min(v.maxPayload, function.MaxSyncPayloadBytes); len(res.Payload) > limit {
		res.FunctionError = function.Unhandled
		res.Payload = errorPayload("Function.ResponseSizeTooLarge",
			fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", limit))
	}
	return res
}

// notStarted is the result of an invocation whose container could not be
// started.
func notStarted(inv *invocation, err error) *wire.Result {
	init, ok := errors.AsType[*sandbox.InitError](err)
	if !ok {
		return failed(inv.run, fmt.Errorf("start container: %w", err))
	}
	res := &wire.Result{RequestId: inv.run.GetRequestId(), Payload: init.Payload, FunctionError: function.Unhandled}
	if len(res.Payload) == 0 {
		res.Payload = errorPayload(init.Type, init.Message)
	}
	if inv.run.GetLogTail() {
		res.LogTail = tail(init.LogTail)
	}
	return res
}

// blame finds out why a sandbox failed an invocation.
func (v *Invoker) blame(inv *invocation, err error) error {
	v.mu.Lock()
	cancelled := inv.cancelled
	v.mu.Unlock()
	switch {
	case cancelled:
		return errCancelled()
	case ended(v.runs):
		return function.Errorf(function.InvokerLost, "the invoker was shut down while the function ran")
	}
	v.log.Warn("a sandbox failed an invocation", "request", inv.run.GetRequestId(), "container", inv.container.id, "error", err)
	return fmt.Errorf("run function: %w", err)
}

// failed is the result of an invocation that the platform failed.
func failed(r *wire.Run, err error) *wire.Result {
	fe, ok := errors.AsType[*function.Error](err)
	if !ok {
		fe = function.Errorf(function.Internal, "%s", err)
	}
	text, err := json.Marshal(fe)
	if err != nil { // strings always can be encoded
		text = []byte(`{"code":"Internal"}`)
	}
	return &wire.Result{RequestId: r.GetRequestId(), Error: text}
}

// errorPayload is an error as AWS gives it to the caller of a function.
func errorPayload(errorType, message string) []byte {
	text, err := json.Marshal(struct {
		Message string `json:"errorMessage"`
		Type    string `json:"errorType"`
	}{message, errorType})
	if err != nil {
		return []byte(`{}`)
	}
	return text
}

// tail is the end of a log that a result carries.
func tail(log []byte) []byte { return log[max(0, len(log)-function.MaxLogTailBytes):] }
