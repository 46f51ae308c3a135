package media

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Eyevinn/mp4ff/mp4"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/internal/testenv"
)

// encoded makes a fragmented MP4 of one track with ffmpeg and reads it back.
func encoded(t testing.TB, args string) (*Track, []Sample) {
	t.Helper()
	track, samples, err := readSamples(os.ReadFile(makeFragments(t, args)))
	if err != nil {
		t.Fatal(err)
	}
	return track, samples
}

func makeFragments(t testing.TB, args string) string {
	t.Helper()
	return makeClip(t, "frag.mp4", args+" -map_metadata -1 -movflags +empty_moov+default_base_moof+frag_keyframe+delay_moov -f mp4")
}

func readSamples(data []byte, err error) (*Track, []Sample, error) {
	if err != nil {
		return nil, nil, err
	}
	var samples []Sample
	track, err := ReadFragments(bytes.NewReader(data), func(_ *Track, s []Sample) error {
		samples = append(samples, s...)
		return nil
	})
	return track, samples, err
}

const (
	picture = "-f lavfi -i testsrc2=size=64x48:rate=25:duration=2 -pix_fmt yuv420p "
	tone    = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=2 "
)

func TestTracksOfFFmpegAreDescribed(t *testing.T) {
	for _, tc := range []struct {
		name, args     string
		codecs         string // prefix
		width, samples int
		scale          uint32
		early          bool // presentation starts after the first time in the file
	}{
		{"H.264", picture + "-c:v libx264 -preset ultrafast -video_track_timescale 12800", "avc1.42C0", 64, 50, 12800, false},
		{"H.264 with B frames", picture + "-c:v libx264 -preset medium -video_track_timescale 90000", "avc1.6400", 64, 50, 90000, true},
		{"H.264 4:4:4", "-f lavfi -i testsrc2=size=64x48:rate=25:duration=2 -pix_fmt yuv444p -c:v libx264 -preset ultrafast", "avc1.F400", 64, 50, 12800, false},
		{"H.265", picture + "-c:v libx265 -preset ultrafast -x265-params log-level=error -tag:v hvc1 -video_track_timescale 25000", "hvc1.", 64, 50, 25000, true},
		{"AAC", tone + "-c:a aac -frag_duration 500000", "mp4a.40.2", 0, 95, 48000, true},
		{"Opus", tone + "-c:a libopus -strict -2 -frag_duration 500000", "opus", 0, 101, 48000, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			track, samples := encoded(t, tc.args)
			if got := track.Codecs(); !strings.HasPrefix(got, tc.codecs) {
				t.Errorf("codecs %q, want %q", got, tc.codecs)
			}
			if w, _ := track.Size(); w != tc.width || track.TimeScale != tc.scale {
				t.Errorf("width %d, time scale %d", w, track.TimeScale)
			}
			if len(samples) != tc.samples {
				t.Errorf("%d samples, want %d", len(samples), tc.samples)
			}
			if !samples[0].Sync || (track.Offset < 0) != tc.early {
				t.Errorf("first sample sync %v, offset %d", samples[0].Sync, track.Offset)
			}
			init, err := track.Init(1000, 40)
			if err != nil {
				t.Fatal(err)
			}
			back, err := DescribeInit(init)
			if err != nil {
				t.Fatal(err)
			}
			w, h := track.Size()
			bw, bh := back.Size()
			if back.Codecs() != track.Codecs() || bw != w || bh != h || back.TimeScale != 1000 || back.Offset != -40 {
				t.Errorf("the init describes %s %dx%d, scale %d, offset %d", back.Codecs(), bw, bh, back.TimeScale, back.Offset)
			}
			again, err := back.Init(1000, 40)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(init, again) {
				t.Error("an init made from the init differs")
			}
		})
	}
}

