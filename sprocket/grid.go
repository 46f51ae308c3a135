package sprocket

import (
	"math"
	"sort"
	"time"
)

// Limits of automatic chunk lengths. A chunk costs a process start and, where
// it begins inside a group of pictures, the decoding of frames that it then
// drops; a long one keeps players and idle workers waiting.
const (
	firstChunk   = time.Second
	longestChunk = 6 * time.Second
	shortestTail = 1500 * time.Millisecond
)

// FrameIndex says where an input's frames are. Times are ticks of the input's
// time base.
type FrameIndex interface {
	// KeyFrames returns the presentation times at which decoding can start,
	// rising.
	KeyFrames() []int64
	// KeyBefore returns the last key frame at or before pts, or the first one.
	KeyBefore(pts int64) int64
	// Count returns how many frames have a time in [from, to); -1 if unknown.
	Count(from, to int64) int
	// PrevPTS returns the time of the last frame before pts, and false if that
	// is unknown or there is none.
	PrevPTS(pts int64) (int64, bool)
}

// Clock maps one input's timestamps to the plan's time base. Workers use it to
// put every frame on the output's timeline.
type Clock struct {
	// TimeBase is the input's.
	TimeBase Rational `json:"time_base"`
	// OriginPTS is the input time that is shown at 0: where the container
	// starts, so that picture and sound keep their distance.
	OriginPTS int64 `json:"origin_pts"`
	// StartPTS is the time of the first frame.
	StartPTS int64 `json:"start_pts"`
	// Rate is the nominal frame rate.
	Rate Rational `json:"rate"`
	// Constant says that frame n is due n/Rate after the first. Timestamps
	// are then set to that grid exactly, which takes away the rounding of
	// coarse time bases such as Matroska's milliseconds.
	Constant bool `json:"constant"`
}

// timeBaseFor returns the time base of a plan whose output follows c: one in
// which every frame of a constant rate falls on a whole tick, else c's own.
func timeBaseFor(c Clock) Rational {
	if !c.Constant {
		if c.TimeBase.Num == 1 && c.TimeBase.Den <= 10_000_000 {
			return c.TimeBase
		}
		return Rational{1, 90_000}
	}
	den := c.Rate.Num
	for den < 10_000 {
		den *= 2
	}
	return Rational{1, den}
}

// FrameTicks returns the nominal duration of a frame in ticks of tb.
func (c Clock) FrameTicks(tb Rational) int64 {
	if c.Rate.IsZero() {
		return tb.Ticks(40 * time.Millisecond)
	}
	return max(1, c.Rate.Invert().Rescale(1, tb))
}

// Tick returns when the input's frame at pts is shown, in ticks of tb.
func (c Clock) Tick(pts int64, tb Rational) int64 {
	if !c.Constant {
		return c.TimeBase.Rescale(pts-c.OriginPTS, tb)
	}
	frame := c.TimeBase.Rescale(pts-c.StartPTS, c.Rate.Invert())
	return c.TimeBase.Rescale(c.StartPTS-c.OriginPTS, tb) + c.Rate.Invert().Rescale(frame, tb)
}

// boundary returns the input time that divides the frames shown before tick
// from those shown at or after it. For constant rates it lies half a frame
// before the first of the latter, out of reach of rounded timestamps.
func (c Clock) boundary(tick int64, tb Rational) int64 {
	if !c.Constant {
		// Where tb is the coarser one, several times round to the same tick.
		reach := tb.Rescale(1, c.TimeBase) + 2
		low := c.OriginPTS + tb.Rescale(tick, c.TimeBase) - reach
		return low + int64(sort.Search(int(2*reach), func(i int) bool { return c.Tick(low+int64(i), tb) >= tick }))
	}
	// Inputs that follow another one are not cut on their own grid.
	first, step := c.Tick(c.StartPTS, tb), c.Rate.Invert()
	n := tb.Rescale(tick-first, step)
	if first+step.Rescale(n, tb) < tick {
		n++
	}
	halfStep := Rational{step.Num, 2 * step.Den}
	return c.StartPTS + halfStep.Rescale(2*n-1, c.TimeBase)
}

// cutTimes returns the edges of the chunk grid in ticks of tb, from start to
// end. With a length every chunk lasts that long, to the nearest frame.
// Without one, lengths are chosen: short at first, so that playing can start;
// then longer, at the input's own key frames where one is near, because that
// costs neither extra decoding nor an extra key frame in the output; short
// again at the end, so that all workers finish together.
func cutTimes(c Clock, index FrameIndex, tb Rational, start, end int64, length time.Duration, workers int) []int64 {
	g := grid{clock: c, index: index, tb: tb, start: start, end: end, workers: int64(max(1, workers))}
	if length > 0 {
		return g.uniform(length)
	}
	return g.chosen()
}

