// Package bustest tells whether an implementation of bus.Bus does what the
// interface promises.
package bustest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

// patience is how long something that must happen may take.
const patience = 20 * time.Second

// Server is a new and empty bus that a test runs against. Its methods fail the
// test that they are given where they cannot do their work.
type Server interface {
	// Connect returns a connection, which is closed when the test ends.
	Connect(t testing.TB) bus.Bus
	// Stop makes the server unreachable for all connections.
	Stop(t testing.TB)
	// Start has it reachable again, with what it had stored.
	Start(t testing.TB)
}

// Run runs the suite; open makes a server for each of its tests, and sees to
// it that the server is gone when that test ends.
func Run(t *testing.T, open func(t testing.TB) Server) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"Messages", messageTests()},
		{"KV", kvTests()},
		{"Queue", queueTests()},
		{"Objects", objectTests()},
		{"Log", logTests()},
		{"Outage", outageTests()},
		{"Close", closeTests()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, test := range group.tests {
				t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
			}
		})
	}
}

// test is one sentence about a bus.
type test struct {
	name string
	run  func(t *testing.T, s Server)
}

// within returns a context that ends when the test should have been over.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// must ends the test if there is an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// value returns what was returned with a nil error.
func value[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// eventually waits for a condition, which it asks for again and again.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-tick.C
	}
}

// collected is what a handler was called with.
type collected[T any] struct {
	mu    sync.Mutex
	items []T
	news  chan struct{}
}

func collect[T any]() *collected[T] {
	return &collected[T]{news: make(chan struct{}, 1)}
}

func (c *collected[T]) add(item T) {
	c.mu.Lock()
	c.items = append(c.items, item)
	c.mu.Unlock()
	select {
	case c.news <- struct{}{}:
	default:
	}
}

func (c *collected[T]) all() []T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.items)
}

// wait returns all items once there are at least n. Only one goroutine waits.
func (c *collected[T]) wait(t testing.TB, n int) []T {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		if items := c.all(); len(items) >= n {
			return items
		}
		select {
		case <-c.news:
		case <-timeout.C:
			t.Fatalf("got %d of %d: %s", len(c.all()), n, short(c.all()))
		}
	}
}

func short(v any) string {
	s := fmt.Sprintf("%v", v)
	if len(s) > 500 {
		s = s[:500] + "..."
	}
	return s
}

// subscribe collects the messages on a subject.
func subscribe(t testing.TB, b bus.Bus, subject string) *collected[bus.Message] {
	t.Helper()
	c := collect[bus.Message]()
	value(b.Subscribe(subject, c.add))(t)
	return c
}

func texts(messages []bus.Message) []string {
	out := make([]string, len(messages))
	for i, m := range messages {
		out[i] = string(m.Data)
	}
	return out
}
