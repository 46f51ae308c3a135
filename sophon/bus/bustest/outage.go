package bustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

func outageTests() []test {
	return []test{
		{"is seen, and its end is told", testOutageSeen},
		{"loses messages, and no subscription", testOutageMessages},
		{"ends requests under way", testOutageRequest},
		{"leaves what is stored, and who watches and consumes", testOutageState},
		{"delays what is to be stored", testOutageDelays},
	}
}

// outage stops the server and waits until the connections know.
func outage(t testing.TB, s Server, conns ...bus.Bus) {
	t.Helper()
	s.Stop(t)
	for _, b := range conns {
		eventually(t, "the outage is seen", func() bool { return !b.Connected() })
	}
}

// recovery starts the server and waits until the connections are back.
func recovery(t testing.TB, s Server, conns ...bus.Bus) {
	t.Helper()
	s.Start(t)
	for _, b := range conns {
		eventually(t, "the recovery is seen", b.Connected)
		must(t, b.Flush(within(t)))
	}
}

func testOutageSeen(t *testing.T, s Server) {
	b := s.Connect(t)
	events := collect[string]()
	b.OnReconnect(func() { events.add("first") })
	b.OnReconnect(func() { events.add("second") })
	if !b.Connected() {
		t.Error("not connected at the start")
	}
	want := []string{}
	for range 2 {
		outage(t, s, b)
		if have := events.all(); len(have) != len(want) {
			t.Errorf("told of a reconnection in the outage: %q", have)
		}
		recovery(t, s, b)
		want = append(want, "first", "second")
		if have := events.wait(t, len(want)); !slices.Equal(have, want) {
			t.Errorf("told %q, want %q", have, want)
		}
	}
}

func testOutageMessages(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	got := subscribe(t, a, "m")
	value(a.Subscribe("ask", func(m bus.Message) { _ = a.Publish(m.Reply, m.Data) }))(t)
	l := openLog(t, b, bus.LogOptions{})
	must(t, b.Publish("m", []byte("before")))
	got.wait(t, 1)
	outage(t, s, a, b)
	eventually(t, "publishing fails", func() bool {
		return errors.Is(b.Publish("m", []byte("lost")), bus.ErrDisconnected)
	})
	if _, err := b.Request(within(t), "ask", nil); !errors.Is(err, bus.ErrDisconnected) {
		t.Errorf("request: %v", err)
	}
	if err := l.Append("a", nil); !errors.Is(err, bus.ErrDisconnected) {
		t.Errorf("append: %v", err)
	}
	added := subscribe(t, a, "added")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := b.Flush(ctx); !errors.Is(err, bus.ErrDisconnected) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	recovery(t, s, a, b)
	must(t, b.Publish("m", []byte("after")))
	must(t, b.Publish("added", []byte("after")))
	if have := texts(got.wait(t, 2)); !slices.Equal(have, []string{"before", "after"}) {
		t.Errorf("got %q", have)
	}
	added.wait(t, 1)
	if have := value(b.Request(within(t), "ask", []byte("x")))(t); string(have) != "x" {
		t.Errorf("answer %q", have)
	}
}

func testOutageRequest(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	asked := subscribe(t, a, "ask")
	failed := make(chan error, 1)
	go func() {
		_, err := b.Request(within(t), "ask", nil)
		failed <- err
	}()
	asked.wait(t, 1)
	outage(t, s, a, b)
	defer recovery(t, s, a, b)
	if err := <-failed; !errors.Is(err, bus.ErrDisconnected) {
		t.Errorf("request: %v", err)
	}
}

func testOutageState(t *testing.T, s Server) {
	a, b := s.Connect(t), s.Connect(t)
	kv, q, l := openKV(t, a), openQueue(t, a, bus.QueueOptions{}), openLog(t, a, bus.LogOptions{})
	o := openObjects(t, a)
	first := value(kv.Put(within(t), "k", []byte("1")))(t)
	value(kv.Put(within(t), "gone", nil))(t)
	value(o.Put(within(t), "o", bytesOf("object")))(t)
	appendAll(t, l, "a", "1")
	seen := collect[string]()
	value(openKV(t, b).Watch(within(t), func(e bus.Entry) {
		seen.add(fmt.Sprintf("%s=%s %t", e.Key, e.Value, e.Deleted))
	}, func() { seen.add("ready") }))(t)
	items, _ := consume(t, openQueue(t, b, bus.QueueOptions{}))
	read, stop := followLog(t, openLog(t, b, bus.LogOptions{}), ">")
	put(t, q, "before")
	item := items.wait(t, 1)[0]
	seen.wait(t, 3)
	read.wait(t, 1)

	outage(t, s, a, b)
	recovery(t, s, a, b)
	recovered := time.Now()

	if have := value(kv.Get(within(t), "k"))(t); string(have.Value) != "1" || have.Revision != first {
		t.Errorf("got %+v", have)
	}
	must(t, item.Done(within(t)))
	wantLen(t, q, 0)
	put(t, q, "before", "after")
	second := value(kv.Update(within(t), "k", []byte("2"), first))(t)
	must(t, kv.Delete(within(t), "gone"))
	value(kv.Update(within(t), "k", []byte("3"), second))(t)
	appendAll(t, l, "a", "2")
	if have, err := get(t, o, "o"); err != nil || string(have) != "object" {
		t.Errorf("got object %q, %v", have, err)
	}
	if have := names(items.wait(t, 2)); !slices.Equal(have, []string{"before#1", "after#1"}) {
		t.Errorf("consumed %q", have)
	}
	want := []string{"k=1 false", "gone= false", "ready", "k=2 false", "gone= true", "k=3 false"}
	eventually(t, "the watch goes on", func() bool { return slices.Contains(seen.all(), "k=3 false") })
	// Of several changes to a key in an outage, the last one counts.
	have := slices.DeleteFunc(seen.all(), func(s string) bool { return s == "k=2 false" })
	want = slices.DeleteFunc(want, func(s string) bool { return s == "k=2 false" })
	if !slices.Equal(have, want) {
		t.Errorf("the watch saw %q, want %q", have, want)
	}
	if have := read.wait(t, 2); !slices.Equal(have, []string{"a=1", "a=2"}) {
		t.Errorf("read %q", have)
	}
	must(t, stop())
	if took := time.Since(recovered); took > 5*time.Second {
		t.Errorf("it took %s until all went on", took)
	}
}

func testOutageDelays(t *testing.T, s Server) {
	a := s.Connect(t)
	kv, q := openKV(t, a), openQueue(t, a, bus.QueueOptions{})
	outage(t, s, a)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := kv.Put(ctx, "k", nil); !errors.Is(err, bus.ErrDisconnected) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v", err)
	}
	done := make(chan error, 2)
	go func() {
		_, err := kv.Put(context.Background(), "k", []byte("late"))
		done <- err
	}()
	go func() { done <- q.Put(context.Background(), "i", []byte("late")) }()
	recovery(t, s, a)
	must(t, <-done)
	must(t, <-done)
	if have := value(kv.Get(within(t), "k"))(t); string(have.Value) != "late" {
		t.Errorf("got %+v", have)
	}
	wantLen(t, q, 1)
}
