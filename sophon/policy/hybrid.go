package policy

import (
	"container/heap"
	"time"

	"github.com/volley-run/volley/sophon"
)

// hybrid ends and starts containers ahead of need, by a histogram of each
// function's idle times (Shahrad et al., "Serverless in the Wild", USENIX ATC
// 2020), and places as ma-mc does.
//
// A function is idle while none of its invocations waits or runs. Its idle
// times are counted by the minute, up to four hours. The head, the 5th
// percentile less a margin of 10 %, is how long after the function became idle
// it is sure not to be needed; the tail, the 99th percentile and 10 %, is when
// it is no longer worth waiting for it. If the head is a minute or more, the
// function's idle containers are ended at once, and one is started again when
// the head has passed, where there is free memory for it. When the tail has
// passed, they are ended. Where a histogram tells little, because there are few
// idle times, because they are spread evenly (a coefficient of variation of the
// counts under 2), or because most are beyond its range, containers are left
// to the invoker's fixed keep-alive. (There, the authors forecast with an ARIMA
// model those that are beyond the range; they are few, and a container that is
// kept for hours is the first to be evicted here.)
//
// Containers that a function does not need while others of it are in use are
// not its business.
type hybrid struct {
	*warmFirst
	functions perFunction[idleness]
	timers    idleTimers
}

const (
	idleBins   = 240
	idleBin    = time.Minute
	headQuota  = 0.05
	tailQuota  = 0.99
	idleMargin = 0.1
	// minIdleTimes is how many idle times a histogram needs to tell anything.
	minIdleTimes = 10
	minVariation = 2
)

// idleness is what hybrid knows of one function.
type idleness struct {
	function *sophon.Function
	bins     [idleBins]uint32
	// counted is how many idle times are in the bins, squares the sum of the
	// squares of the bins, and beyond how many idle times were longer.
	counted, squares, beyond uint64
	// since is when the function became idle; zero while it is not.
	since time.Time
	// next is what to do at the time due.
	next idleStep
	due  time.Time
	// place is the index in the heap of timers, from 1; 0 is not there.
	place int
}

type idleStep uint8

const (
	nothing idleStep = iota
	unload
	prewarm
	giveUp
)

func newHybrid(o Options) *hybrid {
	return &hybrid{warmFirst: newWarmFirst("hybrid", o, warmMaxAvailable, coldMinCost)}
}

// observe counts an idle time.
func (i *idleness) observe(d time.Duration) {
	bin := int(d / idleBin)
	if bin >= idleBins {
		i.beyond++
		return
	}
	i.squares += 2*uint64(i.bins[bin]) + 1
	i.bins[bin]++
	i.counted++
}

// telling reports whether the histogram has something to say.
func (i *idleness) telling() bool {
	if i.counted < minIdleTimes || i.beyond > i.counted {
		return false
	}
	mean := float64(i.counted) / idleBins
	variance := float64(i.squares)/idleBins - mean*mean
	return variance >= minVariation*minVariation*mean*mean
}

// windows returns how long a function that has become idle is not needed, and
// how long it is worth keeping ready after that.
func (i *idleness) windows() (notNeeded, keepAlive time.Duration) {
	var head, tail time.Duration
	sum, foundHead := uint64(0), false
	for bin, n := range i.bins {
		sum += uint64(n)
		if !foundHead && float64(sum) >= headQuota*float64(i.counted) {
			head, foundHead = time.Duration(bin)*idleBin, true
		}
		if float64(sum) >= tailQuota*float64(i.counted) {
			tail = time.Duration(bin+1) * idleBin
			break
		}
	}
	notNeeded = head - time.Duration(idleMargin*float64(head))
	return notNeeded, tail + time.Duration(idleMargin*float64(tail)) - notNeeded
}

