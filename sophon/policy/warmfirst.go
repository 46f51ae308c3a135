package policy

import "github.com/volley-run/volley/sophon"

// warmFirst is the form of the container-grained policies (thesis 4.4.1): a
// warm container if there is any, else a cold start.
type warmFirst struct {
	name string
	warm func(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Group
	cold func(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Node

	sampler sampler
	cost    minCost
}

func newWarmFirst(name string, o Options,
	warm func(*warmFirst, sophon.View, sophon.Request) *sophon.Group,
	cold func(*warmFirst, sophon.View, sophon.Request) *sophon.Node,
) *warmFirst {
	return &warmFirst{name: name, warm: warm, cold: cold,
		sampler: sampler{rng: source(o, 3), size: o.Sample}, cost: newMinCost(o.Lambda)}
}

func (p *warmFirst) Name() string      { return p.name }
func (*warmFirst) Grain() sophon.Grain { return sophon.ContainerGrained }

func (p *warmFirst) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	if g := p.warm(p, v, r); g != nil {
		return sophon.Decision{Node: g.Node(), Container: g.Newest()}
	}
	if !v.Fits(r.Function.MemoryMB) {
		return sophon.Decision{}
	}
	return sophon.Decision{Node: p.cold(p, v, r)}
}

// warmMaxAvailable chooses, of the nodes that have a warm container, the one
// with the most available memory; among equals the container that was used
// last.
func warmMaxAvailable(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Group {
	return pickWarm(v, r.Function, &p.sampler, moreAvailable)
}

// candidate is one of a function's warm groups, with what its node could give.
// The group is only looked at where that is not enough to decide: at scale that
// is what takes time.
type candidate struct {
	warm    []*sophon.Group
	slot    int
	offerMB int64
	sampled bool
}

func (c candidate) group() *sophon.Group { return c.warm[c.slot] }

// moreAvailable orders nodes by available memory.
func moreAvailable(c, best candidate) bool {
	if c.offerMB != best.offerMB {
		return c.offerMB > best.offerMB
	}
	// Of a sample any of the equals will do: it is random already.
	return !c.sampled && usedLater(c, best)
}

// pickWarm returns the best of a sample of the function's warm groups, of
// those on nodes that take work; nil if there is none.
func pickWarm(v sophon.View, f *sophon.Function, s *sampler, better func(c, best candidate) bool) *sophon.Group {
	warm, nodes := f.Warm(), f.WarmNodes()
	best := candidate{slot: -1}
	look := func(slot int, sampled bool) {
		c := candidate{warm, slot, v.OfferMB(int(nodes[slot])), sampled}
		if c.offerMB >= f.MemoryMB && (best.slot < 0 || better(c, best)) {
			best = c
		}
	}
	if s.size > 0 && len(warm) > 2*s.size {
		s.begin(len(warm))
		for range s.size {
			look(s.draw(len(warm)), true)
		}
	}
	if best.slot < 0 {
		for slot := range warm {
			look(slot, false)
		}
	}
	if best.slot < 0 {
		return nil
	}
	return best.group()
}

// warmNewest chooses the warm container that was used last, of a sample. A
// function's invocations then keep to as few containers as they need at once,
// and the ones that they do not need age and make room for others.
func warmNewest(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Group {
	return pickWarm(v, r.Function, &p.sampler, usedLater)
}

func usedLater(c, best candidate) bool {
	return c.group().Newest().LastUsed().After(best.group().Newest().LastUsed())
}

// leastActive orders nodes by how many containers are starting or busy.
func leastActive(c, best candidate) bool {
	if d := c.group().Node().Active() - best.group().Node().Active(); d != 0 {
		return d < 0
	}
	return usedLater(c, best)
}

func coldMaxAvailable(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Node {
	return mostAvailable(v, &p.sampler, r.Function.MemoryMB)
}

func coldMinCost(p *warmFirst, v sophon.View, r sophon.Request) *sophon.Node {
	return p.cost.least(p.sampler.nodes(v, r.Function.MemoryMB), r)
}
