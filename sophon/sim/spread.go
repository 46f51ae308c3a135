package sim

import "math"

// spread returns the mean and the standard deviation of the nodes' memory, as
// shares of the capacity of one.
func spread(memoryMB []int64, capacityMB int64) (mean, deviation float64) {
	if len(memoryMB) == 0 {
		return 0, 0
	}
	n := float64(len(memoryMB))
	for _, m := range memoryMB {
		mean += float64(m) / float64(capacityMB) / n
	}
	for _, m := range memoryMB {
		d := float64(m)/float64(capacityMB) - mean
		deviation += d * d / n
	}
	return mean, math.Sqrt(deviation)
}
