package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// deed is one event of a random history.
type deed struct {
	kind string
	// who chooses an invoker, a function or a request, whichever it is about.
	who, what int
	wait      time.Duration
}

func drawDeeds(t *rapid.T) []deed {
	kinds := []string{
		"invoke", "invoke", "invoke", "invoke async", "invoke async", "invoke async",
		"finish", "finish", "finish", "finish", "fail", "cancel",
		"lose message", "lose report", "report twice", "report all", "refuse",
		"kill invoker", "silence", "speak", "kill leader", "cut", "update", "wait", "wait",
	}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) deed {
		return deed{
			kind: rapid.SampledFrom(kinds).Draw(t, "kind"),
			who:  rapid.IntRange(0, 5).Draw(t, "who"),
			what: rapid.IntRange(0, 5).Draw(t, "what"),
			wait: time.Duration(rapid.SampledFrom([]int{0, 0, 1, 50, 700, 2500, 12000}).Draw(t, "wait")) * time.Millisecond,
		}
	}), 5, 60).Draw(t, "deeds")
}

// history carries deeds out and checks what must hold.
type history struct {
	w        *world
	invokers []*fakeInvoker
	leaders  []*process
	names    []string

	mu      sync.Mutex
	wrong   []string
	ended   map[string]int // synchronous invocations
	begun   map[string]context.CancelFunc
	order   []string
	async   []string
	boots   int
	waiters sync.WaitGroup
}

func (h *history) complain(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrong = append(h.wrong, fmt.Sprintf(format, args...))
}

func newHistory(w *world) *history {
	h := &history{w: w, ended: map[string]int{}, begun: map[string]context.CancelFunc{}, names: []string{"small", "middle", "large"}}
	for i := range 3 {
		f := w.invoker(fmt.Sprintf("inv-%d", i), 512)
		f.run = hold
		h.invokers = append(h.invokers, f)
	}
	h.lead()
	for i, name := range h.names {
		w.create(h.leaders[0], name, func(f *function.Function) { f.MemoryMB = 100 * (i + 1) })
	}
	return h
}

// lead adds a standby and waits until somebody leads.
func (h *history) lead() {
	h.leaders = append(h.leaders, h.w.controller(fmt.Sprintf("c%d", len(h.leaders))))
	h.w.ready(h.leaders[len(h.leaders)-1])
}

// leader returns who leads, or nil.
func (h *history) leader() *process {
	for _, p := range h.leaders {
		if _, _, self := p.Leader(); self {
			return p
		}
	}
	return nil
}

func (h *history) do(n int, d deed) {
	inv := h.invokers[d.who%len(h.invokers)]
	name := h.names[d.what%len(h.names)]
	p := h.leader()
	switch d.kind {
	case "invoke":
		if p != nil {
			h.invoke(p, name, fmt.Sprintf("s%d", n))
		}
	case "invoke async":
		id := fmt.Sprintf("a%d", n)
		if p != nil && p.InvokeAsync(context.Background(), function.Invocation{ID: id, Function: name, Payload: []byte(`1`)}) == nil {
			h.async = append(h.async, id)
		}
	case "finish", "fail":
		if ids := inv.held(); len(ids) > 0 {
			id := ids[d.what%len(ids)]
			var res *wire.Result
			if d.kind == "fail" {
				res = failed(&wire.Run{RequestId: id})
			}
			inv.finish(id, res)
		}
	case "cancel":
		h.mu.Lock()
		if len(h.order) > 0 {
			h.begun[h.order[d.what%len(h.order)]]()
		}
		h.mu.Unlock()
	case "lose message":
		once := true
		inv.set(func(f *fakeInvoker) {
			f.loseMessage = func(*wire.ToInvoker) bool { lose := once; once = false; return lose }
		})
	case "lose report":
		once := true
		inv.set(func(f *fakeInvoker) {
			f.loseReport = func(*wire.Report) bool { lose := once; once = false; return lose }
		})
	case "report twice":
		inv.set(func(f *fakeInvoker) { f.twice = func(r *wire.Report) bool { return r.Seq%2 == 0 } })
	case "report all":
		inv.report(true, nil, nil, nil)
	case "refuse":
		once := true
		inv.set(func(f *fakeInvoker) {
			f.refuse = func(*wire.Run) bool { no := once; once = false; return no }
		})
	case "kill invoker":
		inv.kill()
		h.boots++
		inv.start(h.w.t, h.w.server, fmt.Sprintf("boot-%d", h.boots+1))
	case "silence":
		inv.hush(true)
	case "speak":
		inv.hush(false)
	case "kill leader":
		if p != nil && len(h.leaders) < 4 {
			h.lead()
			h.w.server.Cut(p.conn)
		}
	case "cut":
		var conns []bus.Bus
		for _, f := range h.invokers {
			conns = append(conns, f.conn)
		}
		h.w.server.Cut(conns...)
		time.Sleep(min(d.wait, time.Second))
		h.w.server.Restore(conns...)
	case "update":
		if p != nil {
			_, err := p.UpdateConfiguration(context.Background(), name, "", func(f *function.Function) { f.Description = fmt.Sprint(n) })
			if err != nil && function.CodeOf(err) != function.Unavailable { // the bus is cut
				h.complain("update: %v", err)
			}
		}
	}
	time.Sleep(d.wait)
	synctest.Wait()
	h.check()
}

