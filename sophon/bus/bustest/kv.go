package bustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
)

func kvTests() []test {
	return []test{
		{"entries are what was put", testPutGet},
		{"keys and buckets have names that make sense", testKeys},
		{"entries are created once", testCreate},
		{"entries are updated by their revision", testUpdate},
		{"one of many updates wins", testConcurrentUpdates},
		{"entries are deleted", testDelete},
		{"values can be 8 MiB, and are refused beyond the limit", testLargeValues},
		{"entries expire", testTTL},
		{"a watch tells what is there, then what changes", testWatch},
		{"a watch misses nothing between what is there and what changes", testWatchFromTheMiddle},
		{"a watch ends with its context and when it is stopped", testWatchEnds},
	}
}

// openKV opens a bucket without expiry.
func openKV(t testing.TB, b bus.Bus) bus.KV {
	t.Helper()
	return value(b.KV(within(t), "state", bus.KVOptions{}))(t)
}

func testPutGet(t *testing.T, s Server) {
	a, b := openKV(t, s.Connect(t)), openKV(t, s.Connect(t))
	ctx := within(t)
	if _, err := a.Get(ctx, "k"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get what is not there: %v", err)
	}
	written := []byte("one")
	first := value(a.Put(ctx, "k", written))(t)
	copy(written, "xxx")
	have := value(b.Get(ctx, "k"))(t)
	if have.Key != "k" || string(have.Value) != "one" || have.Revision != first || have.Deleted || first == 0 {
		t.Errorf("got %+v, revision %d was put", have, first)
	}
	have.Value[0] = '!'
	other := value(a.Put(ctx, "other", nil))(t)
	second := value(b.Put(ctx, "k", []byte("two")))(t)
	if first >= other || other >= second {
		t.Errorf("revisions are %d, %d, %d", first, other, second)
	}
	if have := value(a.Get(ctx, "k"))(t); string(have.Value) != "two" || have.Revision != second {
		t.Errorf("got %+v", have)
	}
	if have := value(a.Get(ctx, "other"))(t); len(have.Value) != 0 {
		t.Errorf("got %+v", have)
	}
	apart := value(s.Connect(t).KV(ctx, "elsewhere", bus.KVOptions{}))(t)
	if _, err := apart.Get(ctx, "k"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get from another bucket: %v", err)
	}
}

func testKeys(t *testing.T, s Server) {
	b := s.Connect(t)
	kv := openKV(t, b)
	ctx := within(t)
	if keys := value(kv.Keys(ctx))(t); len(keys) != 0 {
		t.Errorf("keys of an empty bucket: %q", keys)
	}
	keys := []string{"b.c", "a", "fn/$LATEST", "=S", "=$E", "x-y_z", "0", "B"}
	for _, key := range keys {
		value(kv.Put(ctx, key, []byte(key)))(t)
	}
	slices.Sort(keys)
	if have := value(kv.Keys(ctx))(t); !slices.Equal(have, keys) {
		t.Errorf("keys are %q, want %q", have, keys)
	}
	for _, key := range keys {
		if have := value(kv.Get(ctx, key))(t); have.Key != key || string(have.Value) != key {
			t.Errorf("%q has %+v", key, have)
		}
	}
	for _, key := range []string{"", ".a", "a.", "a..b", "a b", "a*", ">", "ä", "a\n"} {
		_, getErr := kv.Get(ctx, key)
		_, putErr := kv.Put(ctx, key, nil)
		_, createErr := kv.Create(ctx, key, nil)
		if getErr == nil || putErr == nil || createErr == nil || kv.Delete(ctx, key) == nil || errors.Is(getErr, bus.ErrNotFound) {
			t.Errorf("key %q: get: %v, put: %v, create: %v", key, getErr, putErr, createErr)
		}
	}
	for _, name := range []string{"", "a.b", "a b", "*", "a/b", "$"} {
		_, kvErr := b.KV(ctx, name, bus.KVOptions{})
		_, queueErr := b.Queue(ctx, name, bus.QueueOptions{})
		_, objectsErr := b.Objects(ctx, name)
		_, logErr := b.Log(ctx, name, bus.LogOptions{})
		if kvErr == nil || queueErr == nil || objectsErr == nil || logErr == nil {
			t.Errorf("name %q: %v, %v, %v, %v", name, kvErr, queueErr, objectsErr, logErr)
		}
	}
}

