package faasnap

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/remote"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/store"
)

// objectStore is an S3 server, and how services reach it.
type objectStore struct {
	server *store.Server
	client *http.Client
	// asked is called before each request with how many there were.
	asked    atomic.Pointer[func(r *http.Request, n int64)]
	requests atomic.Int64
}

func (o *objectStore) RoundTrip(r *http.Request) (*http.Response, error) {
	n := o.requests.Add(1)
	if asked := o.asked.Load(); asked != nil {
		(*asked)(r, n)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func startObjectStore(t *testing.T) *objectStore {
	t.Helper()
	server, err := store.StartServer(t.Context(), store.ServerConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	o := &objectStore{server: server}
	o.client = &http.Client{Transport: o}
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func (o *objectStore) open(ctx context.Context, url string) (store.Store, error) {
	return store.Open(ctx, url, store.WithCredentials(o.server.Credentials()), store.WithHTTPClient(o.client))
}

// url returns the address of a prefix.
func (o *objectStore) url(prefix string) string {
	return strings.Replace(o.server.URL(), "?", "/"+prefix+"?", 1)
}

// openServiceOn opens a service on QEMU in dir, whose snapshots come from an
// object store.
func openServiceOn(t *testing.T, dir string, o *objectStore) *Service {
	t.Helper()
	return openConfig(t, Config{Dir: dir, OpenStore: o.open})
}

// One recording serves all of this. The recorded invocation does not read the
// memory whose checksum those below ask for.
func TestSnapshotsWhoseMemoryIsInAnObjectStore(t *testing.T) {
	o := startObjectStore(t)
	dir := t.TempDir()
	recorder := openServiceOn(t, filepath.Join(dir, "recorder"), o)
	snap, err := recorder.Record(t.Context(), buildMemoryFunction(t, recorder), RecordOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := invoke(t, restore(t, recorder, Full, RestoreOptions{}), `{"sum": true}`).Sum
	url := o.url("memory")
	if _, err := recorder.Push(t.Context(), "memory", url, func(string) {}); err != nil {
		t.Fatal(err)
	}
	s := openServiceOn(t, filepath.Join(dir, "other"), o)
	pull := func(name string) {
		t.Helper()
		got, err := s.Pull(t.Context(), url, name, PullOptions{Lazy: true, Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		if got.Remote() == "" || got.Meta().ID != snap.Meta().ID || got.DiskBytes() > snap.DiskBytes()/2 {
			t.Fatalf("memory is in %q: %d bytes are here; all are %d", got.Remote(), got.DiskBytes(), snap.DiskBytes())
		}
	}
	pull("memory")
	cold, _ := snap.Plan().Count(pages.Memory)
	coldBytes := int64(cold) * pages.Size
	var total atomic.Int64 // of what all machines have fetched

	t.Run("bring their function", func(t *testing.T) {
		if f, err := s.Function("memory"); err != nil || f.Handler != "app.handler" {
			t.Errorf("function %+v: %v", f, err)
		}
	})
	t.Run("fetch what a guest touches, once for all", func(t *testing.T) {
		var machines sync.WaitGroup
		for range 3 {
			v := restore(t, s, FaaSnap, RestoreOptions{})
			if mode := v.Info().Mode; mode != FaaSnapFaults {
				t.Errorf("mode %s", mode)
			}
			machines.Go(func() {
				if a := invoke(t, v, `{"sum": true}`); a.Sum != want {
					t.Errorf("memory has sum %q; want %q", a.Sum, want)
				}
				total.Add(v.LoadStats().FetchedBytes)
			})
		}
		machines.Wait()
		if n := total.Load(); n < 8<<20 || n > coldBytes {
			t.Errorf("%d bytes were fetched; want the 8 MiB that were not recorded, and at most %d", n, coldBytes)
		}
	})
	t.Run("do not fetch it again", func(t *testing.T) {
		for _, mode := range []Mode{FaaSnap, FaaSnapFaults} {
			v := restore(t, s, mode, RestoreOptions{})
			if a := invoke(t, v, `{"sum": true}`); a.Sum != want {
				t.Errorf("%s: memory has sum %q; want %q", mode, a.Sum, want)
			}
			// No two runs of a kernel touch the very same pages.
			n := v.LoadStats().FetchedBytes
			if all := total.Add(n); n > 4<<20 || all > coldBytes {
				t.Errorf("%s: %d bytes were fetched again, %d in all of %d", mode, n, all, coldBytes)
			}
		}
	})
	t.Run("are looked at", func(t *testing.T) {
		if n, err := s.Verify(t.Context(), "memory"); err != nil || n < 8<<20 {
			t.Errorf("verify: %d bytes, %v", n, err)
		}
		if found, err := s.Collect(t.Context(), false); err != nil || len(found) != 0 {
			t.Errorf("garbage %v, %v", found, err)
		}
	})
	t.Run("are completed for modes that want all of it", func(t *testing.T) {
		running := restore(t, s, FaaSnap, RestoreOptions{})
		for _, mode := range []Mode{Full, FaaSnap, Regions} {
			v := restore(t, s, mode, RestoreOptions{})
			if a := invoke(t, v, `{"sum": true}`); a.Sum != want || v.Info().Mode != mode {
				t.Errorf("%s: memory has sum %q; want %q", mode, a.Sum, want)
			}
		}
		if a := invoke(t, running, `{"sum": true, "scratch": 16}`); a.Sum != want {
			t.Errorf("a machine that ran: memory has sum %q; want %q", a.Sum, want)
		}
		if got, err := s.Snapshot(t.Context(), "memory"); err != nil || got.Remote() != "" || got.DiskBytes() > snap.DiskBytes()*11/10 {
			t.Errorf("the snapshot is still lazy, or larger than it was: %v", err)
		}
	})
	t.Run("learn from further inputs", func(t *testing.T) {
		pull("memory")
		if _, _, err := s.Learn(t.Context(), "memory", LearnOptions{Inputs: [][]byte{[]byte(`{"sum": true}`)}}); err != nil {
			t.Error(err)
		}
		if a := invoke(t, restore(t, s, FaaSnap, RestoreOptions{}), `{"sum": true}`); a.Sum != want {
			t.Errorf("memory has sum %q; want %q", a.Sum, want)
		}
	})
	t.Run("fail an invocation if the store has other content", func(t *testing.T) {
		pull("memory")
		st, err := o.open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		at := snap.Meta().ID + "/" + snapshot.MemoryFile
		right := object(t, st, at)
		wrong := bytes.Clone(right)
		for i := 0; i < len(wrong); i += 2 * pages.Size {
			wrong[i] ^= 1
		}
		put(t, st, at, wrong)
		unserved(t, s, time.Minute, snapshot.ErrDamaged)
		put(t, st, at, right)
		if a := invoke(t, restore(t, s, FaaSnap, RestoreOptions{}), `{"sum": true}`); a.Sum != want {
			t.Errorf("memory has sum %q; want %q", a.Sum, want)
		}
	})
	t.Run("fail an invocation if the store does not answer", func(t *testing.T) {
		pull("memory")
		silence := func(r *http.Request, _ int64) { <-r.Context().Done() }
		o.asked.Store(&silence)
		defer o.asked.Store(nil)
		unserved(t, s, 2*time.Second, remote.ErrStore)
	})
	t.Run("fail an invocation if the store dies in the middle", func(t *testing.T) {
		pull("memory")
		var once sync.Once
		first := o.requests.Load()
		die := func(_ *http.Request, n int64) {
			if n > first+4 {
				once.Do(func() {
					if err := o.server.Close(); err != nil {
						t.Error(err)
					}
				})
			}
		}
		o.asked.Store(&die)
		unserved(t, s, time.Minute, remote.ErrStore)
		if _, err := s.Restore(t.Context(), "memory", Full, RestoreOptions{}); !errors.Is(err, remote.ErrStore) {
			t.Errorf("all of memory: error %v; want the store's", err)
		}
		if _, err := s.Pull(t.Context(), url, "more", PullOptions{}); !errors.Is(err, remote.ErrStore) {
			t.Errorf("pull: error %v; want the store's", err)
		}
		if names, err := s.Snapshots(); err != nil || len(names) != 1 {
			t.Errorf("snapshots %v, %v; want the one", names, err)
		}
	})
}

// unserved restores a machine that wants what the store cannot give it.
func unserved(t *testing.T, s *Service, timeout time.Duration, want error) {
	t.Helper()
	v, err := s.Restore(t.Context(), "memory", FaaSnap, RestoreOptions{})
	if err == nil {
		req := v.request([]byte(`{"sum": true}`))
		req.Deadline = time.Now().Add(timeout)
		_, err = v.Invoke(t.Context(), req)
		<-v.Done()
		err = errors.Join(err, v.Close())
	}
	if !errors.Is(err, want) {
		t.Errorf("error %v; want %v", err, want)
	}
	t.Log(err)
}

func object(t *testing.T, st store.Store, key string) []byte {
	t.Helper()
	r, err := st.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, st store.Store, key string, b []byte) {
	t.Helper()
	if _, err := st.Put(t.Context(), key, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}
