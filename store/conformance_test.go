package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sentences are what holds for every Store.
func sentences() []struct {
	name string
	test func(*testing.T, Store)
} {
	return []struct {
		name string
		test func(*testing.T, Store)
	}{
		{"what is put can be read", testPutGet},
		{"a put replaces the object", testReplace},
		{"a range gives the bytes asked for", testRanges},
		{"what is not there is not found", testNotFound},
		{"deleting twice is no error", testDelete},
		{"a listing is in the order of the keys", testListOrder},
		{"a listing has all of more than 1000 objects", testListMany},
		{"a listing can be left early", testListEarly},
		{"concurrent puts of one key leave one whole object", testConcurrentPuts},
		{"put and delete in one folder do not disturb each other", testPutDelete},
		{"a large object streams through", testLarge},
		{"a reader that fails in the middle leaves nothing", testFailingReader},
		{"a put that is cancelled leaves nothing", testCancelled},
		{"a bad key is refused by every method", testBadKeys},
		{"a key may hold any printable character", testOddKeys},
		{"PutFile takes over the file", testPutFile},
		{"PutFile leaves the file on error", testPutFileError},
		{"a presigned address works with a plain HTTP client", testPresign},
		{"its URL opens the same store", testURL},
	}
}

func TestConformance(t *testing.T) {
	for _, c := range sentences() {
		t.Run("Local/"+c.name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := OpenLocal(dir)
			if err != nil {
				t.Fatal(err)
			}
			c.test(t, s)
			noLeftovers(t, filepath.Join(dir, tempDir))
		})
		t.Run("S3/"+c.name, func(t *testing.T) {
			srv := startServer(t, t.TempDir())
			c.test(t, openServer(t, srv, "some/prefix"))
			// A request that the client has given up may not have ended yet.
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			noLeftovers(t, srv.backend.uploads())
			noLeftovers(t, filepath.Join(srv.backend.objects(srv.bucket).root, tempDir))
			noLeftovers(t, filepath.Join(srv.backend.metadata(srv.bucket).root, tempDir))
		})
	}
}

