package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/bus/natsserver"
	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/policy"
)

// platform is a whole platform in one process: controllers, the real invokers
// on stub sandboxes, and a bus. It runs in real time.
type platform struct {
	t       testing.TB
	connect func() bus.Bus
}

// overNATS starts a platform on an embedded NATS server.
func overNATS(t testing.TB) *platform {
	s, err := natsserver.Start(natsserver.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return &platform{t: t, connect: func() bus.Bus {
		conn, err := bus.ConnectNATS(context.Background(), bus.NATSConfig{URLs: []string{s.ClientURL()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}}
}

// inMemory starts a platform on a bus in memory.
func inMemory(t testing.TB) *platform {
	server := bus.NewMemory()
	return &platform{t: t, connect: func() bus.Bus {
		conn := server.Connect()
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}}
}

// run runs something until the test ends or the function returned is called.
func (p *platform) run(what func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- what(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-ended; err != nil {
			p.t.Error(err)
		}
	}
	p.t.Cleanup(stop)
	return stop
}

func (p *platform) invoker(name string, capacityMB int64) (stop func()) {
	p.t.Helper()
	stub := invoker.NewStub(invoker.Model{})
	p.t.Cleanup(func() { _ = stub.Close() })
	v, err := invoker.New(invoker.Config{Name: name, Bus: p.connect(), Driver: stub, CapacityMB: capacityMB, Grace: -1,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Fatal(err)
	}
	return p.run(v.Run)
}

func (p *platform) controller(id string, change ...func(*Config)) (c *Controller, stop func()) {
	p.t.Helper()
	choice, err := policy.New("ma-mc", policy.Options{Seed: 1})
	if err != nil {
		p.t.Fatal(err)
	}
	cfg := Config{Bus: p.connect(), Policy: choice, ID: id, TempDir: p.t.TempDir()}
	for _, f := range change {
		f(&cfg)
	}
	if c, err = New(cfg); err != nil {
		p.t.Fatal(err)
	}
	return c, p.run(c.Run)
}

// ready waits until a controller leads and so many invokers are online.
func (p *platform) ready(c *Controller, invokers int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		online := 0
		nodes, err := c.Nodes(ctx)
		for _, n := range nodes {
			if n.Online {
				online++
			}
		}
		if err == nil && online == invokers {
			return
		}
		if ctx.Err() != nil {
			p.t.Fatalf("%d invokers are online, %v", online, err)
		}
		sleep(ctx, 5*time.Millisecond)
	}
}

func (p *platform) deploy(c *Controller, names ...string) {
	p.t.Helper()
	for _, name := range names {
		f := function.Function{Name: name, Runtime: "provided", MemoryMB: 128}
		if _, err := c.CreateFunction(context.Background(), f, Package{Zip: zipOf("bootstrap", name)}); err != nil {
			p.t.Fatal(err)
		}
	}
}

// eventually polls until a condition holds.
func (p *platform) eventually(what string, holds func() bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for !holds() {
		if ctx.Err() != nil {
			p.t.Fatalf("in vain: %s", what)
		}
		sleep(ctx, 5*time.Millisecond)
	}
}

func TestControllersAndInvokersWorkTogether(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *platform{"in memory": inMemory, "over NATS": overNATS} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			p.invoker("inv-0", 1024)
			p.invoker("inv-1", 1024)
			a, stopA := p.controller("a")
			p.ready(a, 2)
			b, _ := p.controller("b")
			p.deploy(a, "f")
			ctx := context.Background()
			var colds []bool
			for range 3 {
				res, err := a.Invoke(ctx, function.Invocation{Function: "f", Payload: []byte(`{"runMs":1}`)})
				if err != nil {
					t.Fatal(err)
				}
				colds = append(colds, res.Cold)
			}
			if !colds[0] || colds[1] || colds[2] {
				t.Errorf("cold starts %v", colds)
			}
			if err := a.InvokeAsync(ctx, function.Invocation{ID: "async-1", Function: "f", Payload: []byte(`{"runMs":5}`)}); err != nil {
				t.Fatal(err)
			}
			recorded := func(c *Controller, id string) func() bool {
				return func() bool {
					r, err := c.Record(ctx, id)
					return err == nil && r.Status == Succeeded
				}
			}
			p.eventually("an outcome", recorded(a, "async-1"))
			if err := a.InvokeAsync(ctx, function.Invocation{ID: "async-2", Function: "f", Payload: []byte(`{"runMs":2000}`)}); err != nil {
				t.Fatal(err)
			}
			p.eventually("a busy container", func() bool {
				s, err := a.Functions(ctx)
				return err == nil && s[0].Busy == 1
			})
			stopA()
			p.ready(b, 2)
			res, err := b.Invoke(ctx, function.Invocation{Function: "f", Payload: []byte(`{}`)})
			if err != nil {
				t.Fatal(err)
			}
			if res.Cold && res.Container == "" {
				t.Errorf("%+v", res)
			}
			p.eventually("an outcome after a takeover", recorded(b, "async-2"))
			if _, err := b.PutProvisionedConcurrency(ctx, "f", 4); err != nil {
				t.Fatal(err)
			}
			p.eventually("provisioned containers", func() bool {
				pc, err := b.GetProvisionedConcurrency(ctx, "f")
				return err == nil && pc.Available == 4
			})
		})
	}
}

func TestMetricsTellWhatHappened(t *testing.T) {
	p := inMemory(t)
	p.invoker("inv-0", 1024)
	registry := prometheus.NewRegistry()
	c, stop := p.controller("a", func(c *Config) { c.Registerer = registry })
	p.ready(c, 1)
	p.deploy(c, "f")
	ctx := context.Background()
	for range 3 {
		if _, err := c.Invoke(ctx, function.Invocation{Function: "f", Payload: []byte(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.PutReservedConcurrency(ctx, "f", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Invoke(ctx, function.Invocation{Function: "f"}); err == nil {
		t.Fatal("it was not throttled")
	}
	got := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"volley_invocations_total true f ok":               1,
		"volley_invocations_total false f ok":              2,
		"volley_invocations_total false f TooManyRequests": 1,
		"volley_invocation_seconds total":                  3,
		"volley_invocation_seconds start":                  1,
		"volley_containers idle":                           1,
		"volley_node_capacity_mib inv-0":                   1024,
		"volley_controller_leader":                         1,
		"volley_async_queue_length":                        0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v (there: %v)", name, v, want, ok)
		}
	}
	stop()
	if families, err := registry.Gather(); err != nil || len(families) != 0 {
		t.Errorf("%d metrics are left after the end, %v", len(families), err)
	}
}

func TestSpansOfAnInvocationAreOneTrace(t *testing.T) {
	p := inMemory(t)
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	p.invoker("inv-0", 1024)
	c, _ := p.controller("a", func(c *Config) { c.Tracer = provider.Tracer("test") })
	p.ready(c, 1)
	p.deploy(c, "f")
	_, err := c.Invoke(context.Background(), function.Invocation{
		ID: "r1", Function: "f", Payload: []byte(`{}`),
		TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range spans.Ended() {
		ended[s.Name()] = s
	}
	if len(ended) != 3 {
		t.Fatalf("spans %v", ended)
	}
	invoke := ended["invoke"]
	if id := invoke.SpanContext().TraceID().String(); id != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("trace %s", id)
	}
	if invoke.Parent().SpanID().String() != "00f067aa0ba902b7" {
		t.Errorf("parent %s", invoke.Parent().SpanID())
	}
	for _, name := range []string{"schedule", "run"} {
		if ended[name].Parent().SpanID() != invoke.SpanContext().SpanID() {
			t.Errorf("%s is not under invoke", name)
		}
	}
	cold := false
	for _, a := range ended["run"].Attributes() {
		cold = cold || a == attribute.Bool("faas.coldstart", true)
	}
	if !cold {
		t.Errorf("attributes %v", ended["run"].Attributes())
	}
}

func TestLogsAreReadByFunction(t *testing.T) {
	p := inMemory(t)
	c, _ := p.controller("a")
	p.ready(c, 0)
	log := *c.logs.Load()
	for _, name := range []string{"f", "g"} {
		if err := log.Append("volley.logs."+name, []byte(fmt.Sprintf(`{"function":%q,"text":"hello"}`, name))); err != nil {
			t.Fatal(err)
		}
	}
	count := func(name string) (n int) {
		err := c.Logs(context.Background(), name, time.Time{}, false, func(l function.LogLine) error {
			if name != "" && l.Function != name {
				t.Errorf("a line of %s", l.Function)
			}
			n++
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return n
	}
	p.eventually("the lines", func() bool { return count("f") == 1 && count("") == 2 })
	stop := errors.New("enough")
	if err := c.Logs(context.Background(), "f", time.Time{}, true, func(function.LogLine) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
}

// BenchmarkPlatform measures warm invocations through a controller and real
// invokers on stub sandboxes: 256 callers, 10 functions, 10 invokers.
func BenchmarkPlatform(b *testing.B) {
	for name, start := range map[string]func(testing.TB) *platform{"memory": inMemory, "nats": overNATS} {
		for _, callers := range []int{1, 256} {
			b.Run(fmt.Sprintf("%s/callers=%d", name, callers), func(b *testing.B) {
				p := start(b)
				for i := range 10 {
					p.invoker(fmt.Sprintf("inv-%d", i), 1<<16)
				}
				c, _ := p.controller("a")
				p.ready(c, 10)
				var names []string
				for i := range 10 {
					names = append(names, fmt.Sprintf("f%d", i))
				}
				p.deploy(c, names...)
				var n atomic.Int64
				invoke := func() {
					i := n.Add(1)
					_, err := c.Invoke(context.Background(), function.Invocation{ID: fmt.Sprintf("r%d", i), Function: names[i%10], Payload: []byte(`{}`)})
					if err != nil {
						b.Error(err)
					}
				}
				for range 100 {
					invoke()
				}
				b.SetParallelism(max(1, callers/2))
				b.ReportAllocs()
				b.ResetTimer()
				if callers == 1 {
					for range b.N {
						invoke()
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							invoke()
						}
					})
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "invocations/s")
			})
		}
	}
}
