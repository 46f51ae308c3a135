// Package agent is the host's side of the conversation with volley-init, the
// agent in every sandbox: it starts a function, hands it events, takes its
// answers and its log, and turns whatever else happens to it into the errors
// that AWS Lambda reports.
//
// Drivers of sandboxes differ in how they start volley-init; all that comes
// after is here. The bytes are described in package frame.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// Boot says what volley-init is to run and how; see Command.
type Boot = frame.Boot

// lateness is how long volley-init may take to report that a deadline has
// passed, before the host stops waiting for it.
const lateness = time.Second

const (
	// pipeBytes is less than what an empty pipe takes without a reader.
	pipeBytes = 32 << 10
	// maxEventBytes leaves room for what else is in the frame of an event.
	maxEventBytes = frame.MaxBody - 64<<10
)

// maxLeadTime bounds a deadline that is absent.
const maxLeadTime = function.MaxTimeout

// Options is what an Agent knows and may ask about its sandbox.
type Options struct {
	// Function is what runs.
	Function *function.Function
	// Container is the sandbox's name in log lines.
	Container string
	// Log takes every line in order, from one goroutine at a time; it must not
	// block. May be nil.
	Log func(function.LogLine)
	// OutOfMemory tells whether the sandbox has run out of memory: asked when
	// a process was killed or volley-init is gone. May be nil.
	OutOfMemory func() bool
	// BootTime is how long volley-init may take to begin, which is not a part of
	// the function's initialisation.
	BootTime time.Duration
	// PeakMemory tells the most memory that the sandbox has used so far, in
	// bytes, or 0. It is asked after every invocation, so it must be quick.
	// May be nil.
	PeakMemory func() int64
}

// Agent is a sandbox's volley-init, seen from the host. Invoke is called by one
// goroutine at a time; the other methods may be called concurrently.
type Agent struct {
	opts Options
	conn Conn
	enc  *frame.Encoder
	log  *logger
	// started is when the conversation began, ready when the function asked
	// for its first event.
	started, ready time.Time
	timeout        time.Duration
	initTimeout    time.Duration

	// results takes what ends the initialisation or an invocation.
	results chan result
	// done is closed when the reader has ended; readErr says why then.
	done    chan struct{}
	readErr error
	// quiet takes the answer to Quiesce; quiesced counts its calls.
	quiet    chan frame.Quiet
	quiesced atomic.Uint64

	mu sync.Mutex
	// current is the invocation that results are awaited for.
	current *call
	first   bool
	broken  bool
	// ended says that volley-init has told that the function ended.
	ended bool
}

// call is an invocation under way.
type call struct {
	id     string
	stream func([]byte) error
	// streamed counts what came of a streamed answer; whole collects it where
	// nobody takes it in pieces.
	streamed    int64
	whole       []byte
	contentType string
}

