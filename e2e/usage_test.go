package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

func TestTheSameCommandTwiceNeedsForce(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 2)
	dir := filepath.Join(t.TempDir(), "out")
	args := []string{"run", "grayscale", input, "-o", dir, "-q", "--set", "encode.preset=ultrafast"}
	succeed(t, args...)
	before := readFile(t, dir, "result.json")
	checkOneError(t, runVolley(t, args...), 5, "finished result", "--force", "-o")
	if readFile(t, dir, "result.json") != before {
		t.Error("the result was changed")
	}
	checkOneError(t, runVolley(t, "run", "--resume", dir), 5, "finished already")
	writeFile(t, filepath.Join(dir, "mine.txt"), "mine")
	// Another pipeline and format: nothing of the first result may stay.
	succeed(t, "run", "transcode", input, "-o", dir, "-q", "--force", "--format", "mp4", "--set", "encode.preset=ultrafast")
	left := globbedAll(t, dir)
	if len(left) != 4 || readFile(t, dir, "mine.txt") != "mine" {
		t.Errorf("after --force there is %v, want result.json, output.mp4 and mine.txt", left)
	}
}

func TestWrongUsageIsSaidWithARemedy(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 1)
	dir := filepath.Join(t.TempDir(), "out")
	for _, tc := range []struct {
		name  string
		args  []string
		code  int
		words []string
	}{
		{"an unknown command", []string{"rum"}, 2, []string{"rum"}},
		{"an unknown flag", []string{"run", "grayscale", input, "-o", dir, "--fast"}, 2, []string{"--fast"}},
		{"no pipeline", []string{"run"}, 2, []string{"volley pipelines"}},
		{"an unknown pipeline", []string{"run", "greyscale", input, "-o", dir}, 2, []string{"greyscale", "grayscale"}},
		{"a pipespec that is not there", []string{"run", "my.json", input, "-o", dir}, 2, []string{"my.json"}},
		{"too few inputs", []string{"run", "blend", input, "-o", dir}, 2, []string{"2 inputs", "1 given"}},
		{"too many inputs", []string{"run", "grayscale", input, input, "-o", dir}, 2, []string{"1 input", "2 given"}},
		{"a wrong chunk length", []string{"run", "grayscale", input, "-o", dir, "--chunk", "soon"}, 2, []string{"--chunk", "1s"}},
		{"a negative chunk length", []string{"run", "grayscale", input, "-o", dir, "--chunk", "-1s"}, 2, []string{"--chunk", "10ms"}},
		{"no workers", []string{"run", "grayscale", input, "-o", dir, "--workers", "0"}, 2, []string{"--workers", "1 to 1000"}},
		{"an unknown format", []string{"run", "grayscale", input, "-o", dir, "--format", "avi"}, 2, []string{"--format", "mp4"}},
		{"an unknown frame format", []string{"run", "grayscale", input, "-o", dir, "--frames", "bmp"}, 2, []string{"--frames", "png"}},
		{"--set without a value", []string{"run", "grayscale", input, "-o", dir, "--set", "encode.crf"}, 2, []string{"--set"}},
		{"--set of an unknown node", []string{"run", "grayscale", input, "-o", dir, "--set", "encoder.crf=1"}, 2, []string{"--set", "encoder"}},
		{"--set of an unknown parameter", []string{"run", "grayscale", input, "-o", dir, "--set", "encode.cfr=1"}, 2, []string{"--set", "crf"}},
		{"--set out of bounds", []string{"run", "grayscale", input, "-o", dir, "--set", "encode.crf=99"}, 2, []string{"--set", "51"}},
		{"--resume with a pipeline", []string{"run", "grayscale", "--resume", dir}, 2, []string{"--resume"}},
		{"serving nothing", []string{"serve", t.TempDir()}, 4, []string{"volley run"}},
		{"serving what is not there", []string{"serve", dir}, 4, []string{"volley run"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkOneError(t, runVolley(t, tc.args...), tc.code, tc.words...)
			if exists(t, dir) {
				t.Error("the output directory was made")
			}
		})
	}
}

func TestABadPipespecIsRefusedBeforeAnythingStarts(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 1)
	spec := writeFile(t, filepath.Join(t.TempDir(), "bad.json"), `{
  "nodes": [
    { "name": "decode", "stage": "decode" },
    { "name": "filter", "stage": "fliter", "config": { "vf": "null" } },
    { "name": "encode", "stage": "encode", "config": { "crf": 99, "colour": "red" } }
  ],
  "streams": [
    { "src": "input_0:chunks", "dst": "decode:chunks" },
    { "src": "decode:frames", "dst": "encode:frames" },
    { "src": "encode:chunks", "dst": "output_0:chunks" }
  ]
}`)
	dir := filepath.Join(t.TempDir(), "out")
	for _, args := range [][]string{{"run", spec, input, "-o", dir}, {"validate", spec}, {"graph", spec}} {
		e := runVolley(t, args...)
		if e.code != 3 {
			t.Errorf("volley %s: exit status %d, want 3", args[0], e.code)
		}
		for _, word := range []string{"bad.json:4:", "$.nodes[1].stage", `"filter"`, "$.nodes[2].config.crf", "colour"} {
			if !strings.Contains(e.stderr+e.stdout, word) {
				t.Errorf("volley %s does not say %q:\n%s%s", args[0], word, e.stderr, e.stdout)
			}
		}
	}
	if exists(t, dir) {
		t.Error("the output directory was made")
	}
	broken := writeFile(t, filepath.Join(t.TempDir(), "broken.json"), `{"nodes": [`)
	if e := runVolley(t, "run", broken, input, "-o", dir); e.code != 3 || !strings.Contains(e.stderr, "broken.json:1:") {
		t.Errorf("broken JSON: exit status %d, want 3\n%s", e.code, e.stderr)
	}
}

func TestFFmpegRefusingAFilterIsTheSpecsFault(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	input := plainClip(t, "in.mp4", 2)
	for _, tc := range []struct{ name, vf, word string }{
		{"no such filter", "hoo=s=0", "hoo"},
		{"no such option", "hue=saturate=0", "saturate"},
		{"a bad value", "scale=w=nonsense:h=20", "nonsense"},
		{"a bad graph", "hue=s=0,[a]", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			e := runVolley(t, "run", "filter", input, "-o", dir, "-q", "--set", "filter.vf="+tc.vf)
			checkOneError(t, e, 3, "stage filter", tc.word)
			if exists(t, dir) {
				t.Error("the output directory was left behind")
			}
			t.Log(strings.SplitN(e.stderr, "\n", 2)[0])
		})
	}
}
