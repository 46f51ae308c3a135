package sprocket_test

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/pipelines"
	"github.com/volley-run/volley/sprocket/stage"
)

// clip is a video as its container describes it: what planning knows of it, and
// the list of its frames, which the properties count by.
type clip struct {
	media  sprocket.InputMedia
	frames []int64
	keys   []int64
}

// ticks returns when each frame is shown on the plan's timeline.
func (c clip) ticks(tb sprocket.Rational) []int64 {
	out := make([]int64, len(c.frames))
	for i, f := range c.frames {
		out[i] = c.media.Clock.Tick(f, tb)
	}
	return out
}

// in returns the frames with a time in [from, to).
func (c clip) in(from, to int64) []int64 {
	var out []int64
	for _, f := range c.frames {
		if f >= from && f < to {
			out = append(out, f)
		}
	}
	return out
}

func rational(num, den int64) sprocket.Rational { return sprocket.Rational{Num: num, Den: den} }

// rates are those of the property tests; constant.
var rates = []sprocket.Rational{
	rational(25, 2), rational(24000, 1001), rational(24, 1), rational(25, 1),
	rational(30000, 1001), rational(30, 1), rational(60000, 1001), rational(60, 1),
}

// origin draws when a clip's container and its first frame begin.
func origin(t *rapid.T, tb sprocket.Rational) (originPTS, startPTS int64) {
	startPTS = tb.Ticks(time.Duration(rapid.Int64Range(-2e9, 100e9).Draw(t, "start")))
	lead := rapid.SampledFrom([]int64{0, 0, 7_000_000, 1_500_000_000}).Draw(t, "picture after origin")
	return startPTS - tb.Ticks(time.Duration(lead)), startPTS
}

// keyFrames makes the first frame a key frame, and others now and then.
func keyFrames(t *rapid.T, frames []int64) []int64 {
	gop := rapid.SampledFrom([]int{1, 3, 12, 48, 250, math.MaxInt}).Draw(t, "gop")
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "gop seed"), 1))
	var keys []int64
	for i := 0; i < len(frames); {
		keys = append(keys, frames[i])
		if gop == math.MaxInt {
			break
		}
		i += gop/2 + 1 + rng.IntN(gop-gop/2)
	}
	return keys
}

// constantClip draws a clip of a constant rate in a time base that may be too
// coarse for it.
func constantClip(t *rapid.T) clip {
	rate := rapid.SampledFrom(rates).Draw(t, "rate")
	tb := rapid.SampledFrom([]sprocket.Rational{
		rational(1, 1000), rational(1, 600), rational(1, 90_000), rational(1, 12_800), rational(1, 1_000_000_000), rate.Invert(),
	}).Draw(t, "time base")
	c := clip{}
	clock := sprocket.Clock{TimeBase: tb, Rate: rate, Constant: true}
	clock.OriginPTS, clock.StartPTS = origin(t, tb)
	n := rapid.IntRange(1, 700).Draw(t, "frames")
	// Where between two ticks the true clock stands at the first frame.
	phase := rapid.Int64Range(0, 999).Draw(t, "phase")
	if tb == rate.Invert() {
		phase = 0
	}
	for i := range n + 1 {
		num := big.NewInt(int64(i) * rate.Den)
		num.Mul(num, big.NewInt(tb.Den)).Mul(num, big.NewInt(1000))
		den := big.NewInt(rate.Num)
		den.Mul(den, big.NewInt(tb.Num))
		num.Div(num, den).Add(num, big.NewInt(phase)).Div(num, big.NewInt(1000))
		c.frames = append(c.frames, clock.StartPTS+num.Int64())
	}
	c.media = sprocket.InputMedia{Name: "constant", Clock: clock, EndPTS: c.frames[n]}
	c.frames = c.frames[:n]
	c.keys = keyFrames(t, c.frames)
	c.media.Index = media.NewIndex(c.keys, c.frames)
	return c
}

