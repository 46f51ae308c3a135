package bustest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/volley-run/volley/sophon/bus"
)

func objectTests() []test {
	return []test{
		{"are what was put", testObjects},
		{"are larger than a message", testLargeObject},
		{"are not there unless they are whole", testFailedPut},
		{"are replaced as a whole", testReplacedObject},
		{"are the last that was put, by whomever", testConcurrentPuts},
		{"can be left half read", testHalfRead},
	}
}

func openObjects(t testing.TB, b bus.Bus) bus.Objects {
	t.Helper()
	return value(b.Objects(within(t), "code"))(t)
}

// get reads a whole object.
func get(t testing.TB, o bus.Objects, key string) ([]byte, error) {
	t.Helper()
	r := value(o.Get(within(t), key))(t)
	data, err := io.ReadAll(r)
	must(t, r.Close())
	return data, err
}

func testObjects(t *testing.T, s Server) {
	a, b := openObjects(t, s.Connect(t)), openObjects(t, s.Connect(t))
	ctx := within(t)
	if _, err := a.Get(ctx, "none"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get what is not there: %v", err)
	}
	must(t, a.Delete(ctx, "none"))
	if keys := value(a.Keys(ctx))(t); len(keys) != 0 {
		t.Errorf("keys of an empty bucket: %q", keys)
	}
	for key, want := range map[string]string{"b/$LATEST ä": "one", "a": "", "z.zip": "zip"} {
		n := value(a.Put(ctx, key, iotest.OneByteReader(bytes.NewBufferString(want))))(t)
		if have, err := get(t, b, key); err != nil || string(have) != want || n != int64(len(want)) {
			t.Errorf("%s: got %q and %v, of %d bytes", key, have, err, n)
		}
	}
	if keys := value(b.Keys(ctx))(t); !slices.Equal(keys, []string{"a", "b/$LATEST ä", "z.zip"}) {
		t.Errorf("keys: %q", keys)
	}
	must(t, b.Delete(ctx, "a"))
	must(t, b.Delete(ctx, "a"))
	if _, err := a.Get(ctx, "a"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get what was deleted: %v", err)
	}
	if keys := value(a.Keys(ctx))(t); !slices.Equal(keys, []string{"b/$LATEST ä", "z.zip"}) {
		t.Errorf("keys: %q", keys)
	}
	value(a.Put(ctx, "a", bytes.NewBufferString("again")))(t)
	if have, err := get(t, b, "a"); err != nil || string(have) != "again" {
		t.Errorf("got %q, %v", have, err)
	}
	if _, err := a.Put(ctx, "", bytes.NewBufferString("x")); err == nil {
		t.Error("put an object without a key")
	}
}

func testLargeObject(t *testing.T, s Server) {
	a, b := openObjects(t, s.Connect(t)), openObjects(t, s.Connect(t))
	large := make([]byte, 40<<20+12345)
	for i := range large {
		large[i] = byte(i ^ i>>8 ^ i>>16)
	}
	if n := value(a.Put(within(t), "large", bytes.NewReader(large)))(t); n != int64(len(large)) {
		t.Errorf("put %d bytes of %d", n, len(large))
	}
	if have, err := get(t, b, "large"); err != nil || !bytes.Equal(have, large) {
		t.Errorf("got %d bytes of %d, %v", len(have), len(large), err)
	}
}

func testFailedPut(t *testing.T, s Server) {
	o := openObjects(t, s.Connect(t))
	broken := errors.New("broken")
	content := func() io.Reader {
		return io.MultiReader(bytes.NewReader(make([]byte, 3<<20)), iotest.ErrReader(broken))
	}
	if _, err := o.Put(within(t), "new", content()); !errors.Is(err, broken) {
		t.Errorf("put: %v", err)
	}
	if _, err := o.Get(within(t), "new"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	value(o.Put(within(t), "old", bytes.NewBufferString("old")))(t)
	if _, err := o.Put(within(t), "old", content()); !errors.Is(err, broken) {
		t.Errorf("put: %v", err)
	}
	if have, err := get(t, o, "old"); err != nil || string(have) != "old" {
		t.Errorf("got %q, %v", have, err)
	}
}

func testReplacedObject(t *testing.T, s Server) {
	const size = 2 << 20
	a, b := openObjects(t, s.Connect(t)), openObjects(t, s.Connect(t))
	value(a.Put(within(t), "k", bytes.NewReader(bytes.Repeat([]byte{'0'}, size))))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 10 {
			if _, err := a.Put(within(t), "k", bytes.NewReader(bytes.Repeat([]byte{byte('1' + i)}, size))); err != nil {
				t.Error(err)
			}
		}
	}()
	whole := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		have, err := get(t, b, "k")
		if err != nil {
			continue // replaced meanwhile: an error is fine, a mixture is not
		}
		if len(have) != size || bytes.Count(have, have[:1]) != size {
			t.Fatalf("got a mixture of %d bytes", len(have))
		}
		whole++
	}
	if have, err := get(t, b, "k"); err != nil || have[0] != byte('0'+10) {
		t.Errorf("the last one is not there: %v", err)
	}
	if whole == 0 {
		t.Error("no object was read")
	}
}

func testConcurrentPuts(t *testing.T, s Server) {
	const size = 1 << 20
	var wait sync.WaitGroup
	for i := range 3 {
		o := openObjects(t, s.Connect(t))
		wait.Go(func() {
			for range 4 {
				if _, err := o.Put(within(t), "k", bytes.NewReader(bytes.Repeat([]byte{byte(i)}, size))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	have, err := get(t, openObjects(t, s.Connect(t)), "k")
	if err != nil || len(have) != size || bytes.Count(have, have[:1]) != size {
		t.Errorf("got %d bytes, %v", len(have), err)
	}
}

func testHalfRead(t *testing.T, s Server) {
	o := openObjects(t, s.Connect(t))
	value(o.Put(within(t), "k", bytes.NewReader(make([]byte, 5<<20))))(t)
	for i := range 5 {
		r := value(o.Get(within(t), "k"))(t)
		if _, err := io.CopyN(io.Discard, r, int64(i)<<18); err != nil {
			t.Error(fmt.Errorf("read: %w", err))
		}
		must(t, r.Close())
		must(t, r.Close())
	}
}
