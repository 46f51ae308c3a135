package invoker

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// BenchmarkWarmInvocation measures what an invocation in a warm container costs
// on an invoker, both messages on the memory bus included, with 64 under way.
func BenchmarkWarmInvocation(b *testing.B) {
	server := bus.NewMemory()
	own, theirs := server.Connect(), server.Connect()
	defer func() {
		_ = own.Close()
		_ = theirs.Close()
	}()
	v, err := New(Config{Name: "i1", Bus: theirs, Driver: NewStub(Model{}), CapacityMB: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	const lanes = 64
	free := make(chan string, lanes) // idle containers
	var seq, taken atomic.Uint64
	if _, err := own.Subscribe(wire.ReportSubject, func(m bus.Message) {
		r := &wire.Report{}
		if err := proto.Unmarshal(m.Data, r); err != nil {
			b.Error(err)
		}
		taken.Store(r.GetSeq())
		for _, res := range r.GetResults() {
			free <- res.GetContainer()
		}
	}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	for theirs.Flush(ctx) == nil && taken.Load() == 0 { // until the first report
		time.Sleep(time.Millisecond)
	}
	send := func(run *wire.Run) {
		data, err := proto.Marshal(&wire.ToInvoker{Epoch: 1, Seq: seq.Add(1), Acked: taken.Load(), Run: []*wire.Run{run}})
		if err == nil {
			err = own.Publish(wire.InvokerSubject("i1"), data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range lanes {
		send(job("warm-"+strconv.Itoa(i), "c"+strconv.Itoa(i), fakeWork{}))
	}
	run := job("", "", fakeWork{})
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		run.Expect = <-free
		run.RequestId, run.Container = strconv.Itoa(i), "s"+strconv.Itoa(i)
		send(run)
	}
	for range lanes {
		<-free
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "invocations/s")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
