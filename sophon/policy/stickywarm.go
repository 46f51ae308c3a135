package policy

import (
	"math/bits"
	"time"

	"github.com/volley-run/volley/sophon"
)

// stickyWarm is the form of the policies that choose, of the nodes that have a
// warm container, the one that comes first in the function's order of probing
// (thesis 4.4.2: SR/MA and SR/MC). For warm starts it never samples.
type stickyWarm struct {
	*warmFirst
	probing probing
	// maps are of the functions that have warm containers on many nodes.
	maps perFunction[warmMap]
}

// warmMap tells where a function has warm containers: bit i is for the node
// that is probed after i steps. Near home most nodes are busy, so that probing
// one after the other would take long.
type warmMap struct {
	seq   sequence
	words []uint64
	// nodes is how many bits are set, version that of the set of nodes.
	nodes   int
	version uint64
}

// fewWarm is up to how many warm nodes are looked at one by one.
const fewWarm = 32

func newStickyWarm(name string, o Options, cold func(*warmFirst, sophon.View, sophon.Request) *sophon.Node) *stickyWarm {
	p := &stickyWarm{}
	p.warmFirst = newWarmFirst(name, o, func(_ *warmFirst, v sophon.View, r sophon.Request) *sophon.Group { return p.nearest(v, r.Function) }, cold)
	return p
}

// nearest returns the function's warm group that is probed first, of those on
// nodes that take work; nil if there is none.
func (p *stickyWarm) nearest(v sophon.View, f *sophon.Function) *sophon.Group {
	warm := f.Warm()
	if len(warm) == 0 {
		return nil
	}
	seq := p.probing.of(v, f)
	if len(warm) > fewWarm {
		m := p.maps.of(f)
		if m.version != v.Version() || m.nodes != len(warm) {
			m.build(seq, warm, v.Version())
		}
		if g, ok := m.first(v, f); ok {
			return g
		}
		m.version = 0 // it was not told of everything
	}
	var best *sophon.Group
	var least uint64
	for slot, index := range f.WarmNodes() {
		if d := seq.distance(int(index)); (best == nil || d < least) && v.OfferMB(int(index)) >= f.MemoryMB {
			best, least = warm[slot], d
		}
	}
	return best
}

func (m *warmMap) build(seq sequence, warm []*sophon.Group, version uint64) {
	*m = warmMap{seq: seq, words: make([]uint64, (seq.nodes+63)/64), version: version}
	for _, g := range warm {
		m.update(g)
	}
}

// update brings the bit of a group up to date.
func (m *warmMap) update(g *sophon.Group) {
	i := m.seq.distance(g.NodeIndex())
	word, bit := &m.words[i/64], uint64(1)<<(i%64)
	switch was, is := *word&bit != 0, g.Newest() != nil; {
	case is && !was:
		*word |= bit
		m.nodes++
	case was && !is:
		*word &^= bit
		m.nodes--
	}
}

// first returns the group that nearest looks for. ok is false if the map is
// wrong.
func (m *warmMap) first(v sophon.View, f *sophon.Function) (g *sophon.Group, ok bool) {
	for w, word := range m.words {
		for ; word != 0; word &= word - 1 {
			index := m.seq.at(uint64(64*w + bits.TrailingZeros64(word)))
			if v.OfferMB(int(index)) < f.MemoryMB {
				continue
			}
			if g = v.Nodes()[index].Group(f); g == nil || g.Newest() == nil {
				return nil, false
			}
			return g, true
		}
	}
	return nil, true
}

// Arrived implements sophon.Observer.
func (*stickyWarm) Arrived(*sophon.Function, time.Time) {}

// Became implements sophon.Observer.
func (p *stickyWarm) Became(c *sophon.Container, _ sophon.State, _ time.Time) {
	// A map of another set of nodes is built anew before it is used.
	if m := p.maps.known(c.Function()); m != nil && m.words != nil && uint64(c.Group().NodeIndex()) < m.seq.nodes {
		m.update(c.Group())
	}
}

// ColdStarted implements sophon.Observer.
func (*stickyWarm) ColdStarted(*sophon.Function, time.Duration, time.Time) {}

// Restart implements sophon.Restarter.
func (p *stickyWarm) Restart() { p.maps = perFunction[warmMap]{} }

// Forgot implements sophon.Forgetter.
func (p *stickyWarm) Forgot(f *sophon.Function) { p.maps.forget(f) }
