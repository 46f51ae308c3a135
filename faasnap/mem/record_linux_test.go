package mem_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// touch makes pages resident, by writing to them.
func touch(t testing.TB, f *os.File, r pages.Range) {
	t.Helper()
	write(t, f, bytes.Repeat([]byte{1}, r.Len()*pages.Size), int64(r.Start)*pages.Size)
}

func TestResidentPagesAreThoseInThePageCache(t *testing.T) {
	const n = 100_000 // more than one step
	f := newFile(t, n)
	want := pages.NewSet(n)
	for _, r := range []pages.Range{{Start: 0, End: 1}, {Start: 500, End: 600}, {Start: 65530, End: 65540}, {Start: n - 1, End: n}} {
		touch(t, f, r)
		want.AddRange(r)
	}
	got, err := mem.Resident(f, n*pages.Size)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) {
		t.Errorf("%d pages; want %d", got.Count(), want.Count())
	}
}

func TestARecordingHasAGroupForEachGrowthOfTheProcess(t *testing.T) {
	f := newFile(t, 10_000)
	r, err := mem.NewRecorder(f, 10_000*pages.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The process grows by less than a group, by a group and more, shrinks,
	// grows back by a group, and ends.
	steps := []struct {
		touches pages.Range
		rss     int
	}{
		{pages.Range{Start: 5000, End: 5010}, 100},
		{pages.Range{Start: 100, End: 200}, 1500},
		{pages.Range{Start: 5005, End: 5015}, 200},
		{pages.Range{Start: 50, End: 60}, 1300},
		{pages.Range{Start: 9000, End: 9001}, 1400},
	}
	step := 0
	err = r.Run(context.Background(), pages.GroupPages, time.Microsecond, func() (int, error) {
		if step == len(steps) {
			return 0, fmt.Errorf("look: %w", os.ErrProcessDone)
		}
		s := steps[step]
		step++
		touch(t, f, s.touches)
		return s.rss, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []pages.Group{
		{{Start: 100, End: 200}, {Start: 5000, End: 5010}},
		{{Start: 50, End: 60}, {Start: 5010, End: 5015}},
		{{Start: 9000, End: 9001}},
	}
	if got := r.WorkingSet(); !reflect.DeepEqual(got.Groups, want) {
		t.Errorf("groups %v; want %v", got.Groups, want)
	}
}

func TestARecordingEndsWithItsContextAndARoundMore(t *testing.T) {
	f := newFile(t, 100)
	r, err := mem.NewRecorder(f, 100*pages.Size)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = r.Run(ctx, pages.GroupPages, time.Microsecond, func() (int, error) {
		touch(t, f, pages.Range{Start: 7, End: 8})
		cancel()
		return 1, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.WorkingSet().Groups; !reflect.DeepEqual(got, []pages.Group{{{Start: 7, End: 8}}}) {
		t.Errorf("groups %v; want page 7", got)
	}
	broken := errors.New("broken")
	if err := r.Run(context.Background(), 1, time.Microsecond, func() (int, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v; want that of rss", err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Round(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v after Close; want closed", err)
	}
}

func TestTheResidentSetOfAProcessIsKnownUntilItIsGone(t *testing.T) {
	if n, err := mem.RSS(os.Getpid()); err != nil || n < 100 {
		t.Errorf("resident set of %d pages (%v)", n, err)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.RSS(cmd.Process.Pid); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("error %v; want that the process is gone", err)
	}
}

// BenchmarkScan scans 512 MiB in the page cache. GB/cpu-s counts the
// processor's time, so that other programs on the machine matter less. A file
// that was written in large pieces is in large folios, which the kernel copies
// faster.
func BenchmarkScan(b *testing.B) {
	const n = 512 << 20 / pages.Size
	for _, bc := range []struct {
		name   string
		every  int // how many pages there are for one that is not zero
		pieces int // how many pages are written at once
	}{
		{"all zero", 0, 256}, {"half zero", 2, 256}, {"none zero", 1, 256},
		{"all zero, written by pages", 0, 1}, {"half zero, written by pages", 2, 1}, {"none zero, written by pages", 1, 1},
	} {
		b.Run(bc.name, func(b *testing.B) {
			f := newFile(b, n)
			for i := 0; i < n; i += bc.pieces {
				piece := make([]byte, bc.pieces*pages.Size)
				for j := range bc.pieces {
					if bc.every > 0 && (i+j)%bc.every == 0 {
						piece[j*pages.Size+100] = 1
					}
				}
				write(b, f, piece, int64(i)*pages.Size)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := threadTime(b)
			b.SetBytes(n * pages.Size)
			rounds := 0
			for b.Loop() {
				rounds++
				if _, err := mem.Scan(f, n*pages.Size); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(rounds)*n*pages.Size/1e9/(threadTime(b)-before).Seconds(), "GB/cpu-s")
		})
	}
	b.Run("sparse", func(b *testing.B) {
		f := newFile(b, n)
		for i := 0; i < n; i += 1024 {
			touch(b, f, pages.Range{Start: i, End: i + 100})
		}
		b.SetBytes(n * pages.Size)
		for b.Loop() {
			if _, err := mem.Scan(f, n*pages.Size); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRound is a round of recording 2 GiB of guest memory.
func BenchmarkRound(b *testing.B) {
	const n = 2 << 30 / pages.Size
	f := newFile(b, n)
	for i := 0; i < n; i += 4096 {
		touch(b, f, pages.Range{Start: i, End: i + 300})
	}
	r, err := mem.NewRecorder(f, n*pages.Size)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for b.Loop() {
		if _, err := r.Round(); err != nil {
			b.Fatal(err)
		}
	}
}

func threadTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