// variableClip draws a clip whose frames come when they like, some of them
// seconds apart, as in recordings of a screen.
func variableClip(t *rapid.T) clip {
	tb := rapid.SampledFrom([]sprocket.Rational{
		rational(1, 1000), rational(1, 600), rational(1, 90_000), rational(1001, 30_000), rational(1, 1_000_000_000),
	}).Draw(t, "time base")
	c := clip{}
	clock := sprocket.Clock{TimeBase: tb, Rate: rational(30, 1)}
	clock.OriginPTS, clock.StartPTS = origin(t, tb)
	at := clock.StartPTS
	// One draw for each frame would be slow.
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	for range rapid.IntRange(1, 400).Draw(t, "frames") {
		c.frames = append(c.frames, at)
		gap := time.Duration(5+rng.IntN(95)) * time.Millisecond
		if rng.IntN(60) == 0 {
			gap = time.Duration(1+rng.IntN(20)) * time.Second
		}
		at += max(1, tb.Ticks(gap))
	}
	c.media = sprocket.InputMedia{Name: "variable", Clock: clock, EndPTS: at}
	c.keys = keyFrames(t, c.frames)
	c.media.Index = media.NewIndex(c.keys, c.frames)
	return c
}

func anyClip(t *rapid.T) clip {
	if rapid.Bool().Draw(t, "constant") {
		return constantClip(t)
	}
	return variableClip(t)
}

func planOptions(t *rapid.T) sprocket.PlanOptions {
	return sprocket.PlanOptions{
		Chunk: rapid.SampledFrom([]time.Duration{
			0, 0, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 1234567 * time.Microsecond, time.Hour,
		}).Draw(t, "chunk"),
		Workers: rapid.SampledFrom([]int{0, 1, 2, 3, 8, 64, 1000}).Draw(t, "workers"),
	}
}

