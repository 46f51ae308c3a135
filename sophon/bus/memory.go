package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultMaxMessageBytes is the size of message that every bus carries.
	defaultMaxMessageBytes = 8 << 20
	// inboxPrefix starts the subjects of answers.
	inboxPrefix = "_INBOX."
)

// Clock is the time that a MemoryServer goes by.
type Clock interface {
	// Now is the time.
	Now() time.Time
	// AfterFunc calls f once, in a goroutine of the clock's, when d has passed.
	// The function returned prevents that if it has not happened yet.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// systemClock is the machine's time.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) AfterFunc(d time.Duration, f func()) func() bool {
	return time.AfterFunc(d, f).Stop
}

// MemoryOption changes how NewMemory makes a server.
type MemoryOption func(*MemoryServer)

// WithClock has entries expire, items delivered again, and records dated by a
// clock other than the machine's.
func WithClock(c Clock) MemoryOption { return func(s *MemoryServer) { s.clock = c } }

// WithLog tells of slow subscriptions; without it nothing is logged.
func WithLog(log *slog.Logger) MemoryOption { return func(s *MemoryServer) { s.log = log } }

// WithMaxMessageBytes bounds messages, to 8 MiB without it.
func WithMaxMessageBytes(n int64) MemoryOption {
	return func(s *MemoryServer) { s.maxMessageBytes = n }
}

// MemoryServer is a bus inside one process. What it keeps is lost with it. It
// holds no goroutine and need not be closed; its connections do. All methods
// may be called concurrently.
type MemoryServer struct {
	clock           Clock
	log             *slog.Logger
	maxMessageBytes int64
	// maxQueuedMessages and maxQueuedBytes bound what waits for one handler.
	maxQueuedMessages, maxQueuedBytes int

	interest interest
	nextID   atomic.Uint64

	repliesMu sync.Mutex
	replies   map[string]chan []byte // by inbox of a Request

	mu      sync.Mutex
	conns   map[*memoryConn]struct{}
	buckets map[string]*memoryBucket
	queues  map[string]*memoryQueueState
	objects map[string]*memoryObjectState
	logs    map[string]*memoryLogState
}

// NewMemory returns a server without connections.
func NewMemory(opts ...MemoryOption) *MemoryServer {
	s := &MemoryServer{
		clock:             systemClock{},
		log:               slog.New(slog.DiscardHandler),
		maxMessageBytes:   defaultMaxMessageBytes,
		maxQueuedMessages: maxQueuedMessages,
		maxQueuedBytes:    maxQueuedBytes,
		replies:           make(map[string]chan []byte),
		conns:             make(map[*memoryConn]struct{}),
		buckets:           make(map[string]*memoryBucket),
		queues:            make(map[string]*memoryQueueState),
		objects:           make(map[string]*memoryObjectState),
		logs:              make(map[string]*memoryLogState),
	}
	for _, opt := range opts {
		opt(s)
	}
	return s
}

// Connect returns a new connection, as another process would have it. The
// caller closes it.
func (s *MemoryServer) Connect() Bus {
	c := &memoryConn{
		server: s,
		id:     strconv.FormatUint(s.nextID.Add(1), 36),
		subs:   make(map[*memorySub]struct{}),
		up:     make(chan struct{}),
		down:   make(chan struct{}),
		wakes:  make(map[chan struct{}]struct{}),
	}
	close(c.up)
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.connected.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	return c
}

// Cut makes the server unreachable for the given connections of this server,
// or for all if none is given, until Restore: what is sent to them or by them
// is lost, as if a cable were pulled.
func (s *MemoryServer) Cut(conns ...Bus) {
	for _, c := range s.connections(conns) {
		c.cut()
	}
}

// Restore undoes Cut.
func (s *MemoryServer) Restore(conns ...Bus) {
	for _, c := range s.connections(conns) {
		c.restore()
	}
}

func (s *MemoryServer) connections(conns []Bus) []*memoryConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*memoryConn
	for c := range s.conns {
		if len(conns) == 0 {
			out = append(out, c)
		}
	}
	for _, b := range conns {
		if c, ok := b.(*memoryConn); ok && c.server == s {
			out = append(out, c)
		}
	}
	return out
}

// memoryConn is one connection to a MemoryServer.
type memoryConn struct {
	server *MemoryServer
	id     string
	nextID atomic.Uint64
	// ctx ends, because of ErrClosed, with the connection.
	ctx       context.Context
	cancel    context.CancelCauseFunc
	connected atomic.Bool
	// running counts the goroutines of subscriptions, watches and callbacks.
	running sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	subs        map[*memorySub]struct{}
	up          chan struct{} // closed while connected
	down        chan struct{} // closed while not
	onReconnect []func()
	// wakes has those who look, when they get a value, at what they missed
	// while the server was out of reach. Each has room for one value.
	wakes map[chan struct{}]struct{}
	// callbacks is held while they run, so that they run one at a time.
	callbacks sync.Mutex
}

func (c *memoryConn) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.connected.CompareAndSwap(true, false) {
		c.up = make(chan struct{})
		close(c.down)
	}
}

