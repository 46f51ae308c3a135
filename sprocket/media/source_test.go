package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/store"
)

// serveBytes answers requests for data, with ranges.
func serveBytes(data []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, len(data)))
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(data))
	})
}

// failing answers the first n requests by fail and the others by next.
func failing(n int32, fail http.HandlerFunc, next http.Handler) http.Handler {
	var seen atomic.Int32
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seen.Add(1) <= n {
			fail(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// secretAddress is the server's address with secrets in it.
func secretAddress(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "http://", "http://user:secret@", 1) + "/odd%20name.mp4?token=secret"
}

func TestProbeOverHTTPReadsOnlyTheIndexAndFindsTheSame(t *testing.T) {
	const pattern = "-i $sintel-trailer-52s.mp4 -i $bbb-480p-30s.mp4 -i $people-15cuts.mp4 -map 0 -map 1 -map 2 -c copy"
	for _, path := range []string{
		makeClip(t, "back.mp4", pattern),
		makeClip(t, "front.mp4", pattern+" -movflags faststart"),
		testVideo(t, "tos-battle-70s.webm"),
	} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := probeFile(t, path)
			got, src := probeFile(t, secretAddress(t, serveBytes(data)))
			opts := cmp.Options{cmp.AllowUnexported(Index{}, run{}), cmpopts.EquateEmpty()}
			if diff := cmp.Diff(want, got, opts); diff != "" {
				t.Errorf("file and address differ:\n%s", diff)
			}
			if src.BytesRead() > src.Size()/3 {
				t.Errorf("read %d of %d bytes", src.BytesRead(), src.Size())
			}
			if strings.Contains(src.Name(), "secret") || !strings.HasSuffix(src.Name(), "/odd%20name.mp4") {
				t.Errorf("name %q", src.Name())
			}
		})
	}
}

func TestHTTPSourceOutlastsPassingFailures(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	breakOff := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", blockBytes-1, len(data)))
		w.Header().Set("Content-Length", fmt.Sprint(blockBytes))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[:100])
		panic(http.ErrAbortHandler)
	}
	reset := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for name, fail := range map[string]http.HandlerFunc{
		"503":                  status(http.StatusServiceUnavailable),
		"429":                  status(http.StatusTooManyRequests),
		"connection reset":     reset,
		"answer that ends":     breakOff,
		"gateway error":        status(http.StatusBadGateway),
		"internal error (500)": status(http.StatusInternalServerError),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, err := OpenSource(t.Context(), secretAddress(t, failing(2, fail, serveBytes(data))))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			got, err := io.ReadAll(io.NewSectionReader(src, 0, src.Size()))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, error %v", len(got), err)
			}
		})
	}
}