func startServer(t *testing.T, dir string) *Server {
	t.Helper()
	srv, err := StartServer(t.Context(), ServerConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// openServer opens the first bucket of srv under a prefix.
func openServer(t *testing.T, srv *Server, prefix string) Store {
	t.Helper()
	address := strings.Replace(srv.URL(), "?", "/"+prefix+"?", 1)
	s, err := Open(t.Context(), address, WithCredentials(srv.Credentials()), WithHTTPClient(httpClient(t)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// httpClient returns a client that leaves no connection behind.
func httpClient(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func noLeftovers(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s in %s", e.Name(), dir)
	}
}

func put(t *testing.T, s Store, key, content string) {
	t.Helper()
	n, err := s.Put(t.Context(), key, strings.NewReader(content))
	if err != nil || n != int64(len(content)) {
		t.Fatalf("Put(%q) = %d, %v; want %d bytes", key, n, err, len(content))
	}
}

func get(t *testing.T, s Store, key string, offset, length int64) string {
	t.Helper()
	r, err := s.Get(t.Context(), key, offset, length)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func list(t *testing.T, s Store, prefix string) []string {
	t.Helper()
	var keys []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func wantAbsent(t *testing.T, s Store, key string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, ErrNotFound) {
		t.Errorf("Stat(%q): %v; want ErrNotFound", key, err)
	}
}

func testPutGet(t *testing.T, s Store) {
	before := time.Now()
	for _, content := range []string{"hello", "", strings.Repeat("x", 100_000)} {
		put(t, s, "a/b.txt", content)
		if got := get(t, s, "a/b.txt", 0, -1); got != content {
			t.Errorf("got %d bytes, want %d", len(got), len(content))
		}
		info, err := s.Stat(t.Context(), "a/b.txt")
		if err != nil {
			t.Fatal(err)
		}
		if info.Key != "a/b.txt" || info.SizeBytes != int64(len(content)) {
			t.Errorf("Stat: %+v; want %d bytes", info, len(content))
		}
		if d := info.Modified.Sub(before); d < -2*time.Second || d > time.Minute {
			t.Errorf("modified %v after the test began", d)
		}
	}
}

func testReplace(t *testing.T, s Store) {
	put(t, s, "key", "a long first version")
	old, err := s.Stat(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "key", "second")
	if got := get(t, s, "key", 0, -1); got != "second" {
		t.Errorf("got %q", got)
	}
	info, err := s.Stat(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if old.ETag != "" && info.ETag == old.ETag {
		t.Errorf("the ETag is still %s", old.ETag)
	}
}

func testRanges(t *testing.T, s Store) {
	put(t, s, "digits", "0123456789")
	put(t, s, "nothing", "")
	for _, c := range []struct {
		key            string
		offset, length int64
		want           string
	}{
		{"digits", 0, 3, "012"},
		{"digits", 4, 2, "45"},
		{"digits", 7, -1, "789"},
		{"digits", 7, 3, "789"},
		{"digits", 7, 100, "789"},
		{"digits", 7, 1<<63 - 1, "789"},
		{"digits", 10, -1, ""},
		{"digits", 10, 5, ""},
		{"digits", 1000, 5, ""},
		{"digits", 3, 0, ""},
		{"digits", 0, -1, "0123456789"},
		{"nothing", 0, -1, ""},
		{"nothing", 0, 10, ""},
	} {
		if got := get(t, s, c.key, c.offset, c.length); got != c.want {
			t.Errorf("%s[%d, +%d] = %q, want %q", c.key, c.offset, c.length, got, c.want)
		}
	}
	if _, err := s.Get(t.Context(), "digits", -1, 5); err == nil {
		t.Error("a negative offset is accepted")
	}
}

func testNotFound(t *testing.T, s Store) {
	put(t, s, "folder/object", "x")
	for _, key := range []string{"missing", "folder", "folder/other", "folder/object/below"} {
		wantAbsent(t, s, key)
		for _, length := range []int64{-1, 0, 5} {
			if _, err := s.Get(t.Context(), key, 0, length); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get(%q, 0, %d): %v; want ErrNotFound", key, length, err)
			}
		}
	}
}

func testDelete(t *testing.T, s Store) {
	put(t, s, "a/b/c", "x")
	put(t, s, "a/d", "x")
	for range 2 {
		if err := s.Delete(t.Context(), "a/b/c"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete a folder: %v", err)
	}
	wantAbsent(t, s, "a/b/c")
	if got := list(t, s, ""); !slices.Equal(got, []string{"a/d"}) {
		t.Errorf("left: %v", got)
	}
	put(t, s, "a/b", "what was a folder can be an object")
}

func testListOrder(t *testing.T, s Store) {
	keys := []string{"a-b", "a.c", "a/b", "a/b.d/e", "a/b-", "a0", "b", "ab/c", "é", "日/本", "Z"}
	for _, key := range keys {
		put(t, s, key, key)
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/b.", "a/b.d/e", "ab", "é", "none", "a/b.d/e/f", "../", "/", "a//"} {
		var want []string
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		slices.Sort(want)
		if d := cmp.Diff(want, list(t, s, prefix)); d != "" {
			t.Errorf("prefix %q (-want +got):\n%s", prefix, d)
		}
	}
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.SizeBytes != int64(len(info.Key)) || info.Modified.IsZero() {
			t.Errorf("%+v", info)
		}
	}
}

func testListMany(t *testing.T, s Store) {
	const n = 1050
	var want []string
	for i := range n {
		key := fmt.Sprintf("many/%02d/%04d", i/100, i)
		put(t, s, key, "")
		want = append(want, key)
	}
	put(t, s, "other", "")
	if d := cmp.Diff(want, list(t, s, "many/")); d != "" {
		t.Error(d)
	}
}

func testListEarly(t *testing.T, s Store) {
	for i := range 5 {
		put(t, s, fmt.Sprintf("k/%d", i), "")
	}
	for info, err := range s.List(t.Context(), "") {
		if err != nil || info.Key != "k/0" {
			t.Fatal(info, err)
		}
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	for _, err := range s.List(ctx, "") {
		n++
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled listing: %v", err)
		}
	}
	if n != 1 {
		t.Errorf("a cancelled listing yields %d times", n)
	}
}

func testConcurrentPuts(t *testing.T, s Store) {
	const writers, size = 8, 200_000
	put(t, s, "key", strings.Repeat("z", size))
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if _, err := s.Put(t.Context(), "key", strings.NewReader(strings.Repeat(string(rune('a'+i)), size))); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			r, err := s.Get(t.Context(), "key", 0, -1)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			content, err := io.ReadAll(r)
			if err != nil {
				t.Error(err)
			}
			wantUniform(t, string(content), size)
		})
	}
	wg.Wait()
	wantUniform(t, get(t, s, "key", 0, -1), size)
}

// wantUniform wants size bytes that are all the same.
func wantUniform(t *testing.T, content string, size int) {
	t.Helper()
	if len(content) != size || strings.Trim(content, content[:1]) != "" {
		t.Errorf("%d bytes of a mixture, want %d of one writer", len(content), size)
	}
}

func testPutDelete(t *testing.T, s Store) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			key := fmt.Sprintf("deep/er/%d", i)
			for range 25 {
				if _, err := s.Put(t.Context(), key, strings.NewReader("x")); err != nil {
					t.Error(err)
				}
				if err := s.Delete(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := list(t, s, ""); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

func testLarge(t *testing.T, s Store) {
	const size = 20<<20 + 12345
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	// The wrapper hides the reader's length and Seek.
	n, err := s.Put(t.Context(), "large", io.MultiReader(bytes.NewReader(content)))
	if err != nil || n != size {
		t.Fatalf("Put = %d, %v", n, err)
	}
	r, err := s.Get(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("the content differs")
	}
	if got := get(t, s, "large", 8<<20-5, 10); got != string(content[8<<20-5:8<<20+5]) {
		t.Error("the content at the border of two parts differs")
	}
}

func testFailingReader(t *testing.T, s Store) {
	broken := errors.New("the source broke")
	put(t, s, "kept", "old")
	for _, before := range []int64{0, 1000, 18 << 20} {
		for _, key := range []string{"fresh/object", "kept"} {
			r := io.MultiReader(io.LimitReader(zeros{}, before), failing{broken})
			if _, err := s.Put(t.Context(), key, r); !errors.Is(err, broken) {
				t.Errorf("after %d bytes: %v; want the reader's error", before, err)
			}
		}
	}
	wantAbsent(t, s, "fresh/object")
	if got := get(t, s, "kept", 0, -1); got != "old" {
		t.Errorf("the old object has %d bytes now", len(got))
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("there are %v", got)
	}
	// An error of the source is not one of the store.
	if _, err := s.Put(t.Context(), "x", failing{io.ErrUnexpectedEOF}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated source: %v", err)
	}
	if _, err := s.Put(t.Context(), "x", failing{os.ErrPermission}); err == nil || errors.Is(err, ErrPermission) {
		t.Errorf("forbidden source: %v", err)
	}
}

func testCancelled(t *testing.T, s Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := io.MultiReader(io.LimitReader(zeros{}, 18<<20), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, nil
	}), zeros{})
	if _, err := s.Put(ctx, "key", r); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Put: %v", err)
	}
	wantAbsent(t, s, "key")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func testBadKeys(t *testing.T, s Store) {
	for _, key := range badKeys() {
		_, putErr := s.Put(t.Context(), key, strings.NewReader("x"))
		_, fileErr := s.PutFile(t.Context(), key, "/nonexistent")
		_, getErr := s.Get(t.Context(), key, 0, -1)
		_, statErr := s.Stat(t.Context(), key)
		for i, err := range []error{putErr, fileErr, getErr, statErr, s.Delete(t.Context(), key)} {
			if !errors.Is(err, ErrBadKey) {
				t.Errorf("key %.40q, method %d: %v; want ErrBadKey", key, i, err)
			}
		}
	}
	if got := list(t, s, ""); len(got) > 0 {
		t.Errorf("there are %v", got)
	}
}

func testOddKeys(t *testing.T, s Store) {
	for _, key := range []string{
		"with space", "per%cent%20", "plus+and&equals=", "question?mark#hash", `back\slash`, `quo"te'<>`,
		"über/日本語/🎞", "...", "a/..b", "~tilde", "*", "semi;colon:,@!$()", " lead", "C:", "a/.tmp/b",
	} {
		put(t, s, key, key)
		if got := get(t, s, key, 0, -1); got != key {
			t.Errorf("%q holds %q", key, got)
		}
		if got := list(t, s, key); !slices.Equal(got, []string{key}) {
			t.Errorf("list %q: %q", key, got)
		}
		if err := s.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
		wantAbsent(t, s, key)
	}
}

func testPutFile(t *testing.T, s Store) {
	for _, size := range []int{0, 1000, 9 << 20} {
		path := filepath.Join(t.TempDir(), "file")
		content := bytes.Repeat([]byte{7}, size)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := s.PutFile(t.Context(), "a/file", path)
		if err != nil || n != int64(size) {
			t.Fatalf("PutFile = %d, %v; want %d", n, err, size)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file is still there: %v", err)
		}
		if get(t, s, "a/file", 0, -1) != string(content) {
			t.Error("the content differs")
		}
	}
}

func testPutFileError(t *testing.T, s Store) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.PutFile(ctx, "key", path); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
	if _, err := s.PutFile(t.Context(), "key", dir); err == nil {
		t.Error("a directory is taken over")
	}
	if _, err := s.PutFile(t.Context(), "key", filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNotFound) {
		t.Errorf("missing file: %v", err)
	}
	wantAbsent(t, s, "key")
}

func testPresign(t *testing.T, s Store) {
	p, ok := s.(Presigner)
	if _, local := s.(LocalPather); local {
		if ok {
			t.Error("a store of files cannot serve HTTP")
		}
		return
	}
	put(t, s, "a b/ü+.txt", "0123456789")
	address, err := p.PresignGet(t.Context(), "a b/ü+.txt", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address, ranged string
		status          int
		want            string
	}{
		{address, "", http.StatusOK, "0123456789"},
		{address, "bytes=2-4", http.StatusPartialContent, "234"},
		{address, "bytes=-3", http.StatusPartialContent, "789"},
		{address, "bytes=-30", http.StatusPartialContent, "0123456789"},
		{address, "bytes=20-", http.StatusRequestedRangeNotSatisfiable, ""},
		{strings.Replace(address, "Expires=60", "Expires=600", 1), "", http.StatusForbidden, ""},
		{strings.Replace(address, ".txt", ".xml", 1), "", http.StatusForbidden, ""},
	} {
		status, body := fetch(t, c.address, c.ranged)
		if status != c.status || (c.want != "" && body != c.want) {
			t.Errorf("range %q: %d %q; want %d %q", c.ranged, status, body, c.status, c.want)
		}
	}
	for _, ttl := range []time.Duration{0, -time.Second, 8 * 24 * time.Hour} {
		if _, err := p.PresignGet(t.Context(), "a", ttl); err == nil {
			t.Errorf("a time of %v is accepted", ttl)
		}
	}
}

func fetch(t *testing.T, address, ranged string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ranged != "" {
		req.Header.Set("Range", ranged)
	}
	res, err := httpClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func testURL(t *testing.T, s Store) {
	put(t, s, "a/key", "x")
	opts := []Option{WithHTTPClient(httpClient(t))}
	if s3, ok := s.(*S3); ok {
		c, err := s3.client.Options().Credentials.Retrieve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(s.URL(), c.SecretAccessKey) || strings.Contains(s.URL(), c.AccessKeyID) {
			t.Errorf("%s holds a key", s.URL())
		}
		opts = append(opts, WithCredentials(c.AccessKeyID, c.SecretAccessKey))
	}
	again, err := Open(t.Context(), s.URL(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, again, ""); !slices.Equal(got, []string{"a/key"}) {
		t.Errorf("%s has %v", s.URL(), got)
	}
	if again.URL() != s.URL() {
		t.Errorf("opened from %s, it says %s", s.URL(), again.URL())
	}
}
