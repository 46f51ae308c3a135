package dircache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/internal/sys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string, maxBytes int64) *Cache {
	t.Helper()
	c, err := Open(dir, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// file builds an entry of that size with one file.
func file(size int64) Build {
	return func(_ context.Context, dir string) (int64, error) {
		return size, os.WriteFile(filepath.Join(dir, "file"), make([]byte, size), 0o644)
	}
}

func refuse(context.Context, string) (int64, error) {
	return 0, errors.New("built again")
}

func TestManyThatAskForOneKeyBuildItOnce(t *testing.T) {
	c := open(t, t.TempDir(), 1000)
	var builds atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			ref, err := c.Get(t.Context(), "key", func(ctx context.Context, dir string) (int64, error) {
				builds.Add(1)
				return file(10)(ctx, dir)
			})
			if err != nil {
				t.Error(err)
				return
			}
			defer ref.Release()
			if _, err := os.Stat(filepath.Join(ref.Dir(), "file")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("built %d times", n)
	}
}

func TestAFailedBuildIsEveryonesErrorAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 1000)
	wrong := errors.New("wrong")
	started, goOn := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	go func() {
		_, err := c.Get(t.Context(), "key", func(_ context.Context, dir string) (int64, error) {
			close(started)
			<-goOn
			return 0, errors.Join(wrong, os.WriteFile(filepath.Join(dir, "half"), nil, 0o644))
		})
		first <- err
	}()
	<-started
	second := make(chan error)
	go func() {
		_, err := c.Get(t.Context(), "key", file(1))
		second <- err
	}()
	close(goOn)
	if err := <-first; !errors.Is(err, wrong) {
		t.Errorf("the builder got %v", err)
	}
	// Whoever came too late to wait has built it anew.
	if err := <-second; err != nil && !errors.Is(err, wrong) {
		t.Errorf("the other got %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "boot-*", workName, "*")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestTheEndOfTheBuildersContextIsNotTheOthersError(t *testing.T) {
	c := open(t, t.TempDir(), 1000)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	first := make(chan error)
	go func() {
		_, err := c.Get(ctx, "key", func(ctx context.Context, _ string) (int64, error) {
			close(started)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		first <- err
	}()
	<-started
	second := make(chan error)
	go func() {
		ref, err := c.Get(t.Context(), "key", file(1))
		if err == nil {
			ref.Release()
		}
		second <- err
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the builder got %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the other got %v", err)
	}
}

func TestTheLeastRecentlyUsedGoFirstAndNoneInUse(t *testing.T) {
	c := open(t, t.TempDir(), 100)
	get := func(key string, build Build) *Ref {
		t.Helper()
		ref, err := c.Get(t.Context(), key, build)
		if err != nil {
			t.Fatalf("get %s: %v", key, err)
		}
		return ref
	}
	held := get("held", file(40))
	get("old", file(30)).Release()
	get("new", file(30)).Release()
	get("newest", file(30)).Release() // 130 bytes: old goes
	get("new", refuse).Release()
	get("newest", refuse).Release()
	if got := c.Bytes(); got != 100 {
		t.Errorf("%d bytes", got)
	}
	if _, err := c.Get(t.Context(), "old", refuse); err == nil {
		t.Error("old is still there")
	}
	large := get("large", file(200)) // everything idle goes
	if got := c.Bytes(); got != 240 {
		t.Errorf("%d bytes", got)
	}
	get("held", refuse).Release()
	held.Release()
	held.Release() // idempotent
	large.Release()
	if got := c.Bytes(); got > 100 {
		t.Errorf("%d bytes", got)
	}
}

func TestEntriesOutliveTheProcessAndLeftoversDoNot(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 1000)
	ref, err := c.Get(t.Context(), "key", file(10))
	if err != nil {
		t.Fatal(err)
	}
	ref.Release()
	if _, err := Open(dir, 1000); !errors.Is(err, sys.ErrLocked) {
		t.Errorf("a second cache in the same directory: %v", err)
	}
	leftover := filepath.Join(c.dir, workName, "make-1")
	otherBoot := filepath.Join(dir, "boot-other")
	for _, path := range []string{leftover, otherBoot} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), "key", refuse); !errors.Is(err, os.ErrClosed) {
		t.Errorf("get after close: %v", err)
	}
	c = open(t, dir, 1000)
	ref, err = c.Get(t.Context(), "key", refuse)
	if err != nil {
		t.Fatal(err)
	}
	ref.Release()
	for _, path := range []string{leftover, otherBoot} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestKeysThatAreNoFileNamesAreRefused(t *testing.T) {
	c := open(t, t.TempDir(), 1000)
	for _, key := range []string{"", ".", "..", ".work", "a/b", "../a"} {
		if _, err := c.Get(t.Context(), key, file(1)); err == nil {
			t.Errorf("key %q is accepted", key)
		}
	}
}

func TestWhateverIsUsedTheCacheStaysInItsBoundsAndKeepsWhatIsHeld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "dircache-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		c, err := Open(dir, 100)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var held []*Ref
		keys := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		t.Repeat(map[string]func(*rapid.T){
			"get": func(t *rapid.T) {
				ref, err := c.Get(context.Background(), keys.Draw(t, "key"), file(rapid.Int64Range(0, 60).Draw(t, "size")))
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, ref)
			},
			"release": func(t *rapid.T) {
				if len(held) == 0 {
					return
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				held[i].Release()
				held = append(held[:i], held[i+1:]...)
			},
			"": func(t *rapid.T) {
				for _, ref := range held {
					if _, err := os.Stat(filepath.Join(ref.Dir(), "file")); err != nil {
						t.Fatal(err)
					}
				}
				if len(held) == 0 && c.Bytes() > 100 {
					t.Fatalf("%d bytes with nothing in use", c.Bytes())
				}
			},
		})
	})
}