type grid struct {
	clock      Clock
	index      FrameIndex
	tb         Rational
	start, end int64
	workers    int64
}

func (g grid) uniform(length time.Duration) []int64 {
	cuts := []int64{g.start}
	for i := int64(1); ; i++ {
		t := g.start + g.tb.Ticks(length*time.Duration(i))
		if t >= g.end {
			break
		}
		if t = g.onFrame(t); t > cuts[len(cuts)-1] && t < g.end {
			cuts = append(cuts, t)
		}
	}
	return append(cuts, g.end)
}

func (g grid) chosen() []int64 {
	var (
		first   = g.tb.Ticks(firstChunk)
		longest = g.tb.Ticks(longestChunk)
		tail    = g.tb.Ticks(shortestTail)
		cuts    = []int64{g.start}
		keys    = g.keyTicks()
	)
	for t := g.start; ; {
		left := g.end - t
		want := min(max(first, 2*(t-g.start)), longest, max(tail, left/g.workers))
		if left <= want+want/2 {
			break
		}
		next := g.onFrame(t + want)
		if key, ok := nearest(keys, t+want, t+want/2, t+want*8/5); ok {
			next = key
		}
		// A still picture cannot be cut: go on to a frame after it.
		for ahead := t + 2*want; next <= t && ahead < g.end; ahead += want {
			next = g.onFrame(ahead)
		}
		if next <= t || next >= g.end {
			break
		}
		cuts = append(cuts, next)
		t = next
	}
	return append(cuts, g.end)
}

// keyTicks returns the key frames on the output's timeline.
func (g grid) keyTicks() []int64 {
	keys := g.index.KeyFrames()
	ticks := make([]int64, 0, len(keys))
	for _, k := range keys {
		ticks = append(ticks, g.clock.Tick(k, g.tb))
	}
	return ticks
}

// onFrame moves t to a frame: the nearest one of a constant rate, else the last
// one known at or before t.
func (g grid) onFrame(t int64) int64 {
	if g.clock.Constant {
		frame := g.tb.Rescale(t-g.start, g.clock.Rate.Invert())
		return g.start + g.clock.Rate.Invert().Rescale(frame, g.tb)
	}
	pts := g.clock.OriginPTS + g.tb.Rescale(t, g.clock.TimeBase)
	if p, ok := g.index.PrevPTS(pts + 1); ok {
		return g.clock.Tick(p, g.tb)
	}
	return t
}

// nearest returns the element of sorted that is closest to want within
// [low, high].
func nearest(sorted []int64, want, low, high int64) (int64, bool) {
	best, found := int64(math.MaxInt64), false
	for _, v := range sorted {
		if v < low || v > high {
			continue
		}
		if !found || abs(v-want) < abs(best-want) {
			best, found = v, true
		}
	}
	return best, found
}

func abs(v int64) int64 {
	if v < 0 {
		return -v
	}
	return v
}

// sourceRange returns the part of input i that is shown in [start, end). A
// follower's range begins with the frame that is on show at start.
func sourceRange(i int, c Clock, index FrameIndex, tb Rational, start, end int64, first, last, follower bool) *SourceRange {
	r := &SourceRange{Input: i, StartPTS: c.boundary(start, tb), EndPTS: c.boundary(end, tb), Last: last}
	if first {
		r.StartPTS = min(r.StartPTS, c.StartPTS)
	}
	r.LeadPTS = r.StartPTS
	if follower && !first {
		if p, ok := index.PrevPTS(c.boundary(start+1, tb)); ok {
			r.LeadPTS = min(r.LeadPTS, p)
		} else {
			r.LeadPTS = max(min(c.StartPTS, r.StartPTS), r.StartPTS-2*c.FrameTicks(c.TimeBase))
		}
	}
	seek := r.LeadPTS
	if c.Constant {
		// The first frame is due half a frame later; the second one and a half.
		seek += c.FrameTicks(c.TimeBase) * 3 / 4
	}
	r.SeekPTS = index.KeyBefore(seek)
	to := r.EndPTS
	if last {
		to = math.MaxInt64
	}
	r.Frames = index.Count(r.LeadPTS, to)
	return r
}
