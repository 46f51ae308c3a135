package media

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestIndexAnswersLikeAPlainListOfTimes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pts []int64
		at := rapid.Int64Range(-100, 100).Draw(t, "start")
		for range rapid.IntRange(1, 60).Draw(t, "frames") {
			pts = append(pts, at)
			at += rapid.SampledFrom([]int64{0, 1, 41, 42, 42, 42, 1000}).Draw(t, "step")
		}
		keys := rapid.SliceOf(rapid.SampledFrom(pts)).Draw(t, "keys")
		shuffled := rapid.Permutation(pts).Draw(t, "order")
		ix := NewIndex(keys, shuffled)
		if ix.Len() != len(pts) {
			t.Fatalf("%d frames, want %d", ix.Len(), len(pts))
		}
		for i, p := range pts {
			if ix.at(i) != p {
				t.Fatalf("frame %d at %d, want %d", i, ix.at(i), p)
			}
		}
		around := rapid.Int64Range(pts[0]-50, at+50)
		a, b := around.Draw(t, "a"), around.Draw(t, "b")
		count := 0
		for _, p := range pts {
			if a <= p && p < b {
				count++
			}
		}
		if got := ix.Count(a, b); got != count {
			t.Fatalf("%d frames in [%d, %d), want %d", got, a, b, count)
		}
		prev, ok := ix.PrevPTS(a)
		if i, _ := slices.BinarySearch(pts, a); ok != (i > 0) || ok && prev != pts[i-1] {
			t.Fatalf("frame before %d is %d, %v", a, prev, ok)
		}
		slices.Sort(keys)
		want := a
		for i, k := range keys {
			if i == 0 || k <= a {
				want = k
			}
		}
		if got := ix.KeyBefore(a); got != want {
			t.Fatalf("key frame before %d is %d, want %d", a, got, want)
		}
	})
}

func TestIndexOfALongFilmIsSmall(t *testing.T) {
	const frames = 3 * 3600 * 24
	constant, rounded := make([]int64, frames), make([]int64, frames)
	for i := range frames {
		constant[i] = int64(i) * 512
		rounded[i] = int64(math.Round(float64(i) * 1000 / 24))
	}
	if n := len(NewIndex(nil, constant).runs); n != 1 {
		t.Errorf("%d runs for a constant rate", n)
	}
	ix := NewIndex(nil, rounded)
	if n := len(ix.runs); n > frames/2 {
		t.Errorf("%d runs for %d rounded times", n, frames)
	}
	if !ix.onGrid(1000. / 24) {
		t.Error("rounded times are off their grid")
	}
	if ix.onGrid(1000. / 25) {
		t.Error("times are on a grid that they were not made from")
	}
}

func TestIndexWithoutFramesSaysSo(t *testing.T) {
	ix := NewIndex([]int64{42, 0}, nil)
	if _, ok := ix.PrevPTS(42); ok || ix.Count(0, 100) != -1 || ix.Len() != -1 {
		t.Error("claims to know frames")
	}
	if ix.KeyBefore(41) != 0 || ix.KeyBefore(-5) != 0 || ix.KeyBefore(42) != 42 {
		t.Error("key frames are wrong")
	}
}
