package media

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Eyevinn/dash-mpd/mpd"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update accepts it):\n%s", file, diff)
	}
}

// show is a presentation with a gap after the second segment.
func show(complete, audio bool) Presentation {
	p := Presentation{
		Complete: complete, Planned: 10 * time.Second, LongestSegment: 4 * time.Second, Origin: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Video: Rendition{
			Codecs: "avc1.64001F", TimeBase: sprocket.Rational{Num: 1, Den: 12800}, FrameRate: sprocket.Rational{Num: 25, Den: 1},
			Width: 1280, Height: 720, SampleAspect: sprocket.Rational{Num: 4, Den: 3}, Init: "video/init.mp4", Media: "video/$Time$.m4s",
			Segments: []Segmented{{0, 12800, 50_000}, {12800, 12800, 60_000}, {38400, 25600, 70_000}},
		},
	}
	if audio {
		p.Audio = Rendition{
			Codecs: "mp4a.40.2", TimeBase: sprocket.Rational{Num: 1, Den: 48000}, SampleRate: 48000, Channels: 2,
			Init: "audio/init.mp4", Media: "audio/$Time$.m4s", Segments: []Segmented{{0, 96256, 30_000}, {96256, 96256, 31_000}, {192512, 40000, 9_000}},
		}
	}
	return p
}

func TestManifestsAreAsTheyWere(t *testing.T) {
	published := regexp.MustCompile(`publishTime="[^"]*"`)
	for _, complete := range []bool{false, true} {
		for _, audio := range []bool{false, true} {
			name := map[bool]string{true: "static", false: "dynamic"}[complete] + map[bool]string{true: "-audio", false: "-silent"}[audio]
			t.Run(name, func(t *testing.T) {
				p := show(complete, audio)
				text, err := p.DASH()
				if err != nil {
					t.Fatal(err)
				}
				golden(t, "manifests/"+name+".mpd", published.ReplaceAll(text, []byte(`publishTime="NOW"`)))
				checkDASH(t, p, text)
				for file, text := range p.HLS(HLSPlaylist) {
					golden(t, "manifests/"+name+"."+file, text)
					checkHLS(t, p, file, string(text))
				}
			})
		}
	}
}

func checkDASH(t interface {
	Helper()
	Fatal(...any)
	Errorf(string, ...any)
}, p Presentation, text []byte) {
	t.Helper()
	if err := xml.Unmarshal(text, new(struct{})); err != nil {
		t.Fatal(err)
	}
	m, err := mpd.MPDFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	if kind := m.GetType(); (kind == mpd.STATIC_TYPE) != p.Complete {
		t.Errorf("a manifest of type %q of a presentation that is complete: %v", kind, p.Complete)
	}
	if (m.MediaPresentationDuration != nil) != p.Complete || (m.MinimumUpdatePeriod != nil) == p.Complete {
		t.Errorf("duration %v, update period %v", m.MediaPresentationDuration, m.MinimumUpdatePeriod)
	}
	sets := m.Periods[0].AdaptationSets
	for i, r := range []Rendition{p.Video, p.Audio} {
		if i >= len(sets) {
			if !r.Empty() {
				t.Errorf("rendition %d is missing", i)
			}
			continue
		}
		// The timeline, written out, is the list of segments.
		var got []Segmented
		next := uint64(0)
		for _, s := range sets[i].SegmentTemplate.SegmentTimeline.S {
			if s.T != nil {
				next = *s.T
			}
			for range s.R + 1 {
				got = append(got, Segmented{Start: int64(next), Duration: int64(s.D)})
				next += s.D
			}
		}
		want := slices.Clone(r.Segments)
		for k := range want {
			want[k].SizeBytes = 0
		}
		if !slices.Equal(got, want) {
			t.Errorf("rendition %d: the timeline says %v, want %v", i, got, want)
		}
	}
}

