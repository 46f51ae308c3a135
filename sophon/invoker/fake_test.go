package invoker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// fakeDriver makes sandboxes whose functions do what their payload says (see
// fakeSandbox.Invoke). It holds what is on its imagined host.
type fakeDriver struct {
	cold time.Duration
	// createErr, if not nil, is what Create fails with.
	createErr func(spec sandbox.Spec) error
	closing   time.Duration // how long Close takes

	mu        sync.Mutex
	boxes     map[string]*fakeSandbox
	memoryMB  int64 // of what is there, in the making and being closed included
	mostMB    int64
	runs      map[string]int // by request
	died      map[string]bool
	parents   map[string]string // trace parents by request
	recovered int
	leftovers int
}

func newFakeDriver() *fakeDriver {
	return &fakeDriver{cold: 100 * time.Millisecond, boxes: map[string]*fakeSandbox{}, runs: map[string]int{}, died: map[string]bool{}, parents: map[string]string{}}
}

func (d *fakeDriver) Name() string      { return "fake" }
func (d *fakeDriver) Isolation() string { return "isolates nothing" }
func (d *fakeDriver) Close() error      { return nil }

func (d *fakeDriver) Recover(context.Context) (int, error) {
	d.recovered++
	return d.leftovers, nil
}

func (d *fakeDriver) hold(mb int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memoryMB += mb
	d.mostMB = max(d.mostMB, d.memoryMB)
}

func (d *fakeDriver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	mb := int64(spec.Function.MemoryMB)
	d.hold(mb)
	err := wait(ctx, d.cold)
	if err == nil && d.createErr != nil {
		err = d.createErr(spec)
	}
	if err != nil {
		d.hold(-mb)
		return nil, err
	}
	b := &fakeSandbox{driver: d, spec: spec, done: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boxes[spec.ID] != nil {
		return nil, fmt.Errorf("there is a sandbox %s already", spec.ID)
	}
	d.boxes[spec.ID] = b
	return b, nil
}

// box returns a sandbox that is there, or nil.
func (d *fakeDriver) box(id string) *fakeSandbox {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.boxes[id]
}

// traceParent is what a request's function was given.
func (d *fakeDriver) traceParent(request string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parents[request]
}

// there are the names of the sandboxes.
func (d *fakeDriver) there() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.boxes))
}

// fakeSandbox is a sandbox of a fakeDriver.
type fakeSandbox struct {
	driver *fakeDriver
	spec   sandbox.Spec
	done   chan struct{}
	once   sync.Once

	mu      sync.Mutex
	running bool
	paused  bool
	closed  bool
}

func (b *fakeSandbox) ID() string { return b.spec.ID }

// fakeWork is a payload: what the function is to do.
type fakeWork struct {
	RunMs    int    `json:"runMs,omitempty"`
	Crash    bool   `json:"crash,omitempty"`    // the process ends
	Fail     bool   `json:"fail,omitempty"`     // an error of the function
	Platform bool   `json:"platform,omitempty"` // an error of the sandbox
	Dead     bool   `json:"dead,omitempty"`     // ended before it took the event, once
	Answer   int    `json:"answer,omitempty"`   // so many bytes
	Stream   []int  `json:"stream,omitempty"`   // pieces of so many bytes
	Log      string `json:"log,omitempty"`
}

func (w fakeWork) payload() []byte {
	text, _ := json.Marshal(w) // of numbers and strings
	return text
}

