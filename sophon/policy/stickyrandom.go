package policy

import "github.com/volley-run/volley/sophon"

// stickyRandom is OpenWhisk's own policy (thesis 4.1.3): probe the nodes from
// the function's home on, in steps, and take the first that is online and has
// the memory available. OpenWhisk probes one more time than there are nodes,
// which finds nothing new, and then forces the invocation on some node, which
// the thesis switches off (4.6): here it finds nothing.
type stickyRandom struct{ probing probing }

func (*stickyRandom) Name() string        { return "sticky-random" }
func (*stickyRandom) Grain() sophon.Grain { return sophon.NodeGrained }

func (p *stickyRandom) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	need := r.Function.MemoryMB
	if !v.Fits(need) {
		return sophon.Decision{}
	}
	nodes, seq := v.Nodes(), p.probing.of(v, r.Function)
	for index := seq.home; ; index = seq.next(index) {
		if v.OfferMB(int(index)) >= need {
			return sophon.Decision{Node: nodes[index]}
		}
	}
}
