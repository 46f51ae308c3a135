package controller

import (
	"encoding/json"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// heardInvokers remembers, while another controller leads, which invokers
// there are: after a takeover the new leader waits for them.
type heardInvokers struct {
	mu    sync.Mutex
	names map[string]time.Time
}

func (h *heardInvokers) init() { h.names = map[string]time.Time{} }

func (h *heardInvokers) note(name string, leaving bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if leaving {
		delete(h.names, name)
	} else {
		h.names[name] = time.Now()
	}
}

// since returns the invokers heard of within a duration, and forgets the others.
func (h *heardInvokers) since(d time.Duration) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name, at := range h.names {
		if time.Since(at) > d {
			delete(h.names, name)
			continue
		}
		out = append(out, name)
	}
	return out
}

// takeReport takes in a message on wire.ReportSubject.
func (c *Controller) takeReport(m bus.Message) {
	var r wire.Report
	if err := proto.Unmarshal(m.Data, &r); err != nil || r.Invoker == "" {
		c.log.Warn("dropped a report that cannot be read", "bytes", len(m.Data), "error", err)
		return
	}
	t := c.reporting.Load()
	if t == nil {
		c.heard.note(r.Invoker, r.Leaving)
		return
	}
	t.report(&r)
}

// report takes in one report.
func (t *term) report(r *wire.Report) {
	t.mu.Lock()
	defer t.release()
	now := time.Now()
	if t.ended || r.Epoch > t.epoch {
		return // of a later term: the lease will tell
	}
	p := t.peers[r.Invoker]
	switch {
	case p == nil:
		p = t.addPeer(r.Invoker)
	case p.past == r.Boot:
		return
	}
	if p.boot != r.Boot {
		if !r.Full {
			t.results(p, r)
			t.askResync(p, now)
			return
		}
		t.reboot(p, r, now)
	}
	p.heard = now
	switch {
	case r.Seq <= p.taken:
		return // a duplicate
	case r.Full:
		t.sync(p, r, now)
	case p.lost || r.Seq != p.taken+1 || p.node == nil:
		// Changes mean nothing without those before, but results do: they may
		// be the part of what is not acknowledged that the next full report
		// has no room for, and which will be acknowledged with it.
		p.lost = true
		t.results(p, r)
		t.askResync(p, now)
		return
	default:
		p.taken = r.Seq
		changes := t.convert(p, r.Changes) // before the results: it asks which requests are known
		t.results(p, r)
		t.refusals(p, r)
		t.sched.Apply(p.node, changes, now)
		t.setLeaving(p, r.Leaving)
	}
	if r.Stale > 0 {
		p.stale += uint64(r.Stale)
		t.c.metrics.countStale(r.Stale)
	}
	t.endRetired(p, r.Changes)
	t.drain(now)
	t.ackLarge(p, r)
}

func (t *term) addPeer(name string) *peer {
	p := &peer{name: name, details: map[string]detail{}}
	t.peers[name] = p
	return p
}

// reboot forgets what an earlier process of the invoker had.
func (t *term) reboot(p *peer, r *wire.Report, now time.Time) {
	if p.boot != "" {
		t.c.log.Info("invoker has a new process", "invoker", p.name)
		t.lose(p, now)
	}
	p.past, p.boot = p.boot, r.Boot
	p.taken, p.acked = 0, 0
}

// sync replaces what is known of an invoker by a full report.
func (t *term) sync(p *peer, r *wire.Report, now time.Time) {
	was := p.node != nil && p.node.Online()
	p.node = t.cluster.AddNode(p.name, r.CapacityMb)
	for len(t.byNode) <= p.node.Index() {
		t.byNode = append(t.byNode, nil)
	}
	t.byNode[p.node.Index()] = p
	if !was {
		t.c.log.Info("invoker is online", "invoker", p.name, "capacity_mb", r.CapacityMb, "containers", len(r.Changes))
	}
	p.taken, p.lost, p.synced, p.asked = r.Seq, false, now, time.Time{}
	p.driver, p.isolation = r.Driver, r.Isolation
	clear(p.details)
	changes := t.convert(p, r.Changes)
	t.results(p, r)
	t.refusals(p, r)
	seen := r.Seen
	if r.Epoch != t.epoch {
		seen = 0 // it counts the messages of another leader
	}
	for _, j := range t.sched.Sync(p.node, changes, seen, now) {
		// Results are kept until acknowledged: this job has not run.
		t.again(j.Value.(*call))
	}
	t.forgetForeign(p, r)
	t.setLeaving(p, r.Leaving)
	t.wantPlan()
}

// setLeaving stops placing on an invoker that says that it goes.
func (t *term) setLeaving(p *peer, leaving bool) {
	if leaving && !p.leaving {
		t.c.log.Info("invoker is leaving", "invoker", p.name)
		t.wantPlan()
	}
	p.leaving = leaving
	if leaving {
		t.cluster.SetOnline(p.node, false)
	}
}

// results ends the calls that a report has results for.
func (t *term) results(p *peer, r *wire.Report) {
	for _, res := range r.Results {
		delete(t.foreign, res.RequestId)
		k := t.calls[res.RequestId]
		switch {
		case k == nil:
			t.orphans.add(res, p.name)
			continue
		case k.waiting:
			// It was lost once and has run nevertheless.
			t.sched.Cancel(&k.job)
			k.waiting = false
		case !k.adopted:
			if n := k.job.Node(); n != nil && n != p.node {
				t.cancel(t.byNode[n.Index()], k) // this one came late, and first
			}
			t.sched.Finish(&k.job)
		}
		t.complete(k, res, p.name)
	}
}

