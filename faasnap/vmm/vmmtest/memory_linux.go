package vmmtest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/mem/memtest"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/vmm"
)

// restoresMemory looks at memory from outside, before the guest changes it.
func (s *suite) restoresMemory(t *testing.T) {
	for _, k := range s.Kinds {
		t.Run(string(k), func(t *testing.T) {
			s.leavesNothing(t)
			m := s.restorePaused(t, s.saved, k)
			m.compare(t, s.saved.memory)
			answers := m.asking("sum")
			m.resume(t)
			if a := <-answers; a.err != nil || a.text != s.saved.sum {
				t.Errorf("the guest has memory %s (%v), was saved with %s", a.text, a.err, s.saved.sum)
			}
		})
	}
}

// restoresPlans does that for any plan over the saved memory.
func (s *suite) restoresPlans(t *testing.T) {
	memory, err := os.Open(s.saved.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	nonZero, err := mem.Scan(memory, s.saved.machine.MemoryBytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []Kind{Overlay, Faults} {
		if !slices.Contains(s.Kinds, k) {
			continue
		}
		for seed := range uint64(5) {
			t.Run(fmt.Sprint(k, ", seed ", seed), func(t *testing.T) {
				s.leavesNothing(t)
				rng := rand.New(rand.NewPCG(seed, uint64(len(k))))
				v := *s.saved
				v.lay(t, memory, nonZero, randomWorkingSet(rng, nonZero.Pages()), pages.Options{
					MergeGap: []int{0, 1, 32}[rng.IntN(3)], MaxMappings: []int{20, 500, 10000}[rng.IntN(3)],
				})
				m := s.restorePaused(t, &v, k)
				m.compare(t, v.memory)
				m.resume(t)
				m.echo(t)
			})
		}
	}
}

func randomWorkingSet(rng *rand.Rand, n int) pages.WorkingSet {
	w, seen := pages.WorkingSet{Pages: n}, pages.NewSet(n)
	for range rng.IntN(6) {
		resident := pages.NewSet(n)
		for range rng.IntN(200) {
			start := rng.IntN(n)
			resident.AddRange(pages.Range{Start: start, End: min(n, start+1+rng.IntN(1<<rng.IntN(9)))})
		}
		w.Add(seen, resident)
	}
	return w
}

func (s *suite) restorePaused(t *testing.T, v *saved, k Kind) *machine {
	t.Helper()
	vm, err := s.Driver.Restore(s.context(t), vmm.Restore{
		Machine: v.machine, State: v.state, Memory: s.memory(t, v, k), Dir: newDir(t), Paused: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.own(t, vm)
}

// compare checks that a paused guest's memory is that of a file.
func (m *machine) compare(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	address, err := m.s.Locate(m.vm.PID(), info.Size())
	if err != nil {
		t.Fatal(err)
	}
	want, got := make([]byte, mem.LoadChunk), make([]byte, mem.LoadChunk)
	var differ []int
	for at := int64(0); at < info.Size(); {
		n := int(min(int64(len(want)), info.Size()-at))
		if _, err := io.ReadFull(f, want[:n]); err != nil {
			t.Fatal(err)
		}
		if err := memtest.Read(m.vm.PID(), address+uint64(at), got[:n]); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < n; i += pages.Size {
			if !bytes.Equal(want[i:i+pages.Size], got[i:i+pages.Size]) {
				differ = append(differ, int(at+int64(i))/pages.Size)
			}
		}
		at += int64(n)
	}
	if len(differ) > 0 {
		t.Errorf("%d pages are not what was saved: %v", len(differ), differ[:min(len(differ), 20)])
	}
}
