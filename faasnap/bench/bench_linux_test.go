package bench_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
	"github.com/volley-run/volley/faasnap/faasnaptest"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/internal/testenv"
)

// open returns a Bench on QEMU that keeps its files in a new directory.
func open(t *testing.T) *bench.Bench {
	t.Helper()
	driver, builder := faasnaptest.QEMU(t)
	s, err := faasnap.Open(faasnap.Config{Dir: t.TempDir(), Driver: driver, Builder: builder})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return bench.New(bench.Config{Service: s, MemoryBytes: 256 << 20, SyntheticMB: 64, Timeout: time.Minute, CodeDir: t.TempDir()})
}

func TestMachinesAreMeasured(t *testing.T) {
	b := open(t)
	w, ok := bench.Find(bench.HelloWorld)
	if !ok {
		t.Fatal("there is no such workload")
	}
	f, err := b.Build(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	input, _ := w.Inputs()
	r, err := b.Record(t.Context(), w, f, input, "a")
	if err != nil {
		t.Fatal(err)
	}
	event, err := w.Event(input)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []faasnap.Mode{bench.Warm, faasnap.Full, faasnap.REAP, faasnap.FaaSnap} {
		m, err := b.Test(t.Context(), bench.Test{Recorded: r, Mode: mode, Event: event})
		if err != nil {
			t.Fatal(err)
		}
		if m.Answer != `{"answer": "hello"}` {
			t.Errorf("mode %s answers %s", mode, m.Answer)
		}
		if m.Invocation <= 0 || m.Invocation > m.Total || m.MinorFaults == 0 || m.AnonymousBytes == 0 {
			t.Errorf("mode %s: %+v", mode, m)
		}
		switch mode {
		case bench.Warm:
		case faasnap.Full:
			if m.MajorFaults == 0 || m.VMMReadBytes < 1<<20 {
				t.Errorf("mode %s: its caches were not cold: %+v", mode, m)
			}
		default:
			if m.Fetch <= 0 || m.FetchBytes < 1<<20 || m.VMM <= 0 || m.Setup < m.VMM {
				t.Errorf("mode %s: %+v", mode, m)
			}
		}
	}
	other, err := b.Copy(t.Context(), r, "b")
	if err != nil {
		t.Fatal(err)
	}
	times, err := b.Burst(t.Context(), []bench.Recorded{r, other, r}, faasnap.FaaSnap, event)
	if err != nil || len(times) != 3 {
		t.Errorf("burst of 3: %v, %v", times, err)
	}
	for _, r := range []bench.Recorded{r, other} {
		if err := b.Remove(r); err != nil {
			t.Error(err)
		}
	}
}

func TestReadsAreThrottled(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	disk, err := bench.FindDisk(dir)
	if err != nil {
		t.Logf("no disk to throttle: %v", err)
		return
	}
	throttle, err := bench.NewThrottle(disk, 8e6, 1000)
	if err != nil {
		t.Logf("no control group for it: %v", err)
		return
	}
	defer func() {
		if err := throttle.Close(); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "content")
	if err := os.WriteFile(path, bytes.Repeat([]byte("volley"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := mem.Evict(f); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := io.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 700*time.Millisecond {
		t.Errorf("12 MB took %s at 8 MB a second", took)
	}
}
