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

func queueTests() []test {
	return []test{
		{"items are delivered in order until they are done", testQueueDone},
		{"items wait for a consumer", testQueueWaits},
		{"items are shared by all consumers, each going to one", testQueueShared},
		{"items that nobody answers are delivered again after AckWait", testQueueRedelivery},
		{"items that were put back are delivered again after the delay", testQueueAgain},
		{"items being worked on are not delivered again", testQueueWorking},
		{"no more than MaxPending items are unanswered", testQueueMaxPending},
		{"a second item of an id is dropped, also when the first is done", testQueueDedupe},
		{"ids are forgotten after the window", testQueueDedupeWindow},
		{"items survive the consumer that got them", testQueueConsumerDeath},
		{"items that a consumer did not take go to the next at once", testQueueHandover},
		{"items can be 8 MiB, and are refused beyond the limit", testQueueLarge},
		{"Consume returns when its context ends", testConsumeEnds},
	}
}

func openQueue(t testing.TB, b bus.Bus, opts bus.QueueOptions) bus.Queue {
	t.Helper()
	return value(b.Queue(within(t), "work", opts))(t)
}

func put(t testing.TB, q bus.Queue, items ...string) {
	t.Helper()
	for _, item := range items {
		must(t, q.Put(within(t), item, []byte(item)))
	}
}

// consume collects the items of a queue until stop is called, which waits for
// Consume to return, or the test ends.
func consume(t testing.TB, q bus.Queue) (got *collected[bus.Item], stop func()) {
	t.Helper()
	got = collect[bus.Item]()
	return got, consumeWith(t, q, got.add)
}

