package policy

import (
	"math/rand/v2"

	"github.com/volley-run/volley/sophon"
)

// random chooses any node that fits, each with the same chance (thesis 4.3.1).
// Options.Sample has no meaning for it.
type random struct {
	rng *rand.Rand
	// fitting is reused.
	fitting []*sophon.Node
}

// randomTries is how many nodes are drawn before all are looked at.
const randomTries = 16

func newRandom(o Options) *random { return &random{rng: source(o, 1)} }

func (*random) Name() string        { return "random" }
func (*random) Grain() sophon.Grain { return sophon.NodeGrained }

func (p *random) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	need := r.Function.MemoryMB
	if !v.Fits(need) {
		return sophon.Decision{}
	}
	nodes := v.Nodes()
	for range randomTries { // drawing again keeps the chances equal
		if i := p.rng.IntN(len(nodes)); v.OfferMB(i) >= need {
			return sophon.Decision{Node: nodes[i]}
		}
	}
	p.fitting = p.fitting[:0]
	for i, n := range nodes {
		if v.OfferMB(i) >= need {
			p.fitting = append(p.fitting, n)
		}
	}
	return sophon.Decision{Node: p.fitting[p.rng.IntN(len(p.fitting))]}
}
