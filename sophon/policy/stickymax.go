package policy

import (
	"math"

	"github.com/volley-run/volley/sophon"
)

// stickyMaxAvailable chooses the node that fits with the least
// alpha*d + (1-alpha)*l: d is the distance from the function's home in the
// order of probing, as a share of all nodes, and l the share of the memory in
// use (thesis 4.3.1). With alpha 0 it is max-available, with alpha 1
// sticky-random. Among equals the nearest to home is taken. With sampling it
// looks at the first nodes that fit, from home on.
type stickyMaxAvailable struct {
	probing probing
	alpha   float64
	sample  int
}

func newStickyMaxAvailable(o Options) *stickyMaxAvailable {
	return &stickyMaxAvailable{alpha: o.Alpha, sample: o.Sample}
}

func (*stickyMaxAvailable) Name() string        { return "sticky-max-available" }
func (*stickyMaxAvailable) Grain() sophon.Grain { return sophon.NodeGrained }

func (p *stickyMaxAvailable) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	need := r.Function.MemoryMB
	if !v.Fits(need) {
		return sophon.Decision{}
	}
	var best *sophon.Node
	least := math.Inf(1)
	nodes, seq := v.Nodes(), p.probing.of(v, r.Function)
	perStep := p.alpha / float64(len(nodes))
	index, fitting := seq.home, 0
	for step := range nodes {
		distance := perStep * float64(step)
		if distance >= least {
			break // whatever comes is further away
		}
		n := nodes[index]
		index = seq.next(index)
		if !n.Fits(need) {
			continue
		}
		load := 1.0
		if n.CapacityMB() > 0 {
			load = float64(n.BusyMB()) / float64(n.CapacityMB())
		}
		if cost := distance + (1-p.alpha)*load; cost < least {
			best, least = n, cost
		}
		if fitting++; fitting == p.sample {
			break
		}
	}
	return sophon.Decision{Node: best}
}
