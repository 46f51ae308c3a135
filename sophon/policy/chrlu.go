package policy

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/volley-run/volley/sophon"
)

// chRLU is consistent hashing with random load updates (Fuerst and Sharma,
// "Locality-aware Load-Balancing For Serverless Clusters", HPDC 2022). A
// function goes to its node on the ring as long as the node's load is within a
// bound, and else on to the next. The load of a popular function's node is
// taken with random noise on top, the more popular the function the more: its
// invocations spill over to the next nodes earlier and not all at once, while
// rare functions stay at home.
//
// Load is the share of memory in use; the bound is boundedLoad times the mean
// of the cluster, but not under lowLoad, where spilling would only lose
// warm containers.
type chRLU struct {
	rng     *rand.Rand
	ring    []point
	version uint64
	// arrivals holds each function's recent share of all arrivals.
	arrivals perFunction[popularity]
	count    float64 // of arrivals
}

// point is one of a node's places on the ring.
type point struct {
	hash uint64
	node *sophon.Node
}

// popularity is what chRLU knows of one function.
type popularity struct {
	// share is the recent share of all arrivals, as of the arrival number at.
	share, at float64
	// home is the function's place on the ring of that version.
	home    int
	version uint64
}

const (
	// ringPoints is how many places each node has.
	ringPoints  = 16
	boundedLoad = 1.25
	lowLoad     = 0.5
	// noise is the standard deviation of the load noise for a function that
	// makes up all arrivals.
	noise = 0.5
	// shareWindow is over how many arrivals shares are taken.
	shareWindow = 1000
)

func newCHRLU(o Options) *chRLU {
	return &chRLU{rng: source(o, 5)}
}

func (*chRLU) Name() string        { return "ch-rlu" }
func (*chRLU) Grain() sophon.Grain { return sophon.NodeGrained }

func (p *chRLU) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	f := r.Function
	if !v.Fits(f.MemoryMB) {
		return sophon.Decision{}
	}
	if p.version != v.Version() {
		p.buildRing(v)
	}
	pop := p.arrivals.of(f)
	if pop.version != p.version {
		pop.home = p.find(ringHash(f.Name))
		pop.version = p.version
	}
	busy, capacity := v.Load()
	bound := max(lowLoad, boundedLoad*float64(busy)/float64(max(1, capacity)))
	deviation := noise * p.share(pop)
	var last *sophon.Node
	for i := range p.ring {
		n := p.ring[(pop.home+i)%len(p.ring)].node
		if n == last || !n.Fits(f.MemoryMB) {
			continue
		}
		last = n
		load := float64(n.BusyMB()+f.MemoryMB) / float64(n.CapacityMB())
		if load > bound {
			continue
		}
		if deviation > 0 {
			load += deviation * math.Abs(p.rng.NormFloat64())
		}
		if load <= bound {
			return sophon.Decision{Node: n}
		}
	}
	return sophon.Decision{Node: v.MostAvailable()}
}

func (p *chRLU) buildRing(v sophon.View) {
	p.version = v.Version()
	p.ring = p.ring[:0]
	for _, n := range v.Nodes() {
		for i := range ringPoints {
			p.ring = append(p.ring, point{ringHash(n.Name() + "#" + strconv.Itoa(i)), n})
		}
	}
	slices.SortFunc(p.ring, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.node.Index(), b.node.Index()))
	})
}

// find returns the first place on the ring from a hash on.
func (p *chRLU) find(hash uint64) int {
	i, _ := slices.BinarySearchFunc(p.ring, hash, func(x point, h uint64) int { return cmp.Compare(x.hash, h) })
	return i % len(p.ring)
}

// ringHash is FNV-1a with a final mix, so that similar names lie apart.
func ringHash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// share is the function's share of the recent arrivals.
func (p *chRLU) share(pop *popularity) float64 {
	return pop.share * math.Exp((pop.at-p.count)/shareWindow)
}

// Arrived implements sophon.Observer.
func (p *chRLU) Arrived(f *sophon.Function, _ time.Time) {
	p.count++
	pop := p.arrivals.of(f)
	pop.share = p.share(pop) + 1.0/shareWindow
	pop.at = p.count
}

// Became implements sophon.Observer.
func (*chRLU) Became(*sophon.Container, sophon.State, time.Time) {}

// ColdStarted implements sophon.Observer.
func (*chRLU) ColdStarted(*sophon.Function, time.Duration, time.Time) {}

// Restart implements sophon.Restarter.
func (p *chRLU) Restart() {
	p.ring, p.version = nil, 0
	p.arrivals, p.count = perFunction[popularity]{}, 0
}

// Forgot implements sophon.Forgetter.
func (p *chRLU) Forgot(f *sophon.Function) { p.arrivals.forget(f) }
