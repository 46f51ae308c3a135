// Package controller is the live controller of the function platform: it keeps
// the registry of functions, places invocations on invokers through a
// sophon.Scheduler, works off asynchronous invocations, and shares its duty
// with standby controllers, of which one leads at a time.
//
// Whatever must survive the process is on the bus. The state of containers is
// not: a new leader learns it from the invokers' full reports.
package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// ImageResolver finds out what an image reference names now.
type ImageResolver interface {
	// Resolve returns the reference pinned to its digest and the digest in
	// hex. Errors are *function.Error with InvalidImage where the image is at
	// fault.
	Resolve(ctx context.Context, ref string) (resolved, sha256 string, err error)
}

// Config is what a Controller needs. Bus and Policy are required; zero values
// elsewhere mean the defaults named.
type Config struct {
	// Bus connects to invokers and other controllers. It stays the caller's,
	// who closes it after Run has returned.
	Bus bus.Bus
	// Policy chooses where invocations run. It belongs to the controller.
	Policy sophon.Policy
	// KeepAlive orders containers for eviction; nil leaves that to the policy,
	// if it is a KeepAlive too, and else is least recently used first. It
	// belongs to the controller.
	KeepAlive sophon.KeepAlive
	// ID tells this controller from all others that run at the same time; by
	// default it is random. One that restarts under the same ID takes its old
	// lease over at once.
	ID string
	// Advertise is where other controllers' gateways reach this one's.
	Advertise string
	Log       *slog.Logger
	// Registerer takes the metrics; nil measures nothing.
	Registerer prometheus.Registerer
	// Tracer records spans; nil records none.
	Tracer trace.Tracer
	// Images resolves image references; without it such functions are refused.
	Images ImageResolver
	// TempDir is where packages wait while they are hashed; by default that of
	// the system.
	TempDir string
	// WallClock tells the time of day, which is shown, stored and compared
	// with times that were stored. Intervals are measured by the monotonic clock.
	WallClock func() time.Time

	Limits Limits
	Timing Timing
}

// Limits bound what users may ask for.
type Limits struct {
	// Concurrency is how many invocations may be under way at once, the
	// waiting ones included: 10,000.
	Concurrency int
	// PackageBytes and UnpackedBytes bound a zip file: 50 MB and 250 MB.
	PackageBytes, UnpackedBytes int64
	// ImageBytes bounds the tar of an uploaded image: 10 GB.
	ImageBytes int64
	// AsyncRunning is how many asynchronous invocations are worked on at once:
	// 1,000.
	AsyncRunning int
}

// Timing holds intervals that tests and small installations may want shorter.
type Timing struct {
	// QueueWait is how long an invocation waits for a place: 10 s.
	QueueWait time.Duration
	// OfflineAfter is the silence after which an invoker counts as lost: 10 s.
	OfflineAfter time.Duration
	// Lease is how long the leader's lease lasts without renewal: 2 s. It is
	// renewed four times as often.
	Lease time.Duration
	// SyncWait bounds how long a new leader waits for full reports: 300 ms.
	SyncWait time.Duration
	// Resync is how often each invoker is asked for a full report: 1 min.
	Resync time.Duration
	// Tick is how often acknowledgements are sent without other occasion, and
	// how often time-outs and provisioned concurrency are looked after: 1 s,
	// or a quarter of OfflineAfter where that is less.
	Tick time.Duration
	// AckWait is how long an asynchronous invocation may be unattended before
	// it is delivered again: 2 s.
	AckWait time.Duration
	// RetryDelay is the time before the first retry, doubled with every
	// further one: 1 s. MaxRetryDelay bounds it: 5 min.
	RetryDelay, MaxRetryDelay time.Duration
	// RecordAge is how long outcomes are kept: 24 h.
	RecordAge time.Duration
}

