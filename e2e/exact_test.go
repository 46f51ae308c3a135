package e2e_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// An oddity is a kind of input that is easily cut wrong. A lossless transcode of
// it must give back its pictures, each at its time.
type oddity struct {
	name string
	// make returns the path of the clip.
	make func(t *testing.T) string
	// pixFmt is the pixel format for the comparison, yuv420p if empty, and vf
	// what the pipeline does to every picture.
	pixFmt, vf string
	// rate is set where frames must lie on a constant grid; 0 compares times
	// with the source's.
	rate float64
	// tolerance of times in seconds.
	tolerance float64
	set       []string
	sound     bool
	// aspect is the shape of the output's pixels, 1 if 0.
	aspect float64
}

// x264 are encoder arguments for sources.
func x264(more ...string) []string {
	return append([]string{"-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"}, more...)
}

// video makes a clip of a test picture; more are filters and codecs.
func video(name, size, rate string, seconds float64, more ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		return clip(t, name, append(testPicture(size, rate, seconds), more...)...)
	}
}

// irregular moves frames by up to a third of their distance, and leaves out
// some.
const irregular = `settb=1/90000,setpts='N*3750+1250*mod(N*7,3)',select='not(eq(mod(n,7),3))'`

func oddities() []oddity {
	return []oddity{
		{name: "a single group of 479 frames", make: video("gop.mp4", "160x90", "96", 479.0/96, x264("-g", "479", "-keyint_min", "479", "-sc_threshold", "0", "-bf", "3")...), rate: 96},
		{name: "12.5 frames a second", make: video("slow.mp4", "320x180", "25/2", 5, x264("-g", "30")...), rate: 12.5},
		{name: "29.97 frames a second", make: video("ntsc.mp4", "320x180", "30000/1001", 5.005, x264("-g", "60")...), rate: 30000.0 / 1001},
		{name: "23.976 in Matroska's milliseconds", make: video("ntsc.mkv", "320x180", "24000/1001", 5, x264("-g", "50")...), rate: 24000.0 / 1001},
		{name: "60 frames a second in WebM", make: video("fast.webm", "160x90", "60", 4, "-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "500k", "-g", "100"), rate: 60},
		{name: "variable frame rate in MP4", tolerance: 1.0/90000 + 1e-7, make: video("vfr.mp4", "320x180", "24", 5,
			append([]string{"-vf", irregular, "-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-video_track_timescale", "90000"}, x264("-g", "40")...)...)},
		{name: "variable frame rate in Matroska", tolerance: 1.0/1000 + 1e-7, make: video("vfr.mkv", "320x180", "24", 5,
			append([]string{"-vf", irregular, "-fps_mode", "passthrough", "-enc_time_base", "1:1000"}, x264("-g", "40")...)...)},
		{name: "pixels of shape 4:3", make: video("sar.mp4", "320x180", "24", 4, append([]string{"-vf", "setsar=4/3"}, x264("-g", "48")...)...), rate: 24, aspect: 4.0 / 3},
		{name: "a picture that starts 33 ms after the sound", make: lateVideo, rate: 30, sound: true},
		{name: "B-frames without an edit list", make: video("noedit.mp4", "320x180", "24", 4, x264("-g", "48", "-bf", "3", "-use_editlist", "0")...), rate: 24},
		{name: "B-frames in a pyramid", make: video("pyramid.mp4", "320x180", "24", 4, x264("-g", "60", "-bf", "7", "-x264-params", "b-pyramid=normal:b-adapt=0:ref=4")...), rate: 24},
		{name: "open groups of pictures", make: video("open.mp4", "320x180", "24", 5, x264("-g", "24", "-bf", "3", "-x264-params", "open-gop=1:b-adapt=0:scenecut=0")...), rate: 24},
		{name: "a single frame", make: video("one.mp4", "320x180", "24", 0.04, x264()...), rate: 24},
		{name: "two frames", make: video("two.mp4", "320x180", "24", 0.083, x264()...), rate: 24},
		{name: "an odd size", make: video("odd.mkv", "321x181", "24", 3, "-c:v", "ffv1", "-pix_fmt", "yuv420p", "-g", "1"), rate: 24, vf: "crop=320:180:0:0"},
		{name: "turned by a display matrix", make: turned, rate: 24},
		{name: "ten bits", make: video("ten.mp4", "320x180", "24", 3, x264("-g", "30", "-pix_fmt", "yuv420p10le")...), rate: 24, pixFmt: "yuv420p10le",
			set: []string{"--set", "encode.pix_fmt=yuv420p10le", "--set", "encode.params=qp=0"}},
		{name: "4:4:4", make: video("full.mp4", "320x180", "24", 3, x264("-g", "30", "-pix_fmt", "yuv444p")...), rate: 24, pixFmt: "yuv444p", set: []string{"--set", "encode.pix_fmt=yuv444p"}},
		{name: "MPEG-TS", make: withNoise("film.ts", 5, x264("-g", "40", "-bf", "2")...), rate: 24, sound: true},
		{name: "fragmented MP4", make: withNoise("frag.mp4", 5, x264("-g", "40", "-movflags", "+frag_keyframe+empty_moov")...), rate: 24, sound: true},
		{name: "AVI with MPEG-4", make: video("film.avi", "320x180", "24", 4, "-c:v", "mpeg4", "-q:v", "4", "-g", "30", "-pix_fmt", "yuv420p"), rate: 24},
		{name: "VP9", make: video("film.webm", "160x90", "24", 3, "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "300k", "-g", "50"), rate: 24},
		{name: "H.265", make: video("film.mp4", "320x180", "24", 3, "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=40:bframes=3", "-pix_fmt", "yuv420p"), rate: 24},
		{name: "a name with blanks, quotes and a percent sign", make: withNoise(`it's 100%25 "my" film #1?.mp4`, 3, x264("-g", "40")...), rate: 24, sound: true},
	}
}

func withNoise(name string, seconds float64, codec ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		args := append(testPicture("320x180", "24", seconds), testNoise(seconds)...)
		return clip(t, name, append(append(args, codec...), "-c:a", "aac", "-shortest")...)
	}
}

func lateVideo(t *testing.T) string {
	t.Helper()
	picture := clip(t, "picture.mp4", append(testPicture("320x180", "30", 4), x264("-g", "45")...)...)
	noise := clip(t, "noise.mp4", append(testNoise(4), "-c:a", "aac")...)
	return clip(t, "late.mp4", "-itsoffset", "0.0333333", "-i", picture, "-i", noise, "-map", "0:v", "-map", "1:a", "-c", "copy")
}

func turned(t *testing.T) string {
	t.Helper()
	flat := clip(t, "flat.mp4", append(testPicture("320x180", "24", 3), x264("-g", "40")...)...)
	// FFmpeg 5.1 sets the matrix by this metadata, later ones by an option.
	path := filepath.Join(t.TempDir(), "turned.mp4")
	ffmpeg(t, "-i", flat, "-c", "copy", "-metadata:s:v:0", "rotate=90", path)
	if s, _ := probe(t, path, "video"); s.Width != 320 {
		t.Fatalf("coded width %d", s.Width)
	}
	return path
}

func TestALosslessTranscodeOfAnyInputGivesBackEveryFrameAtItsTime(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	for _, o := range oddities() {
		t.Run(o.name, func(t *testing.T) {
			input := o.make(t)
			if o.pixFmt == "" {
				o.pixFmt = "yuv420p"
			}
			want := pictures(t, o.pixFmt, o.vf, input)
			if len(want) == 0 {
				t.Fatal("the clip has no frames")
			}
			tolerance := o.tolerance
			if o.rate > 0 {
				// Exactly on the grid that begins with the first frame.
				for i := range want {
					want[i].at = want[0].at + float64(i)/o.rate
				}
				tolerance = 0.0006
			}
			for i, chunk := range []string{"0.3s", "1s", "7s", "auto"} {
				workers := []string{"3", "1", "3", "2"}[i]
				t.Run(chunk, func(t *testing.T) {
					dir := filepath.Join(t.TempDir(), "out")
					args := append([]string{"transcode", input, "-o", dir, "--chunk", chunk, "--workers", workers}, lossless()...)
					r := runJSON(t, append(args, o.set...)...)
					got := outputPictures(t, dir, o.pixFmt)
					checkSame(t, got, want, tolerance)
					if r.Frames != len(want) {
						t.Errorf("result.json says %d frames, want %d", r.Frames, len(want))
					}
					if o.rate > 0 {
						checkSteps(t, got, o.rate)
						if d := float64(len(want)) / o.rate; math.Abs(r.Duration-d) > 1/o.rate {
							t.Errorf("duration %.3f s, want %.3f s", r.Duration, d)
						}
					}
					checkAspect(t, dir, o.aspect)
					if o.sound {
						checkSound(t, input, dir)
					}
				})
			}
		})
	}
}

// checkAspect checks the shape of a result's pixels.
func checkAspect(t *testing.T, dir string, want float64) {
	t.Helper()
	if want == 0 {
		want = 1
	}
	s, _ := probe(t, track(t, dir, "video"), "video")
	if got := ratio(t, s.SampleAspect); math.Abs(got-want) > 0.003 && !(want == 1 && got == 0) {
		t.Errorf("pixels of shape %s, want %.4f", s.SampleAspect, want)
	}
}

func TestStagesInWorkersOfTheirOwnHandOverEveryFrameUnchanged(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	for _, o := range oddities() {
		if !slices.Contains([]string{"29.97 frames a second", "variable frame rate in MP4", "pixels of shape 4:3", "an odd size", "ten bits", "turned by a display matrix", "a single frame"}, o.name) {
			continue
		}
		formats := []string{"raw"}
		if o.pixFmt != "" || o.vf != "" {
			formats = append(formats, "ffv1")
		}
		for _, frames := range formats {
			t.Run(o.name+" as "+frames, func(t *testing.T) {
				input := o.make(t)
				if o.pixFmt == "" {
					o.pixFmt = "yuv420p"
				}
				dir := filepath.Join(t.TempDir(), "out")
				args := append([]string{"transcode", input, "-o", dir, "--chunk", "0.7s", "--no-fuse", "--frames", frames}, lossless()...)
				runJSON(t, append(args, o.set...)...)
				checkSame(t, outputPictures(t, dir, o.pixFmt), pictures(t, o.pixFmt, o.vf, input), max(o.tolerance, 0.0006))
				checkAspect(t, dir, o.aspect)
			})
		}
	}
}

func TestEveryChunkLengthAndNumberOfWorkersGivesTheSamePictures(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 4)
	want := pictures(t, "yuv420p", "", input)
	for _, chunk := range []string{"0.1s", "333ms", "3.99s"} {
		for _, workers := range []string{"1", "5"} {
			t.Run(chunk+" by "+workers, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "out")
				runJSON(t, append([]string{"transcode", input, "-o", dir, "--chunk", chunk, "--workers", workers}, lossless()...)...)
				checkSame(t, outputPictures(t, dir, "yuv420p"), want, 1e-6)
				checkSound(t, input, dir)
			})
		}
	}
}

