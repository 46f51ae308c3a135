package media

import (
	"math"
	"slices"
	"sort"
)

// Index says where the frames of a video track are. Times are presentation
// times in ticks of the track's time base. An Index does not change once made
// and may be used concurrently.
type Index struct {
	keys []int64
	runs []run // in order of start; empty when frames are unknown
}

// run is count frames, step ticks apart. Constant frame rates need one run for
// a whole film; rates that the time base cannot express need one for every
// three frames or so.
type run struct {
	start, step int64
	count       int32
	before      int32 // frames of all earlier runs
}

func (r run) last() int64 { return r.start + int64(r.count-1)*r.step }

// below returns how many frames of r have a pts below x.
func (r run) below(x int64) int {
	switch {
	case x <= r.start:
		return 0
	case x > r.last():
		return int(r.count)
	}
	return int((x - r.start + r.step - 1) / r.step)
}

// NewIndex makes an Index from the times of key frames and of all frames, in
// any order. A nil frames means that only key frames are known. Neither slice
// is kept.
func NewIndex(keys, frames []int64) *Index {
	ix := &Index{keys: slices.Clone(keys)}
	slices.Sort(ix.keys)
	ix.keys = slices.Compact(ix.keys)
	if !slices.IsSorted(frames) {
		frames = slices.Clone(frames)
		slices.Sort(frames)
	}
	ix.runs = packRuns(frames)
	return ix
}

// packRuns describes sorted times by as few runs as a greedy reader finds.
func packRuns(pts []int64) []run {
	var runs []run
	for i := 0; i < len(pts); {
		r := run{start: pts[i], count: 1, before: int32(i)}
		if i+1 < len(pts) {
			r.step = pts[i+1] - pts[i]
			for i+int(r.count) < len(pts) && pts[i+int(r.count)]-pts[i+int(r.count)-1] == r.step {
				r.count++
			}
		}
		runs = append(runs, r)
		i += int(r.count)
	}
	return slices.Clip(runs)
}

// KeyFrames returns the times of the key frames, rising, without duplicates.
// Decoding can start at each. Where an edit list hides the start of a group of
// pictures, the first frame shown stands for the hidden key frame: seeking to
// it finds that one. The slice belongs to the Index.
func (ix *Index) KeyFrames() []int64 { return ix.keys }

// KeyBefore returns the last key frame at or before pts, or the first one when
// all are later. It returns pts when the Index has no key frame.
func (ix *Index) KeyBefore(pts int64) int64 {
	if len(ix.keys) == 0 {
		return pts
	}
	i := sort.Search(len(ix.keys), func(i int) bool { return ix.keys[i] > pts })
	return ix.keys[max(i-1, 0)]
}

// Len returns how many frames are shown, -1 when that is unknown.
func (ix *Index) Len() int {
	if len(ix.runs) == 0 {
		return -1
	}
	last := ix.runs[len(ix.runs)-1]
	return int(last.before) + int(last.count)
}

// Count returns how many frames have a pts in [a, b), -1 when that is unknown.
func (ix *Index) Count(a, b int64) int {
	if len(ix.runs) == 0 {
		return -1
	}
	return max(ix.below(b)-ix.below(a), 0)
}

// PrevPTS returns the time of the last frame before pts. ok is false when
// there is none or it is unknown.
func (ix *Index) PrevPTS(pts int64) (prev int64, ok bool) {
	n := ix.below(pts)
	if n == 0 {
		return 0, false
	}
	return ix.at(n - 1), true
}

// below returns how many frames have a pts below x, 0 when frames are unknown.
func (ix *Index) below(x int64) int {
	i := sort.Search(len(ix.runs), func(i int) bool { return ix.runs[i].start >= x })
	if i == 0 {
		return 0
	}
	r := ix.runs[i-1]
	return int(r.before) + r.below(x)
}

// at returns the time of frame n, counted from 0 in order of presentation.
func (ix *Index) at(n int) int64 {
	i := sort.Search(len(ix.runs), func(i int) bool { return int(ix.runs[i].before) > n })
	r := ix.runs[i-1]
	return r.start + int64(n-int(r.before))*r.step
}

// onGrid reports whether every frame is within one tick of a grid of step
// ticks that starts at the first frame. It is false when frames are unknown.
// Within a run the distance from the grid changes linearly, so its ends decide.
func (ix *Index) onGrid(step float64) bool {
	if len(ix.runs) == 0 || step <= 0 {
		return false
	}
	first := ix.runs[0].start
	near := func(n int32, pts int64) bool {
		const rounding = 1e-3 // of float64 arithmetic over a long film
		return math.Abs(float64(pts-first)-float64(n)*step) <= 1+rounding
	}
	for _, r := range ix.runs {
		if !near(r.before, r.start) || !near(r.before+r.count-1, r.last()) {
			return false
		}
	}
	return true
}
