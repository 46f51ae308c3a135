package policy

import (
	"math/rand/v2"

	"github.com/volley-run/volley/sophon"
)

// sampler draws things without drawing one twice (thesis 4.4.3).
type sampler struct {
	rng *rand.Rand
	// size is how many to sample; 0 is all.
	size int
	// drawn[i] is round if i was drawn in this round.
	drawn []uint64
	round uint64
	// indexes and picked are the sample, reused.
	indexes []int
	picked  []*sophon.Node
}

// nodes returns a random sample of the nodes that fit, or all nodes, those
// too that do not fit, where that is cheaper or the sample would stay empty
// without looking at all. The slice is valid until the next call.
func (s *sampler) nodes(v sophon.View, memoryMB int64) []*sophon.Node {
	if !s.sample(v, memoryMB) {
		return v.Nodes()
	}
	s.picked = s.picked[:0]
	for _, i := range s.indexes {
		s.picked = append(s.picked, v.Nodes()[i])
	}
	return s.picked
}

// sample draws nodes that fit into s.indexes. It reports whether they are to be
// used, and not all nodes.
func (s *sampler) sample(v sophon.View, memoryMB int64) bool {
	n, draws := len(v.Nodes()), 4*s.size
	if s.size == 0 || n <= draws {
		return false
	}
	s.begin(n)
	s.indexes = s.indexes[:0]
	for range draws {
		i := s.draw(n)
		if v.OfferMB(i) < memoryMB {
			continue
		}
		if s.indexes = append(s.indexes, i); len(s.indexes) == s.size {
			break
		}
	}
	return len(s.indexes) > 0
}

// begin starts a sample out of n.
func (s *sampler) begin(n int) {
	if len(s.drawn) < n {
		s.drawn = make([]uint64, n+n/4)
		s.round = 0
	}
	s.round++
}

// draw returns a number below n that it has not returned since begin. Most of
// the numbers must be left.
func (s *sampler) draw(n int) int {
	for {
		if i := s.rng.IntN(n); s.drawn[i] != s.round {
			s.drawn[i] = s.round
			return i
		}
	}
}