func TestAnMP4ResultHoldsTheSamePicturesAndSound(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	for _, tc := range []struct {
		name string
		make func(*testing.T) string
	}{
		{"plain", withNoise("in.mp4", 4, x264("-g", "48")...)},
		{"late picture", lateVideo},
		{"without sound", video("mute.mp4", "320x180", "30000/1001", 4, x264("-g", "48")...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			input := tc.make(t)
			dir := filepath.Join(t.TempDir(), "out")
			r := runJSON(t, append([]string{"transcode", input, "-o", dir, "--chunk", "0.7s", "--format", "mp4"}, lossless()...)...)
			output := filepath.Join(dir, "output.mp4")
			if len(r.Outputs) != 1 || r.Outputs[0] != "output.mp4" {
				t.Errorf("outputs %q", r.Outputs)
			}
			checkSame(t, pictures(t, "yuv420p", "", output), pictures(t, "yuv420p", "", input), 0.0006)
			if _, ok := probe(t, input, "audio"); ok {
				checkSync(t, sound(t, input), sound(t, output))
			} else if _, ok := probe(t, output, "audio"); ok {
				t.Error("has sound, and the source has none")
			}
			if left := globbedAll(t, dir); len(left) != 3 {
				t.Errorf("there is %v, want output.mp4 and result.json", left)
			}
		})
	}
}