func (h *history) invoke(p *process, name, id string) {
	ctx, cancel := context.WithCancel(context.Background())
	h.mu.Lock()
	h.begun[id] = cancel
	h.order = append(h.order, id)
	h.mu.Unlock()
	h.waiters.Go(func() {
		defer cancel()
		res, err := p.Invoke(ctx, function.Invocation{ID: id, Function: name, Payload: []byte(`"` + id + `"`)})
		h.mu.Lock()
		h.ended[id]++
		h.mu.Unlock()
		var known *function.Error
		switch {
		case err == nil && res.ID != id:
			h.complain("%s got the result of %s", id, res.ID)
		case err == nil && res.FunctionError == "" && string(res.Payload) != `"`+id+`"`:
			h.complain("%s got %s", id, res.Payload)
		case err != nil && !errors.As(err, &known) && ctx.Err() == nil:
			h.complain("%s ended with %v", id, err)
		}
	})
}

// check looks at the leader's view and at the invokers.
func (h *history) check() {
	for _, f := range h.invokers {
		f.mu.Lock()
		for _, fault := range f.faults {
			h.complain("%s: %s", f.name, fault)
		}
		if f.memoryMB() > f.capacityMB {
			h.complain("%s holds %d MiB", f.name, f.memoryMB())
		}
		f.mu.Unlock()
	}
	for _, p := range h.leaders {
		if t := p.reporting.Load(); t != nil {
			h.checkTerm(t)
		}
	}
}

func (h *history) checkTerm(t *term) {
	t.mu.Lock()
	defer t.mu.Unlock()
	used := map[*sophon.Container]string{}
	placed := 0
	for id, k := range t.calls {
		c := k.job.Container()
		if k.job.Node() != nil {
			placed++
		}
		if c == nil {
			continue
		}
		if other := used[c]; other != "" {
			h.complain("container %s is used by %s and %s", c.ID(), other, id)
		}
		used[c] = id
		if c.State() == sophon.Idle || c.State() == sophon.Paused {
			h.complain("container %s is %v and used by %s", c.ID(), c.State(), id)
		}
	}
	if placed != t.sched.Running() {
		h.complain("%d calls are placed, and %d jobs", placed, t.sched.Running())
	}
	if len(t.calls) != t.underWay {
		h.complain("%d calls are counted as %d", len(t.calls), t.underWay)
	}
	for _, n := range t.cluster.Nodes() {
		var busy, idle int64
		for c := range n.Containers {
			if c.State() == sophon.Idle || c.State() == sophon.Paused {
				idle += c.MemoryMB()
			} else {
				busy += c.MemoryMB()
			}
		}
		if busy != n.BusyMB() || idle != n.IdleMB() || busy > n.CapacityMB() {
			h.complain("node %s of %d MiB has %d busy and %d idle, and counts %d and %d", n.Name(), n.CapacityMB(), busy, idle, n.BusyMB(), n.IdleMB())
		}
	}
}

// settle lets everything end: no more faults, and nothing is held.
func (h *history) settle() {
	for _, f := range h.invokers {
		f.set(func(f *fakeInvoker) {
			f.silent, f.run, f.refuse, f.loseMessage, f.loseReport, f.twice = false, nil, nil, nil, nil, nil
		})
	}
	for range 60 {
		for _, f := range h.invokers {
			for _, id := range f.held() {
				f.finish(id, nil)
			}
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		h.check()
	}
	h.waiters.Wait()
	p := h.leader()
	if p == nil {
		h.complain("nobody leads")
		return
	}
	for id := range h.begun {
		if h.ended[id] != 1 {
			h.complain("%s has ended %d times", id, h.ended[id])
		}
		ran := 0
		for _, f := range h.invokers {
			ran += f.times(id)
		}
		if ran > 1 {
			h.complain("%s has run %d times, and nobody asked for that", id, ran)
		}
	}
	records, _, err := p.Records(context.Background(), "", 0)
	if err != nil {
		h.complain("records: %v", err)
	}
	var recorded []string
	for _, r := range records {
		recorded = append(recorded, r.RequestID)
	}
	slices.Sort(h.async)
	if !slices.Equal(recorded, h.async) {
		h.complain("recorded are %v, accepted were %v", recorded, h.async)
	}
	if n, err := p.async.len(context.Background()); n != 0 || err != nil {
		h.complain("%d items are left in the queue, %v", n, err)
	}
	h.agree(p.term.Load())
}

// agree checks that the leader's view is what the invokers have.
func (h *history) agree(t *term) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range h.invokers {
		f.mu.Lock()
		n := t.cluster.Node(f.name)
		have := map[string]string{}
		for c := range n.Containers {
			have[c.ID()] = c.State().String()
		}
		if len(have) != len(f.containers) {
			h.complain("%s has %d containers, and the leader counts %d", f.name, len(f.containers), len(have))
		}
		for id := range f.containers {
			if have[id] != "idle" {
				h.complain("%s has container %s idle, and the leader says %q", f.name, id, have[id])
			}
		}
		f.mu.Unlock()
	}
	if len(t.calls) != 0 || t.underWay != 0 || t.unreserved != 0 || t.sched.Queued() != 0 || t.sched.Running() != 0 {
		h.complain("under way are %d calls (%d, %d), %d jobs wait and %d run",
			len(t.calls), t.underWay, t.unreserved, t.sched.Queued(), t.sched.Running())
	}
	if len(t.foreign) != 0 {
		h.complain("%d requests run for somebody else", len(t.foreign))
	}
}

func TestWhateverHappensEveryInvocationEndsOnceAndNoContainerIsUsedTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		deeds := drawDeeds(rt)
		var wrong []string
		synctest.Test(t, func(t *testing.T) {
			h := newHistory(&world{t: t, server: bus.NewMemory()})
			for i, d := range deeds {
				h.do(i, d)
			}
			h.settle()
			wrong = h.wrong
		})
		if len(wrong) > 0 {
			rt.Fatalf("%d complaints, the first is: %s", len(wrong), wrong[0])
		}
	})
}