func consumeWith(t testing.TB, q bus.Queue, handle func(bus.Item)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := q.Consume(ctx, handle); err != nil && !errors.Is(err, bus.ErrClosed) {
			t.Errorf("consume: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func names(items []bus.Item) []string {
	var out []string
	for _, item := range items {
		out = append(out, fmt.Sprintf("%s#%d", item.Data, item.Deliveries))
	}
	return out
}

func wantLen(t testing.TB, q bus.Queue, want int) {
	t.Helper()
	if have := value(q.Len(within(t)))(t); have != want {
		t.Errorf("the queue has %d items, want %d", have, want)
	}
}

func testQueueDone(t *testing.T, s Server) {
	a, b := openQueue(t, s.Connect(t), bus.QueueOptions{}), openQueue(t, s.Connect(t), bus.QueueOptions{})
	got, _ := consume(t, b)
	buffer := []byte("a")
	must(t, a.Put(within(t), "", buffer))
	buffer[0] = '!'
	put(t, a, "b", "c")
	must(t, a.Put(within(t), "", []byte("a"))) // without an id nothing is a duplicate
	items := got.wait(t, 4)
	if have := names(items); !slices.Equal(have, []string{"a#1", "b#1", "c#1", "a#1"}) {
		t.Errorf("got %q", have)
	}
	for i, item := range items {
		wantLen(t, a, len(items)-i)
		must(t, item.Done(within(t)))
	}
	wantLen(t, a, 0)
	must(t, items[0].Done(within(t)))
}

func testQueueWaits(t *testing.T, s Server) {
	b := s.Connect(t)
	q := openQueue(t, b, bus.QueueOptions{})
	put(t, q, "early")
	must(t, b.Close())
	q = openQueue(t, s.Connect(t), bus.QueueOptions{})
	wantLen(t, q, 1)
	got, _ := consume(t, q)
	must(t, got.wait(t, 1)[0].Done(within(t)))
	wantLen(t, q, 0)
}

func testQueueShared(t *testing.T, s Server) {
	const items = 300
	opts := bus.QueueOptions{MaxPending: 20}
	got := collect[string]()
	byConsumer := make([]int, 3)
	var mu sync.Mutex
	var answers sync.WaitGroup
	ctx := within(t)
	for i := range byConsumer {
		consumeWith(t, openQueue(t, s.Connect(t), opts), func(item bus.Item) {
			mu.Lock()
			byConsumer[i]++
			mu.Unlock()
			answers.Go(func() {
				if err := item.Done(ctx); err != nil {
					t.Error(err)
				}
			})
			got.add(string(item.Data))
		})
	}
	q := openQueue(t, s.Connect(t), opts)
	want := make([]string, items)
	var wait sync.WaitGroup
	for i := range want {
		want[i] = strconv.Itoa(i)
		if i%10 == 9 {
			wait.Go(func() { put(t, q, want[i-9:i+1]...) })
		}
	}
	wait.Wait()
	have := got.wait(t, items)
	answers.Wait()
	wantLen(t, q, 0)
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("got %d items, each of %d put ones once is expected", len(have), items)
	}
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(byConsumer, 0) {
		t.Errorf("one of the consumers got nothing: %v", byConsumer)
	}
}

func testQueueRedelivery(t *testing.T, s Server) {
	const ackWait = 300 * time.Millisecond
	q := openQueue(t, s.Connect(t), bus.QueueOptions{AckWait: ackWait})
	got, _ := consume(t, q)
	start := time.Now()
	put(t, q, "x")
	items := got.wait(t, 2)
	if took := time.Since(start); took < ackWait*9/10 {
		t.Errorf("delivered again after %s", took)
	}
	if have := names(items[:2]); !slices.Equal(have, []string{"x#1", "x#2"}) {
		t.Errorf("got %q", have)
	}
	must(t, items[0].Done(within(t))) // whoever does it, it is done
	wantLen(t, q, 0)
}

func testQueueAgain(t *testing.T, s Server) {
	const delay = 200 * time.Millisecond
	q := openQueue(t, s.Connect(t), bus.QueueOptions{})
	got, _ := consume(t, q)
	put(t, q, "x")
	start := time.Now()
	must(t, got.wait(t, 1)[0].Again(delay))
	second := got.wait(t, 2)[1]
	if took := time.Since(start); took < delay*9/10 {
		t.Errorf("delivered again after %s", took)
	}
	must(t, second.Again(0))
	third := got.wait(t, 3)[2]
	if second.Deliveries != 2 || third.Deliveries != 3 {
		t.Errorf("got %q", names(got.all()))
	}
	wantLen(t, q, 1)
	must(t, third.Done(within(t)))
	wantLen(t, q, 0)
}

func testQueueWorking(t *testing.T, s Server) {
	const ackWait = 400 * time.Millisecond
	q := openQueue(t, s.Connect(t), bus.QueueOptions{AckWait: ackWait})
	got, _ := consume(t, q)
	put(t, q, "x")
	item := got.wait(t, 1)[0]
	tick := time.NewTicker(ackWait / 8)
	defer tick.Stop()
	for start := time.Now(); time.Since(start) < 2*ackWait; <-tick.C {
		must(t, item.Working())
	}
	if have := got.all(); len(have) != 1 {
		t.Errorf("got %q", names(have))
	}
	must(t, item.Done(within(t)))
	wantLen(t, q, 0)
}

func testQueueMaxPending(t *testing.T, s Server) {
	const limit = 3
	opts := bus.QueueOptions{MaxPending: limit}
	q := openQueue(t, s.Connect(t), opts)
	put(t, q, "0", "1", "2", "3", "4", "5", "6", "7")
	got := collect[bus.Item]()
	consumeWith(t, q, got.add)
	consumeWith(t, openQueue(t, s.Connect(t), opts), got.add)
	for done := range 8 {
		items := got.wait(t, min(done+limit, 8))
		if len(items) > done+limit {
			t.Fatalf("%d items are delivered, and %d are done", len(items), done)
		}
		must(t, items[done].Done(within(t)))
	}
	wantLen(t, q, 0)
}

func testQueueDedupe(t *testing.T, s Server) {
	a, b := openQueue(t, s.Connect(t), bus.QueueOptions{}), openQueue(t, s.Connect(t), bus.QueueOptions{})
	got, _ := consume(t, a)
	put(t, a, "x")
	put(t, b, "x")
	wantLen(t, a, 1)
	must(t, got.wait(t, 1)[0].Done(within(t)))
	put(t, b, "x", "y")
	if have := names(got.wait(t, 2)); !slices.Equal(have, []string{"x#1", "y#1"}) {
		t.Errorf("got %q", have)
	}
	wantLen(t, a, 1)
}

func testQueueDedupeWindow(t *testing.T, s Server) {
	q := openQueue(t, s.Connect(t), bus.QueueOptions{DedupeWindow: 200 * time.Millisecond})
	eventually(t, "an id is forgotten", func() bool {
		put(t, q, "x")
		return value(q.Len(within(t)))(t) > 1
	})
}

func testQueueConsumerDeath(t *testing.T, s Server) {
	opts := bus.QueueOptions{AckWait: 300 * time.Millisecond}
	dies := s.Connect(t)
	first, _ := consume(t, openQueue(t, dies, opts))
	q := openQueue(t, s.Connect(t), opts)
	put(t, q, "a", "b", "c")
	must(t, first.wait(t, 3)[1].Done(within(t)))
	must(t, dies.Close())
	second, _ := consume(t, q)
	have := names(second.wait(t, 2)[:2])
	slices.Sort(have)
	if !slices.Equal(have, []string{"a#2", "c#2"}) {
		t.Errorf("got %q", have)
	}
	for _, item := range second.all() {
		must(t, item.Done(within(t)))
	}
	wantLen(t, q, 0)
}

func testQueueHandover(t *testing.T, s Server) {
	opts := bus.QueueOptions{AckWait: time.Hour}
	q := openQueue(t, s.Connect(t), opts)
	put(t, q, "0", "1", "2", "3", "4", "5", "6", "7")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var taken []bus.Item
	must(t, q.Consume(ctx, func(item bus.Item) {
		taken = append(taken, item)
		cancel()
	}))
	if len(taken) != 1 {
		t.Fatalf("took %q after the context ended", names(taken))
	}
	rest, _ := consume(t, openQueue(t, s.Connect(t), opts))
	for i, item := range rest.wait(t, 7) {
		if string(item.Data) == string(taken[0].Data) {
			t.Errorf("item %d is the one that was taken: %q", i, names(rest.all()))
		}
	}
}

func testQueueLarge(t *testing.T, s Server) {
	b := s.Connect(t)
	q := openQueue(t, b, bus.QueueOptions{})
	large := bytes.Repeat([]byte{9}, 8<<20)
	must(t, q.Put(within(t), "large", large))
	got, _ := consume(t, q)
	if have := got.wait(t, 1)[0]; !bytes.Equal(have.Data, large) {
		t.Errorf("got %d bytes", len(have.Data))
	}
	if err := q.Put(within(t), "too large", make([]byte, b.MaxMessageBytes()+1)); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("put: %v", err)
	}
}

func testConsumeEnds(t *testing.T, s Server) {
	q := openQueue(t, s.Connect(t), bus.QueueOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	got := collect[bus.Item]()
	go func() { result <- q.Consume(ctx, got.add) }()
	put(t, q, "x")
	item := got.wait(t, 1)[0]
	cancel()
	if err := <-result; err != nil {
		t.Errorf("consume: %v", err)
	}
	must(t, item.Done(within(t))) // what was delivered can still be answered
	wantLen(t, q, 0)
	if err := q.Consume(ctx, got.add); err != nil {
		t.Errorf("consume with a context that has ended: %v", err)
	}
}
