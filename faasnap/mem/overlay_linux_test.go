package mem_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// randomGuest fills a memory file with runs of zero and other pages, and returns
// what is not zero, and a working set.
func randomGuest(t testing.TB, rng *rand.Rand, n int) (*os.File, pages.Set, pages.WorkingSet) {
	t.Helper()
	f := newFile(t, n)
	nonZero := pages.NewSet(n)
	b := make([]byte, 200*pages.Size)
	for at := rng.IntN(50); at < n; at += 1 + rng.IntN(50) {
		end := min(n, at+1+rng.IntN(1<<rng.IntN(8)))
		b := b[:(end-at)*pages.Size]
		for i := 0; i < len(b); i += 8 {
			b[i] = byte(rng.Uint32() | 1)
			b[i+3] = byte(at)
			b[i+5] = byte(i >> 12)
		}
		write(t, f, b, int64(at)*pages.Size)
		nonZero.AddRange(pages.Range{Start: at, End: end})
		at = end
	}
	w, seen := pages.WorkingSet{Pages: n}, pages.NewSet(n)
	for range rng.IntN(5) {
		resident := pages.NewSet(n)
		for range rng.IntN(40) {
			start := rng.IntN(n)
			resident.AddRange(pages.Range{Start: start, End: min(n, start+1+rng.IntN(1<<rng.IntN(7)))})
		}
		w.Add(seen, resident)
	}
	return f, nonZero, w
}

// gather writes the loading-set file of a plan.
func gather(t testing.TB, p *pages.Plan, memory *os.File) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "loading"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := mem.Gather(f, p, memory); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMappedMemoryEqualsTheMemoryFileForAnyPlan(t *testing.T) {
	mapped := 0
	for seed := range uint64(120) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			memory, nonZero, w := randomGuest(t, rng, 1+rng.IntN(1200))
			size := int64(nonZero.Pages()) * pages.Size
			scanned, err := mem.Scan(memory, size)
			if err != nil {
				t.Fatal(err)
			}
			if !scanned.Equal(nonZero) {
				t.Fatal("the scan found other pages than were written")
			}
			o := pages.Options{MergeGap: []int{0, 1, 32}[rng.IntN(3)], MaxMappings: []int{7, 30, 10000}[rng.IntN(3)]}
			p, err := pages.Make(scanned, w, o)
			if err != nil {
				t.Fatal(err)
			}
			m, err := mem.Map(p, memory, gather(t, p, memory))
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(memory.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Bytes(), want) {
				t.Errorf("mapped memory differs from the file (plan of %d regions, %v)", len(p.Regions), o)
			}
			// The guest writes, to itself only.
			for i := rng.IntN(100); i < len(m.Bytes()); i += 1000 {
				m.Bytes()[i] ^= 0xff
			}
			if after, err := os.ReadFile(memory.Name()); err != nil || !bytes.Equal(after, want) {
				t.Errorf("writing to mapped memory changed the file (%v)", err)
			}
			if err := errors.Join(m.Close(), m.Close()); err != nil {
				t.Error(err)
			}
			mapped += len(p.Regions)
		})
	}
	t.Logf("mapped %d regions", mapped)
}

func TestAPlanTakesAsManyMappingsAsItHasRegions(t *testing.T) {
	memory, nonZero, w := randomGuest(t, rand.New(rand.NewPCG(3, 3)), 3000)
	p, err := pages.Make(nonZero, w, pages.Options{MergeGap: 2, MaxMappings: 10000})
	if err != nil {
		t.Fatal(err)
	}
	loading := gather(t, p, memory)
	m, err := mem.Map(p, memory, loading)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		f      *os.File
		source pages.Source
	}{{memory, pages.Memory}, {loading, pages.Loading}} {
		_, want := p.Count(tc.source)
		if got := strings.Count(string(maps), tc.f.Name()+"\n"); got != want {
			t.Errorf("%d mappings of %v; want %d", got, tc.source, want)
		}
	}
}

func TestFilesTooShortForThePlanAreNotMapped(t *testing.T) {
	memory, nonZero, w := randomGuest(t, rand.New(rand.NewPCG(4, 4)), 1000)
	w.Groups = append(w.Groups, pages.Group{{Start: 0, End: 1000}})
	p, err := pages.Make(nonZero, w, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	loading := gather(t, p, memory)
	if _, err := mem.Map(p, memory, nil); err == nil {
		t.Error("mapped a plan without its loading-set file")
	}
	if err := loading.Truncate(int64(p.LoadingPages)*pages.Size - 1); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Map(p, memory, loading); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), loading.Name()) {
		t.Errorf("error %v; want the loading-set file's end", err)
	}
	if _, err := mem.Map(p, newFile(t, 999), loading); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v; want the memory file's end", err)
	}
}

// BenchmarkMap maps 2 GiB of guest memory and unmaps it.
func BenchmarkMap(b *testing.B) {
	for _, regions := range []int{1000, 4000, pages.DefaultMaxMappings} {
		b.Run(fmt.Sprint(regions, " regions"), func(b *testing.B) {
			const n = 2 << 30 / pages.Size
			memory := newFile(b, n)
			nonZero := pages.NewSet(n)
			for i := range regions / 2 {
				at := i * (n / (regions / 2))
				nonZero.AddRange(pages.Range{Start: at, End: at + 10})
			}
			p, err := pages.Make(nonZero, pages.WorkingSet{}, pages.DefaultOptions())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				m, err := mem.Map(p, memory, nil)
				if err != nil {
					b.Fatal(err)
				}
				if err := m.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestFiveHundredMappingsInARowLeaveNothing(t *testing.T) {
	memory, nonZero, w := randomGuest(t, rand.New(rand.NewPCG(5, 5)), 2000)
	p, err := pages.Make(nonZero, w, pages.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	loading := gather(t, p, memory)
	count := func() (mappings, files int) {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(maps), memory.Name()) + strings.Count(string(maps), loading.Name()), len(fds)
	}
	_, before := count()
	for range 500 {
		m, err := mem.Map(p, memory, loading)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if mappings, after := count(); mappings != 0 || after > before {
		t.Errorf("%d mappings are left, and %d files are open; want none and %d", mappings, after, before)
	}
}