func (c *Config) setDefaults() {
	if c.ID == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		c.ID = hex.EncodeToString(b[:])
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.WallClock == nil {
		c.WallClock = time.Now
	}
	l, t := &c.Limits, &c.Timing
	orDefault(&l.Concurrency, 10_000)
	orDefault(&l.PackageBytes, 50<<20)
	orDefault(&l.UnpackedBytes, 250<<20)
	orDefault(&l.ImageBytes, 10<<30)
	orDefault(&l.AsyncRunning, 1000)
	orDefault(&t.QueueWait, 10*time.Second)
	orDefault(&t.OfflineAfter, 10*time.Second)
	orDefault(&t.Lease, 2*time.Second)
	orDefault(&t.SyncWait, 300*time.Millisecond)
	orDefault(&t.Resync, time.Minute)
	orDefault(&t.Tick, min(time.Second, t.OfflineAfter/4))
	orDefault(&t.AckWait, 2*time.Second)
	orDefault(&t.RetryDelay, time.Second)
	orDefault(&t.MaxRetryDelay, 5*time.Minute)
	orDefault(&t.RecordAge, 24*time.Hour)
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Controller is one controller process, leading or standing by. All methods
// may be called concurrently.
type Controller struct {
	cfg      Config
	log      *slog.Logger
	registry *registry
	metrics  *metrics
	tracing  tracing
	async    *async
	logs     atomic.Pointer[bus.Log]

	// reporting takes the invokers' reports while this controller leads, and
	// term is set once it also takes invocations.
	reporting, term atomic.Pointer[term]
	lease           leaseView

	opened  chan struct{} // closed once the bus is open and the registry read
	running atomic.Bool
	stop    context.CancelFunc
	ctx     context.Context // ends with Close
	done    sync.WaitGroup  // Run

	heard heardInvokers
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if cfg.Bus == nil {
		return nil, errors.New("make controller: no bus is given")
	}
	if cfg.Policy == nil {
		return nil, errors.New("make controller: no policy is given")
	}
	cfg.setDefaults()
	c := &Controller{cfg: cfg, log: cfg.Log, opened: make(chan struct{})}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.lease.init()
	c.heard.init()
	c.tracing = newTracing(cfg.Tracer)
	c.registry = newRegistry(c)
	c.async = newAsync(c)
	var err error
	if c.metrics, err = newMetrics(c, cfg.Registerer); err != nil {
		return nil, err
	}
	return c, nil
}

// Run takes part in the platform until the context ends or Close is called,
// which is no error: it leads when no other controller does. It may be called
// once. When it returns, invocations that it had accepted and not finished have
// failed with Unavailable; asynchronous ones are left to the next leader.
func (c *Controller) Run(ctx context.Context) error {
	if c.running.Swap(true) {
		return errors.New("run controller: it has been run before")
	}
	c.done.Add(1)
	defer c.done.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	defer c.metrics.unregister()

	err := c.run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Controller) run(ctx context.Context) error {
	b := c.cfg.Bus
	stop, err := c.registry.open(ctx, b)
	if err != nil {
		return err
	}
	defer stop()
	if err := c.async.open(ctx, b); err != nil {
		return err
	}
	logs, err := b.Log(ctx, wire.LogName, bus.LogOptions{MaxAge: 24 * time.Hour, MaxBytes: 1 << 30})
	if err != nil {
		return fmt.Errorf("open log %s: %w", wire.LogName, err)
	}
	c.logs.Store(&logs)
	sub, err := b.Subscribe(wire.ReportSubject, c.takeReport)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", wire.ReportSubject, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the bus may be closed already
	b.OnReconnect(c.reconnected)
	close(c.opened)
	return c.lead(ctx)
}

// Close ends Run and waits for it. It is idempotent.
func (c *Controller) Close() error {
	c.stop()
	c.done.Wait()
	return nil
}

// WaitReady returns once this controller leads or knows who does.
func (c *Controller) WaitReady(ctx context.Context) error {
	for {
		changed := c.lease.changed()
		if id, _, self := c.Leader(); id != "" && (!self || c.term.Load() != nil) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for a leading controller: %w", ctx.Err())
		case <-c.ctx.Done():
			return errors.New("wait for a leading controller: this one was closed")
		}
	}
}

// Leader returns the ID and the advertised address of the controller that
// leads, as far as is known here, and whether it is this one. Without a leader
// the ID is empty.
func (c *Controller) Leader() (id, advertise string, self bool) {
	if c.term.Load() != nil {
		return c.cfg.ID, c.cfg.Advertise, true
	}
	l := c.lease.get()
	if l.ID == c.cfg.ID { // won, but not serving yet, or just lost
		return "", "", false
	}
	return l.ID, l.Advertise, false
}

// leading returns the current term, or an *function.Error with Unavailable.
func (c *Controller) leading() (*term, error) {
	if t := c.term.Load(); t != nil {
		return t, nil
	}
	return nil, function.Errorf(function.Unavailable, "this controller does not lead: retry, or ask the leader")
}

// busPatience bounds how long a user's call waits for the bus.
const busPatience = 5 * time.Second

// onBus returns the context for a user's call that needs the bus: without it,
// a call would wait for as long as the bus cannot be reached.
func onBus(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, busPatience)
}

// awaitOpen waits until the registry has been read.
func (c *Controller) awaitOpen(ctx context.Context) error {
	select {
	case <-c.opened:
		return nil
	default:
	}
	select {
	case <-c.opened:
		return nil
	case <-c.ctx.Done():
		return function.Errorf(function.Unavailable, "the controller was closed")
	case <-ctx.Done():
		return function.Errorf(function.Unavailable, "the controller has not started: %v", ctx.Err())
	}
}
