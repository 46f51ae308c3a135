package controller

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// fakeInvoker is an invoker with state but without sandboxes. Unless it is
// told to hold them, invocations end at once with their payload.
type fakeInvoker struct {
	name       string
	capacityMB int64
	conn       bus.Bus
	stop       context.CancelFunc
	pings      sync.WaitGroup
	subs       []bus.Subscription

	mu         sync.Mutex
	boot       string
	silent     bool
	containers map[string]*fakeContainer
	order      []string // containers, the one used least recently first
	kept       []*wire.Result
	keptSeq    map[string]uint64
	seq        uint64
	epoch      uint64
	seen       uint64
	leaving    bool
	// run decides what becomes of a run that has a container: nil or a result
	// ends it, hold leaves it to finish.
	run func(r *wire.Run) (res *wire.Result, hold bool)
	// refuse gives runs back that it returns true for.
	refuse func(r *wire.Run) bool
	// loseMessage and loseReport drop what they return true for; twice
	// duplicates.
	loseMessage func(m *wire.ToInvoker) bool
	loseReport  func(r *wire.Report) bool
	twice       func(r *wire.Report) bool

	// ran counts the runs by request id, and cancelled the cancels.
	ran       map[string]int
	cancelled map[string]int
	stale     int
	ended     []string
	// faults are violations of what an invoker may rely on.
	faults []string
}

type fakeContainer struct {
	id, key  string
	memoryMB int64
	state    wire.State
	request  string
	run      *wire.Run
	uses     int64
}

// change is the container's state as it is reported, which the container may
// have left when the report is written.
func (c *fakeContainer) change() *wire.Change {
	return &wire.Change{Container: c.id, State: c.state, FunctionKey: c.key, MemoryMb: c.memoryMB, RequestId: c.request, Uses: c.uses}
}

func (w *world) invoker(name string, capacityMB int64) *fakeInvoker {
	f := &fakeInvoker{name: name, capacityMB: capacityMB, ran: map[string]int{}, cancelled: map[string]int{}}
	f.start(w.t, w.server, "boot-1")
	w.t.Cleanup(f.kill)
	return f
}

// start begins a process of the invoker.
func (f *fakeInvoker) start(t testing.TB, server *bus.MemoryServer, boot string) {
	f.mu.Lock()
	f.boot, f.containers, f.kept, f.keptSeq = boot, map[string]*fakeContainer{}, nil, map[string]uint64{}
	f.order = nil
	f.seq, f.epoch, f.seen, f.leaving, f.silent = 0, 0, 0, false, false
	f.conn = server.Connect()
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	for _, subject := range []string{wire.InvokerSubject(f.name), wire.AnnounceSubject} {
		sub, err := f.conn.Subscribe(subject, f.take)
		if err != nil {
			t.Fatal(err)
		}
		f.subs = append(f.subs, sub)
	}
	f.report(true, nil, nil, nil)
	f.pings.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				f.report(false, nil, nil, nil)
			}
		}
	})
}

// kill ends the process: nothing more is sent or taken.
func (f *fakeInvoker) kill() {
	f.stop()
	f.pings.Wait()
	f.mu.Lock()
	f.silent = true
	f.mu.Unlock()
	_ = f.conn.Close()
}

func (f *fakeInvoker) hush(silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = silent
}

func (f *fakeInvoker) report(full bool, changes []*wire.Change, results []*wire.Result, refusals []*wire.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reportLocked(full, changes, results, refusals)
}