// Start begins the conversation over conn, which it owns from now on, and
// waits until the function has asked for its first event. If function code is
// to blame that it does not, the error is a *sandbox.InitError; if ctx ends,
// it wraps ctx's error. After an error conn is closed, which makes volley-init
// end the function and itself. The caller ends an Agent with Close, or with
// Shutdown.
func Start(ctx context.Context, conn Conn, boot Boot, opts Options) (*Agent, error) {
	boot.SetDefaults()
	a := newAgent(conn, opts)
	a.started = time.Now()
	a.initTimeout = boot.InitTimeout
	a.current = &call{}
	a.first = true
	a.log.keepTail(true)
	go a.read()
	err := a.boot(ctx, boot)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func newAgent(conn Conn, opts Options) *Agent {
	return &Agent{
		opts:    opts,
		conn:    conn,
		enc:     frame.NewEncoder(conn),
		log:     newLogger(opts),
		timeout: opts.Function.Timeout,
		results: make(chan result, 1),
		done:    make(chan struct{}),
		quiet:   make(chan frame.Quiet, 1),
	}
}

func (a *Agent) boot(ctx context.Context, boot Boot) error {
	w := a.write(func() error { return a.enc.JSON(frame.TypeBoot, boot) })
	err := a.initialised(ctx, boot)
	a.settle(w, err != nil)
	return err
}

// initialised waits until the function is, or has failed to be.
func (a *Agent) initialised(ctx context.Context, boot Boot) error {
	// volley-init reports when the time is up; this is for one that cannot.
	timer := time.NewTimer(a.opts.BootTime + boot.InitTimeout + lateness)
	defer timer.Stop()
	select {
	case r := <-a.results:
		return a.booted(r)
	case <-a.done:
		select {
		case r := <-a.results:
			return a.booted(r)
		default:
			return a.lostAtInit()
		}
	case <-timer.C:
		return a.initError(exitError(frame.Exit{Reason: frame.ReasonInitTimeout}, "", a.initTimeout))
	case <-ctx.Done():
		return fmt.Errorf("initialise function %s: %w", a.opts.Function.Name, context.Cause(ctx))
	}
}

// booted makes of the first result what Start returns.
func (a *Agent) booted(r result) error {
	switch r.kind {
	case frame.TypeReady:
		a.mu.Lock()
		a.ready = time.Now()
		a.current = nil
		a.mu.Unlock()
		a.log.keepTail(false)
		return nil
	case frame.TypeInitError:
		return a.initError(functionError{Type: r.errorType, payload: r.payload})
	case frame.TypeExited:
		return a.initError(exitError(a.withMemory(r.exit), "", a.initTimeout))
	}
	return fmt.Errorf("initialise function %s: volley-init answered with a frame of type %q", a.opts.Function.Name, r.kind)
}

func (a *Agent) lostAtInit() error {
	if a.outOfMemory() {
		return a.initError(exitError(frame.Exit{Reason: frame.ReasonExit, Signal: "killed", Killed: true}, "", 0))
	}
	return fmt.Errorf("initialise function %s: volley-init ended: %w", a.opts.Function.Name, a.readErr)
}

func (a *Agent) initError(e functionError) error {
	return &sandbox.InitError{Type: e.Type, Message: e.message(), Payload: e.json(), LogTail: a.log.tail()}
}

// Invoke runs one invocation: it is what sandbox.Sandbox describes.
func (a *Agent) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Response{}, fmt.Errorf("invoke function: %w", err)
	}
	if n := len(req.Payload) + len(req.ClientContext); n > maxEventBytes {
		return sandbox.Response{}, function.Errorf(function.TooLarge, "the event has %d bytes; send at most %d", n, function.MaxSyncPayloadBytes)
	}
	c := &call{id: req.ID, stream: req.Stream}
	initDuration, err := a.begin(c)
	if err != nil {
		return sandbox.Response{Broken: true}, err
	}
	a.log.begin(req, initDuration)
	start := time.Now()
	deadline := req.Deadline
	if deadline.IsZero() {
		deadline = start.Add(maxLeadTime)
	}
	budget := deadline.Sub(start)
	ev := frame.Event{
		Deadline:      deadline.UnixMicro(),
		Budget:        max(budget.Microseconds(), 1),
		ID:            req.ID,
		TraceID:       xrayTrace(req.TraceParent),
		ClientContext: req.ClientContext,
		Payload:       req.Payload,
	}
	r := a.await(ctx, &ev, budget)
	run := time.Since(start)
	// A piece may be on its way to whoever takes the stream: this waits for it.
	a.mu.Lock()
	a.current = nil
	a.broken = a.broken || r.broken
	a.mu.Unlock()
	resp := sandbox.Response{ContentType: r.contentType, Run: run, Broken: r.broken}
	if a.opts.PeakMemory != nil {
		resp.MaxMemoryBytes = a.opts.PeakMemory()
	}
	if r.failed != nil {
		resp.FunctionError = function.Unhandled
		resp.Payload = r.failed.json()
	} else {
		resp.Payload = r.payload
	}
	a.log.end(run, resp.MaxMemoryBytes, r.failed)
	resp.LogTail = a.log.takeTail()
	return resp, r.err
}

// begin makes c the current invocation. It returns how long the initialisation
// took if c is the first.
func (a *Agent) begin(c *call) (initDuration time.Duration, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return 0, errors.New("invoke function: the sandbox is broken")
	}
	if a.ended || closed(a.done) {
		a.broken = true
		return 0, fmt.Errorf("invoke function: %w", sandbox.ErrNotStarted)
	}
	if a.current != nil {
		return 0, errors.New("invoke function: another invocation is running in the sandbox")
	}
	a.current = c
	if a.first {
		a.first = false
		initDuration = a.ready.Sub(a.started)
	}
	return initDuration, nil
}

// outcome is how an invocation ended.
type outcome struct {
	payload     []byte
	contentType string
	failed      *functionError
	broken      bool
	err         error
}

// await sends the event and waits for what comes of it.
func (a *Agent) await(ctx context.Context, ev *frame.Event, budget time.Duration) outcome {
	// A pipe is empty and takes a small event at once, even if volley-init does
	// not read. An error means that it is gone, which the reader tells.
	var w chan struct{}
	if len(ev.Payload)+len(ev.ClientContext) > pipeBytes {
		w = a.write(func() error { return a.enc.Event(ev) })
	} else {
		_ = a.enc.Event(ev)
	}
	r := a.wait(ctx, ev.ID, budget, w)
	a.settle(w, r.broken)
	return r
}

// write writes on a goroutine of its own what the other end may be slow to
// take. The channel is closed at the end of it; see settle.
func (a *Agent) write(f func() error) chan struct{} {
	w := make(chan struct{})
	go func() {
		defer close(w)
		_ = f() // the other end is gone, which the reader tells
	}()
	return w
}