func checkHLS(t *testing.T, p Presentation, file, text string) {
	t.Helper()
	if !strings.HasPrefix(text, "#EXTM3U\n#EXT-X-VERSION:7\n") {
		t.Errorf("%s begins with %.30q", file, text)
	}
	if file == HLSPlaylist {
		if strings.Contains(text, "EXT-X-MEDIA:") == p.Audio.Empty() {
			t.Errorf("%s has sound: %v", file, p.Audio.Empty())
		}
		return
	}
	if strings.Contains(text, "#EXT-X-ENDLIST") != p.Complete {
		t.Errorf("%s ends the list, though complete is %v", file, p.Complete)
	}
	r := p.Video
	if file == hlsAudio {
		r = p.Audio
	}
	if got := strings.Count(text, "#EXTINF:"); got != len(r.Segments) {
		t.Errorf("%s lists %d segments of %d", file, got, len(r.Segments))
	}
	var target float64
	for line := range strings.Lines(text) {
		var d float64
		if n, _ := fmt.Sscanf(line, "#EXT-X-TARGETDURATION:%g", &target); n == 1 {
			continue
		}
		if n, _ := fmt.Sscanf(line, "#EXTINF:%g,", &d); n == 1 && d > target+0.5 {
			t.Errorf("%s: a segment of %g s is longer than the target %g", file, d, target)
		}
	}
}

func TestTimelinesListEverySegment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := show(rapid.Bool().Draw(t, "complete"), false)
		p.Video.Segments = nil
		at := int64(0)
		for range rapid.IntRange(1, 30).Draw(t, "segments") {
			if rapid.IntRange(0, 5).Draw(t, "gap") == 0 {
				at += rapid.Int64Range(1, 9999).Draw(t, "length")
			}
			d := rapid.SampledFrom([]int64{512, 512, 512, 1024}).Draw(t, "duration")
			p.Video.Segments = append(p.Video.Segments, Segmented{Start: at, Duration: d, SizeBytes: 10})
			at += d
		}
		text, err := p.DASH()
		if err != nil {
			t.Fatal(err)
		}
		checkDASH(t, p, text)
	})
}

// desk is a publisher with a directory.
type desk struct {
	*Publisher
	store store.Store
	dir   string
	now   time.Time
}

func newDesk(t testing.TB, change func(*PublisherConfig)) *desk {
	t.Helper()
	d := &desk{dir: t.TempDir(), now: time.Unix(1_800_000_000, 0)}
	st, err := store.Open(t.Context(), d.dir)
	if err != nil {
		t.Fatal(err)
	}
	d.store = st
	cfg := PublisherConfig{
		Store: st, Format: FormatDASH, Type: sprocket.Chunks, TimeBase: sprocket.Rational{Num: 1, Den: 12800},
		FrameRate: sprocket.Rational{Num: 25, Den: 1}, End: 4 * 12800, LongestSegment: time.Second,
		FFmpeg: "ffmpeg", TempDir: t.TempDir(), Now: func() time.Time { return d.now },
	}
	if change != nil {
		change(&cfg)
	}
	d.Publisher = NewPublisher(cfg)
	return d
}

func (d *desk) read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (d *desk) has(name string) bool {
	_, err := os.Stat(filepath.Join(d.dir, name))
	return err == nil
}

