package guest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/internal/sys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// makeFile is a build that writes one file.
func makeFile(content string, times *atomic.Int32) func(string) ([]string, error) {
	return func(dir string) ([]string, error) {
		times.Add(1)
		return []string{"file"}, os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600)
	}
}

func TestOneOfManyBuildsAndAllGetIt(t *testing.T) {
	b := &Builder{Dir: t.TempDir()}
	var times atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := b.get(t.Context(), newKey("x"), false, makeFile("content", &times))
			if err != nil || len(got) != 1 {
				t.Errorf("%v, error %v", got, err)
				return
			}
			if text, err := os.ReadFile(got[0]); err != nil || string(text) != "content" {
				t.Errorf("%q, error %v", text, err)
			}
		})
	}
	wg.Wait()
	if n := times.Load(); n != 1 {
		t.Errorf("built %d times", n)
	}
	if entries, err := os.ReadDir(filepath.Join(b.Dir, tmpDir)); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, error %v", entries, err)
	}
}

func TestARefreshLeavesWhatIsInUse(t *testing.T) {
	b := &Builder{Dir: t.TempDir()}
	var times atomic.Int32
	first, err := b.get(t.Context(), newKey("x"), false, makeFile("old", &times))
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.get(t.Context(), newKey("x"), true, makeFile("new", &times))
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.get(t.Context(), newKey("x"), false, makeFile("never", &times))
	if err != nil {
		t.Fatal(err)
	}
	if first[0] == second[0] || second[0] != again[0] || times.Load() != 2 {
		t.Errorf("%v, %v, %v after %d builds", first, second, again, times.Load())
	}
	if text, err := os.ReadFile(first[0]); err != nil || string(text) != "old" {
		t.Errorf("the old one: %q, error %v", text, err)
	}
}

func TestWhatFailedOrWasLostIsBuiltAgain(t *testing.T) {
	b := &Builder{Dir: t.TempDir()}
	var times atomic.Int32
	broken := errors.New("broken")
	if _, err := b.get(t.Context(), newKey("x"), false, func(dir string) ([]string, error) {
		return nil, errors.Join(broken, os.WriteFile(filepath.Join(dir, "half"), nil, 0o600))
	}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	// A build that was killed leaves its directory.
	tmp := filepath.Join(b.Dir, tmpDir, newKey("x").String())
	if err := os.MkdirAll(filepath.Join(tmp, "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := b.get(t.Context(), newKey("x"), false, makeFile("content", &times))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(got[0]); err != nil {
			t.Fatal(err)
		}
	}
	if n := times.Load(); n != 2 {
		t.Errorf("built %d times", n)
	}
}

func TestWaitingForAnotherBuildCanBeCancelled(t *testing.T) {
	b := &Builder{Dir: t.TempDir()}
	lock, err := sys.LockFile(filepath.Join(b.Dir, locksDir, newKey("x").String()))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.get(ctx, newKey("x"), false, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestKeysTellTheirPartsApart(t *testing.T) {
	if newKey("a", "bc").String() == newKey("ab", "c").String() {
		t.Error("they do not")
	}
}

func TestAMissingProgramIsNamedWithItsPackage(t *testing.T) {
	var missing *MissingToolError
	if err := run(t.Context(), "some-package", "volley-no-such-program"); !errors.As(err, &missing) || missing.Package != "some-package" {
		t.Errorf("error %v", err)
	}
}

func TestAProgramEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := run(ctx, "coreutils", "sh", "-c", "sleep 60 & wait")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
		t.Errorf("error %v after %v", err, time.Since(start))
	}
}

func TestAFailingProgramTellsWhatItSaid(t *testing.T) {
	err := run(t.Context(), "coreutils", "sh", "-c", "echo the reason >&2; exit 3")
	if err == nil || err.Error() != "run sh: exit status 3: the reason" {
		t.Errorf("error %v", err)
	}
}

func TestTheCacheIsWhereTheEnvironmentSays(t *testing.T) {
	t.Setenv(EnvCache, "/some/where")
	if dir, err := CacheDir(); err != nil || dir != "/some/where" {
		t.Errorf("%s, error %v", dir, err)
	}
}
