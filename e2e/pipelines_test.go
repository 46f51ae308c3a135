package e2e_test

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// listing21 is listing 2.1 of the thesis as it is printed.
const listing21 = `{ "nodes":
  [ {
    "name": "decode_0",
    "stage": "decode"
  }, {
    "name": "decode_1",
    "stage": "decode"
  }, {
    "name": "blend",
    "stage": "blend",
    "delivery_function":
      "pair_delivery_func"
  }, {
    "name": "encode",
    "stage": "encode"
  }
],
"streams":
  [ {
    "src": "input_0:chunks",
    "dst": "decode_0:chunks"
  }, {
    "src": "input_1:chunks",
    "dst": "decode_1:chunks"
}, {
  "src": "decode_0:frames",
  "dst": "blend:frames_0"
}, {
  "src": "decode_1:frames",
  "dst": "blend:frames_1"
}, {
  "src": "blend:frames",
  "dst": "encode:frames"
}, {
  "src": "encode:chunks",
  "dst": "output_0:chunks"
}
]
}
`

// twoClips differ in size, length, rate and key frames; the second, a
// negative, has no sound.
func twoClips(t *testing.T) (long, short string) {
	t.Helper()
	long = withNoise("long.mp4", 6, x264("-g", "50")...)(t)
	short = clip(t, "short.mp4", append(append(testPicture("400x300", "30", 3.3), "-vf", "negate"), x264("-g", "37")...)...)
	return long, short
}

// reference returns the frames that plain FFmpeg makes of two inputs.
func reference(t *testing.T, graph string, inputs ...string) []picture {
	t.Helper()
	var args []string
	for _, in := range inputs {
		args = append(args, "-i", in)
	}
	return parsePictures(t, ffmpeg(t, append(args, "-filter_complex", graph+",format=yuv420p[out]", "-map", "[out]", "-fps_mode", "passthrough", "-f", "framemd5", "-")...))
}

const blendGraph = "[1:v]scale=w=320:h=180:flags=bicubic,setsar=1,format=yuv420p[b];[0:v][b]blend=all_mode=normal:all_opacity=0.5"

func TestTheThesisListingRunsAsItIsPrinted(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	long, short := twoClips(t)
	spec := writeFile(t, filepath.Join(t.TempDir(), "blend.json"), listing21)
	succeed(t, "validate", spec)
	if e := succeed(t, "graph", spec); !strings.Contains(e.stdout, "blend") {
		t.Errorf("volley graph does not draw the node blend:\n%s", e.stdout)
	}
	dir := filepath.Join(t.TempDir(), "out")
	runJSON(t, append([]string{spec, long, short, "-o", dir, "--chunk", "0.7s"}, lossless()...)...)
	// The output ends with the shortest: 3.3 s are 79.2 frames of the first.
	want := reference(t, blendGraph, long, short)[:79]
	checkSame(t, outputPictures(t, dir, "yuv420p"), want, 0.0001)
	if n := float64(len(sound(t, "-copyts", track(t, dir, "audio")))) / pcmRate; math.Abs(n-3.3) > 0.06 {
		t.Errorf("sound lasts %.3f s, the output 3.3 s", n)
	}
}

func TestBlendEndsWithTheShortestOrWithTheFirst(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	long, short := twoClips(t)
	for _, tc := range []struct {
		name   string
		inputs []string
		set    string
		frames int
		rate   float64
	}{
		{"the shortest is the second", []string{long, short}, "blend.end=shortest", 79, 24},
		{"the shortest is the first", []string{short, long}, "blend.end=shortest", 99, 30},
		{"the first is the longer", []string{long, short}, "blend.end=first", 144, 24},
		{"the first is the shorter", []string{short, long}, "blend.end=first", 99, 30},
		{"a clip with itself", []string{long, long}, "blend.end=shortest", 144, 24},
	} {
		for _, chunk := range []string{"0.4s", "auto"} {
			t.Run(tc.name+" by "+chunk, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "out")
				runJSON(t, append([]string{"blend", tc.inputs[0], tc.inputs[1], "-o", dir, "--chunk", chunk, "--set", tc.set}, lossless()...)...)
				got := outputPictures(t, dir, "yuv420p")
				if len(got) != tc.frames {
					t.Errorf("%d frames, want %d", len(got), tc.frames)
				}
				checkSteps(t, got, tc.rate)
				if tc.name == "the first is the longer" {
					// From 3.3 s on it is shown alone.
					alone := pictures(t, "yuv420p", "", long)
					checkSame(t, got[82:], alone[82:], 0.0001)
					checkSame(t, got[:79], reference(t, blendGraph, long, short)[:79], 0.0001)
				}
			})
		}
	}
}

