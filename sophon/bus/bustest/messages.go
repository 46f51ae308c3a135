package bustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

func messageTests() []test {
	return []test{
		{"reach all who subscribe, on any connection", testFanOut},
		{"of one sender arrive in order", testOrder},
		{"go where the wildcards say", testWildcards},
		{"have subjects that make sense", testBadSubjects},
		{"belong to the handler and stay the sender's", testDataOwnership},
		{"are handled one at a time", testOneAtATime},
		{"do not wait for a handler", testSlowHandler},
		{"stop after Unsubscribe", testUnsubscribe},
		{"can be 8 MiB, and are refused beyond the limit", testLargeMessages},
		{"are answered", testRequest},
		{"are requests without an answer for as long as the context says", testRequestTimeout},
		{"are refused as requests that nobody would answer", testNoResponder},
		{"can be answered from a handler's own requests", testNestedRequests},
		{"arrive in inboxes of one's own", testInbox},
		{"have arrived after Flush", testFlush},
		{"can be sent and subscribed to concurrently", testConcurrentUse},
		{"are not needed for buckets, queues and logs to be opened by many at once", testConcurrentOpening},
	}
}

func testFanOut(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	got := []*collected[bus.Message]{subscribe(t, a, "run.x"), subscribe(t, b, "run.x"), subscribe(t, b, "run.x")}
	other := subscribe(t, b, "run.y")
	must(t, a.Publish("run.x", []byte("hello")))
	must(t, a.Publish("run.y", []byte("end")))
	for i, c := range got {
		m := c.wait(t, 1)[0]
		if m.Subject != "run.x" || m.Reply != "" || string(m.Data) != "hello" {
			t.Errorf("subscription %d got %+v", i, m)
		}
	}
	if have := texts(other.wait(t, 1)); !slices.Equal(have, []string{"end"}) {
		t.Errorf("the other subject got %q", have)
	}
}

