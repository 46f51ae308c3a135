package bustest

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

func closeTests() []test {
	return []test{
		{"is idempotent, and everything fails afterwards", testClosed},
		{"waits for handlers, and ends watches, consumers and readers", testCloseEnds},
		{"of one connection leaves the others", testCloseOne},
		{"sends what was published", testCloseSends},
		{"works in an outage", testCloseInOutage},
	}
}

func bytesOf(s string) io.Reader { return strings.NewReader(s) }

func testClosed(t *testing.T, s Server) {
	b := s.Connect(t)
	kv, q, o, l := openKV(t, b), openQueue(t, b, bus.QueueOptions{}), openObjects(t, b), openLog(t, b, bus.LogOptions{})
	sub := value(b.Subscribe("a", func(bus.Message) {}))(t)
	must(t, b.Close())
	must(t, b.Close())
	must(t, sub.Unsubscribe())
	if b.Connected() {
		t.Error("still connected")
	}
	ctx := within(t)
	for name, call := range map[string]func() error{
		"publish":   func() error { return b.Publish("a", nil) },
		"subscribe": func() error { _, err := b.Subscribe("a", func(bus.Message) {}); return err },
		"request":   func() error { _, err := b.Request(ctx, "a", nil); return err },
		"flush":     func() error { return b.Flush(ctx) },
		"KV":        func() error { _, err := b.KV(ctx, "x", bus.KVOptions{}); return err },
		"get":       func() error { _, err := kv.Get(ctx, "k"); return err },
		"put":       func() error { _, err := kv.Put(ctx, "k", nil); return err },
		"keys":      func() error { _, err := kv.Keys(ctx); return err },
		"watch":     func() error { _, err := kv.Watch(ctx, func(bus.Entry) {}, nil); return err },
		"queue":     func() error { return q.Put(ctx, "i", nil) },
		"consume":   func() error { return q.Consume(ctx, func(bus.Item) {}) },
		"object":    func() error { _, err := o.Put(ctx, "k", bytesOf("x")); return err },
		"append":    func() error { return l.Append("a", nil) },
		"read":      func() error { return l.Read(ctx, "a", time.Time{}, true, func(bus.Record) error { return nil }) },
	} {
		if err := call(); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testCloseEnds(t *testing.T, s Server) {
	b, other := s.Connect(t), s.Connect(t)
	release, entered := make(chan struct{}), make(chan struct{})
	handled := false
	value(b.Subscribe("slow", func(bus.Message) {
		close(entered)
		<-release
		handled = true
	}))(t)
	must(t, other.Publish("slow", nil))
	<-entered
	q, l := openQueue(t, b, bus.QueueOptions{}), openLog(t, b, bus.LogOptions{})
	watched := collect[bus.Entry]()
	value(openKV(t, b).Watch(context.Background(), watched.add, nil))(t)
	results := make(chan error, 3)
	go func() { results <- q.Consume(context.Background(), func(bus.Item) {}) }()
	go func() {
		results <- l.Read(context.Background(), ">", time.Time{}, true, func(bus.Record) error { return nil })
	}()
	asked := subscribe(t, other, "ask")
	go func() {
		_, err := b.Request(context.Background(), "ask", nil)
		results <- err
	}()
	asked.wait(t, 1)
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	for range cap(results) {
		if err := <-results; !errors.Is(err, bus.ErrClosed) {
			t.Errorf("ended with %v", err)
		}
	}
	select {
	case err := <-closed:
		t.Errorf("closed while a handler ran: %v", err)
	default:
	}
	close(release)
	must(t, <-closed)
	if !handled {
		t.Error("Close did not wait for the handler")
	}
	value(openKV(t, other).Put(within(t), "k", nil))(t)
	if have := watched.all(); len(have) != 0 {
		t.Errorf("watched %v after Close", have)
	}
}

func testCloseOne(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	got := subscribe(t, b, "x")
	must(t, a.Close())
	must(t, b.Publish("x", nil))
	got.wait(t, 1)
	if !b.Connected() {
		t.Error("the other connection is lost")
	}
}

func testCloseSends(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	got := subscribe(t, b, "x")
	for range 1000 {
		must(t, a.Publish("x", make([]byte, 1000)))
	}
	must(t, a.Close())
	got.wait(t, 1000)
}

func testCloseInOutage(t *testing.T, s Server) {
	b := s.Connect(t)
	kv := openKV(t, b)
	value(kv.Watch(context.Background(), func(bus.Entry) {}, nil))(t)
	outage(t, s, b)
	failed := make(chan error, 1)
	go func() {
		_, err := kv.Put(context.Background(), "k", nil)
		failed <- err
	}()
	must(t, b.Close())
	if err := <-failed; !errors.Is(err, bus.ErrClosed) {
		t.Errorf("put: %v", err)
	}
	s.Start(t)
}