// complete ends a call with what its invoker says of it.
func (t *term) complete(k *call, res *wire.Result, invoker string) {
	k.result = function.Result{
		ID: res.RequestId, Payload: res.Payload, FunctionError: res.FunctionError, LogTail: res.LogTail,
		Cold: res.Cold, Invoker: invoker, Container: res.Container,
		Queued: time.Duration(res.QueuedNano), Start: time.Duration(res.StartNano), Run: time.Duration(res.RunNano),
		MaxMemoryBytes: res.MaxMemoryBytes,
	}
	k.streamed = res.Streamed
	var err *function.Error
	if len(res.Error) > 0 {
		err = &function.Error{}
		if json.Unmarshal(res.Error, err) != nil || err.Code == "" {
			err = function.Errorf(function.Internal, "the invoker failed: %.200s", res.Error)
		}
	}
	if k.async && (err != nil || res.FunctionError != "") {
		t.orphans.settle(res.RequestId)
	}
	t.finish(k, err)
}

// refusals queues again what an invoker could not run.
func (t *term) refusals(p *peer, r *wire.Report) {
	for _, ref := range r.Refusals {
		k := t.calls[ref.RequestId]
		switch {
		case k == nil || k.waiting:
			continue
		case k.adopted:
			if t.foreign[ref.RequestId] == p {
				delete(t.foreign, ref.RequestId)
				t.finish(k, function.Errorf(function.Unavailable, "invoker %s gave the invocation back: %s", p.name, ref.Reason))
			}
			continue
		case k.job.Node() != p.node:
			continue
		}
		t.c.metrics.countRefusal()
		k.refusals++
		if k.refusals >= maxRefusals {
			t.sched.Finish(&k.job)
			t.finish(k, &function.Error{Code: function.TooManyRequests, Reason: "NoCapacity",
				Message: "no capacity: invokers gave the invocation back, the last one because " + ref.Reason})
			continue
		}
		t.again(k)
	}
}

// convert translates changes for the scheduler, and notes what only the
// controller keeps. The result is valid until the next call.
func (t *term) convert(p *peer, changes []*wire.Change) []sophon.Change {
	t.changes = t.changes[:0]
	for _, ch := range changes {
		s, ok := stateOf(ch.State)
		if !ok {
			continue
		}
		c := sophon.Change{Container: ch.Container, State: s, MemoryMB: ch.MemoryMb, Job: ch.RequestId, Cold: time.Duration(ch.ColdNano)}
		if s == sophon.Gone {
			delete(p.details, ch.Container)
		} else {
			if ch.FunctionKey == "" {
				continue
			}
			c.Function = t.intern(ch.FunctionKey, ch.MemoryMb).function
			if ch.MadeUnixNano != 0 {
				p.details[ch.Container] = detail{made: time.Unix(0, ch.MadeUnixNano), rssBytes: ch.RssBytes}
				c.Made, c.Uses = time.Unix(0, ch.MadeUnixNano), int(ch.Uses)
			}
			if ch.UsedUnixNano != 0 {
				c.Used = t.monotonic(ch.UsedUnixNano)
			}
			if ch.RequestId != "" && t.calls[ch.RequestId] == nil && (s == sophon.Busy || s == sophon.Starting) {
				t.foreign[ch.RequestId] = p
			}
		}
		t.changes = append(t.changes, c)
	}
	return t.changes
}

func stateOf(s wire.State) (sophon.State, bool) {
	switch s {
	case wire.State_STARTING:
		return sophon.Starting, true
	case wire.State_BUSY:
		return sophon.Busy, true
	case wire.State_IDLE:
		return sophon.Idle, true
	case wire.State_PAUSED:
		return sophon.Paused, true
	case wire.State_GONE:
		return sophon.Gone, true
	}
	return 0, false
}

// endRetired ends containers of old revisions that have become idle.
func (t *term) endRetired(p *peer, changes []*wire.Change) {
	if len(t.retired) == 0 {
		return
	}
	for _, ch := range changes {
		if ch.State != wire.State_IDLE && ch.State != wire.State_PAUSED {
			continue
		}
		rev := t.functions[ch.FunctionKey]
		if rev == nil || !rev.retired {
			continue
		}
		if c := t.cluster.Lookup(p.node, ch.Container); c != nil {
			t.endContainer(c)
		}
	}
}

// monotonic converts an invoker's time of day to this process's monotonic
// clock, which the cluster goes by.
func (t *term) monotonic(unixNano int64) time.Time {
	ago := max(0, t.c.cfg.WallClock().Sub(time.Unix(0, unixNano)))
	return time.Now().Add(-ago)
}

// ackLarge acknowledges results at once that are costly to keep.
func (t *term) ackLarge(p *peer, r *wire.Report) {
	size := 0
	for _, res := range r.Results {
		size += len(res.Payload)
	}
	if size >= 256<<10 {
		p.tick = true
		t.touch(p)
	}
}

// lose gives up an invoker: what was sent to it is lost, what was not is
// placed elsewhere.
func (t *term) lose(p *peer, now time.Time) {
	p.leaving = false
	p.lost = true
	clear(p.details)
	p.runs, p.cancels, p.ends = nil, nil, nil
	for id, at := range t.foreign {
		if at == p {
			t.loseForeign(id)
		}
	}
	if p.node == nil {
		return
	}
	for _, j := range t.sched.Lose(p.node, now) {
		k := j.Value.(*call)
		if j.Seq == 0 { // not sent
			t.again(k)
			continue
		}
		t.finish(k, lostOn(p.name, k.inv.Function))
	}
	t.wantPlan()
}

func lostOn(invoker, name string) *function.Error {
	return function.Errorf(function.InvokerLost,
		"invoker %s was lost while it ran function %s: the function's code may have run; retry if that does no harm", invoker, name)
}