func (f *fakeInvoker) reportLocked(full bool, changes []*wire.Change, results []*wire.Result, refusals []*wire.Refusal) {
	f.seq++
	r := &wire.Report{
		Invoker: f.name, Boot: f.boot, Seq: f.seq, Epoch: f.epoch, Seen: f.seen, Full: full, Leaving: f.leaving,
		CapacityMb: f.capacityMB, Changes: changes, Results: results, Refusals: refusals, Stale: uint32(f.stale),
		Driver: "fake", Isolation: "none",
	}
	f.stale = 0
	for _, res := range results {
		f.kept = append(f.kept, res)
		f.keptSeq[res.RequestId] = f.seq
	}
	if full {
		r.Changes, r.Results = nil, slices.Clone(f.kept)
		for _, id := range f.order {
			r.Changes = append(r.Changes, f.containers[id].change())
		}
		for _, res := range f.kept {
			f.keptSeq[res.RequestId] = f.seq
		}
	}
	if f.silent || f.loseReport != nil && f.loseReport(r) {
		return
	}
	data, err := proto.Marshal(r)
	if err != nil {
		panic(err)
	}
	times := 1
	if f.twice != nil && f.twice(r) {
		times = 2
	}
	for range times {
		_ = f.conn.Publish(wire.ReportSubject, data)
	}
}

func (f *fakeInvoker) take(m bus.Message) {
	var msg wire.ToInvoker
	if err := proto.Unmarshal(m.Data, &msg); err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent || msg.Epoch < f.epoch || f.loseMessage != nil && f.loseMessage(&msg) {
		return
	}
	full := msg.Resync
	if msg.Epoch > f.epoch {
		f.epoch, f.seen = msg.Epoch, 0
		full = true
	}
	if msg.Seq > 0 {
		if f.seen > 0 && msg.Seq != f.seen+1 {
			full = true
		}
		f.seen = msg.Seq
	}
	f.kept = slices.DeleteFunc(f.kept, func(r *wire.Result) bool {
		gone := f.keptSeq[r.RequestId] <= msg.Acked
		if gone {
			delete(f.keptSeq, r.RequestId)
		}
		return gone
	})
	var changes []*wire.Change
	var results []*wire.Result
	var refusals []*wire.Refusal
	for _, r := range msg.Run {
		c, res, ref := f.begin(r)
		changes = append(changes, c...)
		if res != nil {
			results = append(results, res)
		}
		if ref != nil {
			refusals = append(refusals, ref)
		}
	}
	for _, id := range msg.Cancel {
		f.cancelled[id]++
		for _, c := range f.containers {
			if c.request == id {
				ch, res := f.end(c, failure(id, function.Errorf(function.Unavailable, "cancelled")))
				changes, results = append(changes, ch), append(results, res)
			}
		}
	}
	for _, id := range msg.End {
		f.ended = append(f.ended, id)
		if c := f.containers[id]; c != nil && c.state == wire.State_IDLE {
			changes = append(changes, f.remove(c))
		}
	}
	if full || len(changes) > 0 || len(results) > 0 || len(refusals) > 0 {
		f.reportLocked(full, changes, results, refusals)
	}
}

func failure(id string, err *function.Error) *wire.Result {
	data, _ := json.Marshal(err)
	return &wire.Result{RequestId: id, Error: data}
}

// begin takes in a run.
func (f *fakeInvoker) begin(r *wire.Run) (changes []*wire.Change, res *wire.Result, ref *wire.Refusal) {
	id := r.RequestId
	if id != "" {
		for _, c := range f.containers {
			if c.request == id {
				return []*wire.Change{c.change()}, nil, nil
			}
		}
		for _, k := range f.kept {
			if k.RequestId == id {
				return nil, k, nil
			}
		}
	}
	if f.leaving || f.refuse != nil && f.refuse(r) {
		return []*wire.Change{{Container: r.Container, State: wire.State_GONE}}, nil,
			&wire.Refusal{RequestId: id, Container: r.Container, Reason: "it was told to"}
	}
	c := f.containers[r.Expect]
	if r.Expect != "" && (c == nil || c.state != wire.State_IDLE) {
		f.stale++
		if c == nil {
			changes = append(changes, &wire.Change{Container: r.Expect, State: wire.State_GONE})
		}
		c = f.idle(r.FunctionKey)
	}
	if c == nil && r.AnyWarm {
		c = f.idle(r.FunctionKey)
	}
	if c == nil {
		made, ok := f.make(r)
		changes = append(changes, made...)
		if !ok {
			return append(changes, &wire.Change{Container: r.Container, State: wire.State_GONE}), nil,
				&wire.Refusal{RequestId: id, Container: r.Container, Reason: "there is no room"}
		}
		c = f.containers[r.Container]
	} else if r.Container != "" && c.id != r.Container {
		changes = append(changes, &wire.Change{Container: r.Container, State: wire.State_GONE})
	}
	if c.key != r.FunctionKey {
		f.faults = append(f.faults, fmt.Sprintf("container %s of %s was given to %s", c.id, c.key, r.FunctionKey))
	}
	if id == "" {
		c.state = wire.State_IDLE
		return append(changes, c.change()), nil, nil
	}
	cold := c.uses == 0
	c.uses++
	c.state, c.request, c.run = wire.State_BUSY, id, r
	f.use(c.id)
	f.ran[id]++
	changes = append(changes, c.change())
	res = &wire.Result{RequestId: id, Payload: r.Payload}
	if f.run != nil {
		own, hold := f.run(r)
		if hold {
			return changes, nil, nil
		}
		if own != nil {
			res = own
		}
	}
	res.Cold = cold
	ch, res := f.end(c, res)
	return append(changes, ch), res, nil
}

