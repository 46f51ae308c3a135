package policy

import "github.com/volley-run/volley/sophon"

// maxAvailable chooses the node with the most available memory (thesis 4.3.1);
// among equals the lowest index, or with sampling the first drawn. Since the
// cluster keeps the most available node at hand, sampling is only for
// comparison.
type maxAvailable struct{ sampler sampler }

func newMaxAvailable(o Options) *maxAvailable {
	return &maxAvailable{sampler{rng: source(o, 2), size: o.Sample}}
}

func (*maxAvailable) Name() string        { return "max-available" }
func (*maxAvailable) Grain() sophon.Grain { return sophon.NodeGrained }

func (p *maxAvailable) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	return sophon.Decision{Node: mostAvailable(v, &p.sampler, r.Function.MemoryMB)}
}

// mostAvailable returns the node with the most available memory, of a sample;
// nil if none fits.
func mostAvailable(v sophon.View, s *sampler, memoryMB int64) *sophon.Node {
	if !v.Fits(memoryMB) {
		return nil
	}
	if !s.sample(v, memoryMB) {
		return v.MostAvailable()
	}
	best := s.indexes[0]
	for _, i := range s.indexes[1:] {
		if v.OfferMB(i) > v.OfferMB(best) {
			best = i
		}
	}
	return v.Nodes()[best]
}
