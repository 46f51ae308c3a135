package policy

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func BenchmarkDecision(b *testing.B) {
	for _, invokers := range []int{100, 10_000} {
		for _, sample := range []int{0, DefaultSample} {
			for _, name := range Names() {
				b.Run(fmt.Sprintf("%s/invokers=%d/sample=%d", name, invokers, sample), func(b *testing.B) {
					p, err := New(name, Options{Seed: 1, Sample: sample})
					if err != nil {
						b.Fatal(err)
					}
					l := newLoad(p, 1, MeasureConfig{Invokers: invokers, MemoryMB: measuredMemoryMB})
					b.ReportAllocs()
					for b.Loop() {
						l.step(false)
					}
				})
			}
		}
	}
}

func TestMeasureCountsEveryDecision(t *testing.T) {
	for _, name := range Names() {
		m, err := Measure(context.Background(), name, Options{Seed: 1}, MeasureConfig{Invokers: 5, MemoryMB: 4096, Duration: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if m.Decisions < batch || m.PerSecond <= 0 || m.P50 <= 0 || m.P99 < m.P50 || m.Max < m.P99 {
			t.Errorf("%s: %+v", name, m)
		}
		if sum := m.Warm + m.Cold + m.Waited; sum < 0.9 || sum > 1.1 || m.Evicting > m.Cold {
			t.Errorf("%s: the shares do not fit together: %+v", name, m)
		}
	}
}
