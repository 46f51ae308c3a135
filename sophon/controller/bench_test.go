package controller

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/wire"

	"google.golang.org/protobuf/proto"
)

// echoInvoker answers every run at once, with the least that an invoker can do.
type echoInvoker struct {
	conn bus.Bus
	name string
	seq  uint64
	epo  uint64
	seen uint64
}

func (e *echoInvoker) take(m bus.Message) {
	var msg wire.ToInvoker
	if proto.Unmarshal(m.Data, &msg) != nil {
		return
	}
	r := &wire.Report{Invoker: e.name, Boot: "b", Epoch: msg.Epoch, Seen: msg.Seq, CapacityMb: 1 << 20}
	r.Full = msg.Resync || msg.Epoch != e.epo
	e.epo, e.seen = msg.Epoch, msg.Seq
	for _, run := range msg.Run {
		id := run.Expect
		if id == "" {
			id = run.Container
		}
		r.Changes = append(r.Changes, &wire.Change{Container: id, State: wire.State_IDLE, FunctionKey: run.FunctionKey, MemoryMb: run.MemoryMb})
		r.Results = append(r.Results, &wire.Result{RequestId: run.RequestId, Payload: run.Payload, Container: id})
	}
	e.report(r)
}

func (e *echoInvoker) report(r *wire.Report) {
	e.seq++
	r.Seq = e.seq
	data, err := proto.Marshal(r)
	if err == nil {
		_ = e.conn.Publish(wire.ReportSubject, data)
	}
}

// BenchmarkInvoke measures warm invocations through a controller, the memory
// bus and 10 invokers that answer at once, by how many callers there are.
func BenchmarkInvoke(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			server := bus.NewMemory()
			p, err := policy.New("ma-mc", policy.Options{Seed: 1})
			if err != nil {
				b.Fatal(err)
			}
			conn := server.Connect()
			defer func() { _ = conn.Close() }()
			c, err := New(Config{Bus: conn, Policy: p, TempDir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- c.Run(ctx) }()
			defer func() { cancel(); <-ended }()
			for i := range 10 {
				e := &echoInvoker{conn: server.Connect(), name: fmt.Sprintf("inv-%d", i)}
				defer func() { _ = e.conn.Close() }()
				for _, s := range []string{wire.InvokerSubject(e.name), wire.AnnounceSubject} {
					if _, err := e.conn.Subscribe(s, e.take); err != nil {
						b.Fatal(err)
					}
				}
				e.report(&wire.Report{Invoker: e.name, Boot: "b", Full: true, CapacityMb: 1 << 20})
			}
			if err := c.WaitReady(ctx); err != nil {
				b.Fatal(err)
			}
			for i := range 10 {
				f := function.Function{Name: fmt.Sprintf("f%d", i), Runtime: "provided", MemoryMB: 128}
				if _, err := c.CreateFunction(ctx, f, Package{Zip: zipOf("bootstrap", "x")}); err != nil {
					b.Fatal(err)
				}
			}
			payload := []byte(`{"hello":"world"}`)
			var n atomic.Int64
			invoke := func() {
				i := n.Add(1)
				_, err := c.Invoke(ctx, function.Invocation{ID: fmt.Sprintf("r%d", i), Function: fmt.Sprintf("f%d", i%10), Payload: payload})
				if err != nil {
					b.Error(err)
				}
			}
			for range 100 {
				invoke()
			}
			b.ReportAllocs()
			b.SetParallelism(max(1, callers/2))
			began := time.Now()
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
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "invocations/s")
		})
	}
}
