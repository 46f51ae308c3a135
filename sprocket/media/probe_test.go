package media

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/volley-run/volley/sprocket"
)

// truth is what ffprobe finds by reading every packet.
type truth struct {
	pts, keys []int64
	end       int64
	constant  bool
}

func packetTruth(t testing.TB, path string, stream int, rate sprocket.Rational, timeBase sprocket.Rational) truth {
	t.Helper()
	out := runTool(t, "ffprobe", "-v", "error", "-select_streams", strconv.Itoa(stream),
		"-show_packets", "-of", "json", "file:"+path)
	var listing struct {
		Packets []struct {
			PTS, DTS *int64
			Duration int64
			Flags    string
		}
	}
	if err := json.Unmarshal(out, &listing); err != nil {
		t.Fatal(err)
	}
	var tr truth
	last := int64(math.MinInt64)
	hidden := false
	for _, p := range listing.Packets {
		if p.PTS == nil {
			p.PTS = p.DTS
		}
		key := strings.Contains(p.Flags, "K")
		if strings.Contains(p.Flags, "D") {
			hidden = hidden || key && len(tr.pts) == 0
			continue
		}
		tr.pts = append(tr.pts, *p.PTS)
		if key {
			tr.keys = append(tr.keys, *p.PTS)
		}
		if *p.PTS > last {
			last, tr.end = *p.PTS, *p.PTS+p.Duration
		}
	}
	slices.Sort(tr.pts)
	slices.Sort(tr.keys)
	if hidden && !slices.Contains(tr.keys, tr.pts[0]) {
		tr.keys = slices.Insert(tr.keys, 0, tr.pts[0])
	}
	tr.constant = true
	for i, pts := range tr.pts {
		grid := rate.Invert().Rescale(int64(i), timeBase)
		if d := pts - tr.pts[0] - grid; d < -1 || d > 1 {
			tr.constant = false
		}
	}
	return tr
}

