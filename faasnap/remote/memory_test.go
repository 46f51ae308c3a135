package remote

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/store"
)

func open(t *testing.T, s *snapshot.Snapshot, from store.Store) *Memory {
	t.Helper()
	m, err := Open(s, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// fetched returns bytes of guest memory, and how many came from the store.
func fetched(t *testing.T, m *Memory, offset, length int64) ([]byte, int64) {
	t.Helper()
	n, err := m.Fetch(t.Context(), offset, length)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, length)
	if _, err := m.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	return b, n
}

// readsAs compares all memory with a guest's, and returns how many bytes came
// from the store.
func readsAs(t *testing.T, m *Memory, g guest) int64 {
	t.Helper()
	b, n := fetched(t, m, 0, int64(len(g.memory)))
	if !bytes.Equal(b, g.memory) {
		t.Error("memory is not what it was")
	}
	return n
}

func TestGuestsReadWhatWasPushed(t *testing.T) {
	for seed := range uint64(8) {
		b := startBucket(t)
		g := makeGuest(t, t.TempDir(), "one", seed)
		mustPush(t, b, g)
		s := mustPull(t, b, true)
		if s.Remote() != b.URL() || strings.Contains(s.Remote(), "SECRET") {
			t.Errorf("memory is in %s; want %s", s.Remote(), b.URL())
		}
		m := open(t, s, b)
		b.http.bytes.Store(0)
		var readers sync.WaitGroup
		for reader := range uint64(4) {
			readers.Go(func() {
				rng := rand.New(rand.NewPCG(seed, reader))
				for range 40 {
					start := rng.IntN(len(g.memory)/pages.Size) * pages.Size
					length := min(len(g.memory)-start, (1+rng.IntN(16))*pages.Size)
					content := make([]byte, length)
					_, err := m.Fetch(t.Context(), int64(start), int64(length))
					if err == nil {
						_, err = m.ReadAt(content, int64(start))
					}
					if err != nil || !bytes.Equal(content, g.memory[start:start+length]) {
						t.Errorf("seed %d: %d bytes at %d are others: %v", seed, length, start, err)
					}
				}
			})
		}
		readers.Wait()
		readsAs(t, m, g)
		if n := b.http.bytes.Load(); n != g.coldBytes() {
			t.Errorf("seed %d: %d bytes came; want each of the %d once", seed, n, g.coldBytes())
		}
		// What is here counts for those who come later.
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m = open(t, s, b)
		b.http.requests.Store(0)
		if n := readsAs(t, m, g); n != 0 || b.http.requests.Load() != 0 {
			t.Errorf("seed %d: %d bytes came again, in %d requests", seed, n, b.http.requests.Load())
		}
		if n, err := m.Verify(t.Context()); err != nil || n != int64(len(g.memory)) {
			t.Errorf("seed %d: %d bytes are in order, %v; want all", seed, n, err)
		}
		for range 2 {
			if n, err := m.Complete(t.Context()); err != nil || n != 0 {
				t.Errorf("seed %d: %d bytes came for what is complete, %v", seed, n, err)
			}
		}
		readsAs(t, m, g) // as machines that run do
		whole, err := snapshot.Open(s.Dir())
		if err == nil {
			err = whole.Verify(t.Context())
		}
		if err != nil || whole.Remote() != "" {
			t.Errorf("seed %d: the completed snapshot: %v", seed, err)
		}
	}
}

func TestAChunkIsFetchedOnceForAllWhoWant(t *testing.T) {
	b := startBucket(t)
	g := makeGuest(t, t.TempDir(), "one", 5)
	mustPush(t, b, g)
	m := open(t, mustPull(t, b, true), b)
	b.http.requests.Store(0)
	var readers sync.WaitGroup
	for range 20 {
		readers.Go(func() {
			if _, err := m.Fetch(t.Context(), 4096, 4096); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if n := b.http.requests.Load(); n != 1 {
		t.Errorf("%d requests for one chunk", n)
	}
	if _, n := fetched(t, m, 2*snapshot.ChunkSize, snapshot.ChunkSize); n != 0 || b.http.requests.Load() != 1 {
		t.Error("a chunk of zeros was asked for")
	}
}

func TestAChunkThatIsNotWhatWasPushedIsNeverSeen(t *testing.T) {
	b := startBucket(t)
	g := makeGuest(t, t.TempDir(), "one", 6)
	mustPush(t, b, g)
	s := mustPull(t, b, true)
	at := key(s.Meta(), snapshot.MemoryFile)
	right := b.object(t, at)
	wrong := bytes.Clone(right)
	wrong[100] ^= 1
	b.put(t, at, wrong)
	m := open(t, s, b)
	for range 2 {
		if _, err := m.Fetch(t.Context(), 0, 4096); !errors.Is(err, snapshot.ErrDamaged) || !strings.Contains(err.Error(), b.URL()) {
			t.Errorf("error %v; want that what is in the store is damaged", err)
		}
	}
	if _, err := m.Complete(t.Context()); !errors.Is(err, snapshot.ErrDamaged) {
		t.Errorf("error %v; want that it cannot be completed", err)
	}
	seen := make([]byte, snapshot.ChunkSize)
	if _, err := m.ReadAt(seen, 0); err != nil || !bytes.Equal(seen, make([]byte, len(seen))) {
		t.Errorf("a part of it was kept: %v", err)
	}
	if b, _ := fetched(t, m, 4*snapshot.ChunkSize, 4096); !bytes.Equal(b, g.memory[4*snapshot.ChunkSize:][:4096]) {
		t.Error("another chunk is wrong")
	}
	b.put(t, at, right)
	readsAs(t, m, g)
}

// Whatever a crash or a disk does to the files, memory is right: the record is
// not believed.
func TestWhatIsKeptIsComparedBeforeItIsUsed(t *testing.T) {
	b := startBucket(t)
	g := makeGuest(t, t.TempDir(), "one", 7)
	mustPush(t, b, g)
	for _, tc := range []struct {
		name string
		harm func(part, present *os.File) error
		all  bool // whether all has to be fetched again
	}{
		{"the record says more than is there", func(part, _ *os.File) error { return part.Truncate(0) }, true},
		{"the record is gone", func(_, present *os.File) error { return present.Truncate(0) }, true},
		{"a byte is another", func(part, _ *os.File) error { _, err := part.WriteAt([]byte{77}, 3*snapshot.ChunkSize+5); return err }, false},
		{"a zero is none any more", func(part, _ *os.File) error { _, err := part.WriteAt([]byte{77}, 2*snapshot.ChunkSize+5); return err }, false},
		{"a chunk is torn", func(part, _ *os.File) error {
			_, err := part.WriteAt(make([]byte, snapshot.ChunkSize/2), snapshot.ChunkSize)
			return err
		}, false},
		{"the file is too long", func(part, _ *os.File) error { return part.Truncate(100 * snapshot.ChunkSize) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := mustPull(t, b, true)
			m := open(t, s, b)
			readsAs(t, m, g)
			if err := errors.Join(m.Close(), tc.harm(reopen(t, s, snapshot.PartFile), reopen(t, s, snapshot.PresentFile))); err != nil {
				t.Fatal(err)
			}
			n := readsAs(t, open(t, s, b), g)
			if tc.all != (n == g.coldBytes()) {
				t.Errorf("%d bytes came again out of %d", n, g.coldBytes())
			}
			if n := readsAs(t, open(t, s, b), g); n != 0 {
				t.Errorf("%d bytes came a third time", n)
			}
		})
	}
}

func reopen(t *testing.T, s *snapshot.Snapshot, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(s.Path(name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // a test that closes it has done so
	return f
}

func TestAStoreThatFailsIsAnErrorAndNeverAHang(t *testing.T) {
	b := startBucket(t)
	g := makeGuest(t, t.TempDir(), "one", 8)
	mustPush(t, b, g)
	s := mustPull(t, b, true)
	t.Run("its object is gone", func(t *testing.T) {
		at := key(s.Meta(), snapshot.MemoryFile)
		was := b.object(t, at)
		if err := b.Delete(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		m := open(t, s, b)
		if _, err := m.Fetch(t.Context(), 0, 4096); !errors.Is(err, ErrStore) || !errors.Is(err, store.ErrNotFound) {
			t.Errorf("error %v; want the store's", err)
		}
		if _, err := m.Verify(t.Context()); !errors.Is(err, ErrStore) {
			t.Errorf("verify: error %v; want the store's", err)
		}
		b.put(t, at, was[:100])
		if _, err := m.Verify(t.Context()); !errors.Is(err, ErrStore) {
			t.Errorf("verify: error %v; want that it is too short", err)
		}
		b.put(t, at, was)
	})
	t.Run("it does not answer", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		silent, err := store.Open(t.Context(), "s3://volley/snapshots/one?endpoint="+url.QueryEscape("http://"+listener.Addr().String()),
			store.WithCredentials("key", "secret"), store.WithHTTPClient(&http.Client{Transport: transport}))
		if err != nil {
			t.Fatal(err)
		}
		m := open(t, s, silent)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := m.Fetch(ctx, 0, 4096); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v; want that the time is over", err)
		}
		begin := time.Now()
		if err := m.Close(); err != nil || time.Since(begin) > fetchTimeout/2 {
			t.Errorf("closed after %v: %v", time.Since(begin), err)
		}
	})
	t.Run("it has ended", func(t *testing.T) {
		m := open(t, s, b)
		if _, n := fetched(t, m, 0, 4096); n == 0 {
			t.Error("nothing came while it ran")
		}
		if err := b.server.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Fetch(t.Context(), 4*snapshot.ChunkSize, 4096); !errors.Is(err, ErrStore) {
			t.Errorf("error %v; want the store's", err)
		}
		if b, n := fetched(t, m, 0, 4096); n != 0 || !bytes.Equal(b, g.memory[:4096]) {
			t.Error("what is here does not count any more")
		}
	})
}