func (f *fakeInvoker) use(id string) {
	f.order = append(slices.DeleteFunc(f.order, func(o string) bool { return o == id }), id)
}

func (f *fakeInvoker) idle(key string) *fakeContainer {
	for _, id := range slices.Backward(f.order) {
		if c := f.containers[id]; c.key == key && c.state == wire.State_IDLE {
			return c
		}
	}
	return nil
}

// make starts a container, after it has made room.
func (f *fakeInvoker) make(r *wire.Run) (changes []*wire.Change, ok bool) {
	if f.containers[r.Container] != nil {
		f.faults = append(f.faults, "two containers are called "+r.Container)
	}
	for _, id := range append(slices.Clone(r.Evict), f.order...) {
		if f.memoryMB()+r.MemoryMb <= f.capacityMB && !slices.Contains(r.Evict, id) {
			break
		}
		if c := f.containers[id]; c != nil && c.state == wire.State_IDLE {
			changes = append(changes, f.remove(c))
		}
	}
	if f.memoryMB()+r.MemoryMb > f.capacityMB {
		return changes, false
	}
	f.containers[r.Container] = &fakeContainer{id: r.Container, key: r.FunctionKey, memoryMB: r.MemoryMb, state: wire.State_STARTING, request: r.RequestId}
	f.use(r.Container)
	return changes, true
}

func (f *fakeInvoker) memoryMB() int64 {
	var sum int64
	for _, c := range f.containers {
		sum += c.memoryMB
	}
	return sum
}

func (f *fakeInvoker) remove(c *fakeContainer) *wire.Change {
	delete(f.containers, c.id)
	f.order = slices.DeleteFunc(f.order, func(id string) bool { return id == c.id })
	return &wire.Change{Container: c.id, State: wire.State_GONE, FunctionKey: c.key}
}

// end ends what a container runs.
func (f *fakeInvoker) end(c *fakeContainer, res *wire.Result) (*wire.Change, *wire.Result) {
	res.Container = c.id
	c.state, c.request, c.run = wire.State_IDLE, "", nil
	return c.change(), res
}

// held names the requests that it runs, in order.
func (f *fakeInvoker) held() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for _, c := range f.containers {
		if c.request != "" {
			ids = append(ids, c.request)
		}
	}
	slices.Sort(ids)
	return ids
}

// finish ends a held run; res nil is success with its payload.
func (f *fakeInvoker) finish(id string, res *wire.Result) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.request == id {
			if res == nil {
				res = &wire.Result{RequestId: id, Payload: c.run.Payload, Cold: c.uses == 1}
			}
			ch, res := f.end(c, res)
			f.reportLocked(false, []*wire.Change{ch}, []*wire.Result{res}, nil)
			return true
		}
	}
	return false
}

func (f *fakeInvoker) idleContainers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.containers {
		if c.state == wire.State_IDLE {
			n++
		}
	}
	return n
}

func (f *fakeInvoker) times(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ran[id]
}

// leave has the invoker say that it goes.
func (f *fakeInvoker) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaving = true
	f.reportLocked(false, nil, nil, nil)
}