func (b *fakeSandbox) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	b.mu.Lock()
	wrong := b.running || b.paused || b.closed
	b.running = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.running = false
		b.mu.Unlock()
	}()
	if wrong {
		return sandbox.Response{}, errors.New("the sandbox is in use, paused or closed")
	}
	var w fakeWork
	_ = json.Unmarshal(req.Payload, &w) // no payload is no work
	b.driver.mu.Lock()
	dies := w.Dead && !b.driver.died[req.ID]
	if dies {
		b.driver.died[req.ID] = true
	} else {
		b.driver.runs[req.ID]++
	}
	b.driver.parents[req.ID] = req.TraceParent
	b.driver.mu.Unlock()
	if dies {
		b.end()
		return sandbox.Response{}, fmt.Errorf("invoke: %w", sandbox.ErrNotStarted)
	}
	if w.Log != "" {
		b.spec.Log(function.LogLine{Time: time.Now(), Function: b.spec.Function.Name, Container: b.spec.ID, Request: req.ID, Stream: "stdout", Text: w.Log})
	}
	run := time.Duration(w.RunMs) * time.Millisecond
	late := !req.Deadline.IsZero() && time.Until(req.Deadline) < run
	if late {
		run = time.Until(req.Deadline)
	}
	if err := wait(ctx, run); err != nil {
		b.end()
		return sandbox.Response{}, err
	}
	resp := sandbox.Response{Run: run, MaxMemoryBytes: 1 << 20, LogTail: []byte(w.Log)}
	switch {
	case w.Platform:
		return sandbox.Response{}, errors.New("the sandbox broke")
	case late:
		b.end()
		resp.Payload, resp.FunctionError, resp.Broken = errorPayload("Sandbox.Timedout", "Task timed out"), function.Unhandled, true
	case w.Crash:
		b.end()
		resp.Payload, resp.FunctionError, resp.Broken = errorPayload("Runtime.ExitError", "exit status 1"), function.Unhandled, true
	case w.Fail:
		resp.Payload, resp.FunctionError = errorPayload("Oops", "no"), function.Unhandled
	case len(w.Stream) > 0 && req.Stream != nil:
		for i, n := range w.Stream {
			if err := req.Stream(slices.Repeat([]byte{byte('a' + i%26)}, n)); err != nil {
				b.end()
				return sandbox.Response{}, fmt.Errorf("stream: %w", err)
			}
		}
		resp.ContentType = "text/plain"
	default:
		resp.Payload = slices.Repeat([]byte("x"), max(1, w.Answer))
	}
	return resp, nil
}

func (b *fakeSandbox) end() { b.once.Do(func() { close(b.done) }) }

func (b *fakeSandbox) setPaused(paused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.paused = paused
}

func (b *fakeSandbox) isPaused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.paused
}

func (b *fakeSandbox) Pause(ctx context.Context) error {
	if err := wait(ctx, 10*time.Millisecond); err != nil {
		return err
	}
	b.setPaused(true)
	return nil
}

func (b *fakeSandbox) Resume(context.Context) error {
	b.setPaused(false)
	return nil
}

func (b *fakeSandbox) Usage(context.Context) (sandbox.Usage, error) {
	return sandbox.Usage{MemoryBytes: 12345}, nil
}

func (b *fakeSandbox) Done() <-chan struct{} { return b.done }

func (b *fakeSandbox) Close(ctx context.Context) error {
	b.end()
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	if err := wait(ctx, b.driver.closing); err != nil {
		return err
	}
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.boxes[b.spec.ID] == b {
		delete(b.driver.boxes, b.spec.ID)
		b.driver.memoryMB -= int64(b.spec.Function.MemoryMB)
	}
	return nil
}

// rig is an invoker on a bus, and a controller's side that takes everything
// in and acknowledges nothing unless told to. All run in a bubble of synctest:
// time passes only when everything waits.
type rig struct {
	t       *testing.T
	server  *bus.MemoryServer
	own     bus.Bus // the controller's
	theirs  bus.Bus // the invoker's
	driver  *fakeDriver
	invoker *Invoker
	stop    func()

	epoch, seq uint64

	mu      sync.Mutex
	reports []*wire.Report
	view    map[string]string // containers by the reports
	results map[string][]*wire.Result
	refused map[string]int
	stale   int
}