func probeFile(t testing.TB, path string) (*Info, *Source) {
	t.Helper()
	src, err := OpenSource(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	info, err := Probe(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return info, src
}

// checkTruth compares a probe with the packets of the file.
func checkTruth(t *testing.T, path string, info *Info) {
	t.Helper()
	v := info.Video
	want := packetTruth(t, path, v.StreamIndex, v.FrameRate, v.TimeBase)
	if diff := cmp.Diff(want.keys, info.Index.KeyFrames()); diff != "" {
		t.Errorf("key frames (-packets +index):\n%s", diff)
	}
	if v.StartPTS != want.pts[0] {
		t.Errorf("starts at %d, packets at %d", v.StartPTS, want.pts[0])
	}
	if d := v.EndPTS - want.end; d < -1 || d > 1 {
		t.Errorf("ends at %d, packets at %d", v.EndPTS, want.end)
	}
	if v.Constant != want.constant {
		t.Errorf("constant is %v at rate %v, packets say %v", v.Constant, v.FrameRate, want.constant)
	}
	if v.FrameCount < 0 {
		if n := info.Index.Count(v.StartPTS, v.EndPTS); n != -1 {
			t.Errorf("count is %d although frames are unknown", n)
		}
		return
	}
	if v.FrameCount != len(want.pts) {
		t.Errorf("%d frames, packets say %d", v.FrameCount, len(want.pts))
	}
	for i, pts := range want.pts {
		if got := info.Index.at(i); got != pts {
			t.Fatalf("frame %d at %d, packets say %d", i, got, pts)
		}
	}
}

func TestProbeOfEveryTestClipAgreesWithItsPackets(t *testing.T) {
	for _, clip := range []struct {
		name          string
		width, height int
		aspect, rate  sprocket.Rational
		frames, keys  int
		audio         string
	}{
		{"bbb-480p-30s.mp4", 854, 480, sprocket.Rational{Num: 1, Den: 1}, sprocket.Rational{Num: 24, Den: 1}, 720, 5, "aac"},
		{"tos-battle-70s.webm", 800, 332, sprocket.Rational{Num: 399, Den: 400}, sprocket.Rational{Num: 24, Den: 1}, -1, 0, "vorbis"},
		{"sintel-trailer-52s.mp4", 480, 204, sprocket.Rational{Num: 1, Den: 1}, sprocket.Rational{Num: 24, Den: 1}, 1252, 15, "aac"},
		{"car-detection-30s.mp4", 768, 432, sprocket.Rational{}, sprocket.Rational{Num: 25, Den: 2}, 377, 0, "aac"},
		{"flower-5s.mp4", 960, 540, sprocket.Rational{}, sprocket.Rational{Num: 30000, Den: 1001}, 150, 2, "aac"},
		{"people-15cuts.mp4", 640, 480, sprocket.Rational{}, sprocket.Rational{Num: 30, Den: 1}, 1019, 0, ""},
	} {
		t.Run(clip.name, func(t *testing.T) {
			t.Parallel()
			path := testVideo(t, clip.name)
			info, src := probeFile(t, path)
			v := info.Video
			if v.Pixels.Width != clip.width || v.Pixels.Height != clip.height {
				t.Errorf("size is %dx%d", v.Pixels.Width, v.Pixels.Height)
			}
			if clip.aspect != (sprocket.Rational{}) && v.Pixels.SampleAspect != clip.aspect {
				t.Errorf("pixel shape is %v", v.Pixels.SampleAspect)
			}
			if v.FrameRate != clip.rate || v.FrameCount != clip.frames {
				t.Errorf("%d frames at %v", v.FrameCount, v.FrameRate)
			}
			if clip.keys != 0 && len(info.Index.KeyFrames()) != clip.keys {
				t.Errorf("%d key frames", len(info.Index.KeyFrames()))
			}
			if (info.Audio == nil) != (clip.audio == "") || info.Audio != nil && info.Audio.Codec != clip.audio {
				t.Errorf("audio is %+v", info.Audio)
			}
			if src.BytesRead() > src.Size()/4 {
				t.Errorf("read %d of %d bytes", src.BytesRead(), src.Size())
			}
			checkTruth(t, path, info)
		})
	}
}

func TestProbeOfUnusualClipsAgreesWithTheirPackets(t *testing.T) {
	const pattern = "-f lavfi -i testsrc2=s=128x72:r=25:d=3 "
	const x264 = " -c:v libx264 -preset ultrafast -bf 2 -g 20 "
	for _, clip := range []struct {
		title, file, args string
		scanned           bool
		check             func(*testing.T, *Info)
	}{
		{title: "variable frame rate", file: "vfr.mp4",
			args: pattern + "-vf select='not(between(mod(n,7),2,4))' -fps_mode vfr" + x264,
			check: func(t *testing.T, i *Info) {
				if i.Video.Constant {
					t.Error("is called constant")
				}
			}},
		{title: "variable frame rate in Matroska", file: "vfr.mkv",
			args: pattern + "-vf select='not(between(mod(n,7),2,4))' -fps_mode vfr" + x264,
			check: func(t *testing.T, i *Info) {
				if i.Video.Constant {
					t.Error("is called constant")
				}
			}},
		{title: "starts late", file: "late.mp4", args: "-itsoffset 0.033 " + pattern + "-copyts -muxdelay 0 -fps_mode passthrough" + x264,
			check: func(t *testing.T, i *Info) {
				if i.Video.StartPTS == 0 {
					t.Error("starts at 0")
				}
			}},
		{title: "starts late in Matroska", file: "late.mkv", args: "-itsoffset 0.033 -i $car-detection-30s.mp4 -map 0:v -c copy",
			check: func(t *testing.T, i *Info) {
				if i.Video.StartPTS != 33 {
					t.Errorf("starts at %d", i.Video.StartPTS)
				}
			}},
		{title: "reordered without edit list", file: "noedit.mp4", args: pattern + x264 + "-use_editlist 0"},
		{title: "trimmed by an edit list", file: "trimmed.mp4", args: "-ss 2.3 -i $bbb-480p-30s.mp4 -t 7.7 -c copy",
			check: func(t *testing.T, i *Info) {
				if i.Index.KeyFrames()[0] != i.Video.StartPTS {
					t.Errorf("key frames %v, start %d", i.Index.KeyFrames(), i.Video.StartPTS)
				}
			}},
		{title: "oblong pixels", file: "sar.mp4", args: pattern + "-vf setsar=8/9" + x264,
			check: func(t *testing.T, i *Info) {
				if i.Video.Pixels.SampleAspect != (sprocket.Rational{Num: 8, Den: 9}) {
					t.Errorf("shape %v", i.Video.Pixels.SampleAspect)
				}
			}},
		{title: "MPEG-TS", file: "a.ts", args: pattern + x264, scanned: true},
		{title: "fragmented", file: "frag.mp4", args: pattern + x264 + "-movflags frag_keyframe+empty_moov+default_base_moof", scanned: true},
		{title: "AVI", file: "a.avi", args: pattern + "-c:v mpeg4", scanned: true},
		{title: "FLV", file: "a.flv", args: pattern + x264, scanned: true},
		{title: "QuickTime with every frame a key frame", file: "a.mov", args: pattern + "-c:v mjpeg -pix_fmt yuvj422p"},
		{title: "open groups of pictures", file: "open.mp4", args: pattern + x264 + "-x264-params open-gop=1"},
		{title: "29.97 frames a second in milliseconds", file: "ntsc.mkv", args: "-i $flower-5s.mp4 -map 0:v -c copy",
			check: func(t *testing.T, i *Info) {
				if !i.Video.Constant || i.Video.FrameRate != (sprocket.Rational{Num: 30000, Den: 1001}) {
					t.Errorf("constant %v at %v", i.Video.Constant, i.Video.FrameRate)
				}
			}},
		{title: "rounded times in MP4", file: "ms.mp4", args: pattern + "-r 24" + x264 + "-video_track_timescale 1000",
			check: func(t *testing.T, i *Info) {
				if !i.Video.Constant {
					t.Errorf("not constant at %v", i.Video.FrameRate)
				}
			}},
		{title: "odd name", file: "-an odd: 100% näme?#.mp4", args: pattern + x264},
		{title: "one frame", file: "one.mp4", args: pattern + "-frames:v 1" + x264},
		{title: "WebM", file: "a.webm", args: pattern + "-c:v libvpx -deadline realtime -cpu-used 8 -g 20"},
	} {
		t.Run(clip.title, func(t *testing.T) {
			t.Parallel()
			path := makeClip(t, clip.file, clip.args)
			info, src := probeFile(t, path)
			checkTruth(t, path, info)
			if clip.check != nil {
				clip.check(t, info)
			}
			if scanned := indexedFrames(t, src, info) != nil; scanned != clip.scanned {
				t.Errorf("packets listed: %v, want %v", scanned, clip.scanned)
			}
		})
	}
}

// indexedFrames returns why the container's own index does not do.
func indexedFrames(t *testing.T, src *Source, info *Info) error {
	t.Helper()
	v := info.Video
	if strings.Contains(info.Container, "matroska") {
		_, err := readMKVIndex(src, v.StreamIndex, v.TimeBase, v.FrameRate, v.StartPTS)
		return err
	}
	_, err := readMP4Index(src, 1, v.TimeBase.Den)
	return err
}

func TestProbeGivesTheSizeAfterRotation(t *testing.T) {
	plain := makeClip(t, "plain.mp4", "-f lavfi -i testsrc2=s=320x180:r=25:d=1 -vf setsar=8/9 -c:v libx264 -preset ultrafast")
	path := filepath.Join(t.TempDir(), "turned.mp4")
	runTool(t, "ffmpeg", "-v", "error", "-i", plain, "-c", "copy", "-metadata:s:v", "rotate=90", path) // which FFmpeg takes against the clock
	info, _ := probeFile(t, path)
	p := info.Video.Pixels
	if p.Width != 180 || p.Height != 320 || info.Video.Rotation != 270 || p.SampleAspect != (sprocket.Rational{Num: 9, Den: 8}) {
		t.Errorf("%dx%d, rotation %d, pixels %v", p.Width, p.Height, info.Video.Rotation, p.SampleAspect)
	}
	checkTruth(t, path, info)
}

func TestProbeTellsWhatIsWrongWithAnInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	mp4 := read(testVideo(t, "sintel-trailer-52s.mp4"))
	webm := read(testVideo(t, "tos-battle-70s.webm"))
	front := read(makeClip(t, "front.mp4", "-i $sintel-trailer-52s.mp4 -c copy -movflags faststart"))
	back := read(makeClip(t, "back.mp4", "-i $sintel-trailer-52s.mp4 -c copy"))
	frag := read(makeClip(t, "frag.mp4", "-i $sintel-trailer-52s.mp4 -c copy -movflags frag_keyframe+empty_moov"))
	moov := strings.Index(string(front), "moov")
	broken := slices.Clone(front)
	for i := moov + 12; i < moov+4000; i++ {
		broken[i] = 0xA5
	}
	cover := makeClip(t, "cover.m4a", "-i $sintel-trailer-52s.mp4 -f lavfi -i color=s=64x64 -map 0:a -map 1:v -c:a copy -c:v png -frames:v 1 -disposition:v attached_pic -t 2")
	for _, c := range []struct {
		title, path string
		kind        Kind
		says        string
	}{
		{"missing", filepath.Join(dir, "none.mp4"), NotFound, "does not exist"},
		{"directory", dir, Unsupported, "is a directory"},
		{"empty", write("empty.mp4", nil), Empty, "0 bytes"},
		{"text", write("notes.txt", []byte(strings.Repeat("hello world\n", 100))), Unsupported, "text"},
		{"text named mp4", write("notes.mp4", []byte(strings.Repeat("hello world\n", 100))), Unsupported, "not a media file"},
		{"picture", makeClip(t, "a.png", "-f lavfi -i color -frames:v 1"), Unsupported, "a picture"},
		{"audio", makeClip(t, "a.m4a", "-f lavfi -i sine=d=1"), NoVideo, "only aac audio"},
		{"audio with cover", cover, NoVideo, "only aac audio"},
		{"index first and cut", write("cut.mp4", front[:len(front)/2]), Truncated, "of its 1252 frames"},
		{"index last and cut", write("cut2.mp4", back[:len(back)/2]), Truncated, "moov"},
		{"fragments cut", write("cut3.mp4", frag[:len(frag)*2/3]), Truncated, "cut off after"},
		{"webm cut", write("cut.webm", webm[:len(webm)/2]), Truncated, "should have 3451423"},
		{"broken index", write("broken.mp4", broken), Corrupt, "damaged MP4"},
		{"head only", write("head.mp4", mp4[:20]), Truncated, "moov"},
		{"unknown scheme", "rtmp://user:secret@host/a?key=secret", Unsupported, "rtmp"},
	} {
		t.Run(c.title, func(t *testing.T) {
			src, err := OpenSource(t.Context(), c.path)
			if err == nil {
				defer src.Close()
				_, err = Probe(t.Context(), src)
			}
			var ie *InputError
			if !errors.As(err, &ie) || ie.Kind != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("kind %q: %v", KindOf(err), err)
			}
			if ie.Remedy == "" || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
				t.Errorf("message: %v", err)
			}
			if !strings.Contains(err.Error(), ie.Input) {
				t.Errorf("message without the input's name: %v", err)
			}
			t.Log(err)
		})
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	src, err := OpenSource(t.Context(), testVideo(t, "flower-5s.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Probe(ctx, src); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