func TestPictureInPictureIsWhatFFmpegMakes(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	long, short := twoClips(t)
	dir := filepath.Join(t.TempDir(), "out")
	runJSON(t, append([]string{"pip", long, short, "-o", dir, "--chunk", "0.9s"}, lossless()...)...)
	want := reference(t, "[1:v]scale=w=104:h=78:flags=bicubic,setsar=1[b];[0:v][b]overlay=x=W-w-16:y=H-h-16", long, short)[:79]
	checkSame(t, outputPictures(t, dir, "yuv420p"), want, 0.0001)
}

func TestThumbnailsAreOfTheRightMoments(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := video("in.mp4", "320x180", "24", 5.2, x264("-g", "60")...)(t)
	frames := pictures(t, "rgb24", "scale=w=320:h=-2:flags=bicubic", input)
	for _, tc := range []struct {
		interval, chunk string
		want            []float64
	}{
		{"1s", "0.7s", []float64{0, 1, 2, 3, 4, 5}},
		{"1s", "auto", []float64{0, 1, 2, 3, 4, 5}},
		{"2s", "1s", []float64{0, 2, 4}},
		{"0.7", "0.3s", []float64{0, 17. / 24, 34. / 24, 51. / 24, 68. / 24, 84. / 24, 101. / 24, 118. / 24}},
		{"10s", "1s", []float64{0}},
	} {
		t.Run(tc.interval+" by "+tc.chunk, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			r := runJSON(t, "thumbnails", input, "-o", dir, "--chunk", tc.chunk, "--set", "thumbnails.interval="+tc.interval, "--set", "thumbnails.format=png")
			var list []struct {
				File string  `json:"file"`
				Time float64 `json:"time"`
			}
			if err := json.Unmarshal([]byte(readFile(t, dir, "images.json")), &list); err != nil {
				t.Fatal(err)
			}
			if len(list) != len(tc.want) || r.Frames != len(tc.want) || len(r.Outputs) != 1 || r.Outputs[0] != "images.json" {
				t.Fatalf("%d pictures in %q, want %d: %v", r.Frames, r.Outputs, len(tc.want), list)
			}
			for i, want := range tc.want {
				if math.Abs(list[i].Time-want) > 0.001 {
					t.Errorf("picture %d is of %.3f s, want %.3f s", i, list[i].Time, want)
				}
				got := pictures(t, "rgb24", "", filepath.Join(dir, list[i].File))
				if n := int(math.Round(want * 24)); got[0].sum != frames[n].sum {
					t.Errorf("picture %d is not frame %d", i, n)
				}
			}
			vtt := readFile(t, dir, "thumbnails.vtt")
			if n := strings.Count(vtt, " --> "); n != len(tc.want) || !strings.HasPrefix(vtt, "WEBVTT") {
				t.Errorf("thumbnails.vtt has %d cues, want %d:\n%s", n, len(tc.want), vtt)
			}
		})
	}
}