// settle waits for a write, and ends it by force if it has become pointless.
func (a *Agent) settle(w chan struct{}, pointless bool) {
	if w == nil {
		return
	}
	if pointless && !closed(w) {
		_ = a.conn.Close() // Close tells the error, if there is one
	}
	<-w
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// wait waits for what comes of an event, which w, if not nil, still writes.
func (a *Agent) wait(ctx context.Context, id string, budget time.Duration, w <-chan struct{}) outcome {
	// volley-init reports when the time is up; this is for one that cannot.
	timer := time.NewTimer(budget + lateness)
	defer timer.Stop()
	canceled := ctx.Done()
	var cause error
	for {
		select {
		case r := <-a.results:
			return a.outcome(r, id, budget, cause)
		case <-a.done:
			select {
			case r := <-a.results:
				return a.outcome(r, id, budget, cause)
			default:
				return a.lost(id, cause)
			}
		case <-timer.C:
			if cause == nil {
				return a.exited(frame.Exit{ID: id, Reason: frame.ReasonDeadline}, id, budget, nil)
			}
			return outcome{broken: true, err: fmt.Errorf("invoke function: %w", cause)}
		case <-canceled:
			canceled = nil
			cause = context.Cause(ctx)
			timer.Reset(lateness)
			if w != nil && !closed(w) {
				return outcome{broken: true, err: fmt.Errorf("invoke function: %w", cause)}
			}
			if err := a.enc.Encode(frame.TypeCancel, []byte(id)); err != nil {
				return outcome{broken: true, err: fmt.Errorf("invoke function: %w", cause)}
			}
		}
	}
}

// outcome makes of a result how the invocation ended.
func (a *Agent) outcome(r result, id string, budget time.Duration, cause error) outcome {
	switch r.kind {
	case frame.TypeResponse, frame.TypeStreamEnd:
		return outcome{payload: r.payload, contentType: r.contentType, broken: r.broken}
	case frame.TypeError:
		return outcome{failed: &functionError{Type: r.errorType, payload: r.payload}, contentType: r.contentType, broken: r.broken}
	case frame.TypeExited:
		return a.exited(r.exit, id, budget, cause)
	}
	return outcome{broken: true, err: r.err}
}

func (a *Agent) exited(e frame.Exit, id string, budget time.Duration, cause error) outcome {
	switch {
	case cause != nil:
		return outcome{broken: true, err: fmt.Errorf("invoke function: %w", cause)}
	case e.ID != id || e.Unseen && e.Reason != frame.ReasonDeadline:
		return outcome{broken: true, err: fmt.Errorf("invoke function: %w", sandbox.ErrNotStarted)}
	case e.Reason == frame.ReasonShutdown || e.Reason == frame.ReasonCanceled:
		return outcome{broken: true, err: errors.New("invoke function: the sandbox was shut down")}
	}
	// A deadline that is the function's own limit is told as that, to the digit.
	limit := budget
	if d := budget - a.timeout; d > -lateness && d < lateness {
		limit = a.timeout
	}
	failed := exitError(a.withMemory(e), id, limit)
	return outcome{failed: &failed, broken: true}
}

// lost is for a volley-init that is gone without a word.
func (a *Agent) lost(id string, cause error) outcome {
	if cause != nil {
		return outcome{broken: true, err: fmt.Errorf("invoke function: %w", cause)}
	}
	if errors.Is(a.readErr, errNotRestored) {
		return outcome{broken: true, err: fmt.Errorf("invoke function: %w: %w", sandbox.ErrNotStarted, a.readErr)}
	}
	if a.outOfMemory() {
		failed := exitError(frame.Exit{ID: id, Reason: frame.ReasonExit, Signal: "killed", Killed: true}, id, 0)
		return outcome{failed: &failed, broken: true}
	}
	return outcome{broken: true, err: fmt.Errorf("invoke function: volley-init ended: %w", a.readErr)}
}

// withMemory asks the sandbox whether a process that was killed ran out of
// memory, unless volley-init knows.
func (a *Agent) withMemory(e frame.Exit) frame.Exit {
	if e.OutOfMemory {
		e.Killed = true
	} else if e.Reason == frame.ReasonExit && a.opts.OutOfMemory != nil {
		e.Killed = a.outOfMemory()
	} else if a.opts.OutOfMemory == nil {
		e.Killed = false
	}
	return e
}

func (a *Agent) outOfMemory() bool { return a.opts.OutOfMemory != nil && a.opts.OutOfMemory() }

// Done is closed when volley-init has ended.
func (a *Agent) Done() <-chan struct{} { return a.done }

// Shutdown asks volley-init to end the function, SIGTERM first and SIGKILL
// after its grace, and itself; it waits for that, or for ctx to end, and closes
// the conversation in either case. It is idempotent.
func (a *Agent) Shutdown(ctx context.Context) error {
	// An error means that it is gone, or that it does not read: ctx ends that.
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = a.enc.Encode(frame.TypeShutdown, nil)
	}()
	var err error
	select {
	case <-a.done:
	case <-ctx.Done():
		err = fmt.Errorf("shut volley-init down: %w", context.Cause(ctx))
	}
	err = errors.Join(err, a.Close())
	<-sent
	return err
}

// Close ends the conversation, which makes volley-init kill the function and
// end. It does not wait for that. It is idempotent.
func (a *Agent) Close() error {
	err := a.conn.Close()
	<-a.done
	if err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close conversation with volley-init: %w", err)
	}
	return nil
}
