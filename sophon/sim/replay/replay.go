// Package replay runs a workload of the simulator in real time: through a live
// controller, a real NATS server and live invokers, whose containers are stubs
// that only take time (thesis 4.6.2). It shows how far the simulator can be
// believed.
package replay

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/bus/natsserver"
	"github.com/volley-run/volley/sophon/controller"
	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/sim"
)

// Config describes the cluster, as a sim.Config does.
type Config struct {
	// Policy places invocations. It must be new.
	Policy   sophon.Policy
	Invokers int
	MemoryMB int64
	Model    invoker.Model
	// KeepAlive and Eviction are those of invoker.Config.
	KeepAlive time.Duration
	Eviction  string
	// OverTCP has controller and invokers connect to NATS over loopback, as on
	// several machines, instead of within the process.
	OverTCP bool
	// Log takes what the platform has to say; nil for silence.
	Log *slog.Logger
	// Progress, if not nil, is told about once a second how many invocations
	// have arrived and ended.
	Progress func(arrived, ended, total int)
}

func (c Config) withLog() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Result is what a replay came to.
type Result struct {
	Invocations, Cold, Failed int
	// MeanLatency is from posting an invocation until its function started, and
	// MeanColdStart how long the cold starts took.
	MeanLatency, MeanColdStart time.Duration
	// MaxLate is by how much the latest invocation was posted too late: this
	// machine was too slow for the workload if it is more than some
	// milliseconds.
	MaxLate time.Duration
	// FirstError is the error of one that failed.
	FirstError error
}

// ColdShare is the part of the invocations that had a cold start.
func (r Result) ColdShare() float64 {
	if r.Invocations == 0 {
		return 0
	}
	return float64(r.Cold) / float64(r.Invocations)
}

const (
	// readyWait bounds how long the platform takes to start.
	readyWait = 30 * time.Second
	// queueWait is for as long as nothing else ends an invocation.
	queueWait = time.Hour
	// concurrency is more than any workload has under way.
	concurrency = 1 << 20
)

// Run plays the workload, which takes as long as it lasts in real time, and
// returns when every invocation has ended. A function can be used by Lambda's
// limits: at least function.MinMemoryMB, invocations of at most
// function.MaxTimeout.
func Run(ctx context.Context, c Config, w sim.Workload) (_ Result, err error) {
	dir, err := os.MkdirTemp("", "volley-replay-")
	if err != nil {
		return Result{}, fmt.Errorf("replay workload: %w", err)
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); err == nil && rmErr != nil {
			err = fmt.Errorf("replay workload: %w", rmErr)
		}
	}()
	p, err := start(ctx, c.withLog(), dir)
	if err != nil {
		return Result{}, fmt.Errorf("replay workload: %w", err)
	}
	defer p.stop()
	if err := p.deploy(ctx, w); err != nil {
		return Result{}, fmt.Errorf("replay workload: %w", err)
	}
	res, err := p.play(ctx, w, c.Progress)
	if err != nil {
		return Result{}, fmt.Errorf("replay workload: %w", err)
	}
	return res, nil
}

// platform is a whole function platform in this process.
type platform struct {
	server     *natsserver.Server
	controller *controller.Controller
	closers    []io.Closer
	cancel     context.CancelFunc
	running    sync.WaitGroup
	keys       map[int]string // names of functions that are deployed
}

// start starts everything. The invokers come one after the other, so that
// their order is that of a simulated cluster.
func start(ctx context.Context, c Config, dir string) (_ *platform, err error) {
	p := &platform{keys: map[int]string{}}
	ctx, p.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	if p.server, err = natsserver.Start(natsserver.Config{StoreDir: dir, InProcessOnly: !c.OverTCP, Log: c.Log}); err != nil {
		return nil, err
	}
	conn, err := p.connect(ctx, c, "controller")
	if err != nil {
		return nil, err
	}
	p.controller, err = controller.New(controller.Config{
		Bus: conn, Policy: c.Policy, Log: c.Log, TempDir: dir,
		Limits: controller.Limits{Concurrency: concurrency}, Timing: controller.Timing{QueueWait: queueWait},
	})
	if err != nil {
		return nil, err
	}
	p.run(ctx, c.Log, "controller", p.controller.Run)
	if err := p.controller.WaitReady(ctx); err != nil {
		return nil, err
	}
	for i := range c.Invokers {
		name := "invoker" + strconv.Itoa(i)
		if conn, err = p.connect(ctx, c, name); err != nil {
			return nil, err
		}
		driver := invoker.NewStub(c.Model)
		p.closers = append(p.closers, driver)
		inv, err := invoker.New(invoker.Config{
			Name: name, Bus: conn, Driver: driver, CapacityMB: c.MemoryMB, KeepAlive: c.KeepAlive, Eviction: c.Eviction, Grace: -1, Log: c.Log,
		})
		if err != nil {
			return nil, err
		}
		p.run(ctx, c.Log, name, inv.Run)
		if err := p.await(ctx, name); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *platform) connect(ctx context.Context, c Config, name string) (bus.Bus, error) {
	cfg := bus.NATSConfig{InProcess: p.server, Name: name, Log: c.Log}
	if c.OverTCP {
		cfg.InProcess, cfg.URLs = nil, []string{p.server.ClientURL()}
	}
	conn, err := bus.ConnectNATS(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, conn)
	return conn, nil
}

// run runs a part of the platform until the context ends.
func (p *platform) run(ctx context.Context, log *slog.Logger, name string, run func(context.Context) error) {
	p.running.Go(func() {
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			log.Error("part of the replay ended", "part", name, "error", err)
		}
	})
}