func TestScaleAndFilterChangeThePicture(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 3)
	for _, tc := range []struct {
		name, vf string
		args     []string
	}{
		{"scale", "scale=w=200:h=-2:flags=bicubic", []string{"scale", input, "--set", "scale.width=200"}},
		{"filter", "hflip,negate", []string{"filter", input, "--set", "filter.vf=hflip,negate"}},
		{"a filter with quotes and brackets", "drawbox=x='10+5':y=20:w=30:h=40,crop=in_w-20:in_h-20", []string{"filter", input, "--set", "filter.vf=drawbox=x='10+5':y=20:w=30:h=40,crop=in_w-20:in_h-20"}},
		{"a filter with branches", "split[a][b];[a]vflip[c];[b][c]vstack", []string{"filter", input, "--set", "filter.vf=split[a][b];[a]vflip[c];[b][c]vstack"}},
	} {
		for _, fuse := range []string{"--no-fuse", "--no-fuse=false"} {
			t.Run(tc.name+" "+fuse, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "out")
				args := append(append(tc.args, "-o", dir, "--chunk", "0.8s", fuse), lossless()...)
				runJSON(t, args...)
				checkSame(t, outputPictures(t, dir, "yuv420p"), pictures(t, "yuv420p", tc.vf, input), 0.0001)
			})
		}
	}
}

// chain is a pipespec: decode, then one node in the middle, then encode.
func chain(t *testing.T, middle, encode string) string {
	t.Helper()
	return writeFile(t, filepath.Join(t.TempDir(), "chain.json"), fmt.Sprintf(`{
  "nodes": [
    { "name": "decode", "stage": "decode" },
    { "name": "middle", %s },
    { "name": "encode", "stage": "encode"%s }
  ],
  "streams": [
    { "src": "input_0:chunks", "dst": "decode:chunks" },
    { "src": "decode:frames", "dst": "middle:frames" },
    { "src": "middle:frames", "dst": "encode:frames" },
    { "src": "encode:chunks", "dst": "output_0:chunks" }
  ]
}`, middle, encode))
}

func TestEveryDeliveryFunctionDeliversEveryFrame(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 1.5)
	want := pictures(t, "yuv420p", "", input)
	null := func(delivery string) string {
		return fmt.Sprintf(`"stage": "filter", "delivery_function": %q, "config": { "vf": "null", "frames_per_task": 7 }`, delivery)
	}
	for _, tc := range []struct {
		name, middle, encode string
	}{
		{"default", null("default"), ""},
		{"frames", null("frames"), ""},
		{"split", null("split"), ""},
		{"scene", null("scene"), ""},
		{"all", null("all"), ""},
		{"frames in the encoder", null("default"), `, "delivery_function": "frames", "config": { "frames_per_task": 10 }`},
		{"split, then frames", null("split"), `, "delivery_function": "frames_delivery_func", "config": { "frames_per_task": 11 }`},
		{"frames, then all", null("frames"), `, "delivery_function": "all"`},
		{"all, then split", null("all"), `, "delivery_function": "split"`},
	} {
		for _, workers := range []string{"1", "3"} {
			t.Run(tc.name+" by "+workers, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "out")
				r := runJSON(t, append([]string{chain(t, tc.middle, tc.encode), input, "-o", dir, "--chunk", "0.4s", "--workers", workers}, lossless()...)...)
				if r.Frames != len(want) {
					t.Errorf("%d frames, want %d", r.Frames, len(want))
				}
				got := outputPictures(t, dir, "yuv420p")
				checkSame(t, got, want, 0.0001)
				checkSteps(t, got, 24)
			})
		}
	}
}

