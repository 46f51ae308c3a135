package bus_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/bus/natsserver"
)

// eachBus runs a benchmark on two connections to each kind of bus.
func eachBus(b *testing.B, run func(b *testing.B, near, far bus.Bus)) {
	b.Run("memory", func(b *testing.B) {
		s := bus.NewMemory()
		run(b, closing(b, s.Connect()), closing(b, s.Connect()))
	})
	b.Run("nats/tcp", func(b *testing.B) {
		s := startNATS(b, natsserver.Config{})
		run(b, s.Connect(b), s.Connect(b))
	})
	b.Run("nats/in-process", func(b *testing.B) {
		s := startNATS(b, natsserver.Config{InProcessOnly: true})
		run(b, s.Connect(b), s.Connect(b))
	})
}

// percentiles reports the median and the 99th percentile of durations.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
}

// timed calls f for each iteration and reports how long the calls took.
func timed(b *testing.B, f func() error) {
	took := make([]time.Duration, 0, 1024)
	for b.Loop() {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	percentiles(b, took)
}

// BenchmarkPublish is messages of 200 bytes from a connection to a handler on
// another.
func BenchmarkPublish(b *testing.B) {
	eachBus(b, func(b *testing.B, near, far bus.Bus) {
		var got atomic.Int64
		all := make(chan struct{}, 1)
		if _, err := far.Subscribe("bench", func(bus.Message) {
			if got.Add(1) == int64(b.N) {
				all <- struct{}{}
			}
		}); err != nil {
			b.Fatal(err)
		}
		data := make([]byte, 200)
		b.ResetTimer()
		for range b.N {
			if err := near.Publish("bench", data); err != nil {
				b.Fatal(err)
			}
		}
		<-all
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	})
}

// BenchmarkRequest is one request at a time.
func BenchmarkRequest(b *testing.B) {
	eachBus(b, func(b *testing.B, near, far bus.Bus) {
		if _, err := far.Subscribe("bench", func(m bus.Message) { _ = far.Publish(m.Reply, m.Data) }); err != nil {
			b.Fatal(err)
		}
		data := make([]byte, 200)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		timed(b, func() error {
			_, err := near.Request(ctx, "bench", data)
			return err
		})
	})
}

// BenchmarkRequestParallel is many requests at a time.
func BenchmarkRequestParallel(b *testing.B) {
	eachBus(b, func(b *testing.B, near, far bus.Bus) {
		if _, err := far.Subscribe("bench", func(m bus.Message) { _ = far.Publish(m.Reply, m.Data) }); err != nil {
			b.Fatal(err)
		}
		data := make([]byte, 200)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := near.Request(ctx, "bench", data); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	})
}

// BenchmarkKVPut is one write of 200 bytes at a time.
func BenchmarkKVPut(b *testing.B) {
	eachBus(b, func(b *testing.B, near, _ bus.Bus) {
		kv, err := near.KV(b.Context(), "bench", bus.KVOptions{})
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		timed(b, func() error {
			n++
			_, err := kv.Put(b.Context(), fmt.Sprintf("key-%d", n%1000), make([]byte, 200))
			return err
		})
	})
}

// BenchmarkQueuePut is one item of 1 KiB at a time.
func BenchmarkQueuePut(b *testing.B) {
	eachBus(b, func(b *testing.B, near, _ bus.Bus) {
		q, err := near.Queue(b.Context(), "bench", bus.QueueOptions{})
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		timed(b, func() error {
			n++
			return q.Put(b.Context(), fmt.Sprint(n), make([]byte, 1<<10))
		})
	})
}

// BenchmarkQueueThrough is one item at a time, from Put to Done.
func BenchmarkQueueThrough(b *testing.B) {
	eachBus(b, func(b *testing.B, near, far bus.Bus) {
		ctx, cancel := context.WithCancel(b.Context())
		q, err := near.Queue(ctx, "bench", bus.QueueOptions{})
		if err != nil {
			b.Fatal(err)
		}
		consumer, err := far.Queue(ctx, "bench", bus.QueueOptions{})
		if err != nil {
			b.Fatal(err)
		}
		done, ended := make(chan error, 1), make(chan error, 1)
		go func() {
			ended <- consumer.Consume(ctx, func(item bus.Item) {
				go func() { done <- item.Done(ctx) }()
			})
		}()
		timed(b, func() error {
			if err := q.Put(ctx, "", make([]byte, 1<<10)); err != nil {
				return err
			}
			return <-done
		})
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkAppend is records of 200 bytes.
func BenchmarkAppend(b *testing.B) {
	eachBus(b, func(b *testing.B, near, _ bus.Bus) {
		l, err := near.Log(b.Context(), "bench", bus.LogOptions{MaxBytes: 64 << 20})
		if err != nil {
			b.Fatal(err)
		}
		data := make([]byte, 200)
		b.ResetTimer()
		for range b.N {
			if err := l.Append("fn.bench", data); err != nil {
				b.Fatal(err)
			}
		}
		if err := near.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
}
