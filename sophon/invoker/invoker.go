package invoker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// The defaults of a Config.
const (
	DefaultGrace        = 10 * time.Second
	DefaultStartTimeout = 2 * time.Minute
	DefaultPing         = time.Second
	DefaultLogAge       = 24 * time.Hour
	DefaultLogBytes     = 1 << 30
)

const (
	// closeTimeout bounds one attempt to close a sandbox.
	closeTimeout = 30 * time.Second
	// killGrace is how long after a function's deadline the invoker gives up
	// on its sandbox.
	killGrace = 10 * time.Second
	// flushTimeout bounds the wait for the last report to leave.
	flushTimeout = 2 * time.Second
	// instrumentation names the tracer.
	instrumentation = "github.com/volley-run/volley/sophon/invoker"
)

// Config says what an Invoker is.
type Config struct {
	// Name is unique among the invokers of a cluster: letters, digits, '-' and
	// '_', at most 32 bytes.
	Name string
	// Bus and Driver belong to the caller, and stay open.
	Bus    bus.Bus
	Driver sandbox.Driver
	// CapacityMB is the memory for containers, in MiB.
	CapacityMB int64
	// KeepAlive, PauseAfter: see PoolConfig.
	KeepAlive, PauseAfter time.Duration
	// Eviction is one of Evictions; empty is LRU.
	Eviction string
	// Grace is how long running invocations may go on when the invoker ends;
	// 0 is DefaultGrace, negative none.
	Grace time.Duration
	// StartTimeout bounds a container's start; 0 is DefaultStartTimeout.
	StartTimeout time.Duration
	// Ping is the longest time between two reports; 0 is DefaultPing.
	Ping time.Duration
	// LogOptions bound the log on the bus, if it has to be made; the zero
	// value is DefaultLogAge and DefaultLogBytes.
	LogOptions bus.LogOptions
	// Log takes what operators should know; nil is slog.Default.
	Log *slog.Logger
	// Registerer takes the metrics, which have the invoker's name as a label.
	// Nil is none.
	Registerer prometheus.Registerer
	// Tracer makes the spans. Nil is none.
	Tracer trace.TracerProvider
}

// namePattern is what an invoker may be called: one token of a subject, and
// short enough to be part of a container's name. It is constant.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

func (c *Config) complete() error {
	switch {
	case !namePattern.MatchString(c.Name):
		return fmt.Errorf("name %q is no invoker's: use 1 to 32 letters, digits, '-' and '_'", c.Name)
	case c.Bus == nil || c.Driver == nil:
		return errors.New("an invoker needs a bus and a driver")
	case c.CapacityMB <= 0:
		return fmt.Errorf("capacity of %d MiB is none: give the memory for containers", c.CapacityMB)
	}
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.StartTimeout <= 0 {
		c.StartTimeout = DefaultStartTimeout
	}
	if c.Ping <= 0 {
		c.Ping = DefaultPing
	}
	if c.LogOptions == (bus.LogOptions{}) {
		c.LogOptions = bus.LogOptions{MaxAge: DefaultLogAge, MaxBytes: DefaultLogBytes}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Log = c.Log.With("invoker", c.Name)
	return nil
}

// Invoker runs the containers of one node for whoever leads on the bus.
//
// What it says to the controller is kept until the controller has acknowledged
// it (wire.ToInvoker.acked), and said again in every full report: without bound
// for invocations of which that was asked (wire.Run.durable), and otherwise for
// 30 s and up to 64 MiB. A process that ends forgets it all; the durable queue
// then delivers such invocations again.
type Invoker struct {
	config  Config
	log     *slog.Logger
	boot    string
	metrics *metrics
	tracer  trace.Tracer // or nil
	logs    *logWriter
	// wake tells the reporter that there is something to say.
	wake chan struct{}
	// maxPayload is what fits into a message beside its envelope.
	maxPayload int

	// starts ends when the invoker leaves, runs when the grace is over.
	starts, runs context.Context
	tasks        sync.WaitGroup

	mu          sync.Mutex
	pool        *Pool
	containers  map[string]*container
	invocations map[string]*invocation
	functions   map[string]*functionEntry
	outbox      outbox
	// epoch is the latest term heard of, seen the last message of it; first
	// says that messages of it are known to have been counted from 1.
	epoch, seen uint64
	first       bool
	leaving     bool
	spares      int // containers that it has named itself
}

// New returns an invoker that does nothing yet. It registers the metrics.
func New(c Config) (*Invoker, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("configure invoker: %w", err)
	}
	order, err := NewKeepAlive(c.Eviction)
	if err != nil {
		return nil, fmt.Errorf("configure invoker: %w", err)
	}
	v := &Invoker{
		config: c, log: c.Log, boot: rand.Text(), wake: make(chan struct{}, 1),
		maxPayload: int(c.Bus.MaxMessageBytes()) - envelopeBytes,
		pool: NewPool(PoolConfig{
			Name: c.Name, CapacityMB: c.CapacityMB, KeepAlive: c.KeepAlive, PauseAfter: c.PauseAfter, Eviction: order,
		}),
		containers: map[string]*container{}, invocations: map[string]*invocation{}, functions: map[string]*functionEntry{},
	}
	if v.metrics, err = newMetrics(v, c.Registerer); err != nil {
		return nil, fmt.Errorf("register the metrics of invoker %s: %w", c.Name, err)
	}
	v.logs = newLogWriter(c.Bus, c.LogOptions, c.Log, v.metrics.logLinesDropped)
	if c.Tracer != nil {
		v.tracer = c.Tracer.Tracer(instrumentation)
	}
	return v, nil
}