// Arrived implements sophon.Observer.
func (p *hybrid) Arrived(f *sophon.Function, now time.Time) {
	i := p.functions.of(f)
	if i.since.IsZero() {
		return
	}
	i.observe(now.Sub(i.since))
	i.since, i.next = time.Time{}, nothing
}

// Became implements sophon.Observer.
func (p *hybrid) Became(c *sophon.Container, s sophon.State, now time.Time) {
	f := c.Function()
	if s != sophon.Idle || f.Jobs() > 0 || c.Uses() == 0 {
		return
	}
	i := p.functions.of(f)
	i.function = f
	if !i.since.IsZero() {
		return
	}
	i.since = now
	if !i.telling() {
		return
	}
	if notNeeded, keepAlive := i.windows(); notNeeded >= idleBin {
		p.plan(i, unload, now)
	} else {
		p.plan(i, giveUp, now.Add(notNeeded+keepAlive))
	}
}

// ColdStarted implements sophon.Observer.
func (*hybrid) ColdStarted(*sophon.Function, time.Duration, time.Time) {}

// Restart implements sophon.Restarter.
func (p *hybrid) Restart() { p.functions, p.timers = perFunction[idleness]{}, nil }

// Forgot implements sophon.Forgetter.
func (p *hybrid) Forgot(f *sophon.Function) {
	if i := p.functions.of(f); i.place > 0 {
		heap.Remove(&p.timers, i.place-1)
	}
	p.functions.forget(f)
}

// plan sets what to do next for a function.
func (p *hybrid) plan(i *idleness, s idleStep, at time.Time) {
	i.next, i.due = s, at
	if i.place > 0 {
		heap.Fix(&p.timers, i.place-1)
	} else {
		heap.Push(&p.timers, i)
	}
}

// Plan implements sophon.Prewarmer.
func (p *hybrid) Plan(v sophon.View, now time.Time) (actions []sophon.Prewarm, next time.Time) {
	for len(p.timers) > 0 && !p.timers[0].due.After(now) {
		i := p.timers[0]
		notNeeded, keepAlive := i.windows()
		switch i.next {
		case unload:
			actions = endIdle(actions, i.function)
			p.plan(i, prewarm, i.since.Add(notNeeded))
			continue
		case prewarm:
			if n := p.roomFor(v, i.function, now); n != nil && len(i.function.Idle()) == 0 {
				actions = append(actions, sophon.Prewarm{Function: i.function, Node: n})
			}
			p.plan(i, giveUp, i.since.Add(notNeeded+keepAlive))
			continue
		case giveUp:
			actions = endIdle(actions, i.function)
		}
		heap.Pop(&p.timers)
	}
	if len(p.timers) > 0 {
		next = p.timers[0].due
	}
	return actions, next
}

func endIdle(actions []sophon.Prewarm, f *sophon.Function) []sophon.Prewarm {
	for _, c := range f.Idle() {
		actions = append(actions, sophon.Prewarm{End: c})
	}
	return actions
}

// roomFor returns a node where a container fits without evicting another.
func (p *hybrid) roomFor(v sophon.View, f *sophon.Function, now time.Time) *sophon.Node {
	n := coldMinCost(p.warmFirst, v, sophon.Request{Function: f, Now: now})
	if n == nil || n.FreeMB() < f.MemoryMB {
		return nil
	}
	return n
}

// idleTimers is a heap of functions by the time of what is to be done.
type idleTimers []*idleness

// heap.Interface.
func (t idleTimers) Len() int           { return len(t) }
func (t idleTimers) Less(i, j int) bool { return t[i].due.Before(t[j].due) }
func (t idleTimers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].place, t[j].place = i+1, j+1
}

func (t *idleTimers) Push(x any) {
	i := x.(*idleness)
	*t = append(*t, i)
	i.place = len(*t)
}

func (t *idleTimers) Pop() any {
	last := len(*t) - 1
	i := (*t)[last]
	(*t)[last] = nil
	*t = (*t)[:last]
	i.place = 0
	return i
}