func TestSoundOfAnyKindStaysInSync(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	picture := clip(t, "picture.mp4", append(testPicture("320x180", "25", 6), x264("-g", "50")...)...)
	for _, tc := range []struct {
		name, file string
		codec      []string
		offset     string // of the sound
		seconds    float64
	}{
		{"AAC", "a.mp4", []string{"-c:a", "aac"}, "0", 6},
		{"AAC of six channels", "a.mp4", []string{"-c:a", "aac", "-ac", "6"}, "0", 6},
		{"MP3 in MP4", "a.mp4", []string{"-c:a", "libmp3lame"}, "0", 6},
		{"Vorbis in WebM", "a.mkv", []string{"-c:a", "libvorbis"}, "0", 6},
		{"Opus in Matroska", "a.mkv", []string{"-c:a", "libopus"}, "0", 6},
		{"Opus in MP4", "a.mp4", []string{"-c:a", "libopus"}, "0", 6},
		{"PCM in Matroska", "a.mkv", []string{"-c:a", "pcm_s16le"}, "0", 6},
		{"FLAC in Matroska", "a.mkv", []string{"-c:a", "flac"}, "0", 6},
		{"AC-3 in MPEG-TS", "a.ts", []string{"-c:a", "ac3"}, "0", 6},
		{"44.1 kHz", "a.mp4", []string{"-c:a", "aac", "-ar", "44100"}, "0", 6},
		{"AAC half a second late", "a.mp4", []string{"-c:a", "aac"}, "0.5", 5},
		{"Vorbis half a second late", "a.mkv", []string{"-c:a", "libvorbis"}, "0.5", 5},
		{"Opus half a second late", "a.mkv", []string{"-c:a", "libopus"}, "0.5", 5},
		{"AAC in MPEG-TS half a second late", "a.ts", []string{"-c:a", "aac"}, "0.5", 5},
		{"shorter than the picture", "a.mp4", []string{"-c:a", "aac"}, "0", 3},
		{"longer than the picture", "a.mp4", []string{"-c:a", "aac"}, "0", 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noise := clip(t, "noise.wav", testNoise(tc.seconds)...)
			args := []string{"-i", picture, "-itsoffset", tc.offset, "-i", noise, "-map", "0:v", "-map", "1:a", "-c:v", "copy"}
			input := clip(t, tc.file, append(args, tc.codec...)...)
			dir := filepath.Join(t.TempDir(), "out")
			runJSON(t, "transcode", input, "-o", dir, "--chunk", "1s", "--set", "encode.preset=ultrafast")
			checkSound(t, input, dir)
			if n := len(outputPictures(t, dir, "yuv420p")); n != 150 {
				t.Errorf("%d frames, want 150", n)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "out")
		runJSON(t, "transcode", picture, "-o", dir, "--set", "encode.preset=ultrafast")
		if exists(t, dir, "audio.m3u8") || exists(t, dir, "audio") || strings.Contains(readFile(t, dir, "manifest.mpd"), "audio") {
			t.Error("there is sound in the output, and none in the source")
		}
	})
}

func TestADefaultOutputIsNamedAfterPipelineAndInput(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "holiday.mp4", 1)
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Symlink(input, "holiday.mp4"); err != nil {
		t.Fatal(err)
	}
	e := succeed(t, "run", "grayscale", "holiday.mp4", "-q", "--set", "encode.preset=ultrafast")
	if want := fmt.Sprintf("Output: %s", filepath.Join("volley-out", "grayscale-holiday", "manifest.mpd")); !strings.Contains(e.stdout, want) {
		t.Errorf("does not say %q:\n%s", want, e.stdout)
	}
	checkSame(t, outputPictures(t, filepath.Join(dir, "volley-out", "grayscale-holiday"), "gray")[:0], nil, 0)
}
