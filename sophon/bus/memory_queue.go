package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// What QueueOptions mean where they are zero.
const (
	defaultAckWait      = 30 * time.Second
	defaultMaxPending   = 1024
	defaultDedupeWindow = 2 * time.Minute
)

// memoryQueueState is the state of a queue, which its connections share.
type memoryQueueState struct {
	clock Clock

	mu   sync.Mutex
	opts QueueOptions
	// again and fresh are the items that can be delivered; those that were
	// delivered before go first.
	again, fresh []*memoryItem
	items        map[*memoryItem]struct{} // all that are not done
	pending      int                      // delivered, and not done or back in again
	seen         map[string]time.Time     // when the item of an id was put
	seenOrder    []string
	consumers    []*memoryConsumer
	turn         int // index of the consumer that is next
}

// memoryConsumer is one Consume. A value in wake is its turn to take an item.
type memoryConsumer struct {
	conn *memoryConn
	wake chan struct{}
}

// memoryItem is guarded by the queue's lock.
type memoryItem struct {
	data       []byte
	deliveries int
	pending    bool
	stopTimer  func() bool
	// turn tells the timers of earlier deliveries from the newest.
	turn int
}

// memoryQueue is a queue as one connection sees it.
type memoryQueue struct {
	conn  *memoryConn
	state *memoryQueueState
}

func (c *memoryConn) Queue(ctx context.Context, name string, opts QueueOptions) (Queue, error) {
	if err := checkName("queue", name); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	if err := c.wait(ctx); err != nil {
		return nil, fmt.Errorf("open queue %s: %w", name, err)
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[name]
	if q == nil {
		q = &memoryQueueState{
			clock: s.clock,
			items: make(map[*memoryItem]struct{}),
			seen:  make(map[string]time.Time),
		}
		s.queues[name] = q
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.opts = opts.withDefaults()
	return &memoryQueue{c, q}, nil
}

func (q *memoryQueue) Put(ctx context.Context, id string, data []byte) error {
	if int64(len(data)) > q.conn.server.maxMessageBytes {
		return fmt.Errorf("put item %s: %d bytes: %w", id, len(data), ErrTooLarge)
	}
	if err := q.conn.wait(ctx); err != nil {
		return fmt.Errorf("put item %s: %w", id, err)
	}
	q.state.put(id, data)
	return nil
}

func (q *memoryQueueState) put(id string, data []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.clock.Now()
	for len(q.seenOrder) > 0 && now.Sub(q.seen[q.seenOrder[0]]) >= q.opts.DedupeWindow {
		delete(q.seen, q.seenOrder[0])
		q.seenOrder = q.seenOrder[1:]
	}
	if id != "" {
		if _, ok := q.seen[id]; ok {
			return
		}
		q.seen[id] = now
		q.seenOrder = append(q.seenOrder, id)
	}
	item := &memoryItem{data: clone(data)}
	q.items[item] = struct{}{}
	q.fresh = append(q.fresh, item)
	q.signal()
}

// signal gives the next consumer in turn that can be reached an item to take.
// It is called with the lock held.
func (q *memoryQueueState) signal() {
	for range q.consumers {
		q.turn++
		c := q.consumers[q.turn%len(q.consumers)]
		if c.conn.connected.Load() {
			signal(c.wake)
			return
		}
	}
}

func (q *memoryQueueState) add(c *memoryConsumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.consumers = append(q.consumers, c)
	signal(c.wake)
}

func (q *memoryQueueState) remove(c *memoryConsumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.consumers = slices.DeleteFunc(q.consumers, func(have *memoryConsumer) bool { return have == c })
	q.signal() // its turn goes to another
}

func (q *memoryQueue) Consume(ctx context.Context, handle func(Item)) error {
	c := &memoryConsumer{q.conn, make(chan struct{}, 1)}
	err := q.conn.runWhileOpen(ctx, c.wake, func(ctx context.Context) error {
		q.state.add(c)
		defer q.state.remove(c)
		for {
			select {
			case <-c.wake:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if item, ok := q.next(); ok {
				handle(item)
			}
		}
	})
	if errors.Is(err, ErrClosed) {
		return fmt.Errorf("consume: %w", err)
	}
	return nil
}

// next delivers an item, if there is one and not too many are pending, and
// passes the turn on.
func (q *memoryQueue) next() (Item, bool) {
	s := q.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if !q.conn.connected.Load() {
		s.signal()
		return Item{}, false
	}
	if s.pending >= s.opts.MaxPending {
		return Item{}, false
	}
	item := s.take()
	if item == nil {
		return Item{}, false
	}
	item.deliveries++
	item.pending = true
	s.pending++
	s.backIn(item, s.opts.AckWait)
	s.signal()
	return Item{
		Data:       clone(item.data),
		Deliveries: item.deliveries,
		Done: func(ctx context.Context) error {
			if err := q.conn.wait(ctx); err != nil {
				return fmt.Errorf("take done item out of the queue: %w", err)
			}
			s.done(item)
			return nil
		},
		Again: func(delay time.Duration) error {
			if err := q.conn.sendable(); err != nil {
				return fmt.Errorf("put item back: %w", err)
			}
			s.putBack(item, delay)
			return nil
		},
		Working: func() error {
			if err := q.conn.sendable(); err != nil {
				return fmt.Errorf("extend time for item: %w", err)
			}
			s.extend(item)
			return nil
		},
	}, true
}

// take removes the next item that is not done from the lists.
func (q *memoryQueueState) take() *memoryItem {
	for _, list := range []*[]*memoryItem{&q.again, &q.fresh} {
		for len(*list) > 0 {
			item := (*list)[0]
			(*list)[0] = nil
			*list = (*list)[1:]
			if _, ok := q.items[item]; ok {
				return item
			}
		}
	}
	return nil
}

// backIn has the item delivered again after a time. It is called with the lock
// held.
func (q *memoryQueueState) backIn(item *memoryItem, d time.Duration) {
	if item.stopTimer != nil {
		item.stopTimer()
	}
	item.turn++
	turn := item.turn
	back := func() {
		if _, ok := q.items[item]; !ok || !item.pending || item.turn != turn {
			return
		}
		item.pending = false
		q.pending--
		q.again = append(q.again, item)
		q.signal()
	}
	if d <= 0 {
		item.stopTimer = nil
		back()
		return
	}
	item.stopTimer = q.clock.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		back()
	})
}

func (q *memoryQueueState) done(item *memoryItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.items[item]; !ok {
		return
	}
	delete(q.items, item)
	if item.stopTimer != nil {
		item.stopTimer()
	}
	if item.pending {
		item.pending = false
		q.pending--
		q.signal()
	}
}

// putBack delivers a pending item again after a delay.
func (q *memoryQueueState) putBack(item *memoryItem, delay time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if item.pending {
		q.backIn(item, delay)
	}
}

// extend starts a pending item's time anew.
func (q *memoryQueueState) extend(item *memoryItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if item.pending {
		q.backIn(item, q.opts.AckWait)
	}
}

func (q *memoryQueue) Len(ctx context.Context) (int, error) {
	if err := q.conn.wait(ctx); err != nil {
		return 0, fmt.Errorf("count items: %w", err)
	}
	q.state.mu.Lock()
	defer q.state.mu.Unlock()
	return len(q.state.items), nil
}
