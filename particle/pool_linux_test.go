//go:build linux

package particle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func testPool(dir string, size int) *Pool {
	return newPool(dir, size, func(i int) Endpoint { return Endpoint{Index: i, Name: strconv.Itoa(i)} })
}

func TestAnOwnerGetsTheSameEndpointAgainAlsoInAnotherProcess(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	first, err := testPool(dir, 10).Acquire(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := testPool(dir, 10).Acquire(ctx, "b")
	if err != nil || other.Index == first.Index {
		t.Fatalf("b has %d as a has (%v)", other.Index, err)
	}
	again, err := testPool(dir, 10).Acquire(ctx, "a")
	if err != nil || again != first {
		t.Errorf("a has %v, then %v (%v)", first, again, err)
	}
}

func TestAPoolThatIsUsedUpSaysSo(t *testing.T) {
	p, ctx := testPool(t.TempDir(), 2), context.Background()
	for _, owner := range []string{"a", "b"} {
		if _, err := p.Acquire(ctx, owner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Acquire(ctx, "c"); !errors.Is(err, ErrNoEndpointLeft) {
		t.Errorf("got %v", err)
	}
	if err := p.Release(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := p.Release(ctx, "a"); err != nil {
		t.Errorf("second release: %v", err)
	}
	if ep, err := p.Acquire(ctx, "c"); err != nil || ep.Index != 0 {
		t.Errorf("got %v, %v", ep, err)
	}
}

func TestAPoolRefusesOwnersWithoutNameOrWithALongOne(t *testing.T) {
	p := testPool(t.TempDir(), 2)
	for _, owner := range []string{"", strings.Repeat("x", 256)} {
		if _, err := p.Acquire(context.Background(), owner); err == nil {
			t.Errorf("took an owner's name of %d bytes", len(owner))
		}
	}
}

func TestManyOwnersAtOnceGetEndpointsOfTheirOwn(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	const n = 200
	var wg sync.WaitGroup
	got := make([]Endpoint, n)
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { got[i], errs[i] = testPool(dir, n).Acquire(ctx, fmt.Sprint("owner/", i)) })
	}
	wg.Wait()
	seen := map[int]bool{}
	for i := range n {
		if errs[i] != nil || seen[got[i].Index] {
			t.Fatalf("owner %d has endpoint %d: %v", i, got[i].Index, errs[i])
		}
		seen[got[i].Index] = true
	}
	owners, err := testPool(dir, n).Owners()
	if err != nil || len(owners) != n {
		t.Errorf("%d owners, %v", len(owners), err)
	}
}

// A process can die between any two steps. Whatever it leaves, an endpoint
// never has two owners, and an owner gets one endpoint.
func TestAPoolHealsWhatADeadProcessLeft(t *testing.T) {
	top := t.TempDir()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		dir, ctx := filepath.Join(top, strconv.Itoa(round)), context.Background()
		const size = 4
		owners := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			owner := rapid.SampledFrom(owners).Draw(t, "owner")
			p := testPool(dir, size)
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if _, err := p.Acquire(ctx, owner); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := p.Release(ctx, owner); err != nil {
					t.Fatal(err)
				}
			case 2: // died after the first link of Acquire
				if _, err := os.Readlink(p.ownerFile(owner)); err != nil {
					if err := os.MkdirAll(filepath.Dir(p.ownerFile(owner)), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.Symlink(strconv.Itoa(rapid.IntRange(0, size-1).Draw(t, "index")), p.ownerFile(owner)); err != nil {
						t.Fatal(err)
					}
				}
			case 3: // died after the first removal of Release
				if i, err := p.indexOf(owner); err == nil && i >= 0 {
					if has, _ := os.Readlink(p.file(i)); has == owner {
						os.Remove(p.file(i))
					}
				}
			}
		}
		got := map[int]string{}
		for _, owner := range owners {
			ep, err := testPool(dir, size).Acquire(ctx, owner)
			if err != nil {
				t.Fatal(err)
			}
			if other, taken := got[ep.Index]; taken {
				t.Fatalf("%s and %s have endpoint %d", other, owner, ep.Index)
			}
			got[ep.Index] = owner
		}
		all, err := testPool(dir, size).Owners()
		if err != nil || len(all) != len(owners) {
			t.Fatalf("%d endpoints in use by %d owners: %v", len(all), len(owners), err)
		}
	})
}
