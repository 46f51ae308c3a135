package delivery

import (
	"fmt"
	"math"

	"github.com/volley-run/volley/sprocket"
)

// ports checks what arrives: each Seq once, no item after the end and none
// missing at the end. Its memory is that of the items that arrived ahead of
// their turn.
type ports []port

type port struct {
	next   int64 // all below have arrived
	ahead  map[int64]struct{}
	closed bool
	count  int64
}

func newPorts(n int) ports {
	p := make(ports, n)
	for i := range p {
		p[i].ahead = make(map[int64]struct{})
	}
	return p
}

func (p ports) arrive(i int, it sprocket.Item) error {
	if err := p.check(i); err != nil {
		return fmt.Errorf("deliver item %d: %w", it.Seq, err)
	}
	s := &p[i]
	_, early := s.ahead[it.Seq]
	switch {
	case s.closed:
		return fmt.Errorf("deliver item %d: port %d has ended after %d items", it.Seq, i, s.count)
	case it.Seq < 0:
		return fmt.Errorf("deliver item %d: port %d: seq is negative", it.Seq, i)
	case it.Seq < s.next || early:
		return fmt.Errorf("deliver item %d: port %d: an item with this seq came before", it.Seq, i)
	}
	s.ahead[it.Seq] = struct{}{}
	for {
		if _, ok := s.ahead[s.next]; !ok {
			return nil
		}
		delete(s.ahead, s.next)
		s.next++
	}
}

func (p ports) close(i int, count int64) error {
	if err := p.check(i); err != nil {
		return fmt.Errorf("close port: %w", err)
	}
	s := &p[i]
	switch {
	case s.closed:
		return fmt.Errorf("close port %d: it has ended before", i)
	case s.next < count:
		return fmt.Errorf("close port %d after %d items: item %d has not arrived", i, count, s.next)
	case s.next > count:
		return fmt.Errorf("close port %d after %d items: %d have arrived", i, count, s.next)
	case len(s.ahead) > 0:
		return fmt.Errorf("close port %d after %d items: items beyond that have arrived", i, count)
	}
	s.closed, s.count = true, count
	return nil
}

func (p ports) check(i int) error {
	if i >= 0 && i < len(p) {
		return nil
	}
	if len(p) == 1 {
		return fmt.Errorf("there is no port %d, only port 0", i)
	}
	return fmt.Errorf("there is no port %d, only ports 0 to %d", i, len(p)-1)
}

func (p ports) allClosed() bool {
	for _, s := range p {
		if !s.closed {
			return false
		}
	}
	return true
}

// shortest is the least count of the ports that have ended.
func (p ports) shortest() int64 {
	n := int64(math.MaxInt64)
	for _, s := range p {
		if s.closed {
			n = min(n, s.count)
		}
	}
	return n
}

// total is the number of tasks of a function that makes one of each item, or of
// each item that all ports have: -1 until all ports have ended.
func (p ports) total() int64 {
	if !p.allClosed() {
		return -1
	}
	return p.shortest()
}

// sequence puts items back into the order of Seq.
type sequence struct {
	next int64
	held map[int64]sprocket.Item
}

func newSequence() sequence { return sequence{held: make(map[int64]sprocket.Item)} }

// add returns the items whose turn has come now that it is there.
func (s *sequence) add(it sprocket.Item) []sprocket.Item {
	s.held[it.Seq] = it
	var ready []sprocket.Item
	for {
		it, ok := s.held[s.next]
		if !ok {
			return ready
		}
		delete(s.held, s.next)
		s.next++
		ready = append(ready, it)
	}
}
