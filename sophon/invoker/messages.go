package invoker

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// KeepAliveTag is the tag of a function that says how long its idle containers
// are kept, as Go writes durations; "-1s" is for ever.
const KeepAliveTag = "volley:keep-alive"

// maxFunctions bounds the functions whose configuration is kept decoded.
const maxFunctions = 4096

// functionEntry is a function revision as the invoker needs it.
type functionEntry struct {
	*function.Function
	handle    *sophon.Function // for the Pool's orders
	keepAlive time.Duration
}

// receive takes in one message of a controller. All of it takes effect at
// once: a report tells either of none of it or of all.
func (v *Invoker) receive(m bus.Message) {
	var msg wire.ToInvoker
	if err := proto.Unmarshal(m.Data, &msg); err != nil {
		v.log.Warn("cannot read a controller's message", "error", err)
		return
	}
	now := time.Now()
	v.mu.Lock()
	urgent, ok := v.follow(&msg)
	if !ok {
		v.mu.Unlock()
		return
	}
	for _, r := range msg.GetRun() {
		if v.take(r, now) {
			urgent = true
		}
	}
	for _, id := range msg.GetCancel() {
		v.cancel(id)
	}
	if len(msg.GetEnd()) > 0 && !v.leaving {
		urgent = true
		for _, id := range v.pool.End(msg.GetEnd()) {
			v.close(id, endedByController)
		}
	}
	v.mu.Unlock()
	if urgent {
		v.signal()
	}
}

// follow checks whether a message is the present leader's, and whether any was
// lost before it.
func (v *Invoker) follow(msg *wire.ToInvoker) (urgent, ok bool) {
	epoch, seq := msg.GetEpoch(), msg.GetSeq()
	if epoch < v.epoch {
		return false, false
	}
	if epoch > v.epoch {
		v.epoch, v.seen, v.first = epoch, 0, seq <= 1
		v.outbox.full = true
	}
	if msg.GetResync() {
		v.outbox.full = true
	}
	if seq > 0 {
		if seq != v.seen+1 && (v.seen > 0 || v.first) {
			v.log.Warn("messages of the controller were lost", "seen", v.seen, "next", seq)
			v.outbox.full = true
		}
		v.seen = seq
	}
	v.outbox.acknowledge(msg.GetAcked())
	return v.outbox.full, true
}

// take carries out a Run. It reports whether the controller should hear of it
// at once, since it did not go as the controller must think.
func (v *Invoker) take(r *wire.Run, now time.Time) (urgent bool) {
	f, err := v.function(r)
	if err != nil {
		v.pool.Decline(Order{Expect: r.GetExpect(), Container: r.GetContainer(), Evict: r.GetEvict()}, "")
		v.log.Warn("cannot read a function's configuration", "function", r.GetFunctionKey(), "error", err)
		if r.GetRequestId() != "" {
			v.outbox.result(failed(r, err), r.GetDurable())
		}
		return true
	}
	o := Order{
		Job: r.GetRequestId(), Function: f.handle, Expect: r.GetExpect(), Container: r.GetContainer(),
		AnyWarm: r.GetAnyWarm(), Evict: r.GetEvict(), KeepAlive: f.keepAlive,
	}
	if o.Job != "" {
		if inv := v.invocations[o.Job]; inv != nil { // it runs already
			v.pool.Decline(o, inv.container.id)
			return true
		}
		if v.outbox.again(o.Job) { // it has run
			v.pool.Decline(o, "")
			return true
		}
		v.outbox.retract(o.Job)
	}
	if v.leaving {
		v.pool.Decline(o, "")
		v.refuse(r, "the invoker is leaving")
		return true
	}
	out := v.pool.Run(o, now)
	if out.Stale {
		v.noteStale()
	}
	var inv *invocation
	if o.Job != "" {
		inv = v.newInvocation(r, f, now)
	}
	v.place(inv, f, out)
	asExpected := out.Verdict == Cold && !o.AnyWarm && len(out.Close) == len(o.Evict) ||
		out.Verdict == Warm && out.Container == o.Expect
	return out.Stale || !asExpected
}

func (v *Invoker) noteStale() {
	v.outbox.stale++
	v.metrics.stale.Inc()
}

// function returns the decoded function of a Run.
func (v *Invoker) function(r *wire.Run) (*functionEntry, error) {
	key := r.GetFunctionKey()
	if f := v.functions[key]; f != nil {
		return f, nil
	}
	f := &functionEntry{Function: &function.Function{}}
	if err := json.Unmarshal(r.GetFunction(), f.Function); err != nil {
		return nil, fmt.Errorf("decode function %s: %w", key, err)
	}
	memoryMB := r.GetMemoryMb()
	if memoryMB <= 0 {
		memoryMB = int64(f.MemoryMB)
	}
	f.handle = &sophon.Function{Key: key, Name: f.Name, MemoryMB: memoryMB}
	if tag := f.Tags[KeepAliveTag]; tag != "" {
		d, err := time.ParseDuration(tag)
		if err != nil {
			v.log.Warn("a function's tag is no duration", "function", f.Name, "tag", KeepAliveTag, "value", tag)
		} else {
			f.keepAlive = d
		}
	}
	if len(v.functions) >= maxFunctions {
		clear(v.functions)
	}
	v.functions[key] = f
	return f, nil
}

// cancel ends an invocation that nobody waits for.
func (v *Invoker) cancel(id string) {
	inv := v.invocations[id]
	if inv == nil || inv.cancelled {
		return
	}
	inv.cancelled = true
	if inv.cancel != nil { // it runs; its goroutine will find out
		inv.cancel()
		return
	}
	// The container goes on starting, for whoever comes next.
	v.pool.Detach(inv.container.id)
	inv.container.invocation = nil
	v.conclude(inv, failed(inv.run, errCancelled()))
	v.signal()
}

// refuse gives an invocation, or a start in advance, back to the controller.
func (v *Invoker) refuse(r *wire.Run, reason string) {
	v.metrics.refusals.Inc()
	v.outbox.refusal(&wire.Refusal{RequestId: r.GetRequestId(), Container: r.GetContainer(), Reason: reason}, r.GetDurable())
}

// errCancelled says that nobody waited for an invocation any longer.
func errCancelled() error {
	return &function.Error{Code: function.Unavailable, Reason: "Cancelled", Message: "the invocation was cancelled"}
}

// ended reports whether a context is over.
func ended(ctx context.Context) bool { return ctx.Err() != nil }
