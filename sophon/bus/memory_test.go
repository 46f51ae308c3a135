package bus_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

func TestCuttingOneConnectionLeavesTheOthers(t *testing.T) {
	s := bus.NewMemory()
	a, b, c := closing(t, s.Connect()), closing(t, s.Connect()), closing(t, s.Connect())
	ctx := t.Context()
	got := make(chan string, 10)
	for name, conn := range map[string]bus.Bus{"b": b, "c": c} {
		if _, err := conn.Subscribe("x", func(m bus.Message) { got <- name + string(m.Data) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Subscribe("ask", func(m bus.Message) { _ = b.Publish(m.Reply, nil) }); err != nil {
		t.Fatal(err)
	}
	back := make(chan struct{})
	b.OnReconnect(func() { close(back) })

	s.Cut(b)
	if !a.Connected() || b.Connected() {
		t.Errorf("connected: %t, and %t for the one that was cut", a.Connected(), b.Connected())
	}
	if err := b.Publish("x", nil); !errors.Is(err, bus.ErrDisconnected) {
		t.Errorf("publish on the one that was cut: %v", err)
	}
	if _, err := a.Request(ctx, "ask", nil); !errors.Is(err, bus.ErrNoResponder) {
		t.Errorf("request to the one that was cut: %v", err)
	}
	publish(t, a, "x", "1")
	if have := <-got; have != "c1" {
		t.Errorf("got %q", have)
	}

	s.Restore(b)
	<-back
	publish(t, a, "x", "2")
	if one, other := <-got, <-got; one+other != "b2c2" && one+other != "c2b2" {
		t.Errorf("got %q and %q", one, other)
	}
	if _, err := a.Request(ctx, "ask", nil); err != nil {
		t.Errorf("request: %v", err)
	}
}

func publish(t *testing.T, b bus.Bus, subject, data string) {
	t.Helper()
	if err := b.Publish(subject, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// manualClock is a bus.Clock that goes when it is told to.
type manualClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[*manualTimer]struct{}
}

type manualTimer struct {
	at time.Time
	f  func()
}

func (c *manualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manualClock) AfterFunc(d time.Duration, f func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := &manualTimer{c.now.Add(d), f}
	c.timers[timer] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, ok := c.timers[timer]
		delete(c.timers, timer)
		return ok
	}
}

func (c *manualClock) advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var due []func()
	for timer := range c.timers {
		if !timer.at.After(c.now) {
			due = append(due, timer.f)
			delete(c.timers, timer)
		}
	}
	c.mu.Unlock()
	for _, f := range due {
		f()
	}
}

func TestMemoryGoesByTheClockItIsGiven(t *testing.T) {
	clock := &manualClock{now: time.Unix(1e9, 0), timers: map[*manualTimer]struct{}{}}
	b := closing(t, bus.NewMemory(bus.WithClock(clock)).Connect())
	ctx := t.Context()
	kv, err := b.KV(ctx, "leases", bus.KVOptions{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	removed := make(chan bus.Entry, 1)
	if _, err := kv.Watch(ctx, func(e bus.Entry) {
		if e.Deleted {
			removed <- e
		}
	}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(ctx, "k", nil); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Hour - 1)
	if _, err := kv.Get(ctx, "k"); err != nil {
		t.Errorf("just before it expires: %v", err)
	}
	clock.advance(1)
	if e := <-removed; e.Key != "k" {
		t.Errorf("removed %+v", e)
	}
	if _, err := kv.Get(ctx, "k"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("when it expires: %v", err)
	}
}

func TestMemoryWorksInASynctestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bus.NewMemory().Connect()
		q, err := b.Queue(t.Context(), "work", bus.QueueOptions{AckWait: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var delivered []time.Duration
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := q.Put(ctx, "i", nil); err != nil {
			t.Fatal(err)
		}
		if err := q.Consume(ctx, func(item bus.Item) {
			delivered = append(delivered, time.Since(start))
			if item.Deliveries == 3 {
				if err := item.Done(ctx); err != nil {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Error(err)
		}
		if len(delivered) != 3 || delivered[2] != 2*time.Minute {
			t.Errorf("delivered at %v", delivered)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}
