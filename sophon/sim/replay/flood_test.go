package replay

import (
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/policy"
)

func TestAFloodedPlatformAnswersEveryCaller(t *testing.T) {
	for _, overTCP := range []bool{false, true} {
		p, err := policy.New(policy.Default, policy.Options{Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		r, err := Flood(t.Context(), Config{Policy: p, Invokers: 3, MemoryMB: 4096, OverTCP: overTCP}, Load{Callers: 8, Functions: 4, Duration: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if r.Invocations < 100 || r.PerSecond <= 0 || r.P50 <= 0 || r.P99 < r.P50 {
			t.Errorf("over TCP %v: %+v", overTCP, r)
		}
	}
}

func BenchmarkFlood(b *testing.B) {
	for name, overTCP := range map[string]bool{"pipe": false, "tcp": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p, err := policy.New(policy.Default, policy.Options{Seed: 1})
				if err != nil {
					b.Fatal(err)
				}
				r, err := Flood(b.Context(), Config{Policy: p, Invokers: 10, MemoryMB: 20 << 10, OverTCP: overTCP}, Load{Callers: 256, Functions: 64, Duration: 3 * time.Second})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(r.PerSecond, "invocations/s")
				b.ReportMetric(float64(r.P50.Microseconds()), "p50-µs")
				b.ReportMetric(float64(r.P99.Microseconds()), "p99-µs")
			}
		})
	}
}