func TestInitsAreEqualForEqualSettings(t *testing.T) {
	init := func(args string) []byte {
		track, _ := encoded(t, args)
		b, err := track.Init(12800, 1024)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const enc = " -pix_fmt yuv420p -c:v libx264 -preset veryfast -crf 23"
	one := init("-f lavfi -i testsrc2=size=64x48:rate=25:duration=1" + enc)
	// Another picture, length and bit rate, the same settings.
	if two := init("-f lavfi -i color=red:size=64x48:rate=25:duration=3" + enc); !bytes.Equal(one, two) {
		t.Error("the same settings gave different initialisation segments")
	}
	for _, args := range []string{
		"-f lavfi -i testsrc2=size=96x48:rate=25:duration=1" + enc,
		"-f lavfi -i testsrc2=size=64x48:rate=25:duration=1" + enc + " -profile:v baseline",
	} {
		if bytes.Equal(one, init(args)) {
			t.Errorf("%s gave the same initialisation segment", args)
		}
	}
}

// reordered draws samples in decoding order, each decoded at most delay frames
// before its place, and their presentation times.
func reordered(t *rapid.T, depth int) (samples []Sample, pts []int64) {
	n := rapid.IntRange(1, 60).Draw(t, "frames")
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	at := rapid.Int64Range(0, 1<<40).Draw(t, "start")
	regular := rapid.Bool().Draw(t, "regular")
	for range n {
		pts = append(pts, at)
		step := int64(512)
		if !regular {
			step = 1 + rng.Int64N(2000)
		}
		at += step
	}
	// Mini groups: an anchor, decoded first, and the frames before it.
	for i := 0; i < n; {
		group := min(1+rng.IntN(depth+1), n-i)
		order := []int{i + group - 1}
		for k := range group - 1 {
			order = append(order, i+k)
		}
		for _, k := range order {
			samples = append(samples, Sample{Data: []byte{byte(k), byte(k >> 8), 1}, PTS: int64(k) * 7, DTS: int64(len(samples)), Sync: len(samples) == 0})
		}
		i += group
	}
	return samples, pts
}

func TestSegmentsJoinAndKeepEveryFramesTime(t *testing.T) {
	track, _ := encoded(t, picture+"-c:v libx264 -preset ultrafast")
	rapid.Check(t, func(t *rapid.T) {
		depth := rapid.IntRange(0, 6).Draw(t, "depth")
		samples, pts := reordered(t, depth)
		end := pts[len(pts)-1] + rapid.Int64Range(1, 3000).Draw(t, "last")
		longest := end - pts[len(pts)-1]
		for i := 1; i < len(pts); i++ {
			longest = max(longest, pts[i]-pts[i-1])
		}
		delay := int64(max(depth, 1)) * longest
		data, err := Segment(slices.Clone(samples), pts, end, delay, 7)
		if err != nil {
			t.Fatal(err)
		}
		init, err := track.Init(12800, delay)
		if err != nil {
			t.Fatal(err)
		}
		_, back, err := readSamples(append(slices.Clone(init), data...), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(back) != len(samples) {
			t.Fatalf("%d samples of %d", len(back), len(samples))
		}
		if back[0].DTS != pts[0] {
			t.Fatalf("decoding starts at %d, presentation at %d", back[0].DTS, pts[0])
		}
		sum := int64(0)
		var shown []int64
		for i, s := range back {
			if !bytes.Equal(s.Data, samples[i].Data) || s.Sync != samples[i].Sync {
				t.Fatalf("sample %d changed", i)
			}
			if i > 0 && s.DTS <= back[i-1].DTS {
				t.Fatalf("sample %d is decoded at %d, the one before at %d", i, s.DTS, back[i-1].DTS)
			}
			if i > 0 && s.DTS != back[i-1].DTS+back[i-1].Duration {
				t.Fatalf("sample %d does not follow the one before", i)
			}
			if s.PTS < s.DTS {
				t.Fatalf("sample %d is shown at %d, before it is decoded at %d", i, s.PTS, s.DTS)
			}
			// The data tell which frame it is.
			k := int(s.Data[0]) | int(s.Data[1])<<8
			if s.PTS != pts[k]+delay {
				t.Fatalf("frame %d is shown at %d, want %d", k, s.PTS, pts[k]+delay)
			}
			shown = append(shown, s.PTS)
			sum += s.Duration
		}
		if sum != end-pts[0] {
			t.Fatalf("the samples last %d ticks, want %d", sum, end-pts[0])
		}
		slices.Sort(shown)
		if len(slices.Compact(shown)) != len(pts) {
			t.Fatal("two frames are shown at once")
		}
	})
}

func TestSegmentRefusesTimesThatDoNotRise(t *testing.T) {
	two := []Sample{{PTS: 0, Sync: true}, {PTS: 1}}
	for _, tc := range []struct {
		name    string
		samples []Sample
		pts     []int64
		end     int64
	}{
		{"no samples", nil, nil, 10},
		{"too few times", two, []int64{0}, 10},
		{"an end before the last frame", two, []int64{0, 10}, 5},
		{"a time below zero", two, []int64{-5, 0}, 10},
		{"a frame that lasts for ever", two, []int64{0, 10}, 1 << 40},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Segment(tc.samples, tc.pts, tc.end, 0, 1); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestAudioSegmentsOfFFmpegSurvive(t *testing.T) {
	track, samples := encoded(t, tone+"-c:a aac -frag_duration 500000")
	pts := make([]int64, len(samples))
	for i, s := range samples {
		pts[i] = s.DTS
	}
	last := samples[len(samples)-1]
	data, err := Segment(samples, pts, last.DTS+last.Duration, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	init, err := track.Init(track.TimeScale, -track.Offset)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a.mp4")
	if err := os.WriteFile(file, append(init, data...), 0o600); err != nil {
		t.Fatal(err)
	}
	out := runTool(t, "ffprobe", "-v", "error", "-show_entries", "packet=pts", "-of", "csv=p=0", file)
	if got := len(strings.Fields(string(out))); got != len(samples) {
		t.Errorf("ffprobe sees %d packets, want %d", got, len(samples))
	}
	// The priming is skipped: sound begins at 0.
	if first := strings.Fields(string(out))[0]; strings.Trim(first, ",") != fmt.Sprint(track.Offset) {
		t.Errorf("the first packet is at %s, want %d", first, track.Offset)
	}
}

func TestReadFragmentsRefuses(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	whole, err := os.ReadFile(makeFragments(t, picture+"-c:v libx264 -preset ultrafast -g 10"))
	if err != nil {
		t.Fatal(err)
	}
	moof := bytes.Index(whole, []byte("moof")) - 4
	both := makeClip(t, "both.mp4", "-f lavfi -i testsrc2=size=64x48:rate=25:duration=1 "+tone+"-pix_fmt yuv420p -c:v libx264 -preset ultrafast -c:a aac -movflags +frag_keyframe+empty_moov -f mp4")
	two, err := os.ReadFile(both)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"a cut in the middle of a box", whole[:moof+100], "at byte"},
		{"fragments without a header", whole[moof:], "without a header"},
		{"two tracks", two, "one track"},
		{"no MP4 at all", []byte("this is no MP4 file, whatever it may be called"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := readSamples(tc.data, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	track, samples, err := readSamples(nil, nil)
	if track != nil || samples != nil || err != nil {
		t.Errorf("of nothing: %v, %v, %v", track, samples, err)
	}
	stop := errors.New("enough")
	if _, err := ReadFragments(bytes.NewReader(whole), func(*Track, []Sample) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the callback's error: %v", err)
	}
	for _, data := range [][]byte{nil, []byte("nonsense"), whole[moof:]} {
		if _, err := DescribeInit(data); err == nil {
			t.Errorf("DescribeInit of %d bytes gave no error", len(data))
		}
	}
}

func TestPixelsThatAreNotSquareSetTheShownSize(t *testing.T) {
	track, _ := encoded(t, "-f lavfi -i testsrc2=size=64x48:rate=25:duration=1 -vf setsar=3/2 -pix_fmt yuv420p -c:v libx264 -preset ultrafast")
	init, err := track.Init(12800, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := mp4.DecodeFile(bytes.NewReader(init))
	if err != nil {
		t.Fatal(err)
	}
	if w, h := f.Init.Moov.Trak.Tkhd.Width>>16, f.Init.Moov.Trak.Tkhd.Height>>16; w != 96 || h != 48 {
		t.Errorf("the track is shown at %dx%d, want 96x48", w, h)
	}
}

// FuzzReadFragments reads what no encoder wrote: it must neither panic nor take
// more memory than the input is worth.
func FuzzReadFragments(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x00\x00\x08moov"))
	f.Add([]byte("\x00\x00\x00\x08mdat"))
	f.Add([]byte("\x00\x00\x00\x10moof\x00\x00\x00\x08traf"))
	f.Add([]byte("\xff\xff\xff\xffmdat"))
	if _, err := exec.LookPath("ffmpeg"); err == nil {
		for _, args := range []string{picture + "-frames:v 3 -c:v libx264 -preset ultrafast", tone + "-t 0.1 -c:a aac"} {
			data, err := os.ReadFile(makeFragments(f, args))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		begun := time.Now()
		defer func() {
			if d := time.Since(begun); d > 5*time.Second {
				t.Errorf("%d bytes took %s", len(data), d)
			}
		}()
		track, samples, err := readSamples(data, nil)
		if err == nil && len(samples) > 0 && track == nil {
			t.Error("samples without a track")
		}
		if track != nil {
			_ = track.Codecs()
			track.Size()
		}
		_, _ = DescribeInit(data)
	})
}
