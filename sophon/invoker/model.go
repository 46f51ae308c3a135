package invoker

import (
	"container/heap"
	"math"
	"time"
)

// Model is how long emulated containers take (thesis 4.6.2). A cold start is a
// creation, which slows down when a node makes many containers at once, then
// the initialisation of runtime and function, which does not.
//
// Creations on one node share its capacity equally. Up to Parallel of them go
// at full speed; n of them together finish
//
//	ContendedPerSecond + (CreationsPerSecond-ContendedPerSecond) * Parallel/n
//
// containers a second: the rate falls from CreationsPerSecond towards
// ContendedPerSecond, as the kernel's locks make it do. The thesis saw 10 and
// 3 a second (thesis 4.5.3).
type Model struct {
	// ColdStart is how long making one container takes with no others in the making.
	ColdStart time.Duration
	// Init is how long the function's initialisation takes after that.
	Init time.Duration
	// CreationsPerSecond is the most containers that a node makes in a second;
	// 0 is no bound.
	CreationsPerSecond float64
	// ContendedPerSecond is the rate that very many concurrent creations get;
	// 0 is as many as CreationsPerSecond: sharing, but no contention.
	ContendedPerSecond float64
}

// ThesisModel is a node as the thesis measured it: cold starts of about
// 600 ms (figure 4.11), 10 creations a second.
func ThesisModel() Model {
	return Model{ColdStart: 450 * time.Millisecond, Init: 150 * time.Millisecond, CreationsPerSecond: 10}
}

// Parallel is how many creations go on at full speed; infinite with no bound.
func (m Model) Parallel() float64 {
	if m.CreationsPerSecond <= 0 || m.ColdStart <= 0 {
		return math.Inf(1)
	}
	return max(1, m.CreationsPerSecond*m.ColdStart.Seconds())
}

// speed is how fast each of n concurrent creations goes: 1 is full speed.
func (m Model) speed(n int) float64 {
	parallel := m.Parallel()
	if float64(n) <= parallel {
		return 1
	}
	contended := 1.0
	if m.ContendedPerSecond > 0 {
		contended = min(1, m.ContendedPerSecond/m.CreationsPerSecond)
	}
	share := parallel / float64(n)
	return share * (contended + (1-contended)*share)
}

// Creations is the containers that one node is making: a processor-sharing
// queue. Time is the caller's, real or virtual, and never goes back. It is not
// safe for concurrent use.
type Creations struct {
	model Model
	last  time.Time
	// served is the work, in seconds at full speed, that a creation which had
	// been there from the start would have got.
	served float64
	queue  creationQueue
	byID   map[uint64]*creation
	nextID uint64
}

// creation is one container in the making.
type creation struct {
	id    uint64
	until float64 // value of served at which it is done
	index int     // in the queue
}

// NewCreations returns a node that is making nothing.
func NewCreations(m Model) *Creations {
	return &Creations{model: m, byID: map[uint64]*creation{}}
}

// Len is how many creations are under way.
func (c *Creations) Len() int { return len(c.queue) }

// Begin adds a creation that would take work on its own, and names it. What
// Next said before is no longer true.
func (c *Creations) Begin(now time.Time, work time.Duration) (id uint64) {
	c.advance(now)
	c.nextID++
	cr := &creation{id: c.nextID, until: c.served + work.Seconds()}
	c.byID[cr.id] = cr
	heap.Push(&c.queue, cr)
	return cr.id
}

// Next tells which creation is done first, and when, if none begins or ends
// before. ok is false if there is none.
func (c *Creations) Next() (id uint64, at time.Time, ok bool) {
	if len(c.queue) == 0 {
		return 0, time.Time{}, false
	}
	first := c.queue[0]
	left := max(0, first.until-c.served) / c.model.speed(len(c.queue))
	// Rounding up keeps a creation from being called done a moment too early.
	return first.id, c.last.Add(time.Duration(math.Ceil(left * float64(time.Second)))), true
}

// End removes a creation that is done, or given up. One that is not there is
// ignored. What Next said before is no longer true.
func (c *Creations) End(now time.Time, id uint64) {
	c.advance(now)
	cr := c.byID[id]
	if cr == nil {
		return
	}
	delete(c.byID, id)
	heap.Remove(&c.queue, cr.index)
	if len(c.queue) == 0 {
		c.served = 0 // keeps the sums exact over long runs
	}
}

// advance serves all creations until now.
func (c *Creations) advance(now time.Time) {
	if n := len(c.queue); n > 0 && now.After(c.last) {
		c.served += now.Sub(c.last).Seconds() * c.model.speed(n)
	}
	if now.After(c.last) {
		c.last = now
	}
}

// creationQueue is a heap, the one that is done first at the front.
type creationQueue []*creation

func (q creationQueue) Len() int { return len(q) }

func (q creationQueue) Less(i, j int) bool {
	if q[i].until != q[j].until {
		return q[i].until < q[j].until
	}
	return q[i].id < q[j].id
}

func (q creationQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *creationQueue) Push(x any) {
	cr := x.(*creation)
	cr.index = len(*q)
	*q = append(*q, cr)
}

func (q *creationQueue) Pop() any {
	old := *q
	cr := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return cr
}