// chunks encodes a test picture in pieces of one second, each stored as a
// segment, and returns their items.
func chunks(t testing.TB, d *desk, n int, encoder string) []sprocket.Item {
	t.Helper()
	const delay = 2 * 512
	var items []sprocket.Item
	for i := range int64(n) {
		track, samples := encoded(t, fmt.Sprintf("-f lavfi -i testsrc2=size=64x48:rate=25 -ss %d -t 1 -pix_fmt yuv420p -c:v libx264 -preset veryfast -video_track_timescale 12800 %s", i, encoder))
		var pts []int64
		for k := range samples {
			pts = append(pts, i*12800+int64(k)*512)
		}
		data, err := Segment(samples, pts, (i+1)*12800, delay, uint32(i+1))
		if err != nil {
			t.Fatal(err)
		}
		init, err := track.Init(12800, delay)
		if err != nil {
			t.Fatal(err)
		}
		it := sprocket.Item{Type: sprocket.Chunks, Seq: i, Chunk: i, Start: i * 12800, End: (i + 1) * 12800, Init: init}
		size, err := d.store.Put(t.Context(), SegmentKey(it.Start), bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		it.Objects = []sprocket.Object{{Key: SegmentKey(it.Start), SizeBytes: size, PTS: it.Start, Count: len(samples)}}
		items = append(items, it)
	}
	return items
}

// sound stores a tone of the given length and returns its segments.
func sound(t testing.TB, d *desk, seconds int) (AudioTrack, []sprocket.Object) {
	t.Helper()
	var objects []sprocket.Object
	var audio AudioTrack
	data, err := os.ReadFile(makeFragments(t, fmt.Sprintf("-f lavfi -i sine=frequency=440:sample_rate=48000:duration=%d -ac 2 -c:a aac -frag_duration 1000000", seconds)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ReadFragments(bytes.NewReader(data), func(track *Track, samples []Sample) error {
		if audio.Init == nil {
			init, err := track.Init(track.TimeScale, -track.Offset)
			if err != nil {
				return err
			}
			audio = AudioTrack{Init: init, Codecs: track.Codecs(), TimeScale: int64(track.TimeScale), SampleRate: 48000, Channels: 2}
		}
		var pts []int64
		for _, s := range samples {
			pts = append(pts, s.DTS)
		}
		last := samples[len(samples)-1]
		end := last.DTS + last.Duration
		seg, err := Segment(samples, pts, end, 0, uint32(len(objects)+1))
		if err != nil {
			return err
		}
		size, err := d.store.Put(t.Context(), AudioSegmentKey(pts[0]), bytes.NewReader(seg))
		objects = append(objects, sprocket.Object{Key: AudioSegmentKey(pts[0]), PTS: pts[0], Count: int(end - pts[0]), SizeBytes: size})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return audio, objects
}

func TestPublisherPutsItemsInOrder(t *testing.T) {
	d := newDesk(t, nil)
	items := chunks(t, d, 4, "")
	// Item 2 is empty: a stretch without frames.
	items[2].Objects = nil
	add := func(i int) {
		t.Helper()
		d.now = d.now.Add(time.Second)
		if err := d.Add(t.Context(), items[i]); err != nil {
			t.Fatal(err)
		}
	}
	add(3)
	add(1)
	if d.Playable() || d.has(DASHManifest) || d.has(HLSPlaylist) || d.has("video/init.mp4") {
		t.Error("something can be played before the first item")
	}
	if _, err := d.Finish(t.Context()); err == nil || !strings.Contains(err.Error(), "item 0 never came") {
		t.Errorf("Finish without item 0: %v", err)
	}
	add(0)
	if frames, end := d.Published(); !d.Playable() || frames != 50 || end != 2*12800 {
		t.Errorf("published %d frames to %d, playable %v", frames, end, d.Playable())
	}
	mpd := d.read(t, DASHManifest)
	if !strings.Contains(mpd, `type="dynamic"`) || strings.Contains(d.read(t, hlsVideo), "ENDLIST") {
		t.Error("an unfinished output looks whole")
	}
	if _, err := d.Finish(t.Context()); err == nil {
		t.Error("Finish while item 2 is missing gave no error")
	}
	if strings.Contains(d.read(t, DASHManifest), `"static"`) {
		t.Error("a failed Finish left a manifest that looks whole")
	}
	add(2)
	name, err := d.Finish(t.Context())
	if err != nil || name != DASHManifest {
		t.Fatalf("Finish = %q, %v", name, err)
	}
	mpd = d.read(t, DASHManifest)
	checkDASH(t, d.show, []byte(mpd))
	if !strings.Contains(mpd, `type="static"`) || !strings.Contains(mpd, `t="38400"`) || !strings.Contains(d.read(t, hlsVideo), "#EXT-X-ENDLIST") {
		t.Errorf("finished manifests:\n%s\n%s", mpd, d.read(t, hlsVideo))
	}
	if frames, end := d.Published(); frames != 75 || end != 4*12800 {
		t.Errorf("published %d frames to %d", frames, end)
	}
}

func TestPublisherWaitsForSoundAndHalfASecond(t *testing.T) {
	d := newDesk(t, func(c *PublisherConfig) { c.Audio = true; c.Format = FormatHLS })
	items := chunks(t, d, 3, "")
	if err := d.Add(t.Context(), items[0]); err != nil {
		t.Fatal(err)
	}
	if d.Playable() {
		t.Error("playable without the sound that will come")
	}
	track, segments := sound(t, d, 3)
	for range 2 { // a restarted audio task tells all again
		if err := d.AddAudio(t.Context(), track, segments); err != nil {
			t.Fatal(err)
		}
	}
	if !d.Playable() || len(d.show.Audio.Segments) != len(segments) {
		t.Errorf("playable %v, %d segments of sound, want %d", d.Playable(), len(d.show.Audio.Segments), len(segments))
	}
	before := d.read(t, hlsVideo)
	if err := d.Add(t.Context(), items[1]); err != nil {
		t.Fatal(err)
	}
	if d.read(t, hlsVideo) != before {
		t.Error("the playlist was written again within half a second")
	}
	d.now = d.now.Add(time.Second)
	if err := d.Flush(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if d.read(t, hlsVideo) == before {
		t.Error("the playlist was not written after half a second")
	}
	if err := d.Add(t.Context(), items[2]); err != nil {
		t.Fatal(err)
	}
	if name, err := d.Finish(t.Context()); err != nil || name != HLSPlaylist {
		t.Errorf("Finish = %q, %v", name, err)
	}
	for _, file := range []string{HLSPlaylist, hlsVideo, hlsAudio, DASHManifest, "audio/init.mp4", "video/init.mp4"} {
		if !d.has(file) {
			t.Errorf("%s is missing", file)
		}
	}
	// FFmpeg, as a player that others wrote, finds every frame through both.
	for _, file := range []string{HLSPlaylist, DASHManifest} {
		out := runTool(t, "ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0", "-allowed_extensions", "ALL", filepath.Join(d.dir, file))
		if got := strings.Fields(string(out)); len(got) == 0 || strings.Trim(got[0], ",") != "75" {
			t.Errorf("%s: ffprobe counts %q frames, want 75", file, got)
		}
	}
}

func TestPublisherPublishesAllInAnyOrder(t *testing.T) {
	init := func() []byte {
		track, _ := encoded(t, picture+"-c:v libx264 -preset ultrafast")
		b, err := track.Init(12800, 1024)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}()
	rapid.Check(t, func(rt *rapid.T) {
		d := newDesk(t, nil)
		n := rapid.IntRange(1, 12).Draw(rt, "items")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		var want []Segmented
		items := make([]sprocket.Item, n)
		for i := range items {
			start := int64(i) * 100
			items[i] = sprocket.Item{Seq: int64(i), Chunk: int64(i), Start: start, End: start + 100}
			if rng.IntN(4) > 0 {
				items[i].Init, items[i].Objects = init, []sprocket.Object{{PTS: start, Count: 1, SizeBytes: 5}}
				want = append(want, Segmented{start, 100, 5})
			}
		}
		for _, i := range rng.Perm(n) {
			if err := d.Add(t.Context(), items[i]); err != nil {
				rt.Fatal(err)
			}
			if d.show.Complete {
				rt.Fatal("complete before Finish")
			}
		}
		_, err := d.Finish(t.Context())
		if (err == nil) != (len(want) > 0) {
			rt.Fatalf("Finish with %d segments: %v", len(want), err)
		}
		if !slices.Equal(d.show.Video.Segments, want) {
			rt.Fatalf("published %v, want %v", d.show.Video.Segments, want)
		}
	})
}

func TestPublisherRefusesAnotherInit(t *testing.T) {
	d := newDesk(t, nil)
	items := chunks(t, d, 1, "")
	other := chunks(t, d, 2, "-profile:v baseline")[1]
	if err := d.Add(t.Context(), items[0]); err != nil {
		t.Fatal(err)
	}
	err := d.Add(t.Context(), other)
	if err == nil || !strings.Contains(err.Error(), "chunk 1") || !strings.Contains(err.Error(), "encoder settings differ") {
		t.Errorf("Add: %v", err)
	}
	if err := newDesk(t, nil).Add(t.Context(), sprocket.Item{Init: []byte("rubbish"), Objects: []sprocket.Object{{}}}); err == nil {
		t.Error("an init that is none was taken")
	}
}

// fullStore has no room.
type fullStore struct{ store.Store }

func (fullStore) Put(context.Context, string, io.Reader) (int64, error) { return 0, store.ErrNoSpace }

func TestPublisherPassesOnThatTheStoreIsFull(t *testing.T) {
	d := newDesk(t, nil)
	items := chunks(t, d, 1, "")
	d.cfg.Store = fullStore{d.store}
	if err := d.Add(t.Context(), items[0]); !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "video/init.mp4") {
		t.Errorf("Add: %v", err)
	}
}

func TestJoinedMP4HasEveryFrameAtItsTime(t *testing.T) {
	for _, tc := range []struct {
		name, encoder string
		audio         bool
	}{{"silent", "", false}, {"with sound", "", true}, {"with sound, without B frames", "-bf 0", true}} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDesk(t, func(c *PublisherConfig) { c.Format, c.Audio = FormatMP4, tc.audio })
			items := chunks(t, d, 4, tc.encoder)
			for _, i := range []int{1, 0, 3, 2} {
				if err := d.Add(t.Context(), items[i]); err != nil {
					t.Fatal(err)
				}
			}
			wantAudio := 0
			if tc.audio {
				track, segments := sound(t, d, 4)
				if err := d.AddAudio(t.Context(), track, segments); err != nil {
					t.Fatal(err)
				}
				for _, s := range segments {
					wantAudio += s.Count / 1024
				}
			}
			if d.has(DASHManifest) {
				t.Error("a manifest was written for an MP4")
			}
			name, err := d.Finish(t.Context())
			if err != nil || name != JoinedMP4 {
				t.Fatalf("Finish = %q, %v", name, err)
			}
			times := func(stream string) []string {
				return strings.Fields(string(runTool(t, "ffprobe", "-v", "error", "-select_streams", stream, "-show_entries", "frame=pts_time", "-of", "csv=p=0", filepath.Join(d.dir, JoinedMP4))))
			}
			video := times("v:0")
			if len(video) != 100 {
				t.Fatalf("%d frames, want 100", len(video))
			}
			for i, s := range video {
				var at float64
				if _, err := fmt.Sscanf(s, "%g", &at); err != nil || at < float64(i)/25-1e-4 || at > float64(i)/25+1e-4 {
					t.Errorf("frame %d is at %s s, want %.3f", i, s, float64(i)/25)
				}
			}
			if tc.audio {
				packets := strings.Fields(string(runTool(t, "ffprobe", "-v", "error", "-select_streams", "a:0", "-show_entries", "packet=pts", "-of", "csv=p=0", filepath.Join(d.dir, JoinedMP4))))
				if d := len(packets) - wantAudio; d < -1 || d > 1 {
					t.Errorf("%d packets of sound, want %d", len(packets), wantAudio)
				}
			}
			// Nothing but the file is left.
			for info, err := range d.store.List(t.Context(), "") {
				if err != nil || info.Key != JoinedMP4 {
					t.Errorf("%s was left: %v", info.Key, err)
				}
			}
			if left, err := os.ReadDir(d.cfg.TempDir); err != nil || len(left) > 0 {
				t.Errorf("temporary files were left: %v, %v", left, err)
			}
		})
	}
}

func TestAJoinThatFailsLeavesTheSegments(t *testing.T) {
	for name, program := range map[string]string{"no such program": "/no/such/ffmpeg", "a program that fails": "false"} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, func(c *PublisherConfig) { c.Format, c.FFmpeg = FormatMP4, program })
			if err := d.Add(t.Context(), chunks(t, d, 1, "")[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Finish(t.Context()); err == nil || !strings.Contains(err.Error(), "join segments") {
				t.Errorf("Finish: %v", err)
			}
			if !d.has(SegmentKey(0)) || d.has(JoinedMP4) {
				t.Error("the segments are gone, or half a file is there")
			}
		})
	}
}

