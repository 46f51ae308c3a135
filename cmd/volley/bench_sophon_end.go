package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/sophon/sim/replay"
)

// The load of the measurement end to end.
const (
	endToEndInvokers  = 10
	endToEndCallers   = 256
	endToEndFunctions = 64
)

// endToEnd is the median over the rounds of invocations through a whole
// platform.
type endToEnd struct {
	Policy    string  `json:"policy"`
	NATS      string  `json:"nats"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
}

// measureEndToEnd floods a platform with each of both ways to NATS in turns.
func measureEndToEnd(ctx context.Context, o benchSophonOptions, stderr io.Writer) ([]endToEnd, error) {
	ways := []string{"in process", "loopback"}
	runs := map[string][]replay.FloodResult{}
	for round := range o.rounds {
		for _, way := range ways {
			fmt.Fprintf(stderr, "end to end, NATS %s: round %d of %d\n", way, round+1, o.rounds)
			p, err := policy.New(policy.Default, policy.Options{Seed: o.seed})
			if err != nil {
				return nil, err
			}
			r, err := replay.Flood(ctx, replay.Config{Policy: p, Invokers: endToEndInvokers, MemoryMB: o.memoryMB, OverTCP: way == "loopback"},
				replay.Load{Callers: endToEndCallers, Functions: endToEndFunctions, Duration: o.endToEnd})
			if err != nil {
				return nil, err
			}
			runs[way] = append(runs[way], r)
		}
	}
	var out []endToEnd
	for _, way := range ways {
		of := func(get func(replay.FloodResult) float64) float64 {
			var v []float64
			for _, r := range runs[way] {
				v = append(v, get(r))
			}
			return median(v)
		}
		out = append(out, endToEnd{Policy: policy.Default, NATS: way,
			PerSecond: of(func(r replay.FloodResult) float64 { return r.PerSecond }),
			P50:       of(func(r replay.FloodResult) float64 { return r.P50.Seconds() * 1000 }),
			P99:       of(func(r replay.FloodResult) float64 { return r.P99.Seconds() * 1000 }),
		})
	}
	return out, nil
}

func (s sophonSummary) printEndToEnd(w io.Writer) error {
	if len(s.EndToEnd) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nend to end: %d callers, controller, NATS, %d stub invokers, %d functions\n", endToEndCallers, endToEndInvokers, endToEndFunctions)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "policy\tNATS\tinvocations/s\tp50 ms\tp99 ms\t\n")
	for _, e := range s.EndToEnd {
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.2f\t%.2f\t\n", e.Policy, e.NATS, e.PerSecond, e.P50, e.P99)
	}
	return t.Flush()
}
