package faasnap

import (
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
)

func run(start, end int) Run {
	return Run{Recorded: time.Unix(int64(start), 0), Working: pages.WorkingSet{Pages: 1000, Groups: []pages.Group{{{Start: start, End: end}}}}}
}

func TestRunsSurviveBeingWritten(t *testing.T) {
	want := []Run{run(1, 5), run(700, 1000)}
	b, err := encodeRuns(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRuns(b)
	if err != nil || len(got) != 2 || !got[1].Recorded.Equal(want[1].Recorded) || !got[1].Working.Set().Equal(want[1].Working.Set()) {
		t.Errorf("runs %v, error %v; want %v", got, err, want)
	}
	for n := range b {
		if runs, err := decodeRuns(b[:n]); err == nil && len(runs) == 2 {
			t.Errorf("%d of %d bytes are all runs", n, len(b))
		}
	}
}

func TestPagesThatNoRecentRunWantedAreForgotten(t *testing.T) {
	runs := []Run{run(1, 5)}
	for range plannedRuns - 1 {
		runs = append(runs, run(100, 110))
	}
	if !merged(runs).Set().Has(1) {
		t.Error("the oldest of the runs that count was forgotten")
	}
	if merged(append(runs, run(100, 110))).Set().Has(1) {
		t.Error("a page that no recent run wanted is still loaded")
	}
}

func FuzzDecodeRuns(f *testing.F) {
	b, err := encodeRuns([]Run{run(1, 5), run(700, 1000)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		runs, err := decodeRuns(b)
		if err != nil {
			return
		}
		if _, err := encodeRuns(runs); err != nil {
			t.Errorf("what was decoded cannot be encoded: %v", err)
		}
	})
}