// newRig starts an invoker of 1000 MiB. The configuration may be changed first.
func newRig(t *testing.T, change func(*Config, *fakeDriver), opts ...bus.MemoryOption) *rig {
	t.Helper()
	server := bus.NewMemory(opts...)
	r := &rig{
		t: t, server: server, own: server.Connect(), theirs: server.Connect(), driver: newFakeDriver(), epoch: 1,
		view: map[string]string{}, results: map[string][]*wire.Result{}, refused: map[string]int{},
	}
	if _, err := r.own.Subscribe(wire.ReportSubject, r.hear); err != nil {
		t.Fatal(err)
	}
	c := Config{Name: "i1", Bus: r.theirs, Driver: r.driver, CapacityMB: 1000, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c, r.driver)
	}
	r.start(c)
	t.Cleanup(func() {
		r.stop()
		if there := r.driver.there(); len(there) > 0 {
			t.Errorf("sandboxes are left: %v", there)
		}
		_ = r.own.Close()
		_ = r.theirs.Close()
	})
	return r
}

func (r *rig) start(c Config) {
	r.t.Helper()
	v, err := New(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.invoker = v
	r.stop = own(context.Background(), func(ctx context.Context) {
		if err := v.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	synctest.Wait()
}

func (r *rig) hear(m bus.Message) {
	report := &wire.Report{}
	if err := proto.Unmarshal(m.Data, report); err != nil {
		r.t.Error(err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, report)
	r.stale += int(report.GetStale())
	if report.GetFull() {
		clear(r.view)
	}
	for _, c := range report.GetChanges() {
		if c.GetState() == wire.State_GONE {
			delete(r.view, c.GetContainer())
			continue
		}
		r.view[c.GetContainer()] = c.GetState().String()
	}
	for _, res := range report.GetResults() {
		r.results[res.GetRequestId()] = append(r.results[res.GetRequestId()], res)
	}
	for _, f := range report.GetRefusals() {
		r.refused[f.GetRequestId()]++
	}
}

// send sends a message of the leader's.
func (r *rig) send(m *wire.ToInvoker) {
	r.t.Helper()
	r.seq++
	m.Epoch, m.Seq = r.epoch, r.seq
	r.sendRaw(wire.InvokerSubject("i1"), m)
}

func (r *rig) sendRaw(subject string, m *wire.ToInvoker) {
	r.t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.own.Publish(subject, data); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

// job is a Run of function f with 100 MiB in a new container.
func job(id, container string, w fakeWork) *wire.Run {
	f := function.Function{Name: "f", Revision: "1", MemoryMB: 100, Timeout: 3 * time.Second}
	text, _ := json.Marshal(f) // of plain fields
	return &wire.Run{
		RequestId: id, Container: container, FunctionKey: f.Key(), Function: text, MemoryMb: 100,
		Payload: w.payload(), ReceivedUnixNano: time.Now().UnixNano(), Durable: true,
	}
}

// on makes a Run expect a container.
func on(run *wire.Run, container string) *wire.Run {
	run.Expect = container
	return run
}

// of makes a Run one of another function.
func of(run *wire.Run, name string, memoryMB int) *wire.Run {
	text, _ := json.Marshal(function.Function{Name: name, Revision: "1", MemoryMB: memoryMB})
	run.FunctionKey, run.Function, run.MemoryMb = name+"@1", text, int64(memoryMB)
	return run
}

func (r *rig) run(runs ...*wire.Run) {
	r.t.Helper()
	r.send(&wire.ToInvoker{Run: runs})
}

// after lets some time pass.
func (r *rig) after(d time.Duration) {
	time.Sleep(d) // virtual: see synctest
	synctest.Wait()
}

// result is the one result of a request; more or none fail the test.
func (r *rig) result(id string) *wire.Result {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.results[id]); n != 1 {
		r.t.Fatalf("request %s has %d results", id, n)
	}
	return r.results[id][0]
}

func (r *rig) last() *wire.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reports[len(r.reports)-1]
}

func (r *rig) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reports)
}

// containers is the reported state of all containers.
func (r *rig) containers() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.view)
}

// warmUp starts idle containers, one after the other, in a second.
func (r *rig) warmUp(ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		r.run(job("", id, fakeWork{}))
		r.after(time.Second / time.Duration(len(ids)))
	}
	r.after(r.driver.cold)
}

// names are c1 to cn.
func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = "c" + strconv.Itoa(i+1)
	}
	return out
}