func TestACommandOfTheUsersIsAStage(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 1.5)
	count := len(pictures(t, "yuv420p", "", input))
	const copyAll = `"stage": "exec", "delivery_function": %q, "config": { "command": ["sh", "-c", "cp \"$VOLLEY_IN\"/* {out}"], "format": %q, "frames_per_task": 7 }`
	for _, tc := range []struct{ delivery, format string }{
		{"default", "png"}, {"default", "ppm"}, {"frames", "ppm"}, {"all", "ppm"}, {"scene", "ppm"}, {"split", "ppm"},
	} {
		t.Run(tc.delivery+" "+tc.format, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			r := runJSON(t, chain(t, fmt.Sprintf(copyAll, tc.delivery, tc.format), ""), input, "-o", dir, "--chunk", "0.5s", "--set", "encode.crf=1", "--set", "encode.preset=ultrafast")
			got := outputPictures(t, dir, "yuv420p")
			if len(got) != count || r.Frames != count {
				t.Errorf("%d frames, result.json says %d, want %d", len(got), r.Frames, count)
			}
			checkSteps(t, got, 24)
			checkAlike(t, track(t, dir, "video"), input, "null", 33)
		})
	}
	for _, tc := range []struct {
		name, command string
		code          int
		words         []string
	}{
		{"that fails", `["sh", "-c", "echo out of luck >&2; exit 7"]`, 1, []string{"stage middle", "exit status 7"}},
		{"that is not there", `["volley-no-such-program"]`, 3, []string{"stage middle", "volley-no-such-program", "PATH"}},
		{"that leaves nothing", `["true"]`, 3, []string{"stage middle"}},
		{"that takes too long", `["sleep", "60"], "timeout": "0.2s"`, 1, []string{"stage middle", "timeout"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			e := runVolley(t, "run", chain(t, `"stage": "exec", "config": { "command": `+tc.command+` }`, ""), input, "-o", dir, "-q", "--chunk", "0.5s")
			checkOneError(t, e, tc.code, tc.words...)
			if tc.name == "that fails" && !strings.Contains(e.stderr, "out of luck") {
				t.Errorf("what the command said is missing:\n%s", e.stderr)
			}
			if exists(t, dir, "result.json") {
				t.Error("there is a result")
			}
			t.Log(e.stderr)
		})
	}
}

// checkAlike checks that a video looks like its source after a filter.
func checkAlike(t *testing.T, path, source, vf string, least float64) {
	t.Helper()
	if got := psnr(t, path, source, vf); got < least {
		t.Errorf("luma PSNR %.1f dB, want at least %.0f dB", got, least)
	}
}

func TestAPipelineCanHaveSeveralOutputs(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 3)
	spec := writeFile(t, filepath.Join(t.TempDir(), "ladder.json"), `{
  "nodes": [
    { "name": "decode", "stage": "decode" },
    { "name": "half", "stage": "scale", "config": { "width": 160 } },
    { "name": "high", "stage": "encode", "config": { "crf": 0, "preset": "ultrafast" } },
    { "name": "low", "stage": "encode", "config": { "crf": 0, "preset": "ultrafast" } },
    { "name": "stills", "stage": "thumbnails", "config": { "interval": 1 } }
  ],
  "streams": [
    { "src": "input_0:chunks", "dst": "decode:chunks" },
    { "src": "decode:frames", "dst": "high:frames" },
    { "src": "decode:frames", "dst": "half:frames" },
    { "src": "decode:frames", "dst": "stills:frames" },
    { "src": "half:frames", "dst": "low:frames" },
    { "src": "high:chunks", "dst": "output_0:chunks" },
    { "src": "low:chunks", "dst": "output_1:chunks" },
    { "src": "stills:images", "dst": "output_2:images" }
  ]
}`)
	dir := filepath.Join(t.TempDir(), "out")
	r := runJSON(t, spec, input, "-o", dir, "--chunk", "0.7s")
	if want := []string{"manifest.mpd", "output_1/manifest.mpd", "output_2/images.json"}; fmt.Sprint(r.Outputs) != fmt.Sprint(want) {
		t.Errorf("outputs %q, want %q", r.Outputs, want)
	}
	checkSame(t, outputPictures(t, dir, "yuv420p"), pictures(t, "yuv420p", "", input), 0.0001)
	checkSame(t, outputPictures(t, filepath.Join(dir, "output_1"), "yuv420p"), pictures(t, "yuv420p", "scale=160:-2:flags=bicubic", input), 0.0001)
	checkSound(t, input, dir)
	if n := len(globbedAll(t, filepath.Join(dir, "output_2", "images"))); n != 4 {
		t.Errorf("%d pictures, want 3", n-1)
	}
}
