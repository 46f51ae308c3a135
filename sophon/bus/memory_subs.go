package bus

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// maxQueuedMessages and maxQueuedBytes bound what waits for the handler of
	// one subscription; more than that is dropped.
	maxQueuedMessages = 1 << 20
	maxQueuedBytes    = 1 << 30
	// maxSpareMessages is the size of buffer that is kept for the next burst.
	maxSpareMessages = 1 << 14
)

// interest finds the subscriptions for a subject. Its zero value is empty.
type interest struct {
	mu   sync.RWMutex
	root interestNode
}

// interestNode is what is subscribed to below some leading tokens.
type interestNode struct {
	next map[string]*interestNode // by token, "*" included
	subs []*memorySub             // end here
	rest []*memorySub             // end here in ">"
}

func (i *interest) add(s *memorySub) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.root.add(s.pattern, s)
}

func (n *interestNode) add(pattern string, s *memorySub) {
	token, rest, more := strings.Cut(pattern, ".")
	if token == ">" {
		n.rest = append(n.rest, s)
		return
	}
	if n.next == nil {
		n.next = make(map[string]*interestNode)
	}
	below := n.next[token]
	if below == nil {
		below = &interestNode{}
		n.next[token] = below
	}
	if more {
		below.add(rest, s)
	} else {
		below.subs = append(below.subs, s)
	}
}

func (i *interest) remove(s *memorySub) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.root.remove(s.pattern, s)
}

func (n *interestNode) remove(pattern string, s *memorySub) {
	token, rest, more := strings.Cut(pattern, ".")
	if token == ">" {
		n.rest = without(n.rest, s)
		return
	}
	below := n.next[token]
	if below == nil {
		return
	}
	if more {
		below.remove(rest, s)
	} else {
		below.subs = without(below.subs, s)
	}
	if len(below.next) == 0 && len(below.subs) == 0 && len(below.rest) == 0 {
		delete(n.next, token)
	}
}

func without(subs []*memorySub, s *memorySub) []*memorySub {
	for i, have := range subs {
		if have == s {
			return append(subs[:i], subs[i+1:]...)
		}
	}
	return subs
}

// deliver queues a message for every subscription to its subject whose
// connection is up, and says how many there are.
func (i *interest) deliver(subject, reply string, data []byte) int {
	i.mu.RLock()
	defer i.mu.RUnlock()
	d := delivery{Message{Subject: subject, Reply: reply, Data: data}, 0}
	d.below(&i.root, subject)
	return d.receivers
}

// delivery is one message on its way.
type delivery struct {
	message   Message
	receivers int
}

func (d *delivery) below(n *interestNode, subject string) {
	d.to(n.rest)
	if len(n.next) == 0 {
		return
	}
	token, rest, more := strings.Cut(subject, ".")
	for _, key := range [...]string{token, "*"} {
		next := n.next[key]
		switch {
		case next == nil:
		case more:
			d.below(next, rest)
		default:
			d.to(next.subs)
		}
	}
}

func (d *delivery) to(subs []*memorySub) {
	for _, s := range subs {
		if s.conn.connected.Load() {
			d.receivers++
			m := d.message
			m.Data = clone(m.Data)
			s.push(m)
		}
	}
}

// memorySub is a subscription of a memoryConn, with its own goroutine.
type memorySub struct {
	conn    *memoryConn
	pattern string
	handle  func(Message)
	ended   atomic.Bool
	wake    chan struct{}

	mu       sync.Mutex
	queue    []Message
	bytes    int
	dropping bool
}

func (c *memoryConn) Subscribe(subject string, handle func(Message)) (Subscription, error) {
	if err := checkPattern(subject); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := &memorySub{conn: c, pattern: subject, handle: handle, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("subscribe to %s: %w", subject, ErrClosed)
	}
	c.subs[s] = struct{}{}
	c.server.interest.add(s)
	c.running.Go(s.run)
	return s, nil
}

func (s *memorySub) push(m Message) {
	s.mu.Lock()
	server := s.conn.server
	if len(s.queue) >= server.maxQueuedMessages || s.bytes+len(m.Data) > server.maxQueuedBytes {
		first := !s.dropping
		s.dropping = true
		s.mu.Unlock()
		if first {
			server.log.Warn("drop messages for a slow subscription", "subject", s.pattern)
		}
		return
	}
	s.queue = append(s.queue, m)
	s.bytes += len(m.Data)
	first := len(s.queue) == 1
	s.mu.Unlock()
	if first {
		signal(s.wake)
	}
}

// run hands messages to the handler until the subscription ends.
func (s *memorySub) run() {
	var batch []Message
	for range s.wake {
		if s.ended.Load() {
			return
		}
		if cap(batch) > maxSpareMessages {
			batch = nil
		}
		s.mu.Lock()
		batch, s.queue = s.queue, batch[:0]
		s.bytes, s.dropping = 0, false
		s.mu.Unlock()
		for i := range batch {
			if s.ended.Load() {
				return
			}
			m := batch[i]
			batch[i] = Message{}
			s.handle(m)
		}
	}
}

// end stops the subscription's goroutine after the handler under way.
func (s *memorySub) end() {
	s.conn.server.interest.remove(s)
	s.ended.Store(true)
	signal(s.wake)
}

func (s *memorySub) Unsubscribe() error {
	s.conn.mu.Lock()
	_, open := s.conn.subs[s]
	delete(s.conn.subs, s)
	s.conn.mu.Unlock()
	if open {
		s.end()
	}
	return nil
}
