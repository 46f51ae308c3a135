package compare

import (
	"math"
	"time"

	"github.com/volley-run/volley/sophon/sim"
)

// The experiments of a Record.
const (
	// AtRate is a slow start and then a steady rate (thesis 4.2).
	AtRate = "rate"
	// MaxThroughput is a rate that rises until the cluster is saturated
	// (thesis figure 4.10).
	MaxThroughput = "throughput"
)

// Record is one simulation: a line of runs.jsonl.
type Record struct {
	Experiment string `json:"experiment"`
	Trace      string `json:"trace"`
	Start      int    `json:"window_start_minute"`
	Seed       uint64 `json:"seed"`
	Policy     string `json:"policy"`
	// Sample is how many nodes a decision looked at; 0 is all.
	Sample   int   `json:"sample,omitempty"`
	Invokers int   `json:"invokers"`
	MemoryMB int64 `json:"memory_mb"`
	// Load is the load as it was asked for; empty for MaxThroughput.
	Load string `json:"load,omitempty"`
	// Rate is the steady rate that the workload was made for, or the highest.
	Rate        float64 `json:"rate_per_second"`
	Invocations int     `json:"invocations"`
	ColdStarts  int     `json:"cold_starts"`
	ColdShare   float64 `json:"cold_share"`
	// SteadyColdShare is that of the second half, when the rate is steady.
	SteadyColdShare float64 `json:"steady_cold_share"`
	MeanColdStartMS float64 `json:"mean_cold_start_ms"`
	// Latency is from posting an invocation until the function starts.
	MeanLatencyMS float64 `json:"mean_latency_ms"`
	P50LatencyMS  float64 `json:"p50_latency_ms"`
	P90LatencyMS  float64 `json:"p90_latency_ms"`
	P99LatencyMS  float64 `json:"p99_latency_ms"`
	MaxLatencyMS  float64 `json:"max_latency_ms"`
	// MemoryMean is the share of memory in use by starting and running
	// containers; MemoryDeviation its standard deviation between nodes, averaged
	// over the seconds; MemoryHeld counts idle containers too.
	MemoryMean      float64 `json:"memory_mean"`
	MemoryDeviation float64 `json:"memory_deviation"`
	MemoryHeld      float64 `json:"memory_held"`
	// Throughput is the highest number of completions a second over 10 s.
	Throughput float64 `json:"max_throughput_per_second"`
	// MeanWaiting is how many invocations waited for a place, on average.
	MeanWaiting float64 `json:"mean_waiting"`
	// Saturated says that the run ended because too many waited, SaturatedS
	// after how many seconds.
	Saturated  bool    `json:"saturated,omitempty"`
	SaturatedS float64 `json:"saturated_after_s,omitempty"`
	StaleShare float64 `json:"stale_share"`
	Refused    int     `json:"refused,omitempty"`
	Evicted    int     `json:"evicted"`
	Expired    int     `json:"expired,omitempty"`
	Prewarmed  int     `json:"prewarmed,omitempty"`
}

// fill takes the measures of a result.
func (r *Record) fill(res *sim.Result) {
	all, steady := res.Between(0, res.Window), res.Between(res.Window/2, res.Window)
	r.Invocations, r.ColdStarts = all.Invocations, all.Cold
	r.ColdShare, r.SteadyColdShare = all.ColdShare(), steady.ColdShare()
	r.MeanColdStartMS, r.MeanLatencyMS = ms(all.MeanColdStart), ms(all.MeanLatency)
	r.P50LatencyMS, r.P90LatencyMS, r.P99LatencyMS, r.MaxLatencyMS = ms(all.P50), ms(all.P90), ms(all.P99), ms(all.MaxLatency)
	r.MemoryMean, r.MemoryDeviation, r.MemoryHeld = all.MeanMemory, all.MemoryDeviation, all.HeldMemory
	r.Throughput, _ = res.MaxThroughput()
	r.MeanWaiting = all.MeanWaiting
	if r.Saturated = res.Saturated; r.Saturated {
		r.SaturatedS = res.Window.Seconds()
	}
	if res.Placements > 0 {
		r.StaleShare = float64(res.Stale) / float64(res.Placements)
	}
	r.Refused, r.Evicted, r.Expired, r.Prewarmed = res.Refused, res.Evicted, res.Expired, res.Prewarmed
}

// ms is a duration in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e3 }

// Series is what happened second by second in one run: a line of seconds.jsonl,
// and the data of one of the figures 4.2 to 4.9.
type Series struct {
	Policy   string `json:"policy"`
	Load     string `json:"load"`
	MemoryMB int64  `json:"memory_mb"`
	Start    int    `json:"window_start_minute"`
	Seed     uint64 `json:"seed"`
	// All are by the second. Latency is the mean of those that started in it.
	Arrived   []int     `json:"arrived"`
	Started   []int     `json:"started"`
	Cold      []int     `json:"cold"`
	Completed []int     `json:"completed"`
	Waiting   []int     `json:"waiting"`
	LatencyMS []float64 `json:"latency_ms"`
	// ActiveMB has the memory in use on each node at the end of the second.
	ActiveMB [][]int64 `json:"active_mb"`
}

func seriesOf(res *sim.Result) *Series {
	s := &Series{Policy: res.Policy}
	for _, sec := range res.Seconds {
		s.Arrived = append(s.Arrived, sec.Arrived)
		s.Started = append(s.Started, sec.Started)
		s.Cold = append(s.Cold, sec.Cold)
		s.Completed = append(s.Completed, sec.Completed)
		s.Waiting = append(s.Waiting, sec.Waiting)
		latency := 0.0
		if sec.Started > 0 {
			latency = ms(sec.Latency / time.Duration(sec.Started))
		}
		s.LatencyMS = append(s.LatencyMS, latency)
		s.ActiveMB = append(s.ActiveMB, sec.ActiveMB)
	}
	return s
}