// Boot names this life of the invoker.
func (v *Invoker) Boot() string { return v.boot }

// Run works until the context ends; then it takes no more work, gives what
// runs a grace, closes all containers, and returns nil. It removes first what
// an earlier process has left behind. Call it once.
func (v *Invoker) Run(ctx context.Context) error {
	n, err := v.config.Driver.Recover(ctx)
	if err != nil {
		return fmt.Errorf("remove what an earlier invoker left behind: %w", err)
	}
	if n > 0 {
		v.log.Info("removed what an earlier invoker left behind", "sandboxes", n)
	}
	runs, stopRuns := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRuns()
	starts, stopStarts := context.WithCancel(runs)
	defer stopStarts()
	v.runs, v.starts = runs, starts

	stopLogs := own(context.WithoutCancel(ctx), v.logs.run)
	defer stopLogs()
	v.mu.Lock()
	v.outbox.full = true
	v.mu.Unlock()
	for _, s := range []string{wire.InvokerSubject(v.config.Name), wire.AnnounceSubject} {
		sub, err := v.config.Bus.Subscribe(s, v.receive)
		if err != nil {
			return fmt.Errorf("subscribe to the controller's messages: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }() // a bus that is closed has done so
	}
	v.config.Bus.OnReconnect(v.reportAll)
	stopReports := own(context.WithoutCancel(ctx), v.reportLoop)
	defer stopReports()
	stopKeeping := own(context.WithoutCancel(ctx), v.keepLoop)
	v.log.Info("invoker is ready", "capacityMB", v.config.CapacityMB, "driver", v.config.Driver.Name(), "boot", v.boot)

	<-ctx.Done()
	stopKeeping()
	v.leave(stopStarts, stopRuns)
	return nil
}

// leave ends the work: at once what has not begun, after the grace what runs.
func (v *Invoker) leave(stopStarts, stopRuns func()) {
	v.mu.Lock()
	v.leaving = true
	ids := make([]string, 0, len(v.containers))
	for id := range v.containers {
		ids = append(ids, id)
	}
	for _, id := range v.pool.End(ids) {
		v.close(id, endedByShutdown)
	}
	running := len(v.invocations)
	v.mu.Unlock()
	v.log.Info("invoker is leaving", "running", running, "grace", v.config.Grace)
	v.signal()
	stopStarts()

	done := make(chan struct{})
	go func() {
		defer close(done)
		v.tasks.Wait()
	}()
	select {
	case <-done:
	case <-time.After(max(0, v.config.Grace)):
		stopRuns()
		<-done
	}
}

// own runs f in a goroutine; stop ends its context and waits for it.
func own(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// signal wakes the reporter.
func (v *Invoker) signal() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// reportAll has the next report be a full one.
func (v *Invoker) reportAll() {
	v.mu.Lock()
	v.outbox.full = true
	v.mu.Unlock()
	v.signal()
}