func builtin(t interface{ Fatal(...any) }, name string) *sprocket.Spec {
	spec, _, err := pipelines.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func realCatalog() *sprocket.Catalog { return stage.Catalog(delivery.Names()) }

// edges returns the cuts of a plan's chunks, and fails where they do not join.
func edges(t *rapid.T, items []sprocket.Item) []int64 {
	cuts := []int64{items[0].Start}
	for k, it := range items {
		if it.Seq != int64(k) || it.Chunk != int64(k) || it.Type != sprocket.Chunks {
			t.Fatalf("item %d is %+v", k, it)
		}
		if it.Start != cuts[k] {
			t.Fatalf("chunk %d starts at %d, the one before ends at %d", k, it.Start, cuts[k])
		}
		if it.End <= it.Start {
			t.Fatalf("chunk %d goes from %d to %d: cuts must rise", k, it.Start, it.End)
		}
		cuts = append(cuts, it.End)
	}
	return cuts
}

func limit(r *sprocket.SourceRange) int64 {
	if r.Last {
		return math.MaxInt64
	}
	return r.EndPTS
}

func TestEveryFrameIsInExactlyOneChunk(t *testing.T) {
	spec, catalog := builtin(t, "grayscale"), realCatalog()
	rapid.Check(t, func(t *rapid.T) {
		c := anyClip(t)
		p, err := sprocket.BuildPlan(spec, catalog, []sprocket.InputMedia{c.media}, planOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		items := p.Chunks[0]
		cuts := edges(t, items)
		if cuts[0] != p.Start || cuts[len(cuts)-1] != p.End {
			t.Fatalf("cuts go from %d to %d, the plan from %d to %d", cuts[0], cuts[len(cuts)-1], p.Start, p.End)
		}
		if !items[len(items)-1].Source.Last {
			t.Fatal("the last chunk of the whole input has an upper bound")
		}
		ticks := c.ticks(p.TimeBase)
		counted := 0
		for i, f := range c.frames {
			in := -1
			for k, it := range items {
				r := it.Source
				if f >= r.StartPTS && f < limit(r) {
					if in >= 0 {
						t.Fatalf("frame %d at %d is in chunks %d and %d", i, f, in, k)
					}
					in = k
				}
			}
			if in < 0 {
				t.Fatalf("frame %d at %d is in no chunk", i, f)
			}
			if ticks[i] < items[in].Start || (ticks[i] >= items[in].End && in != len(items)-1) {
				t.Fatalf("frame %d is shown at %d, its chunk %d covers %d to %d", i, ticks[i], in, items[in].Start, items[in].End)
			}
		}
		for k, it := range items {
			r := it.Source
			frames := c.in(r.LeadPTS, limit(r))
			if r.Frames != len(frames) {
				t.Fatalf("chunk %d announces %d frames, has %d", k, r.Frames, len(frames))
			}
			counted += r.Frames
			if r.Input != 0 || r.LeadPTS != r.StartPTS {
				t.Fatalf("chunk %d of the leading input is %+v", k, r)
			}
			checkSeek(t, c, k, r, frames)
		}
		if counted != len(c.frames) {
			t.Fatalf("the chunks have %d frames, the clip %d", counted, len(c.frames))
		}
	})
}

// checkSeek fails unless decoding starts at the last key frame that is early
// enough.
func checkSeek(t *rapid.T, c clip, k int, r *sprocket.SourceRange, frames []int64) {
	if !slices.Contains(c.keys, r.SeekPTS) {
		t.Fatalf("chunk %d seeks to %d, which is no key frame", k, r.SeekPTS)
	}
	if len(frames) == 0 {
		return
	}
	if r.SeekPTS > frames[0] {
		t.Fatalf("chunk %d seeks to %d, after its first frame at %d", k, r.SeekPTS, frames[0])
	}
	for _, key := range c.keys {
		if key > r.SeekPTS && key <= frames[0] && c.media.Clock.Constant {
			t.Fatalf("chunk %d seeks to %d, though there is a key frame at %d before its first frame at %d", k, r.SeekPTS, key, frames[0])
		}
	}
}

func TestFramesStayInOrderOnTheTimeline(t *testing.T) {
	spec, catalog := builtin(t, "grayscale"), realCatalog()
	rapid.Check(t, func(t *rapid.T) {
		c := anyClip(t)
		p, err := sprocket.BuildPlan(spec, catalog, []sprocket.InputMedia{c.media}, sprocket.PlanOptions{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		clock := c.media.Clock
		ticks := c.ticks(p.TimeBase)
		for i := 1; i < len(ticks); i++ {
			if ticks[i] <= ticks[i-1] {
				t.Fatalf("frame %d is shown at %d, the one before at %d", i, ticks[i], ticks[i-1])
			}
		}
		if clock.Constant {
			// Frames of a constant rate are exactly where the rate puts them.
			step := clock.Rate.Invert()
			for i, tick := range ticks {
				if want := ticks[0] + step.Rescale(int64(i), p.TimeBase); tick != want {
					t.Fatalf("frame %d is shown at %d, want %d", i, tick, want)
				}
			}
			if rescaled := p.TimeBase.Rescale(step.Rescale(1, p.TimeBase), step); rescaled != 1 {
				t.Fatalf("a frame lasts no whole number of ticks of %s", p.TimeBase)
			}
		}
		a := rapid.Int64Range(c.frames[0]-100_000, c.media.EndPTS+100_000).Draw(t, "a")
		b := rapid.Int64Range(a, c.media.EndPTS+200_000).Draw(t, "b")
		if x, y := clock.Tick(a, p.TimeBase), clock.Tick(b, p.TimeBase); x > y {
			t.Fatalf("Tick(%d) = %d, but Tick(%d) = %d", a, x, b, y)
		}
		if clock.FrameTicks(p.TimeBase) < 1 {
			t.Fatalf("a frame lasts %d ticks", clock.FrameTicks(p.TimeBase))
		}
	})
}

func TestChosenChunksStartShortAndStayBounded(t *testing.T) {
	spec, catalog := builtin(t, "grayscale"), realCatalog()
	rapid.Check(t, func(t *rapid.T) {
		c := anyClip(t)
		workers := rapid.IntRange(1, 64).Draw(t, "workers")
		p, err := sprocket.BuildPlan(spec, catalog, []sprocket.InputMedia{c.media}, sprocket.PlanOptions{Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		cuts := edges(t, p.Chunks[0])
		ticks := c.ticks(p.TimeBase)
		for k := range len(cuts) - 1 {
			length, most := p.TimeBase.Seconds(cuts[k+1]-cuts[k]), 9.7
			if k == 0 {
				most = 1.6
			}
			if c.media.Clock.Constant {
				if length > most {
					t.Fatalf("chunk %d of %d lasts %.3f s", k, len(cuts)-1, length)
				}
				continue
			}
			// Chunks begin at frames: a still picture cannot be cut.
			if length > most+longestStill(ticks, cuts[k], cuts[k+1], p.TimeBase) {
				t.Fatalf("chunk %d of %d lasts %.3f s, the longest still in it %.3f s", k, len(cuts)-1, length, longestStill(ticks, cuts[k], cuts[k+1], p.TimeBase))
			}
		}
		seconds := p.TimeBase.Seconds(p.End - p.Start)
		if c.media.Clock.Constant && float64(len(cuts)-1) > 3+seconds/1.25 {
			t.Fatalf("%d chunks for %.1f s", len(cuts)-1, seconds)
		}
		if len(cuts)-1 > len(c.frames) {
			t.Fatalf("%d chunks for %d frames", len(cuts)-1, len(c.frames))
		}
	})
}

// longestStill returns for how many seconds one frame is shown at most within
// [from, to), other than at its start.
func longestStill(ticks []int64, from, to int64, tb sprocket.Rational) float64 {
	longest, last := int64(0), from
	for _, tick := range append(slices.Clone(ticks), to) {
		if tick >= from && tick <= to {
			longest = max(longest, tick-last)
			last = tick
		}
	}
	return tb.Seconds(longest)
}

func TestOneStillPictureDoesNotEndTheGrid(t *testing.T) {
	// Ten seconds of nothing, then a minute of frames.
	var frames []int64
	frames = append(frames, 0, 33)
	for at := int64(10_000); at < 70_000; at += 33 {
		frames = append(frames, at)
	}
	in := sprocket.InputMedia{
		Name: "screen", EndPTS: 70_000, Index: media.NewIndex(frames[:1], frames),
		Clock: sprocket.Clock{TimeBase: rational(1, 1000), Rate: rational(30, 1)},
	}
	p, err := sprocket.BuildPlan(builtin(t, "grayscale"), realCatalog(), []sprocket.InputMedia{in}, sprocket.PlanOptions{Workers: 4})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Chunks[0]); n < 8 {
		t.Errorf("%d chunks for 70 s: the still picture at the start ended the grid", n)
	}
}

func TestChosenCutsPreferKeyFrames(t *testing.T) {
	var frames, keys []int64
	for i := range int64(25 * 60) {
		frames = append(frames, i)
		if i%50 == 0 {
			keys = append(keys, i)
		}
	}
	in := sprocket.InputMedia{
		Name: "film", EndPTS: 25 * 60, Index: media.NewIndex(keys, frames),
		Clock: sprocket.Clock{TimeBase: rational(1, 25), Rate: rational(25, 1), Constant: true},
	}
	p, err := sprocket.BuildPlan(builtin(t, "grayscale"), realCatalog(), []sprocket.InputMedia{in}, sprocket.PlanOptions{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	for k, it := range p.Chunks[0][2:] { // the first is shorter than a group
		first := it.Source.StartPTS
		if it.Source.SeekPTS != first || first%50 != 0 {
			t.Errorf("chunk %d starts at frame %d and decodes from %d; key frames are every 50", k+2, first, it.Source.SeekPTS)
		}
	}
}

func TestUniformChunksLastAsLongAsAsked(t *testing.T) {
	spec, catalog := builtin(t, "grayscale"), realCatalog()
	rapid.Check(t, func(t *rapid.T) {
		c := constantClip(t)
		length := time.Duration(rapid.IntRange(10, 5000).Draw(t, "ms")) * time.Millisecond
		p, err := sprocket.BuildPlan(spec, catalog, []sprocket.InputMedia{c.media}, sprocket.PlanOptions{Chunk: length, Workers: 3})
		if err != nil {
			t.Fatal(err)
		}
		cuts := edges(t, p.Chunks[0])
		frame := c.media.Clock.FrameTicks(p.TimeBase)
		for k := 1; k < len(cuts)-1; k++ {
			d := cuts[k] - cuts[k-1]
			if want := p.TimeBase.Ticks(length); d < min(want, frame)-1 || d > want+frame {
				t.Fatalf("chunk %d lasts %d ticks, want %d give or take a frame of %d", k-1, d, want, frame)
			}
			// No drift: the k-th cut is near k times the length, unless the
			// length is below a frame, when cuts fall together.
			if want := p.Start + p.TimeBase.Ticks(length*time.Duration(k)); length > time.Second/10 && (cuts[k] < want-frame || cuts[k] > want+frame) {
				t.Fatalf("cut %d is at %d, want %d", k, cuts[k], want)
			}
			if (cuts[k]-p.Start)%frame != 0 {
				t.Fatalf("cut %d at %d is not at a frame of %d ticks", k, cuts[k], frame)
			}
		}
	})
}

func TestFollowersShowTheFrameThatIsOnShow(t *testing.T) {
	spec, catalog := builtin(t, "blend"), realCatalog()
	rapid.Check(t, func(t *rapid.T) {
		lead, follow := anyClip(t), anyClip(t)
		p, err := sprocket.BuildPlan(spec, catalog, []sprocket.InputMedia{lead.media, follow.media}, planOptions(t))
		if err != nil {
			if strings.Contains(err.Error(), "starts after another one has ended") {
				t.Skip("inputs that do not meet")
			}
			t.Fatal(err)
		}
		cuts, again := edges(t, p.Chunks[0]), edges(t, p.Chunks[1])
		if !slices.Equal(cuts, again) {
			t.Fatalf("the follower is cut at %v, the leader at %v", again, cuts)
		}
		checkLeader(t, p, lead)
		ticks := follow.ticks(p.TimeBase)
		for k, it := range p.Chunks[1] {
			r := it.Source
			if r.Last || r.Input != 1 {
				t.Fatalf("chunk %d of the follower is %+v", k, r)
			}
			if r.LeadPTS > r.StartPTS {
				t.Fatalf("chunk %d: lead-in at %d after the start at %d", k, r.LeadPTS, r.StartPTS)
			}
			frames := follow.in(r.LeadPTS, r.EndPTS)
			if r.Frames != len(frames) {
				t.Fatalf("chunk %d announces %d frames, has %d", k, r.Frames, len(frames))
			}
			checkSeek(t, follow, k, r, nil)
			if len(frames) > 0 && r.SeekPTS > frames[0] {
				t.Fatalf("chunk %d seeks to %d, after its first frame %d", k, r.SeekPTS, frames[0])
			}
			shown := -1 // the frame on show at the start
			for i, tick := range ticks {
				if tick <= it.Start {
					shown = i
				}
				if tick >= it.Start && tick < it.End && (follow.frames[i] < r.LeadPTS || follow.frames[i] >= r.EndPTS) {
					t.Fatalf("chunk %d covers %d to %d: frame %d, shown at %d, has pts %d outside of [%d, %d)", k, it.Start, it.End, i, tick, follow.frames[i], r.LeadPTS, r.EndPTS)
				}
			}
			if shown < 0 {
				continue
			}
			if f := follow.frames[shown]; f < r.LeadPTS || f >= max(r.EndPTS, f+1) {
				t.Fatalf("chunk %d starts at %d: the frame on show, %d at %d, is before the lead-in at %d", k, it.Start, shown, f, r.LeadPTS)
			}
			if early := len(follow.in(r.LeadPTS, follow.frames[shown])); k > 0 && early > 1 {
				t.Fatalf("chunk %d decodes %d frames that are shown before it", k, early)
			}
		}
	})
}

// checkLeader fails unless the leader's frames that are shown are in exactly
// one chunk.
func checkLeader(t *rapid.T, p *sprocket.Plan, c clip) {
	ticks := c.ticks(p.TimeBase)
	for i, f := range c.frames {
		in := 0
		for _, it := range p.Chunks[0] {
			if f >= it.Source.StartPTS && f < limit(it.Source) {
				in++
			}
		}
		want := 1
		if ticks[i] >= p.End && !p.Chunks[0][len(p.Chunks[0])-1].Source.Last {
			want = 0
		}
		if in != want {
			t.Fatalf("frame %d, shown at %d of %d, is in %d chunks, want %d", i, ticks[i], p.End, in, want)
		}
	}
}

func TestRescaleIsExact(t *testing.T) {
	part := rapid.Int64Range(1, math.MaxInt32)
	rapid.Check(t, func(t *rapid.T) {
		from := rational(part.Draw(t, "from num"), part.Draw(t, "from den"))
		to := rational(part.Draw(t, "to num"), part.Draw(t, "to den"))
		ticks := rapid.Int64().Draw(t, "ticks")
		// Nearest, halves away from zero, by fractions.
		x := new(big.Rat).Mul(big.NewRat(from.Num, from.Den), new(big.Rat).SetInt64(ticks))
		x.Quo(x, big.NewRat(to.Num, to.Den))
		half := big.NewRat(1, 2)
		want := new(big.Int)
		if x.Sign() < 0 {
			y := new(big.Rat).Sub(x, half)
			want.Quo(y.Num(), y.Denom())
		} else {
			y := new(big.Rat).Add(x, half)
			want.Quo(y.Num(), y.Denom())
		}
		if !want.IsInt64() {
			t.Skip("the result does not fit")
		}
		if got := from.Rescale(ticks, to); got != want.Int64() {
			t.Fatalf("%s.Rescale(%d, %s) = %d, want %s", from, ticks, to, got, want)
		}
	})
}

func TestRescaleRoundsHalvesAwayFromZero(t *testing.T) {
	for _, tc := range []struct{ ticks, want int64 }{{1, 1}, {3, 2}, {-1, -1}, {-3, -2}, {2, 1}, {-2, -1}, {0, 0}} {
		if got := rational(1, 2).Rescale(tc.ticks, rational(1, 1)); got != tc.want {
			t.Errorf("%d halves are %d, want %d", tc.ticks, got, tc.want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("an unknown time base did not panic")
		}
	}()
	rational(1, 1000).Rescale(1, sprocket.Rational{})
}

func TestRationalsStayValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, d := rapid.Int64().Draw(t, "num"), rapid.Int64Range(0, math.MaxInt64).Draw(t, "den")
		sep := rapid.SampledFrom([]string{"/", ":"}).Draw(t, "separator")
		r, err := sprocket.ParseRational(fmt.Sprintf("%d%s%d", n, sep, d))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 || d == 0 {
			if !r.IsZero() || !r.Invert().IsZero() || r.Float() != 0 {
				t.Fatalf("unknown is %v", r)
			}
			return
		}
		if r.Den <= 0 {
			t.Fatalf("%d/%d reduces to %s", n, d, r)
		}
		if new(big.Rat).SetFrac64(n, d).Cmp(new(big.Rat).SetFrac64(r.Num, r.Den)) != 0 {
			t.Fatalf("%d/%d became %s", n, d, r)
		}
		if again := r.Reduce(); again != r {
			t.Fatalf("%s reduces further to %s", r, again)
		}
	})
	if r := rational(math.MinInt64, 6).Reduce(); r != rational(math.MinInt64/2, 3) {
		t.Errorf("the lowest numerator reduces to %s", r)
	}
	for text, want := range map[string]sprocket.Rational{
		"30000/1001": rational(30000, 1001), "399:400": rational(399, 400), "25": rational(25, 1), "50/2": rational(25, 1),
		"0/0": {}, "0/1": {}, "N/A": {}, "": {},
	} {
		if got, err := sprocket.ParseRational(text); err != nil || got != want {
			t.Errorf("ParseRational(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"a/b", "1/", "/2", "1/-2", "1.5", "1/2/3", "99999999999999999999"} {
		if got, err := sprocket.ParseRational(text); err == nil {
			t.Errorf("ParseRational(%q) = %v, want an error", text, got)
		}
	}
	if got := rational(1, 90_000).Duration(45_000); got != 500*time.Millisecond {
		t.Errorf("45000 ticks of 1/90000 are %s", got)
	}
	if got := rational(1001, 30_000).Ticks(time.Second); got != 30 {
		t.Errorf("a second is %d ticks of 1001/30000", got)
	}
}
