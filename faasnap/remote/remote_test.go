package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/store"
)

// pushEnv makes the test program push the snapshots in the directory that it
// names, one after the other, until it is killed. It writes a line for each file
// that it begins with.
const pushEnv = "VOLLEY_TEST_PUSH"

func TestMain(m *testing.M) {
	if dir := os.Getenv(pushEnv); dir != "" {
		fmt.Fprintln(os.Stderr, pushForever(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func pushForever(dir string) error {
	to, err := store.Open(context.Background(), os.Getenv(pushEnv+"_TO"))
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		s, err := snapshot.Open(filepath.Join(dir, fmt.Sprint(i%2)))
		if err != nil {
			return err
		}
		if _, err := Push(context.Background(), to, s, func(file string) { fmt.Println(file) }); err != nil {
			return err
		}
	}
}

func quiet(string) {}

// counter is an HTTP client's transport that counts, and can be told to fail.
type counter struct {
	http.Transport
	requests, bytes atomic.Int64
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.requests.Add(1)
	resp, err := c.Transport.RoundTrip(r)
	if err == nil {
		c.bytes.Add(max(0, resp.ContentLength))
	}
	return resp, err
}

// bucket is an S3 server with a store in it, and the store's objects as files.
type bucket struct {
	server *store.Server
	store.Store
	http *counter
	dir  string
}

func startBucket(t *testing.T) *bucket {
	t.Helper()
	b := &bucket{http: &counter{}, dir: t.TempDir()}
	srv, err := store.StartServer(t.Context(), store.ServerConfig{Dir: b.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.http.CloseIdleConnections()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	b.server = srv
	b.Store, err = store.Open(t.Context(), b.address(), store.WithCredentials(srv.Credentials()), store.WithHTTPClient(&http.Client{Transport: b.http}))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bucket) address() string {
	return strings.Replace(b.server.URL(), "?", "/snapshots/one?", 1)
}

// object returns what is under a key.
func (b *bucket) object(t *testing.T, key string) []byte {
	t.Helper()
	content, err := get(t.Context(), b, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func (b *bucket) put(t *testing.T, key string, content []byte) {
	t.Helper()
	if _, err := b.Put(t.Context(), key, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// guest is a snapshot with what its memory is.
type guest struct {
	*snapshot.Snapshot
	memory []byte
}

// makeGuest makes a snapshot of 1,500 pages (5.9 chunks) in dir/name: runs of
// zeros, of bytes that nobody could guess, and a working set of a few of them. The
// third chunk is zero, and the last page is not.
func makeGuest(t *testing.T, dir, name string, seed uint64) guest {
	t.Helper()
	const n = 1500
	rng := rand.New(rand.NewPCG(seed, 3))
	memory := make([]byte, n*pages.Size)
	fill := func(start, end int) {
		for i := start * pages.Size; i < end*pages.Size; i += 7 {
			memory[i] = byte(rng.Uint32() | 1)
		}
	}
	for at := rng.IntN(60); at < n; at += 1 + rng.IntN(120) {
		end := min(n, at+1+rng.IntN(90))
		fill(at, end)
		at = end
	}
	clear(memory[2*snapshot.ChunkSize : 3*snapshot.ChunkSize])
	fill(n-1, n)
	w := pages.WorkingSet{Pages: n}
	for at := rng.IntN(100); at < n-40; at += 150 + rng.IntN(200) {
		w.Groups = append(w.Groups, pages.Group{{Start: at, End: at + 1 + rng.IntN(40)}})
	}
	d, err := snapshot.Begin(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{snapshot.MemoryFile: memory, "state": fmt.Append(nil, "registers of ", seed)} {
		if err := os.WriteFile(d.Path(file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := d.Commit(t.Context(), snapshot.Contents{MemoryBytes: n * pages.Size, Working: w, Options: pages.DefaultOptions()})
	if err != nil {
		t.Fatal(err)
	}
	return guest{s, memory}
}

// coldBytes is how much of a guest's memory is in a store.
func (g guest) coldBytes() int64 {
	n, _ := g.Plan().Count(pages.Memory)
	return int64(n) * pages.Size
}

func mustPush(t *testing.T, to store.Store, g guest) {
	t.Helper()
	if _, err := Push(t.Context(), to, g.Snapshot, quiet); err != nil {
		t.Fatal(err)
	}
}

// pulled copies a snapshot from a store to a new directory.
func pulled(t *testing.T, from store.Store, lazy bool) (*snapshot.Snapshot, error) {
	t.Helper()
	parent := t.TempDir()
	d, err := snapshot.Begin(filepath.Join(parent, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Pull(t.Context(), from, d, lazy, quiet); err != nil {
		if _, err := snapshot.Open(filepath.Join(parent, "copy")); !errors.Is(err, snapshot.ErrNone) {
			t.Errorf("error %v; want that there is no snapshot", err)
		}
		return nil, err
	}
	return d.Publish(t.Context())
}

// mustPull is pulled without an error.
func mustPull(t *testing.T, from store.Store, lazy bool) *snapshot.Snapshot {
	t.Helper()
	s, err := pulled(t, from, lazy)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAWholeCopyIsTheSameSnapshot(t *testing.T) {
	for seed := range uint64(6) {
		b := startBucket(t)
		g := makeGuest(t, t.TempDir(), "one", seed)
		mustPush(t, b, g)
		if n := int64(len(b.object(t, key(g.Meta(), snapshot.MemoryFile)))); n != g.coldBytes() {
			t.Errorf("seed %d: memory has %d bytes in the store; want the %d that are nowhere else", seed, n, g.coldBytes())
		}
		s := mustPull(t, b, false)
		if err := s.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		got, err := os.ReadFile(s.Path(snapshot.MemoryFile))
		if err != nil || !bytes.Equal(got, g.memory) || s.Meta().ID != g.Meta().ID || s.Remote() != "" {
			t.Errorf("seed %d: another snapshot came back: %v", seed, err)
		}
		if here, there := s.DiskBytes(), g.DiskBytes(); here > there+there/10 {
			t.Errorf("seed %d: it takes %d bytes on disk, the original %d", seed, here, there)
		}
	}
}

func TestWhatIsNotASnapshotIsNotPulled(t *testing.T) {
	b := startBucket(t)
	if _, err := pulled(t, b, true); !errors.Is(err, ErrNone) {
		t.Errorf("nothing is there: error %v", err)
	}
	g := makeGuest(t, t.TempDir(), "one", 1)
	mustPush(t, b, g)
	flipped := func(content []byte) []byte {
		content = bytes.Clone(content)
		content[len(content)/2] ^= 8
		return content
	}
	for _, tc := range []struct {
		name, file string
		change     func([]byte) []byte // nil removes
		want       error
		lazyToo    bool // whether a lazy copy notices
	}{
		{"the metadata is missing", "", nil, ErrNone, true},
		{"the metadata is changed", "", flipped, snapshot.ErrDamaged, true},
		{"the metadata is of another version", "", func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":9`), 1) }, snapshot.ErrVersion, true},
		{"a file is missing", "state", nil, ErrStore, true},
		{"a file is changed", "state", flipped, snapshot.ErrDamaged, true},
		{"a file is too long", "state", func(b []byte) []byte { return append(bytes.Clone(b), 1) }, snapshot.ErrDamaged, true},
		{"the plan is changed", snapshot.PlanFile, flipped, snapshot.ErrDamaged, true},
		{"the loading set is cut short", snapshot.LoadingFile, func(b []byte) []byte { return b[:len(b)/2] }, snapshot.ErrDamaged, true},
		{"memory is missing", snapshot.MemoryFile, nil, ErrStore, false},
		{"memory is changed", snapshot.MemoryFile, flipped, snapshot.ErrDamaged, false},
		{"memory is cut short", snapshot.MemoryFile, func(b []byte) []byte { return b[:len(b)/2] }, ErrStore, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := snapshot.MetaFile
			if tc.file != "" {
				at = key(g.Meta(), tc.file)
			}
			was := b.object(t, at)
			if tc.change == nil {
				if err := b.Delete(t.Context(), at); err != nil {
					t.Fatal(err)
				}
			} else {
				b.put(t, at, tc.change(was))
			}
			if _, err := pulled(t, b, false); !errors.Is(err, tc.want) {
				t.Errorf("error %v; want %v", err, tc.want)
			}
			if _, err := pulled(t, b, true); tc.lazyToo != (err != nil) {
				t.Errorf("lazily: error %v", err)
			}
			b.put(t, at, was)
		})
	}
	mustPull(t, b, false)
}

func TestAFilePullsInPlaceOfS3(t *testing.T) {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	g := makeGuest(t, t.TempDir(), "one", 4)
	mustPush(t, st, g)
	m := open(t, mustPull(t, st, true), st)
	readsAs(t, m, g)
}

// A snapshot is under the address at every moment that a push can be killed at:
// none before the first is complete, and then one of the two.
func TestAPushThatIsKilledLeavesNoHalfSnapshot(t *testing.T) {
	b := startBucket(t)
	dir := t.TempDir()
	guests := map[string]guest{}
	for i := range uint64(2) {
		g := makeGuest(t, dir, fmt.Sprint(i), i)
		guests[g.Meta().ID] = g
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	none, seen := 0, map[string]int{}
	for files := range 14 {
		cmd := exec.Command(os.Args[0])
		user, secret := b.server.Credentials()
		cmd.Env = append(os.Environ(), pushEnv+"="+dir, pushEnv+"_TO="+b.address(), "AWS_ACCESS_KEY_ID="+user, "AWS_SECRET_ACCESS_KEY="+secret)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); files >= 0 && lines.Scan(); files-- {
		}
		// Not to wait for anything: the moment of death is what is tried out.
		<-time.After(time.Duration(rng.IntN(4)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
		s, err := pulled(t, b, false)
		if errors.Is(err, ErrNone) && len(seen) == 0 {
			none++
			continue
		}
		if err == nil {
			err = s.Verify(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ours := guests[s.Meta().ID]; !ours {
			t.Fatalf("snapshot %s is there, which nobody pushed", s.Meta().ID)
		}
		seen[s.Meta().ID]++
	}
	t.Logf("none %d times, then %v", none, seen)
	if none == 0 || len(seen) == 0 {
		t.Error("the moments of death were not different enough")
	}
}

// A snapshot that was pulled lazily goes on to be served when another is pushed
// to the same address.
func TestALazyCopyOutlivesTheNextPush(t *testing.T) {
	b := startBucket(t)
	dir := t.TempDir()
	first := makeGuest(t, dir, "first", 1)
	mustPush(t, b, first)
	m := open(t, mustPull(t, b, true), b)
	second := makeGuest(t, dir, "second", 2)
	mustPush(t, b, second)
	readsAs(t, m, first)
	readsAs(t, open(t, mustPull(t, b, true), b), second)
}
