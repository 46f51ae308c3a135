package sim

import (
	"slices"
	"time"
)

// Result is what a run did.
type Result struct {
	Policy string
	// Window is that of the workload, or how far a saturated run came.
	Window time.Duration
	// CapacityMB is the memory for containers on one invoker, in MiB.
	CapacityMB int64
	// Invocations are those that arrived, in the order of the workload.
	Invocations []Outcome
	// Seconds is what happened in each second of the window.
	Seconds []Second
	// Placements counts the decisions that sent an invocation to an invoker,
	// Stale those of them that expected a container that was not so, and
	// Refused those that the invoker gave back.
	Placements, Stale, Refused int
	// Evicted counts the containers that were ended to make room, Expired those
	// that were idle for too long, Prewarmed those started in advance.
	Evicted, Expired, Prewarmed int
	// Saturated says that the run ended early; see Config.StopQueue.
	Saturated bool
}

// Outcome is what became of one invocation.
type Outcome struct {
	// At is when it arrived. Latency is from then until the function started:
	// waiting for a place, messages and cold start (thesis 4.2). It is negative
	// if a saturated run ended before.
	At, Latency time.Duration
	// ColdStart is how long a container took to start for it; 0 if it was warm.
	ColdStart time.Duration
}

// Second is what happened in one second.
type Second struct {
	// Arrived, Started, Cold and Completed count invocations: that arrived,
	// whose function started, that among them after a cold start, and that ended.
	Arrived, Started, Cold, Completed int
	// Latency is the sum over those that started.
	Latency time.Duration
	// Evicted counts containers.
	Evicted int
	// Waiting is how many invocations had no place at the end of the second.
	Waiting int
	// ActiveMB is the memory of starting and busy containers on each node at
	// the end of the second, IdleMB that of idle ones on all nodes.
	ActiveMB []int64
	IdleMB   int64
}

func newResult(c Config, w Workload) *Result {
	return &Result{
		Policy: c.Policy.Name(), Window: w.Window, CapacityMB: c.MemoryMB,
		Invocations: make([]Outcome, 0, len(w.Invocations)),
		Seconds:     make([]Second, (w.Window+time.Second-1)/time.Second),
	}
}

// second returns what is counted at a time; after the window, nothing that
// matters.
func (r *Result) second(now time.Duration) *Second {
	if i := int(now / time.Second); i < len(r.Seconds) {
		return &r.Seconds[i]
	}
	return &Second{}
}

func (r *Result) arrive(now time.Duration) {
	r.Invocations = append(r.Invocations, Outcome{At: now, Latency: -1})
	r.second(now).Arrived++
}

func (r *Result) coldStart(index int, took time.Duration) {
	r.Invocations[index].ColdStart = took
}

func (r *Result) begin(u *run, inv *Invocation, now time.Duration) {
	latency := now - inv.At
	r.Invocations[u.index].Latency = latency
	s := r.second(now)
	s.Started++
	s.Latency += latency
	if u.cold {
		s.Cold++
	}
}

func (r *Result) finish(now time.Duration) { r.second(now).Completed++ }

func (r *Result) evict(now time.Duration, containers int) {
	r.Evicted += containers
	r.second(now).Evicted += containers
}

// sample records the state at the end of a second.
func (r *Result) sample(now time.Duration, nodes []*node, waiting int) {
	s := r.second(now - 1)
	s.Waiting = waiting
	for _, n := range nodes {
		s.ActiveMB = append(s.ActiveMB, n.pool.Node().BusyMB())
		s.IdleMB += n.pool.Node().IdleMB()
	}
}

// rateSeconds is over how many seconds rates are averaged (thesis 4.6.1).
const rateSeconds = 10

// checkSaturation ends the run where more invocations wait than arrive in
// patience.
func (r *Result) checkSaturation(now time.Duration, waiting int, patience time.Duration) {
	done := int(now / time.Second)
	if done < rateSeconds || done > len(r.Seconds) {
		return
	}
	arrived := 0
	for _, s := range r.Seconds[done-rateSeconds : done] {
		arrived += s.Arrived
	}
	if rate := float64(arrived) / rateSeconds; float64(waiting) > rate*patience.Seconds() {
		r.Saturated = true
		r.Window = now
		r.Seconds = r.Seconds[:done]
	}
}

