package policy

import "github.com/volley-run/volley/sophon"

// The policy hiku follows Hiku (Akbari and Hauswirth, "Hiku: Pull-Based
// Scheduling for Serverless Computing", CCGrid 2025). There, a worker that has
// finished a function enters the function's idle queue, in the order of the
// workers' load; an invocation takes the worker at the head, and where the
// queue is empty the least loaded of all. The cluster's index from functions to
// idle containers is these queues, so that nothing needs to be kept twice. Load
// is the number of containers that are starting or busy.

func warmLeastActive(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Group {
	return pickWarm(v, r.Function, &p.sampler, leastActive)
}

// coldLeastActive returns the node with the fewest active containers; any of
// those that are equal, with the same chance.
func coldLeastActive(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Node {
	var best *sophon.Node
	equals := 0
	for _, n := range p.sampler.nodes(v, r.Function.MemoryMB) {
		if !n.Fits(r.Function.MemoryMB) {
			continue
		}
		switch {
		case best == nil || n.Active() < best.Active():
			best, equals = n, 1
		case n.Active() == best.Active():
			if equals++; p.sampler.rng.IntN(equals) == 0 {
				best = n
			}
		}
	}
	return best
}
