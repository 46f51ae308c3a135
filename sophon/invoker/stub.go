package invoker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
)

// Environment variables of a function that override a Stub's Model for it, as
// Go writes durations.
const (
	StubColdStartVariable = "VOLLEY_STUB_COLD_START"
	StubInitVariable      = "VOLLEY_STUB_INIT"
)

// Stub is a sandbox.Driver whose sandboxes only pretend (thesis 4.6.2): they
// take as long to make as a Model says, in real time, and an invocation takes
// as long as its payload says: {"runMs": 12.5}. Without that it ends at once.
// So one machine can act as many invokers.
type Stub struct {
	model Model

	mu        sync.Mutex
	creations *Creations
	waiting   map[uint64]chan struct{} // closed when the creation is done
	timer     *time.Timer              // for the creation that is done first
	boxes     map[*stubSandbox]struct{}
	closed    bool
}

var _ sandbox.Driver = (*Stub)(nil)

// NewStub returns a driver for one node.
func NewStub(m Model) *Stub {
	return &Stub{model: m, creations: NewCreations(m), waiting: map[uint64]chan struct{}{}, boxes: map[*stubSandbox]struct{}{}}
}

// Name implements sandbox.Driver.
func (s *Stub) Name() string { return "stub" }

// Isolation implements sandbox.Driver.
func (s *Stub) Isolation() string {
	return "Runs no code at all: it only takes the time that real containers would take."
}

// Recover implements sandbox.Driver. There is nothing to recover.
func (s *Stub) Recover(context.Context) (int, error) { return 0, nil }

// errStubClosed is returned by Create after Close.
var errStubClosed = errors.New("the stub driver is closed")

// Create implements sandbox.Driver.
func (s *Stub) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	cold, err := override(s.model.ColdStart, spec.Function, StubColdStartVariable)
	if err != nil {
		return nil, err
	}
	init, err := override(s.model.Init, spec.Function, StubInitVariable)
	if err != nil {
		return nil, err
	}
	if err := s.make(ctx, cold); err != nil {
		return nil, fmt.Errorf("make container %s: %w", spec.ID, err)
	}
	if err := wait(ctx, init); err != nil {
		return nil, fmt.Errorf("initialise container %s: %w", spec.ID, err)
	}
	box := &stubSandbox{driver: s, id: spec.ID, memoryBytes: int64(spec.Function.MemoryMB) << 20, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errStubClosed
	}
	s.boxes[box] = struct{}{}
	return box, nil
}

// override is a function's own duration, or the model's.
func override(d time.Duration, f *function.Function, variable string) (time.Duration, error) {
	text, ok := f.Environment[variable]
	if !ok {
		return d, nil
	}
	own, err := time.ParseDuration(text)
	if err != nil || own < 0 {
		return 0, &sandbox.InitError{Type: "Stub.Environment", Message: fmt.Sprintf("%s=%q is no duration: write it like 250ms", variable, text)}
	}
	return own, nil
}

// make takes as long as a creation does beside those under way.
func (s *Stub) make(ctx context.Context, work time.Duration) error {
	if work == 0 {
		return ctx.Err()
	}
	done := make(chan struct{})
	s.mu.Lock()
	id := s.creations.Begin(time.Now(), work)
	s.waiting[id] = done
	s.schedule()
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, id)
	s.creations.End(time.Now(), id)
	s.schedule()
	return ctx.Err()
}

// schedule sets the timer for the creation that is done first.
func (s *Stub) schedule() {
	if s.timer != nil {
		s.timer.Stop()
	}
	_, at, ok := s.creations.Next()
	if !ok {
		return
	}
	s.timer = time.AfterFunc(time.Until(at), s.created)
}

// created ends the creations that are done.
func (s *Stub) created() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for now := time.Now(); ; {
		id, at, ok := s.creations.Next()
		if !ok || at.After(now) {
			break
		}
		s.creations.End(at, id)
		close(s.waiting[id])
		delete(s.waiting, id)
	}
	s.schedule()
}

// Close implements sandbox.Driver.
func (s *Stub) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for b := range s.boxes {
		b.end()
	}
	clear(s.boxes)
	return nil
}

// wait waits for a while, or until the context ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stubSandbox is a sandbox that pretends.
type stubSandbox struct {
	driver      *Stub
	id          string
	memoryBytes int64
	done        chan struct{}
	once        sync.Once
}

var _ sandbox.Sandbox = (*stubSandbox)(nil)

func (b *stubSandbox) ID() string { return b.id }

func (b *stubSandbox) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	select {
	case <-b.done:
		return sandbox.Response{}, sandbox.ErrNotStarted
	default:
	}
	run, err := runTime(req.Payload)
	if err != nil {
		return sandbox.Response{Payload: errorPayload("Stub.Payload", err.Error()), FunctionError: function.Unhandled}, nil
	}
	resp := sandbox.Response{Payload: []byte("{}"), Run: run, MaxMemoryBytes: b.memoryBytes}
	if run <= 0 {
		return resp, nil
	}
	if left := time.Until(req.Deadline); !req.Deadline.IsZero() && left < run {
		run = left
		resp.Run, resp.FunctionError, resp.Broken = left, function.Unhandled, true
		resp.Payload = errorPayload("Sandbox.Timedout", "RequestId: "+req.ID+" Error: Task timed out")
	}
	t := time.NewTimer(run)
	defer t.Stop()
	select {
	case <-t.C:
		return resp, nil
	case <-b.done:
		return sandbox.Response{}, errors.New("the sandbox was closed")
	case <-ctx.Done():
		b.end()
		return sandbox.Response{}, ctx.Err()
	}
}

// runTime reads how long an invocation is to take. It looks for the key only:
// decoding JSON would cost more than all the rest.
func runTime(payload []byte) (time.Duration, error) {
	_, rest, ok := bytes.Cut(payload, []byte(`"runMs"`))
	if !ok {
		return 0, nil
	}
	rest = bytes.TrimLeft(rest, " \t\r\n:")
	if n := bytes.IndexAny(rest, ",} \t\r\n"); n >= 0 {
		rest = rest[:n]
	}
	ms, err := strconv.ParseFloat(string(rest), 64)
	if err != nil || !(ms >= 0 && ms <= 1e9) {
		return 0, fmt.Errorf("runMs is %q: use a number of milliseconds from 0 to 1e9", rest)
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}

func (b *stubSandbox) Pause(context.Context) error { return nil }

func (b *stubSandbox) Resume(context.Context) error { return nil }

func (b *stubSandbox) Usage(context.Context) (sandbox.Usage, error) {
	return sandbox.Usage{MemoryBytes: b.memoryBytes, MaxMemoryBytes: b.memoryBytes, Processes: 1}, nil
}

func (b *stubSandbox) Done() <-chan struct{} { return b.done }

func (b *stubSandbox) Close(context.Context) error {
	b.end()
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	delete(b.driver.boxes, b)
	return nil
}

func (b *stubSandbox) end() { b.once.Do(func() { close(b.done) }) }