// MaxThroughput is the highest mean number of invocations that ended in a
// second, over ten consecutive seconds (thesis 4.6.1), and the mean number that
// arrived in a second of the same time.
func (r *Result) MaxThroughput() (completed, arrived float64) {
	best, sumCompleted, sumArrived := 0, 0, 0
	for i, s := range r.Seconds {
		sumCompleted += s.Completed
		sumArrived += s.Arrived
		if i >= rateSeconds {
			sumCompleted -= r.Seconds[i-rateSeconds].Completed
			sumArrived -= r.Seconds[i-rateSeconds].Arrived
		}
		if i >= rateSeconds-1 && sumCompleted > best {
			best = sumCompleted
			arrived = float64(sumArrived) / rateSeconds
		}
	}
	return float64(best) / rateSeconds, arrived
}

// Span is the measures of a part of a run.
type Span struct {
	// Invocations arrived in the span, of which Cold had a cold start.
	Invocations, Cold int
	// MeanLatency and the percentiles are over those that were started.
	MeanLatency, P50, P90, P99, MaxLatency time.Duration
	// MeanColdStart is how long the cold starts took on average.
	MeanColdStart time.Duration
	// Completed counts the invocations that ended in the span.
	Completed int
	// MeanMemory is the mean share of all memory that starting and busy
	// containers held, and MemoryDeviation the mean over the seconds of the
	// standard deviation of that share between the nodes (thesis 4.6.1).
	MeanMemory, MemoryDeviation float64
	// HeldMemory is the mean share that containers held, idle ones too.
	HeldMemory float64
	// Evicted counts containers.
	Evicted int
	// MeanWaiting is how many invocations waited for a place, on average.
	MeanWaiting float64
}

// ColdShare is the part of the invocations that had a cold start.
func (s Span) ColdShare() float64 {
	if s.Invocations == 0 {
		return 0
	}
	return float64(s.Cold) / float64(s.Invocations)
}

// Between measures what arrived, and what happened, from one time to another.
func (r *Result) Between(from, to time.Duration) Span {
	var s Span
	var latencies []time.Duration
	var sum, cold time.Duration
	for _, o := range r.Invocations {
		if o.At < from || o.At >= to {
			continue
		}
		s.Invocations++
		if o.ColdStart > 0 {
			s.Cold++
			cold += o.ColdStart
		}
		if o.Latency >= 0 {
			latencies = append(latencies, o.Latency)
			sum += o.Latency
		}
	}
	if s.Cold > 0 {
		s.MeanColdStart = cold / time.Duration(s.Cold)
	}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		s.MeanLatency = sum / time.Duration(len(latencies))
		s.P50, s.P90, s.P99 = quantile(latencies, 0.5), quantile(latencies, 0.9), quantile(latencies, 0.99)
		s.MaxLatency = latencies[len(latencies)-1]
	}
	seconds := r.Seconds[min(int(from/time.Second), len(r.Seconds)):min(int(to/time.Second), len(r.Seconds))]
	for _, sec := range seconds {
		s.Completed += sec.Completed
		s.Evicted += sec.Evicted
		s.MeanWaiting += float64(sec.Waiting) / float64(len(seconds))
		mean, deviation := spread(sec.ActiveMB, r.CapacityMB)
		s.MeanMemory += mean / float64(len(seconds))
		s.MemoryDeviation += deviation / float64(len(seconds))
		s.HeldMemory += (mean + float64(sec.IdleMB)/float64(max(1, len(sec.ActiveMB)))/float64(r.CapacityMB)) / float64(len(seconds))
	}
	return s
}

// Latencies returns the latencies of the invocations that arrived from one time
// to another and were started, in ascending order.
func (r *Result) Latencies(from, to time.Duration) []time.Duration {
	var latencies []time.Duration
	for _, o := range r.Invocations {
		if o.At >= from && o.At < to && o.Latency >= 0 {
			latencies = append(latencies, o.Latency)
		}
	}
	slices.Sort(latencies)
	return latencies
}

// quantile returns the value that a share q of the sorted values do not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