func testCreate(t *testing.T, s Server) {
	kv := openKV(t, s.Connect(t))
	ctx := within(t)
	first := value(kv.Create(ctx, "k", []byte("1")))(t)
	if _, err := kv.Create(ctx, "k", []byte("2")); !errors.Is(err, bus.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if have := value(kv.Get(ctx, "k"))(t); string(have.Value) != "1" || have.Revision != first {
		t.Errorf("got %+v", have)
	}
	must(t, kv.Delete(ctx, "k"))
	if again := value(kv.Create(ctx, "k", []byte("3")))(t); again <= first {
		t.Errorf("revision %d after %d", again, first)
	}
}

func testUpdate(t *testing.T, s Server) {
	kv := openKV(t, s.Connect(t))
	ctx := within(t)
	for _, revision := range []uint64{0, 1, 99} {
		if _, err := kv.Update(ctx, "k", nil, revision); !errors.Is(err, bus.ErrExists) {
			t.Errorf("update revision %d of what is not there: %v", revision, err)
		}
	}
	first := value(kv.Put(ctx, "k", []byte("1")))(t)
	value(kv.Put(ctx, "another", nil))(t)
	second := value(kv.Update(ctx, "k", []byte("2"), first))(t)
	for _, revision := range []uint64{0, first, second + 1} {
		if _, err := kv.Update(ctx, "k", []byte("3"), revision); !errors.Is(err, bus.ErrExists) {
			t.Errorf("update revision %d instead of %d: %v", revision, second, err)
		}
	}
	if have := value(kv.Get(ctx, "k"))(t); string(have.Value) != "2" || have.Revision != second {
		t.Errorf("got %+v", have)
	}
	must(t, kv.Delete(ctx, "k"))
	if _, err := kv.Update(ctx, "k", []byte("3"), second); !errors.Is(err, bus.ErrExists) {
		t.Errorf("update what was deleted: %v", err)
	}
}

func testConcurrentUpdates(t *testing.T, s Server) {
	const workers, increments = 4, 15
	first := openKV(t, s.Connect(t))
	value(first.Put(within(t), "n", []byte("0")))(t)
	var lost atomic.Int64
	var wait sync.WaitGroup
	for range workers {
		kv := openKV(t, s.Connect(t))
		wait.Go(func() {
			for done := 0; done < increments; {
				e, err := kv.Get(within(t), "n")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(e.Value))
				_, err = kv.Update(within(t), "n", []byte(strconv.Itoa(n+1)), e.Revision)
				switch {
				case err == nil:
					done++
				case errors.Is(err, bus.ErrExists):
					lost.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if have := value(first.Get(within(t), "n"))(t); string(have.Value) != strconv.Itoa(workers*increments) {
		t.Errorf("counted to %s, and %d updates lost", have.Value, lost.Load())
	}
}

func testDelete(t *testing.T, s Server) {
	kv := openKV(t, s.Connect(t))
	ctx := within(t)
	must(t, kv.Delete(ctx, "never"))
	before := value(kv.Put(ctx, "k", []byte("1")))(t)
	must(t, kv.Delete(ctx, "k"))
	must(t, kv.Delete(ctx, "k"))
	if _, err := kv.Get(ctx, "k"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if keys := value(kv.Keys(ctx))(t); len(keys) != 0 {
		t.Errorf("keys: %q", keys)
	}
	if after := value(kv.Put(ctx, "k", []byte("2")))(t); after <= before {
		t.Errorf("revision %d after %d", after, before)
	}
	if have := value(kv.Get(ctx, "k"))(t); string(have.Value) != "2" {
		t.Errorf("got %+v", have)
	}
}

func testLargeValues(t *testing.T, s Server) {
	b := s.Connect(t)
	kv := openKV(t, b)
	large := bytes.Repeat([]byte{7}, 8<<20)
	value(kv.Put(within(t), "k", large))(t)
	if have := value(kv.Get(within(t), "k"))(t); !bytes.Equal(have.Value, large) {
		t.Errorf("got %d bytes", len(have.Value))
	}
	if _, err := kv.Put(within(t), "k", make([]byte, b.MaxMessageBytes()+1)); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("put: %v", err)
	}
}

func testTTL(t *testing.T, s Server) {
	const ttl = time.Second
	b := s.Connect(t)
	kv := value(b.KV(within(t), "leases", bus.KVOptions{TTL: ttl}))(t)
	watched := collect[bus.Entry]()
	value(kv.Watch(within(t), watched.add, nil))(t)
	forever := openKV(t, b)
	value(forever.Put(within(t), "stays", nil))(t)
	start := time.Now()
	first := value(kv.Create(within(t), "lease", []byte("1")))(t)
	value(kv.Put(within(t), "goes", []byte("x")))(t)
	if _, err := kv.Create(within(t), "lease", nil); !errors.Is(err, bus.ErrExists) {
		t.Errorf("create before it expires: %v", err)
	}
	// Writing starts the time anew.
	time.AfterFunc(ttl/2, func() {
		if _, err := kv.Update(context.Background(), "lease", []byte("2"), first); err != nil {
			t.Errorf("renew: %v", err)
		}
	})
	gone := func(key string) func() bool {
		return func() bool {
			_, err := kv.Get(within(t), key)
			return errors.Is(err, bus.ErrNotFound)
		}
	}
	eventually(t, "an entry expires", gone("goes"))
	if took := time.Since(start); took < ttl*9/10 {
		t.Errorf("the entry expired after %s", took)
	}
	eventually(t, "a renewed entry expires", gone("lease"))
	if took := time.Since(start); took < ttl*14/10 {
		t.Errorf("the renewed entry expired after %s", took)
	}
	if keys := value(kv.Keys(within(t)))(t); len(keys) != 0 {
		t.Errorf("keys: %q", keys)
	}
	again := value(kv.Create(within(t), "lease", []byte("3")))(t)
	if again <= first {
		t.Errorf("revision %d after %d", again, first)
	}
	value(forever.Get(within(t), "stays"))(t)
	var seen []string
	for _, e := range watched.wait(t, 6)[:6] {
		seen = append(seen, fmt.Sprintf("%s=%s %t", e.Key, e.Value, e.Deleted))
	}
	want := []string{"lease=1 false", "goes=x false", "lease=2 false", "goes= true", "lease= true", "lease=3 false"}
	if !slices.Equal(seen, want) {
		t.Errorf("the watch saw %q, want %q", seen, want)
	}
}

func testWatch(t *testing.T, s Server) {
	a, b := openKV(t, s.Connect(t)), openKV(t, s.Connect(t))
	ctx := within(t)
	value(a.Put(ctx, "a", []byte("old")))(t)
	value(a.Put(ctx, "gone", nil))(t)
	value(a.Put(ctx, "$b", []byte("1")))(t)
	value(a.Put(ctx, "a", []byte("new")))(t)
	must(t, a.Delete(ctx, "gone"))
	seen := collect[string]()
	record := func(e bus.Entry) { seen.add(fmt.Sprintf("%s=%s %t", e.Key, e.Value, e.Deleted)) }
	value(b.Watch(ctx, record, func() { seen.add("ready") }))(t)
	seen.wait(t, 3)
	last := value(a.Put(ctx, "c", []byte("2")))(t)
	must(t, a.Delete(ctx, "$b"))
	must(t, a.Delete(ctx, "never"))
	value(a.Update(ctx, "c", []byte("3"), last))(t)
	want := []string{"$b=1 false", "a=new false", "ready", "c=2 false", "$b= true", "c=3 false"}
	if have := seen.wait(t, len(want)); !slices.Equal(have, want) {
		t.Errorf("the watch saw %q, want %q", have, want)
	}
	empty := value(s.Connect(t).KV(ctx, "empty", bus.KVOptions{}))(t)
	ready := make(chan struct{})
	value(empty.Watch(ctx, func(e bus.Entry) { t.Errorf("saw %+v", e) }, func() { close(ready) }))(t)
	select {
	case <-ready:
	case <-ctx.Done():
		t.Fatal("the watch of an empty bucket does not get ready")
	}
}

func testWatchFromTheMiddle(t *testing.T, s Server) {
	const keys, rounds = 10, 30
	writer, reader := openKV(t, s.Connect(t)), openKV(t, s.Connect(t))
	halfway, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for round := range rounds {
			if round == rounds/2 {
				close(halfway)
			}
			for key := range keys {
				if _, err := writer.Put(within(t), strconv.Itoa(key), []byte(strconv.Itoa(round))); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	<-halfway
	seen := collect[bus.Entry]()
	value(reader.Watch(within(t), seen.add, nil))(t)
	<-done
	newest := func() (map[string]string, uint64) {
		values, last := map[string]string{}, uint64(0)
		for _, e := range seen.all() {
			if e.Revision <= last {
				t.Fatalf("revision %d after %d", e.Revision, last)
			}
			last = e.Revision
			values[e.Key] = string(e.Value)
		}
		return values, last
	}
	eventually(t, "the watch catches up", func() bool {
		_, last := newest()
		return last == keys*rounds
	})
	values, _ := newest()
	for key := range keys {
		if have := values[strconv.Itoa(key)]; have != strconv.Itoa(rounds-1) {
			t.Errorf("key %d is last seen as %q", key, have)
		}
	}
}

func testWatchEnds(t *testing.T, s Server) {
	kv := openKV(t, s.Connect(t))
	witness, stopped, cancelled := collect[bus.Entry](), collect[bus.Entry](), collect[bus.Entry]()
	value(kv.Watch(within(t), witness.add, nil))(t)
	stop := value(kv.Watch(within(t), stopped.add, nil))(t)
	ctx, cancel := context.WithCancel(context.Background())
	value(kv.Watch(ctx, cancelled.add, nil))(t)
	value(kv.Put(within(t), "1", nil))(t)
	witness.wait(t, 1)
	stopped.wait(t, 1)
	cancelled.wait(t, 1)
	stop()
	stop()
	cancel()
	value(kv.Put(within(t), "2", nil))(t)
	witness.wait(t, 2)
	if len(stopped.all()) != 1 || len(cancelled.all()) != 1 {
		t.Errorf("saw more: %v, %v", stopped.all(), cancelled.all())
	}
	if _, err := kv.Watch(ctx, func(bus.Entry) {}, nil); err == nil {
		t.Error("watched with a context that had ended")
	}
}
