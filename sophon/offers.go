package sophon

import "math"

// offers is a tournament over what the nodes could give (Node.offerMB): the
// most is known at once, a change costs one comparison for each level.
type offers struct {
	// best[i] is the larger of best[2i] and best[2i+1]; the nodes are the
	// second half.
	best []int64
	// nodes is how many there are.
	nodes int
}

// set notes a node's offer. An index beyond the last grows the tournament.
func (o *offers) set(index int, offerMB int64) {
	if index >= o.nodes {
		o.grow(index + 1)
	}
	i := len(o.best)/2 + index
	o.best[i] = offerMB
	for i > 1 {
		larger := max(o.best[i], o.best[i^1])
		i /= 2
		if o.best[i] == larger {
			return
		}
		o.best[i] = larger
	}
}

// of returns a node's offer.
func (o *offers) of(index int) int64 { return o.best[len(o.best)/2+index] }

// most returns the largest offer; no node is the smallest number.
func (o *offers) most() int64 {
	if o.nodes == 0 {
		return math.MinInt64
	}
	return o.best[1]
}

// leader returns the lowest index that has the largest offer, or -1.
func (o *offers) leader() int {
	if o.most() == math.MinInt64 {
		return -1
	}
	i, half := 1, len(o.best)/2
	for i < half {
		if i *= 2; o.best[i] < o.best[i^1] {
			i++
		}
	}
	return i - half
}

func (o *offers) grow(nodes int) {
	old := o.best[len(o.best)/2:]
	kept := o.nodes
	if nodes <= len(old) {
		o.nodes = nodes
		return
	}
	o.reset(nodes)
	copy(o.best[len(o.best)/2:], old[:kept])
	for i := len(o.best)/2 - 1; i > 0; i-- {
		o.best[i] = max(o.best[2*i], o.best[2*i+1])
	}
}

// reset makes a tournament of nodes without offers.
func (o *offers) reset(nodes int) {
	half := 2
	for half < nodes {
		half *= 2
	}
	o.best, o.nodes = make([]int64, 2*half), nodes
	for i := range o.best {
		o.best[i] = math.MinInt64
	}
}