func TestImagesAreListedWithTheirTimes(t *testing.T) {
	d := newDesk(t, func(c *PublisherConfig) { c.Type, c.Prefix = sprocket.Images, "output_1/" })
	image := func(seq, pts int64) sprocket.Item {
		return sprocket.Item{Type: sprocket.Images, Seq: seq, Objects: []sprocket.Object{{Key: "output_1/" + ImageName(d.cfg.TimeBase.Duration(pts), "jpg"), PTS: pts}}}
	}
	for _, it := range []sprocket.Item{image(2, 2*12800), {Type: sprocket.Images, Seq: 1}, image(0, 0)} {
		if err := d.Add(t.Context(), it); err != nil {
			t.Fatal(err)
		}
	}
	if d.has("output_1/" + ImageList) {
		t.Error("the list is there before Finish")
	}
	name, err := d.Finish(t.Context())
	if err != nil || name != "output_1/"+ImageList {
		t.Fatalf("Finish = %q, %v", name, err)
	}
	var list []struct {
		File string
		Time float64
	}
	if err := json.Unmarshal([]byte(d.read(t, name)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].File != "images/00-00-00.000.jpg" || list[1].File != "images/00-00-02.000.jpg" || list[1].Time != 2 {
		t.Errorf("list %+v", list)
	}
	golden(t, "manifests/thumbnails.vtt", []byte(d.read(t, "output_1/"+ThumbnailVTT)))
	if frames, _ := d.Published(); frames != 2 {
		t.Errorf("%d images", frames)
	}
}

func TestImageNamesSortByTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := time.Duration(rapid.Int64Range(0, int64(99*time.Hour)).Draw(t, "a"))
		b := time.Duration(rapid.Int64Range(int64(a), int64(99*time.Hour)).Draw(t, "b"))
		if x, y := ImageName(a, "png"), ImageName(b, "png"); x > y {
			t.Fatalf("%s comes after %s", x, y)
		}
	})
	if got := ImageName(time.Hour+2*time.Minute+3*time.Second+4567*time.Microsecond, "jpg"); got != "images/01-02-03.005.jpg" {
		t.Errorf("ImageName = %s", got)
	}
}

func TestAnOutputWithoutFramesIsAnError(t *testing.T) {
	testenv.Need(t)
	d := newDesk(t, nil)
	if err := d.Add(t.Context(), sprocket.Item{Seq: 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Finish(t.Context()); err == nil || !strings.Contains(err.Error(), "no frames") {
		t.Errorf("Finish: %v", err)
	}
	if OutputPrefix(0) != "" || OutputPrefix(2) != "output_2/" || AudioSegmentKey(7) != "audio/7.m4s" {
		t.Error("names of outputs changed")
	}
}
