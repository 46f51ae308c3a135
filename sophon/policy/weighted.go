package policy

import (
	"time"

	"github.com/volley-run/volley/sophon"
)

// weighted is min-cost with what is known of each function in place of the
// idle time alone. An idle container of function f, idle for t, is worth
//
//	cold(f) / (rest(f) + t)
//
// the expected time that evicting it costs, per second from now on: cold is
// f's measured cold start, and the rest is the chance that the container is
// reused in the next second. For a single container that is reused at random,
// the chance would be 1/rest, with rest the mean time that f's containers lie
// idle before they are reused. But the containers of a function differ, some
// are needed all the time and some only in bursts; where the rates differ as
// an exponential distribution does, what has been idle for t is reused at
// 1/(rest+t) (a Lomax distribution).
//
// A node's idle containers are evicted in the order of worth per MiB. The
// policy is the cluster's sophon.KeepAlive for that; in a cluster that has
// another one, its order is taken as it is.
type weighted struct {
	warmFirst
	functions perFunction[worth]
	// now is the time of the last event, begun that of the first.
	now, begun time.Time
	// typical is the mean worth per MiB of the last evictions, so many at most
	// as typicalOver.
	typical, evictions float64
	loss               func(*sophon.Container, time.Time) float64
}

const (
	// priorRest and priorCold stand for what is not known yet of a function,
	// in seconds: for its rest with the weight of one observation.
	priorRest = 60
	priorCold = 1
	// typicalOver is over how many evictions typical is taken.
	typicalOver = 64
	// fading is how much of the past is left after one more observation.
	fading = 0.98
	// maxGhosts is how many evicted containers of a function are remembered.
	maxGhosts = 8
)

func newWeighted(name string, o Options, warm func(*warmFirst, sophon.View, sophon.Request) *sophon.Group) *weighted {
	p := &weighted{}
	p.warmFirst = *newWarmFirst(name, o, warm, func(_ *warmFirst, v sophon.View, r sophon.Request) *sophon.Node { return p.least(v, r) })
	p.loss = func(c *sophon.Container, now time.Time) float64 {
		return p.functions.of(c.Function()).loss(now.Sub(c.LastUsed()))
	}
	return p
}

// worth is what weighted knows of one function.
type worth struct {
	// cold is the mean duration of a cold start in seconds; 0 if not known.
	cold float64
	// rests is the time that containers have been idle, in seconds, and reuses
	// how often that ended in a reuse; both fade.
	rests, reuses float64
	// mean is (rests+priorRest)/(reuses+1), or 0 before the first rest.
	mean float64
	// ghosts are when containers were used last that were evicted since, the
	// last one used at the end. A cold start is a reuse of a ghost: without
	// them, a function that is always evicted would seem to need nothing.
	ghosts []time.Time
}

func (w *worth) rest(idle time.Duration, reuses float64) {
	w.rests = w.rests*fading + idle.Seconds()
	w.reuses = w.reuses*fading + reuses
	w.mean = (w.rests + priorRest) / (w.reuses + 1)
}

func (w *worth) meanRest() float64 {
	if w.mean == 0 {
		return priorRest
	}
	return w.mean
}

func (w *worth) coldStart() float64 {
	if w.cold == 0 {
		return priorCold
	}
	return w.cold
}

func (w *worth) loss(idle time.Duration) float64 {
	return w.coldStart() / (w.meanRest() + max(idle, 0).Seconds())
}

// haunt remembers an evicted container.
func (w *worth) haunt(lastUsed, now time.Time) {
	if len(w.ghosts) == maxGhosts {
		w.rest(now.Sub(w.ghosts[0]), 0)
		w.ghosts = append(w.ghosts[:0], w.ghosts[1:]...)
	}
	w.ghosts = append(w.ghosts, lastUsed)
}

// exorcise counts a cold start as the reuse of an evicted container, if there
// was one.
func (w *worth) exorcise(now time.Time) {
	if last := len(w.ghosts) - 1; last >= 0 {
		w.rest(now.Sub(w.ghosts[last]), 1)
		w.ghosts = w.ghosts[:last]
	}
}

// least returns the node where a cold start loses the least, as minCost.least.
func (p *weighted) least(v sophon.View, r sophon.Request) *sophon.Node {
	var best bid
	for _, n := range p.sampler.nodes(v, r.Function.MemoryMB) {
		if !n.Fits(r.Function.MemoryMB) {
			continue
		}
		if b, ok := bidFor(n, r, best, p.loss); ok && b.beats(best) {
			best = b
		}
	}
	return best.node
}

// Arrived implements sophon.Observer.
func (p *weighted) Arrived(_ *sophon.Function, now time.Time) { p.tick(now) }

// Became implements sophon.Observer.
func (p *weighted) Became(c *sophon.Container, s sophon.State, now time.Time) {
	p.tick(now)
	switch {
	case s == sophon.Busy && c.Rested() > 0:
		p.functions.of(c.Function()).rest(c.Rested(), 1)
	case s == sophon.Starting:
		p.functions.of(c.Function()).exorcise(now)
	}
}

// ColdStarted implements sophon.Observer.
func (p *weighted) ColdStarted(f *sophon.Function, took time.Duration, _ time.Time) {
	w := p.functions.of(f)
	if w.cold == 0 {
		w.cold = took.Seconds()
		return
	}
	w.cold += (took.Seconds() - w.cold) / 8
}

// Restart implements sophon.Restarter.
func (p *weighted) Restart() {
	p.functions = perFunction[worth]{}
	p.now, p.begun = time.Time{}, time.Time{}
	p.typical, p.evictions = 0, 0
}

// Forgot implements sophon.Forgetter.
func (p *weighted) Forgot(f *sophon.Function) { p.functions.forget(f) }

func (p *weighted) tick(now time.Time) {
	if p.begun.IsZero() {
		p.begun = now
	}
	p.now = now
}

// Priority implements sophon.KeepAlive: the time at which the container's
// worth per MiB will have fallen to what is typically evicted. In that order it
// does not matter that worth falls all the time. Until something was evicted,
// size does not count.
func (p *weighted) Priority(c *sophon.Container, now time.Time) float64 {
	if p.begun.IsZero() {
		p.begun = now
	}
	w := p.functions.of(c.Function())
	until := 0.0
	if p.evictions > 0 {
		until = w.coldStart() / (p.typical * float64(max(1, c.MemoryMB())))
	}
	return c.LastUsed().Sub(p.begun).Seconds() + until - w.meanRest()
}

// Evicted implements sophon.KeepAlive.
func (p *weighted) Evicted(c *sophon.Container) {
	w := p.functions.of(c.Function())
	density := w.loss(p.now.Sub(c.LastUsed())) / float64(max(1, c.MemoryMB()))
	p.evictions = min(p.evictions+1, typicalOver)
	p.typical += (density - p.typical) / p.evictions
	w.haunt(c.LastUsed(), p.now)
}