func TestHTTPSourceSaysWhyAServerDoesNotDo(t *testing.T) {
	data := make([]byte, 3*blockBytes)
	noRanges := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
	// The file behind the address is another one after the first answer.
	replaced := failing(1, serveBytes(data).ServeHTTP, serveBytes(data[:2*blockBytes]))
	for _, c := range []struct {
		name    string
		handler http.Handler
		kind    Kind
		says    string
	}{
		{"404", status(404), NotFound, "404 Not Found"},
		{"401", status(401), Permission, "401"},
		{"403", status(403), Permission, "403"},
		{"418", status(418), Unreachable, "418"},
		{"no ranges", http.HandlerFunc(noRanges), Unsupported, "download it first"},
		{"empty", serveBytes(nil), Empty, "0 bytes"},
		{"always 503", status(503), Unreachable, "3 tries"},
		{"replaced", replaced, Corrupt, "changed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, err := OpenSource(t.Context(), secretAddress(t, c.handler))
			if err == nil {
				defer src.Close()
				_, err = src.ReadAt(make([]byte, 10), blockBytes+5)
			}
			if KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("kind %q: %v", KindOf(err), err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("secret in %v", err)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		server := httptest.NewServer(nil)
		server.Close()
		_, err := OpenSource(t.Context(), server.URL+"/a.mp4?token=secret")
		if KindOf(err) != Unreachable || strings.Contains(err.Error(), "secret") {
			t.Errorf("kind %q: %v", KindOf(err), err)
		}
	})
}

func TestHTTPSourceWaitsForASlowServerUntilTheContextEnds(t *testing.T) {
	data := make([]byte, 2*blockBytes)
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	slow := failing(1, serveBytes(data).ServeHTTP, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
			serveBytes(data).ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	src, err := OpenSource(ctx, secretAddress(t, slow))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	result := make(chan error)
	read := func() {
		_, err := src.ReadAt(make([]byte, 1), blockBytes)
		result <- err
	}
	go read()
	<-arrived
	release <- struct{}{}
	if err := <-result; err != nil {
		t.Errorf("slow answer: %v", err)
	}
	src.cache = newBlockCache()
	go read()
	<-arrived
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
}

func TestReadAtGivesTheInputsBytesWhateverTheOrder(t *testing.T) {
	data := make([]byte, 20*blockBytes+777)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	src, err := OpenSource(t.Context(), secretAddress(t, serveBytes(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	rapid.Check(t, func(t *rapid.T) {
		off := rapid.Int64Range(0, int64(len(data))+10).Draw(t, "off")
		p := make([]byte, rapid.IntRange(0, 3*blockBytes).Draw(t, "length"))
		n, err := src.ReadAt(p, off)
		wantN, wantErr := bytes.NewReader(data).ReadAt(p[:len(p):len(p)], off)
		if n != wantN || !errors.Is(err, wantErr) {
			t.Fatalf("%d bytes, error %v; want %d, %v", n, err, wantN, wantErr)
		}
		if n > 0 && !bytes.Equal(p[:n], data[off:off+int64(n)]) {
			t.Fatal("wrong bytes")
		}
	})
	if src.BytesRead() > src.Size() {
		t.Errorf("fetched %d of %d bytes: the cache keeps too little", src.BytesRead(), src.Size())
	}
}

func TestBlockCacheIsBounded(t *testing.T) {
	c := newBlockCache()
	fetch := func(p []byte, off int64) error { clear(p); return nil }
	const size = 3 * cacheBlocks * blockBytes
	if err := c.readAt(make([]byte, size), 0, size, fetch); err != nil {
		t.Fatal(err)
	}
	if len(c.blocks) != cacheBlocks || c.recent.Len() != cacheBlocks {
		t.Errorf("keeps %d blocks", len(c.blocks))
	}
}

func TestIdentityChangesWithTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	identity := func(content string, at time.Time) string {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		src, err := OpenSource(t.Context(), "file://"+path)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		return src.Identity()
	}
	a := identity("one", time.Unix(1, 0))
	if b := identity("one", time.Unix(1, 0)); a != b {
		t.Errorf("%q and %q for the same file", a, b)
	}
	if b := identity("one", time.Unix(2, 0)); a == b {
		t.Error("does not change with the time")
	}
	if b := identity("more", time.Unix(1, 0)); a == b {
		t.Error("does not change with the size")
	}
}

// memoryBucket is a bucket of one object in memory.
type memoryBucket struct {
	key     string
	data    []byte
	address string
	// failures is how many reads still fail.
	failures int
	err      error
}

func (b *memoryBucket) Stat(_ context.Context, key string) (store.Info, error) {
	if key != b.key {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, store.ErrNotFound)
	}
	return store.Info{Key: key, SizeBytes: int64(len(b.data)), ETag: "e1"}, nil
}

func (b *memoryBucket) Get(_ context.Context, _ string, offset, length int64) (io.ReadCloser, error) {
	if b.failures > 0 {
		b.failures--
		return nil, b.err
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(b.data), offset, length)), nil
}

func (b *memoryBucket) PresignGet(context.Context, string, time.Duration) (string, error) {
	return b.address, nil
}

func TestObjectSourceReadsThroughItsStore(t *testing.T) {
	data, err := os.ReadFile(testVideo(t, "flower-5s.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	b := &memoryBucket{key: "films/a.mp4", data: data, address: secretAddress(t, serveBytes(data)),
		failures: 2, err: errors.New("connection reset")}
	open := func(key string) (*Source, error) {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		src, err := openFrom(ctx, b, key, "s3://bucket/"+key)
		if err == nil {
			src.ctx, src.cancel = ctx, cancel
		}
		return src, err
	}
	src, err := open("films/a.mp4")
	if err != nil {
		t.Fatal(err)
	}
	info, err := Probe(t.Context(), src)
	if err != nil || info.Video.FrameCount != 150 {
		t.Errorf("probe: %+v, error %v", info, err)
	}
	if !strings.Contains(src.Identity(), "e1") {
		t.Errorf("identity %q", src.Identity())
	}
	if _, err := open("films/b.mp4"); KindOf(err) != NotFound {
		t.Errorf("missing object: %v", err)
	}
	b.failures, b.err = 9, fmt.Errorf("get: %w", store.ErrPermission)
	if src, err = open("films/a.mp4"); err != nil {
		t.Fatal(err)
	}
	if _, err := src.ReadAt(make([]byte, 1), 0); KindOf(err) != Permission || b.failures != 8 {
		t.Errorf("forbidden object: %v after %d tries", err, 9-b.failures)
	}
}

func TestS3AddressIsOpenedThroughTheStore(t *testing.T) {
	data, err := os.ReadFile(testVideo(t, "flower-5s.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	backend := s3mem.New()
	if err := backend.CreateBucket("films"); err != nil {
		t.Fatal(err)
	}
	if _, err := backend.PutObject("films", "odd dir/a b.mp4", nil, bytes.NewReader(data), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend).Server())
	defer server.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	query := "?region=us-east-1&endpoint=" + url.QueryEscape(server.URL)
	info, src := probeFile(t, "s3://films/odd%20dir/a%20b.mp4"+query)
	if info.Video.FrameCount != 150 || src.BytesRead() > src.Size() {
		t.Errorf("%d frames, %d bytes read", info.Video.FrameCount, src.BytesRead())
	}
	if strings.Contains(src.Name(), "region") {
		t.Errorf("name %q", src.Name())
	}
	if _, err := OpenSource(t.Context(), "s3://films/none.mp4"+query); KindOf(err) != NotFound {
		t.Errorf("missing object: %v", err)
	}
	if _, err := OpenSource(t.Context(), "s3://films"+query); KindOf(err) != Unsupported {
		t.Errorf("no key: %v", err)
	}
}

func TestProbeOutlastsFailuresThatFFmpegMeets(t *testing.T) {
	data, err := os.ReadFile(makeClip(t, "a.ts", "-i $flower-5s.mp4 -c copy"))
	if err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int32
	src, err := OpenSource(t.Context(), secretAddress(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if failures.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		serveBytes(data).ServeHTTP(w, r)
	})))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	failures.Store(1)
	if info, err := Probe(t.Context(), src); err != nil || info.Video.FrameCount != 150 {
		t.Errorf("%+v, error %v", info, err)
	}
	failures.Store(math.MaxInt32)
	if _, err := Probe(t.Context(), src); KindOf(err) != Unreachable || strings.Contains(err.Error(), "secret") {
		t.Errorf("kind %q: %v", KindOf(err), err)
	} else {
		t.Log(err)
	}
}

func TestPublicNameHoldsNoSecret(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z0-9]{1,8}`)
		u := url.URL{Scheme: "https", Host: "host", Path: "/" + word.Draw(t, "path")}
		want := u.String()
		u.User = url.UserPassword("SECRET"+word.Draw(t, "user"), "SECRET@/?"+word.Draw(t, "password"))
		u.RawQuery = "t=SECRET" + word.Draw(t, "query")
		u.Fragment = "SECRET"
		if got := publicName(u.String()); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}
