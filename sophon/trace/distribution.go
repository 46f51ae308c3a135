package trace

import "sort"

// Distribution is known by some of its percentiles and is linear between them.
type Distribution struct {
	percents []float64 // ascending, 0 to 100
	values   []float64 // not descending
}

// NewDistribution returns the distribution with those values at those
// percentiles. Both must ascend (values need not strictly), be as many as each
// other, and at least one.
func NewDistribution(percents, values []float64) Distribution {
	return Distribution{percents, values}
}

// At returns the value below which p percent lie. Beyond the known percentiles
// it is the nearest known one.
func (d Distribution) At(p float64) float64 {
	i := sort.SearchFloat64s(d.percents, p)
	switch {
	case i == 0:
		return d.values[0]
	case i == len(d.percents):
		return d.values[i-1]
	}
	lower, upper := d.percents[i-1], d.percents[i]
	share := (p - lower) / (upper - lower)
	return d.values[i-1] + share*(d.values[i]-d.values[i-1])
}

// Mean returns the mean of the distribution.
func (d Distribution) Mean() float64 {
	sum := d.values[0] * d.percents[0]
	for i := 1; i < len(d.values); i++ {
		sum += (d.percents[i] - d.percents[i-1]) * (d.values[i] + d.values[i-1]) / 2
	}
	last := len(d.values) - 1
	return (sum + (100-d.percents[last])*d.values[last]) / 100
}

// Max returns the largest known value.
func (d Distribution) Max() float64 { return d.values[len(d.values)-1] }
