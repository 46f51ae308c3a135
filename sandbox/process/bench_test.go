//go:build unix

package process_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// BenchmarkWarmInvocation is the way from the host through volley-init to a
// function and back.
func BenchmarkWarmInvocation(b *testing.B) {
	d := newDriver(b, sandboxtest.BuildInit(b))
	dir := sandboxtest.BuildBehave(b)
	for _, bc := range []struct {
		name string
		log  func(function.LogLine)
	}{{"quiet", nil}, {"logging", func(function.LogLine) {}}} {
		b.Run(bc.name, func(b *testing.B) {
			box, err := d.Create(b.Context(), sandbox.Spec{ID: "bench", Function: behave(dir), Log: bc.log})
			if err != nil {
				b.Fatal(err)
			}
			defer box.Close(context.Background())
			payload := []byte(`{"do":"echo","data":{"hello":"world"}}`)
			took := make([]time.Duration, 0, b.N)
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				resp, err := box.Invoke(context.Background(), sandbox.Request{
					ID: "7a1b9a5e-9c8d-4d57-8e0a-7d4c4be1a001", Payload: payload, Deadline: start.Add(time.Minute),
				})
				took = append(took, time.Since(start))
				if err != nil || resp.FunctionError != "" {
					b.Fatalf("%v: %s", err, resp.Payload)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
		})
	}
}

// BenchmarkColdStart is the time from nothing to a function that has asked for
// its first event.
func BenchmarkColdStart(b *testing.B) {
	d := newDriver(b, sandboxtest.BuildInit(b))
	dir := sandboxtest.BuildBehave(b)
	for b.Loop() {
		box, err := d.Create(b.Context(), sandbox.Spec{ID: "bench", Function: behave(dir)})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := box.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