func (c *memoryConn) restore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.connected.CompareAndSwap(false, true) {
		return
	}
	c.down = make(chan struct{})
	close(c.up)
	for wake := range c.wakes {
		signal(wake)
	}
	c.running.Go(func() {
		c.callbacks.Lock()
		defer c.callbacks.Unlock()
		c.mu.Lock()
		callbacks := c.onReconnect
		c.mu.Unlock()
		for _, f := range callbacks {
			f()
		}
	})
}

// sendable returns why nothing can be sent now.
func (c *memoryConn) sendable() error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	if !c.connected.Load() {
		return ErrDisconnected
	}
	return nil
}

// wait returns when the server can be reached, or an error when the context
// ends or the connection is closed.
func (c *memoryConn) wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	for {
		if err := c.sendable(); !errors.Is(err, ErrDisconnected) {
			return err
		}
		c.mu.Lock()
		up := c.up
		c.mu.Unlock()
		select {
		case <-up:
		case <-c.ctx.Done():
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrDisconnected, context.Cause(ctx))
		}
	}
}

// during returns a context that ends with the given one, and with the
// connection.
func (c *memoryConn) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(context.Canceled)
	}
}

func (c *memoryConn) Publish(subject string, data []byte) error {
	if err := c.check("publish", subject, data); err != nil {
		return err
	}
	c.server.deliver(subject, "", data)
	return nil
}

func (c *memoryConn) check(verb, subject string, data []byte) error {
	if err := checkSubject(subject); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	if int64(len(data)) > c.server.maxMessageBytes {
		return fmt.Errorf("%s on %s: %d bytes: %w", verb, subject, len(data), ErrTooLarge)
	}
	if err := c.sendable(); err != nil {
		return fmt.Errorf("%s on %s: %w", verb, subject, err)
	}
	return nil
}

// deliver hands a message to who wants it and says to how many.
func (s *MemoryServer) deliver(subject, reply string, data []byte) int {
	if strings.HasPrefix(subject, inboxPrefix) {
		s.repliesMu.Lock()
		answer := s.replies[subject]
		s.repliesMu.Unlock()
		if answer != nil {
			select {
			case answer <- clone(data):
			default: // only the first answer counts
			}
			return 1
		}
	}
	return s.interest.deliver(subject, reply, data)
}

func (c *memoryConn) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if err := c.check("request", subject, data); err != nil {
		return nil, err
	}
	c.mu.Lock()
	down := c.down
	c.mu.Unlock()
	inbox := c.NewInbox()
	answer := make(chan []byte, 1)
	s := c.server
	s.repliesMu.Lock()
	s.replies[inbox] = answer
	s.repliesMu.Unlock()
	defer func() {
		s.repliesMu.Lock()
		delete(s.replies, inbox)
		s.repliesMu.Unlock()
	}()
	if s.deliver(subject, inbox, data) == 0 {
		return nil, fmt.Errorf("request on %s: %w", subject, ErrNoResponder)
	}
	var err error
	select {
	case data := <-answer:
		return data, nil
	case <-down:
		err = ErrDisconnected
	case <-c.ctx.Done():
		err = ErrClosed
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("request on %s: %w", subject, err)
}

func (c *memoryConn) NewInbox() string {
	return inboxPrefix + c.id + "." + strconv.FormatUint(c.nextID.Add(1), 36)
}

func (c *memoryConn) Flush(ctx context.Context) error {
	if err := c.wait(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

func (c *memoryConn) MaxMessageBytes() int64 { return c.server.maxMessageBytes }

func (c *memoryConn) Connected() bool { return c.connected.Load() }

func (c *memoryConn) OnReconnect(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onReconnect = append(c.onReconnect[:len(c.onReconnect):len(c.onReconnect)], f)
}

func (c *memoryConn) Close() error {
	c.mu.Lock()
	c.closed = true
	subs := c.subs
	c.subs = make(map[*memorySub]struct{})
	c.mu.Unlock()
	c.cancel(ErrClosed)
	c.connected.Store(false)
	for sub := range subs {
		sub.end()
	}
	c.running.Wait()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	delete(c.server.conns, c)
	return nil
}

// goWhileOpen runs f in a goroutine that Close waits for. The connection's
// return is signalled on wake.
func (c *memoryConn) goWhileOpen(wake chan struct{}, f func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.wakes[wake] = struct{}{}
	c.running.Go(func() {
		defer c.forget(wake)
		f()
	})
	return nil
}

func (c *memoryConn) forget(wake chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.wakes, wake)
}

// runWhileOpen runs f, which Close waits for, with a context that ends with the
// connection too. The connection's return is signalled on wake.
func (c *memoryConn) runWhileOpen(ctx context.Context, wake chan struct{}, f func(context.Context) error) error {
	ctx, cancel := c.during(ctx)
	defer cancel()
	done := make(chan error, 1)
	if err := c.goWhileOpen(wake, func() { done <- f(ctx) }); err != nil {
		return err
	}
	return <-done
}

// signal leaves a value in a channel that has room for one.
func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

func clone(data []byte) []byte {
	return append([]byte{}, data...)
}
