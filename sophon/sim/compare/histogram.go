package compare

import (
	"math"
	"time"
)

// The buckets of a Histogram: the first is below lowest, and each of the others
// is so much wider than the one before.
const (
	lowest  = 100 * time.Microsecond
	growth  = 1.02
	buckets = 1100 // up to some 80 hours
)

// Histogram counts durations in buckets whose bounds are 2 % apart. The zero
// value is empty.
type Histogram struct {
	counts []int
	total  int
}

// Add counts a duration.
func (h *Histogram) Add(d time.Duration) {
	if h.counts == nil {
		h.counts = make([]int, buckets)
	}
	i := 0
	if d > lowest {
		i = min(1+int(math.Log(float64(d)/float64(lowest))/math.Log(growth)), buckets-1)
	}
	h.counts[i]++
	h.total++
}

// Merge adds what another has counted.
func (h *Histogram) Merge(other *Histogram) {
	if other.total == 0 {
		return
	}
	if h.counts == nil {
		h.counts = make([]int, buckets)
	}
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// Len is how many durations were counted.
func (h *Histogram) Len() int { return h.total }

// CDF returns the upper bounds of the buckets that are not empty, in
// milliseconds, and the share of all durations up to each.
func (h *Histogram) CDF() (ms, share []float64) {
	sum := 0
	for i, n := range h.counts {
		if n == 0 {
			continue
		}
		sum += n
		ms = append(ms, lowest.Seconds()*1000*math.Pow(growth, float64(i)))
		share = append(share, float64(sum)/float64(h.total))
	}
	return ms, share
}
