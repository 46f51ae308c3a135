package policy

import "github.com/volley-run/volley/sophon"

// probing finds the order in which OpenWhisk looks at the nodes for a function
// (thesis 4.1.3): from a home node on in steps, both given by the hash of the
// function's name. The step has no factor in common with the number of nodes,
// so that the sequence comes to each node once.
type probing struct {
	nodes int
	// steps are the steps to choose from; inverses undo them modulo nodes.
	steps, inverses []uint64
}

// sequence is the order in which the nodes are probed for one function.
type sequence struct {
	nodes, home, step, inverse uint64
}

// of returns the function's sequence. There must be nodes.
func (p *probing) of(v sophon.View, f *sophon.Function) sequence {
	if n := len(v.Nodes()); n != p.nodes {
		p.prepare(n)
	}
	hash, n := uint64(f.NameHash()), uint64(p.nodes)
	i := hash % uint64(len(p.steps))
	return sequence{nodes: n, home: hash % n, step: p.steps[i], inverse: p.inverses[i]}
}

func (p *probing) prepare(nodes int) {
	p.nodes = nodes
	p.steps, p.inverses = p.steps[:0], p.inverses[:0]
	for _, step := range pairwiseCoprimes(nodes) {
		p.steps = append(p.steps, uint64(step))
		p.inverses = append(p.inverses, inverse(uint64(step), uint64(nodes)))
	}
}

// next returns the index that is probed after index.
func (s sequence) next(index uint64) uint64 {
	if index += s.step; index >= s.nodes {
		index -= s.nodes
	}
	return index
}

// at returns the index that is probed after so many steps.
func (s sequence) at(steps uint64) uint64 { return (s.home + steps*s.step) % s.nodes }

// distance is how many steps from home a node's index comes.
func (s sequence) distance(index int) uint64 {
	return (uint64(index) + s.nodes - s.home) * s.inverse % s.nodes
}

// pairwiseCoprimes returns OpenWhisk's steps for n nodes: greedily, each of
// 1..n that has no factor in common with n nor with any chosen before. A prime
// that does not divide n comes before its multiples and so is always chosen,
// and it keeps its multiples out: the result is 1 and the primes that do not
// divide n.
func pairwiseCoprimes(n int) []int {
	out := []int{1}
	composite := make([]bool, n+1)
	for p := 2; p <= n; p++ {
		if composite[p] {
			continue
		}
		for m := p * p; m <= n; m += p {
			composite[m] = true
		}
		if n%p != 0 {
			out = append(out, p)
		}
	}
	return out
}

// inverse returns x with a*x = 1 modulo n, for an a that has no factor in
// common with n.
func inverse(a, n uint64) uint64 {
	r, nextR := int64(n), int64(a%n)
	t, nextT := int64(0), int64(1)
	for nextR != 0 {
		q := r / nextR
		r, nextR = nextR, r-q*nextR
		t, nextT = nextT, t-q*nextT
	}
	if t < 0 {
		t += int64(n)
	}
	return uint64(t)
}
