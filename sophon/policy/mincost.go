package policy

import (
	"math"
	"time"

	"github.com/volley-run/volley/sophon"
)

// bid is what a cold start on a node would cost.
type bid struct {
	node *sophon.Node
	// cost is the sum of what the evicted containers are worth.
	cost      float64
	evictions int
}

// beats orders bids: less cost, then fewer evictions (very old containers are
// worth less than a float64 can tell from nothing), then more available memory.
func (b bid) beats(o bid) bool {
	switch {
	case o.node == nil:
		return true
	case b.cost != o.cost:
		return b.cost < o.cost
	case b.evictions != o.evictions:
		return b.evictions < o.evictions
	}
	return b.node.AvailableMB() > o.node.AvailableMB()
}

// bidFor adds up what a cold start on n costs, with loss for each container
// that it evicts. ok is false if it stopped because that is more than best.
func bidFor(n *sophon.Node, r sophon.Request, best bid, loss func(*sophon.Container, time.Time) float64) (b bid, ok bool) {
	b.node = n
	free, need := n.FreeMB(), r.Function.MemoryMB
	for c := n.FirstVictim(); free < need; c = c.NextVictim() {
		b.cost += loss(c, r.Now)
		if b.evictions++; best.node != nil && b.cost > best.cost {
			return b, false
		}
		free += c.MemoryMB()
	}
	return b, true
}

// minCost finds the node where a cold start loses the least (thesis 4.4.2).
// With invocations that come at random and at a rate lambda, a container that
// has been idle for t seconds will be needed again with a chance that falls as
// exp(-lambda*t); the cost of a cold start is the sum of that over the
// containers that it evicts, and 0 if it evicts none.
type minCost struct {
	lambda float64
	loss   func(*sophon.Container, time.Time) float64
}

func newMinCost(lambda float64) minCost {
	return minCost{lambda: lambda, loss: func(c *sophon.Container, now time.Time) float64 {
		return math.Exp(-lambda * max(now.Sub(c.LastUsed()), 0).Seconds())
	}}
}

// least returns the node of least cost; among equals the one with the most
// available memory, then the first. It is nil if none fits.
func (m minCost) least(nodes []*sophon.Node, r sophon.Request) *sophon.Node {
	need := r.Function.MemoryMB
	var best bid
	// A node whose first victim was used after limit costs more than best:
	// most nodes are dismissed by that, without an exponential.
	var limit time.Time
	for _, n := range nodes {
		if !n.Fits(need) {
			continue
		}
		if best.node != nil && n.FreeMB() < need && n.FirstVictim().LastUsed().After(limit) {
			continue
		}
		if b, ok := bidFor(n, r, best, m.loss); ok && b.beats(best) {
			best = b
			limit = m.limit(b, r.Now)
		}
	}
	return best.node
}

// longAgo stands for a time that no container was used before.
const longAgo = 100 * 365 * 24 * time.Hour

// limit is when a container was used whose eviction alone costs as much as b.
func (m minCost) limit(b bid, now time.Time) time.Time {
	switch {
	case b.evictions == 0:
		return now.Add(-longAgo)
	case b.cost == 0 || m.lambda == 0:
		return now // others may cost the same
	}
	// A little later, so that rounding excludes none that is as good.
	idle := -math.Log(b.cost) / m.lambda * (1 - 1e-9)
	return now.Add(-time.Duration(idle * float64(time.Second)))
}
