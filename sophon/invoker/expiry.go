package invoker

import (
	"container/heap"
	"time"

	"github.com/volley-run/volley/sophon"
)

// watch has Expire look at a container that has become idle. A container stays
// in the queue while it is used; Expire then finds that it was too early.
func (p *Pool) watch(s *slot) {
	due, ok := p.dueAt(s)
	switch {
	case !ok:
	case s.index < 0:
		s.due = due
		heap.Push(&p.due, s)
	case due.Before(s.due): // it waited for its end only, and is to be paused again
		s.due = due
		heap.Fix(&p.due, s.index)
	}
}

// dueAt is when something is to be done about an idle container.
func (p *Pool) dueAt(s *slot) (at time.Time, ok bool) {
	wait := s.keepAlive
	if p.config.PauseAfter > 0 && s.State() != sophon.Paused && (wait < 0 || p.config.PauseAfter < wait) {
		wait = p.config.PauseAfter
	}
	if wait < 0 {
		return time.Time{}, false
	}
	return s.LastUsed().Add(wait), true
}

// Expire ends the containers that were idle for too long, which are to be
// closed, and names those to pause; Paused is due for these.
func (p *Pool) Expire(now time.Time) (toClose, toPause []string) {
	for len(p.due) > 0 && !now.Before(p.due[0].due) {
		s := heap.Pop(&p.due).(*slot)
		if !s.idle() {
			continue // release will watch it again
		}
		idle := now.Sub(s.LastUsed())
		switch {
		case s.keepAlive >= 0 && idle >= s.keepAlive:
			p.remove(s)
			toClose = append(toClose, s.ID())
			continue
		case p.config.PauseAfter > 0 && idle >= p.config.PauseAfter && s.State() == sophon.Idle:
			toPause = append(toPause, s.ID())
			if s.keepAlive >= 0 {
				s.due = s.LastUsed().Add(s.keepAlive)
				heap.Push(&p.due, s)
			}
			continue
		}
		p.watch(s)
	}
	return toClose, toPause
}

// NextExpiry is when Expire is to be called next, at the latest; ok is false
// if there is no need.
func (p *Pool) NextExpiry() (at time.Time, ok bool) {
	if len(p.due) == 0 {
		return time.Time{}, false
	}
	return p.due[0].due, true
}

// dueQueue is a heap, the container that is due first at the front.
type dueQueue []*slot

func (q dueQueue) Len() int { return len(q) }

func (q dueQueue) Less(i, j int) bool {
	if c := q[i].due.Compare(q[j].due); c != 0 {
		return c < 0
	}
	return q[i].ID() < q[j].ID()
}

func (q dueQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *dueQueue) Push(x any) {
	s := x.(*slot)
	s.index = len(*q)
	*q = append(*q, s)
}

func (q *dueQueue) Pop() any {
	old := *q
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	s.index = -1
	return s
}