// plainPolicy takes a warm container where there is one, and else the node with
// the most memory.
type plainPolicy struct{}

func (plainPolicy) Name() string        { return "plain" }
func (plainPolicy) Grain() sophon.Grain { return sophon.ContainerGrained }
func (plainPolicy) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	for _, c := range r.Function.Idle() {
		if c.Node().Fits(r.Function.MemoryMB) {
			return sophon.Decision{Node: c.Node(), Container: c}
		}
	}
	if n := v.MostAvailable(); n != nil && n.Fits(r.Function.MemoryMB) {
		return sophon.Decision{Node: n}
	}
	return sophon.Decision{}
}

// world is a bus with controllers and invokers on it, inside a synctest bubble.
type world struct {
	t      testing.TB
	server *bus.MemoryServer
}

// inWorld runs a test in virtual time.
func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(&world{t: t, server: bus.NewMemory()}) })
}

// process is a controller process.
type process struct {
	*Controller
	conn   bus.Bus
	server *bus.MemoryServer
	ended  chan struct{}
}

func (w *world) controller(id string, change ...func(*Config)) *process {
	w.t.Helper()
	p := &process{conn: w.server.Connect(), server: w.server, ended: make(chan struct{})}
	cfg := Config{Bus: p.conn, Policy: plainPolicy{}, ID: id, Advertise: id + ":9000", TempDir: w.t.TempDir()}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	p.Controller = c
	go func() {
		defer close(p.ended)
		if err := c.Run(context.Background()); err != nil {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(func() {
		_ = c.Close()
		<-p.ended
		_ = p.conn.Close()
	})
	return p
}

// kill takes the process off the bus as if it were killed: it says goodbye to
// nobody.
func (p *process) kill() {
	p.server.Cut(p.conn)
	_ = p.Close()
	<-p.ended
}

func (w *world) ready(p *process) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) create(p *process, name string, change ...func(*function.Function)) function.Function {
	w.t.Helper()
	f := function.Function{Name: name, Runtime: "provided", MemoryMB: 128, Timeout: 30 * time.Second}
	for _, c := range change {
		c(&f)
	}
	made, err := p.CreateFunction(context.Background(), f, Package{Zip: zipOf("bootstrap", name)})
	if err != nil {
		w.t.Fatal(err)
	}
	return made
}

func zipOf(pairs ...string) io.Reader {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		e, err := z.Create(pairs[i])
		if err == nil {
			_, err = io.WriteString(e, pairs[i+1])
		}
		if err != nil {
			panic(err)
		}
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return &b
}

// outcome is the end of a synchronous invocation.
type ending struct {
	res function.Result
	err error
}

func (p *process) start(ctx context.Context, name, id string) <-chan ending {
	done := make(chan ending, 1)
	go func() {
		res, err := p.Invoke(ctx, function.Invocation{ID: id, Function: name, Payload: []byte(strconv.Quote(id))})
		done <- ending{res, err}
	}()
	return done
}

func (w *world) mustInvoke(p *process, name, id string) function.Result {
	w.t.Helper()
	e := <-p.start(context.Background(), name, id)
	if e.err != nil {
		w.t.Fatalf("invoke %s: %v", id, e.err)
	}
	if string(e.res.Payload) != strconv.Quote(id) {
		w.t.Fatalf("the response to %s is %s", id, e.res.Payload)
	}
	return e.res
}

func wantCode(t testing.TB, err error, want function.ErrorCode) *function.Error {
	t.Helper()
	var e *function.Error
	if !errors.As(err, &e) || e.Code != want {
		t.Fatalf("the error is %v; want one with code %s", err, want)
	}
	return e
}

func pending(t testing.TB, ch <-chan ending) {
	t.Helper()
	synctest.Wait()
	select {
	case e := <-ch:
		t.Fatalf("the invocation has ended: %+v", e)
	default:
	}
}

func hold(*wire.Run) (*wire.Result, bool) { return nil, true }

func (f *fakeInvoker) set(change func(f *fakeInvoker)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func contains(t testing.TB, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Fatalf("%q does not say %q", text, part)
	}
}