// await waits until the controller knows an invoker.
func (p *platform) await(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		nodes, err := p.controller.Nodes(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(nodes, func(n controller.Node) bool { return n.Name == name && n.Online }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
}

// stop ends everything and waits for it. It may be called more than once.
func (p *platform) stop() {
	p.cancel()
	p.running.Wait()
	if p.controller != nil {
		_ = p.controller.Close()
	}
	for _, c := range slices.Backward(p.closers) {
		_ = c.Close() // nothing is kept of a replay
	}
	p.closers = nil
	if p.server != nil {
		p.server.Shutdown()
	}
}

// deploy registers the functions that the workload uses.
func (p *platform) deploy(ctx context.Context, w sim.Workload) error {
	var code bytes.Buffer
	z := zip.NewWriter(&code)
	if _, err := z.Create("bootstrap"); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	for _, inv := range w.Invocations {
		if p.keys[inv.Function] != "" {
			continue
		}
		f := w.Functions[inv.Function]
		_, err := p.controller.CreateFunction(ctx, function.Function{
			Name: f.Name, PackageType: function.Zip, Runtime: "provided", Handler: "bootstrap",
			MemoryMB: int(f.MemoryMB), Timeout: function.MaxTimeout,
		}, controller.Package{Zip: bytes.NewReader(code.Bytes())})
		if err != nil {
			return fmt.Errorf("deploy function %s: %w", f.Name, err)
		}
		p.keys[inv.Function] = f.Name
	}
	return nil
}

// play posts the invocations when they are due.
func (p *platform) play(ctx context.Context, w sim.Workload, progress func(arrived, ended, total int)) (Result, error) {
	t := &tally{}
	var calls sync.WaitGroup
	begun := time.Now()
	told := begun
	tell := func(arrived int) {
		if progress != nil && time.Since(told) >= time.Second {
			told = time.Now()
			progress(arrived, t.count(), len(w.Invocations))
		}
	}
	for i, inv := range w.Invocations {
		due := begun.Add(inv.At)
		if err := sleepUntil(ctx, due); err != nil {
			calls.Wait()
			return Result{}, err
		}
		tell(i)
		late := time.Since(due)
		calls.Go(func() {
			posted := time.Now()
			res, err := p.controller.Invoke(ctx, function.Invocation{
				Function: p.keys[inv.Function], Type: function.RequestResponse, Received: posted,
				Payload: []byte(`{"runMs":` + strconv.FormatFloat(inv.Duration.Seconds()*1000, 'f', 3, 64) + `}`),
			})
			t.add(res, err, late)
		})
	}
	ended := make(chan struct{})
	go func() {
		calls.Wait()
		close(ended)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			if err := ctx.Err(); err != nil {
				return Result{}, err
			}
			return t.result(), nil
		case <-tick.C:
			tell(len(w.Invocations))
		}
	}
}

// sleepUntil waits for a time, with a context.
func sleepUntil(ctx context.Context, due time.Time) error {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tally counts outcomes.
type tally struct {
	mu            sync.Mutex
	res           Result
	latency, cold time.Duration
}

func (t *tally) add(r function.Result, err error, late time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.Invocations++
	t.res.MaxLate = max(t.res.MaxLate, late)
	if err == nil && r.FunctionError != "" {
		err = fmt.Errorf("function failed: %s", r.Payload)
	}
	if err != nil {
		t.res.Failed++
		if t.res.FirstError == nil {
			t.res.FirstError = err
		}
		return
	}
	t.latency += r.Queued + r.Start
	if r.Cold {
		t.res.Cold++
		t.cold += r.Start
	}
}

func (t *tally) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.res.Invocations
}

func (t *tally) result() Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.res
	if good := r.Invocations - r.Failed; good > 0 {
		r.MeanLatency = t.latency / time.Duration(good)
	}
	if r.Cold > 0 {
		r.MeanColdStart = t.cold / time.Duration(r.Cold)
	}
	return r
}