func testOrder(t *testing.T, s Server) {
	const senders, messages = 3, 3000
	got := subscribe(t, s.Connect(t), "order.>")
	var wait sync.WaitGroup
	for i := range senders {
		b := s.Connect(t)
		wait.Go(func() {
			for n := range messages {
				if err := b.Publish(fmt.Sprintf("order.%d.%d", i, n%7), []byte(strconv.Itoa(n))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	next := map[byte]int{}
	for _, m := range got.wait(t, senders*messages) {
		sender := m.Subject[len("order.")]
		if want := strconv.Itoa(next[sender]); string(m.Data) != want {
			t.Fatalf("sender %c: got message %s instead of %s", sender, m.Data, want)
		}
		next[sender]++
	}
}

func testWildcards(t *testing.T, s Server) {
	b := s.Connect(t)
	subjects := []string{"a", "a.b", "a.c", "a.b.c", "a.b.c.d", "b.b.c", "x.invoker-1_A"}
	want := map[string][]string{
		"a":     {"a"},
		"*":     {"a"},
		"a.*":   {"a.b", "a.c"},
		"*.b":   {"a.b"},
		"a.>":   {"a.b", "a.c", "a.b.c", "a.b.c.d"},
		"a.*.c": {"a.b.c"},
		"*.b.>": {"a.b.c", "a.b.c.d", "b.b.c"},
		"x.*":   {"x.invoker-1_A"},
		">":     subjects,
		"a.b.*": {"a.b.c"},
		"none":  nil,
	}
	got := map[string]*collected[bus.Message]{}
	for pattern := range want {
		got[pattern] = collect[bus.Message]()
		value(b.Subscribe(pattern, func(m bus.Message) {
			if m.Subject[0] != '_' { // an inbox
				got[pattern].add(m)
			}
		}))(t)
	}
	for _, subject := range subjects {
		must(t, b.Publish(subject, []byte(subject)))
	}
	for pattern, subjects := range want {
		if have := texts(got[pattern].wait(t, len(subjects))); !slices.Equal(have, subjects) {
			t.Errorf("%q got %q, want %q", pattern, have, subjects)
		}
	}
}

func testBadSubjects(t *testing.T, s Server) {
	b := s.Connect(t)
	for _, subject := range []string{"", ".", "a.", ".a", "a..b", "a b", "a\r\nb", "a.\x00", "a.*", "a.>", "*"} {
		if err := b.Publish(subject, nil); err == nil {
			t.Errorf("published on %q", subject)
		}
		if _, err := b.Request(within(t), subject, nil); err == nil || errors.Is(err, bus.ErrNoResponder) {
			t.Errorf("request on %q: %v", subject, err)
		}
	}
	for _, subject := range []string{"", "a.", ".a", "a..b", "a b", "a\tb", ">.a", "a.>.b"} {
		if _, err := b.Subscribe(subject, func(bus.Message) {}); err == nil {
			t.Errorf("subscribed to %q", subject)
		}
	}
}

func testDataOwnership(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	overwrite := func(c *collected[bus.Message]) func(bus.Message) {
		return func(m bus.Message) {
			kept := m
			kept.Data = bytes.Clone(m.Data)
			for i := range m.Data {
				m.Data[i] = '!'
			}
			c.add(kept)
		}
	}
	first, second := collect[bus.Message](), collect[bus.Message]()
	value(a.Subscribe("own", overwrite(first)))(t)
	value(b.Subscribe("own", overwrite(second)))(t)
	buffer := []byte("one")
	must(t, a.Publish("own", buffer))
	copy(buffer, "two")
	must(t, a.Publish("own", buffer))
	for _, c := range []*collected[bus.Message]{first, second} {
		if have := texts(c.wait(t, 2)); !slices.Equal(have, []string{"one", "two"}) {
			t.Errorf("got %q", have)
		}
	}
	if string(buffer) != "two" {
		t.Errorf("the sender's buffer is now %q", buffer)
	}
}

func testOneAtATime(t *testing.T, s Server) {
	b := s.Connect(t)
	var running sync.Mutex
	got := collect[bool]()
	value(b.Subscribe("one.*", func(bus.Message) {
		free := running.TryLock()
		got.add(free)
		if free {
			running.Unlock()
		}
	}))(t)
	for i := range 500 {
		must(t, b.Publish("one."+strconv.Itoa(i), nil))
	}
	if slices.Contains(got.wait(t, 500), false) {
		t.Error("two calls at a time")
	}
}

func testSlowHandler(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	release := make(chan struct{})
	slow := collect[bus.Message]()
	value(a.Subscribe("busy", func(m bus.Message) {
		<-release
		slow.add(m)
	}))(t)
	quick := subscribe(t, a, "busy")
	for range 20_000 {
		must(t, b.Publish("busy", []byte("x")))
	}
	quick.wait(t, 20_000)
	close(release)
	slow.wait(t, 20_000)
}

func testUnsubscribe(t *testing.T, s Server) {
	b := s.Connect(t)
	got := collect[bus.Message]()
	sub := value(b.Subscribe("u", got.add))(t)
	rest := subscribe(t, b, "u")
	must(t, b.Publish("u", []byte("1")))
	got.wait(t, 1)
	must(t, sub.Unsubscribe())
	must(t, sub.Unsubscribe())
	must(t, b.Publish("u", []byte("2")))
	rest.wait(t, 2)
	must(t, b.Flush(within(t)))
	if have := got.all(); len(have) != 1 {
		t.Errorf("got %q", texts(have))
	}
}

func testLargeMessages(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	if n := a.MaxMessageBytes(); n < 8<<20 {
		t.Fatalf("messages of at most %d bytes", n)
	}
	got := subscribe(t, a, "large")
	value(a.Subscribe("echo", func(m bus.Message) { _ = a.Publish(m.Reply, m.Data) }))(t)
	large := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16)
	must(t, b.Publish("large", large))
	must(t, b.Publish("large", nil))
	if have := got.wait(t, 2); !bytes.Equal(have[0].Data, large) || len(have[1].Data) != 0 {
		t.Errorf("got %d and %d bytes", len(have[0].Data), len(have[1].Data))
	}
	if have := value(b.Request(within(t), "echo", large))(t); !bytes.Equal(have, large) {
		t.Errorf("the answer has %d bytes", len(have))
	}
	beyond := make([]byte, b.MaxMessageBytes()+1)
	if err := b.Publish("large", beyond); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("publish: %v", err)
	}
	if _, err := b.Request(within(t), "echo", beyond); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("request: %v", err)
	}
	must(t, b.Publish("large", beyond[:len(beyond)-1]))
	got.wait(t, 3)
}

func testRequest(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	value(a.Subscribe("double.*", func(m bus.Message) {
		for range 2 { // only one answer counts
			if err := a.Publish(m.Reply, slices.Concat(m.Data, m.Data)); err != nil {
				t.Error(err)
			}
		}
	}))(t)
	var wait sync.WaitGroup
	for i := range 50 {
		wait.Go(func() {
			want := strconv.Itoa(i)
			have, err := b.Request(within(t), "double."+want, []byte(want))
			if err != nil || string(have) != want+want {
				t.Errorf("request %d: %q, %v", i, have, err)
			}
		})
	}
	wait.Wait()
}

func testRequestTimeout(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	asked := subscribe(t, a, "silence")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.Request(ctx, "silence", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	// An answer that comes too late goes nowhere.
	must(t, a.Publish(asked.wait(t, 1)[0].Reply, nil))
	ctx, cancel = context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := b.Request(ctx, "silence", nil)
		failed <- err
	}()
	asked.wait(t, 2)
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancelling: %v", err)
	}
}

func testNoResponder(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	if _, err := b.Request(within(t), "nobody", nil); !errors.Is(err, bus.ErrNoResponder) {
		t.Errorf("never anybody: %v", err)
	}
	sub := value(a.Subscribe("nobody", func(m bus.Message) { _ = a.Publish(m.Reply, nil) }))(t)
	value(b.Request(within(t), "nobody", nil))(t)
	must(t, sub.Unsubscribe())
	must(t, a.Flush(within(t)))
	if _, err := b.Request(within(t), "nobody", nil); !errors.Is(err, bus.ErrNoResponder) {
		t.Errorf("nobody any more: %v", err)
	}
}

func testNestedRequests(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	value(b.Subscribe("inner", func(m bus.Message) { _ = b.Publish(m.Reply, append(m.Data, " inner"...)) }))(t)
	value(a.Subscribe("outer", func(m bus.Message) {
		inner, err := a.Request(within(t), "inner", m.Data)
		if err != nil {
			t.Error(err)
		}
		_ = a.Publish(m.Reply, append(inner, " outer"...))
	}))(t)
	if have := value(b.Request(within(t), "outer", []byte("call")))(t); string(have) != "call inner outer" {
		t.Errorf("got %q", have)
	}
}

func testInbox(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	seen := map[string]bool{}
	for range 100 {
		for _, inbox := range []string{a.NewInbox(), b.NewInbox()} {
			if seen[inbox] {
				t.Fatalf("inbox %s twice", inbox)
			}
			seen[inbox] = true
		}
	}
	inbox := a.NewInbox()
	got := subscribe(t, a, inbox)
	must(t, b.Publish(inbox, []byte("1")))
	must(t, b.Publish(inbox, []byte("2")))
	if have := texts(got.wait(t, 2)); !slices.Equal(have, []string{"1", "2"}) {
		t.Errorf("got %q", have)
	}
}

func testFlush(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	got := subscribe(t, a, "f")
	must(t, b.Publish("f", nil))
	must(t, b.Flush(within(t)))
	must(t, b.Flush(context.Background()))
	got.wait(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("flush with a context that has ended: %v", err)
	}
}

func testConcurrentUse(t *testing.T, s Server) {
	b := s.Connect(t)
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			for n := range 20 {
				subject := fmt.Sprintf("c.%d.%d", i, n)
				got := collect[bus.Message]()
				sub, err := b.Subscribe(subject, got.add)
				if err != nil {
					t.Error(err)
					return
				}
				if err := b.Publish(subject, nil); err != nil {
					t.Error(err)
				}
				eventually(t, "message on "+subject, func() bool { return len(got.all()) == 1 })
				if err := sub.Unsubscribe(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
}

func testConcurrentOpening(t *testing.T, s Server) {
	var wait sync.WaitGroup
	for range 6 {
		b := s.Connect(t)
		wait.Go(func() {
			_, kvErr := b.KV(within(t), "x", bus.KVOptions{TTL: time.Minute})
			_, queueErr := b.Queue(within(t), "x", bus.QueueOptions{})
			_, objectsErr := b.Objects(within(t), "x")
			_, logErr := b.Log(within(t), "x", bus.LogOptions{MaxAge: time.Hour})
			if err := errors.Join(kvErr, queueErr, objectsErr, logErr); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}
