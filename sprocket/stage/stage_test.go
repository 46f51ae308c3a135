package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update accepts it):\n%s", file, diff)
	}
}

func rational(num, den int64) sprocket.Rational { return sprocket.Rational{Num: num, Den: den} }

// use resolves a stage's parameters from JSON.
func use(t testing.TB, name, config string) sprocket.StageUse {
	t.Helper()
	var given map[string]json.RawMessage
	if err := json.Unmarshal([]byte(config), &given); err != nil {
		t.Fatal(err)
	}
	params, problems := Catalog(nil).Stages[name].Resolve(given)
	if len(problems) > 0 {
		t.Fatalf("%s %s: %+v", name, config, problems)
	}
	return sprocket.StageUse{Node: name + "-node", Stage: name, Params: params}
}

func TestEveryStageAndParameterIsDescribed(t *testing.T) {
	c := Catalog(delivery.Names())
	if len(c.Stages) < 8 {
		t.Errorf("only %d stages", len(c.Stages))
	}
	for name, info := range c.Stages {
		if info.Name != name || !strings.HasSuffix(info.Doc, ".") {
			t.Errorf("stage %s is called %q and described as %q", name, info.Name, info.Doc)
		}
		if !slices.Contains(c.Deliveries, info.Delivery) {
			t.Errorf("stage %s has the unknown delivery function %q", name, info.Delivery)
		}
		if len(info.Inputs) == 0 || len(info.Outputs) == 0 {
			t.Errorf("stage %s has no input or no output", name)
		}
		given := map[string]json.RawMessage{}
		seen := map[string]bool{}
		for _, p := range info.Params {
			if p.Doc == "" || seen[p.Name] {
				t.Errorf("parameter %s.%s has no description, or is there twice", name, p.Name)
			}
			seen[p.Name] = true
			if p.Required && p.Default != "" {
				t.Errorf("parameter %s.%s is required and has a default", name, p.Name)
			}
			if p.Kind == sprocket.KindEnum && len(p.Enum) == 0 {
				t.Errorf("parameter %s.%s has no choices", name, p.Name)
			}
			// A default must pass the parameter's own rules.
			if p.Default != "" {
				given[p.Name] = json.RawMessage(p.Default)
			}
			switch {
			case !p.Required:
			case p.Kind == sprocket.KindStrings:
				given[p.Name] = json.RawMessage(`["true"]`)
			default:
				given[p.Name] = json.RawMessage(`"null"`)
			}
		}
		if name == "scale" {
			given["width"] = json.RawMessage("640")
		}
		if _, problems := info.Resolve(given); len(problems) > 0 {
			t.Errorf("stage %s does not accept its own defaults: %+v", name, problems)
		}
	}
	for _, o := range c.EdgeOptions {
		if o.Doc == "" {
			t.Errorf("stream option %s is not described", o.Name)
		}
	}
}

func TestParametersThatCannotWorkAreRefused(t *testing.T) {
	c := Catalog(nil)
	for _, tc := range []struct{ stage, config string }{
		{"filter", `{}`},
		{"filter", `{"vf":""}`},
		{"filter", `{"vf":"drawtext='x"}`},
		{"scale", `{}`},
		{"scale", `{"width":0}`},
		{"scale", `{"height":-1}`},
		{"scale", `{"width":20000}`},
		{"blend", `{"opacity":1.5}`},
		{"blend", `{"mode":"mix"}`},
		{"blend", `{"end":"last"}`},
		{"encode", `{"codec":"mpeg2video"}`},
		{"encode", `{"crf":52}`},
		{"thumbnails", `{"interval":0}`},
		{"exec", `{}`},
		{"exec", `{"command":"ls"}`},
		{"decode", `{"errors":"ignore"}`},
	} {
		var given map[string]json.RawMessage
		if err := json.Unmarshal([]byte(tc.config), &given); err != nil {
			t.Fatal(err)
		}
		if _, problems := c.Stages[tc.stage].Resolve(given); len(problems) == 0 {
			t.Errorf("%s accepts %s", tc.stage, tc.config)
		}
	}
}

func TestGraphsAreAsTheyWere(t *testing.T) {
	tb := rational(1, 12800)
	constant := sprocket.Clock{TimeBase: rational(1, 1000), OriginPTS: 10, StartPTS: 50, Rate: rational(25, 1), Constant: true}
	variable := sprocket.Clock{TimeBase: rational(1, 12800), OriginPTS: -7}
	px := sprocket.Pixels{Width: 640, Height: 360, Format: "yuv420p", Range: "tv", Space: "bt709", Transfer: "unknown", SampleAspect: rational(4, 3)}
	rgb := sprocket.Pixels{Width: 320, Height: 240, Format: "rgb24", Range: "pc"}
	var b strings.Builder
	line := func(name, text string) { fmt.Fprintf(&b, "%s\n  %s\n", name, text) }
	line("clock of a constant rate", clockFilter(constant, tb))
	line("clock of a variable rate", clockFilter(variable, tb))
	line("source", sourceFilter(0, sprocket.SourceRange{LeadPTS: 40, StartPTS: 50, EndPTS: 90}, constant, tb))
	line("source to its end", sourceFilter(1, sprocket.SourceRange{LeadPTS: 40, EndPTS: 90, Last: true}, variable, tb))
	line("frames", framesFilter(0, []int64{512, 1024, 2048}, px, tb))
	line("frames in RGB", framesFilter(1, []int64{512}, rgb, tb))
	for _, u := range []sprocket.StageUse{
		use(t, "decode", `{}`), use(t, "encode", `{}`), use(t, "filter", `{"vf":"hue=s=0,vignette"}`),
		use(t, "scale", `{"width":320}`), use(t, "scale", `{"height":100,"flags":"lanczos"}`),
		use(t, "blend", `{}`), use(t, "blend", `{"mode":"screen","opacity":1,"end":"first"}`),
		use(t, "overlay", `{}`), use(t, "overlay", `{"size":0.01,"x":"0","end":"first"}`),
		use(t, "thumbnails", `{"interval":"1.5s"}`),
	} {
		for ports := 1; ports <= 2; ports++ {
			if ports == 2 && u.Stage != "blend" && u.Stage != "overlay" {
				continue
			}
			var g graph
			link, err := g.stageFilter(u, []string{"[a]", "[b]"}[:ports], []sprocket.Pixels{px, rgb}[:ports], tb, 512, false)
			if err != nil {
				t.Fatal(err)
			}
			line(fmt.Sprintf("%s of %d streams -> %s", u.Stage, ports, link), g.String())
		}
	}
	golden(t, "graphs.txt", b.String())
	var g graph
	if _, err := g.stageFilter(use(t, "exec", `{"command":["true"]}`), []string{"[a]"}, nil, tb, 512, false); err == nil {
		t.Error("exec became an FFmpeg filter")
	}
}

func TestGraphsAreAcceptedByFFmpeg(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	px := sprocket.Pixels{Width: 64, Height: 48, Format: "yuv420p", SampleAspect: rational(4, 3)}
	for _, u := range []sprocket.StageUse{
		use(t, "filter", `{"vf":"hue=s=0"}`), use(t, "scale", `{"width":32}`), use(t, "blend", `{"mode":"screen"}`),
		use(t, "overlay", `{"end":"first"}`), use(t, "thumbnails", `{"interval":0.5}`),
	} {
		var g graph
		a := g.chain("testsrc2=size=64x48:rate=10:duration=1,setsar=4/3,format=yuv420p")
		b := g.chain("testsrc2=size=32x32:rate=5:duration=1,format=yuv420p")
		link, err := g.stageFilter(u, []string{a, b}, []sprocket.Pixels{px, {Width: 32, Height: 32, Format: "yuv420p"}}, rational(1, 10), 1, false)
		if err != nil {
			t.Fatal(err)
		}
		if u.Stage != "blend" && u.Stage != "overlay" {
			g.chains = slices.DeleteFunc(g.chains, func(c string) bool { return strings.HasSuffix(c, b) && !strings.Contains(c, a) })
		}
		out := g.chain("showinfo@out=checksum=0", link)
		log, err := ffmpegRun{program: "ffmpeg", args: []string{"-filter_complex", g.String(), "-map", out, "-f", "null", "-"}}.run(t.Context())
		if err != nil {
			t.Errorf("%s: %v\n%s", g.String(), err, strings.Join(log.tail, "\n"))
			continue
		}
		want := 10
		if u.Stage == "thumbnails" {
			want = 2
		}
		if len(log.pts) != want {
			t.Errorf("%s gave %d frames, want %d", u.Stage, len(log.pts), want)
		}
	}
}

// evaluate works out what timesExpression writes, for frame n.
func evaluate(t *rapid.T, expr string, n int64) int64 {
	expr = strings.Trim(expr, "'")
	for {
		var limit int64
		rest, isIf := strings.CutPrefix(expr, "if(lt(N,")
		if !isIf {
			var first, from, step int64
			if _, err := fmt.Sscanf(expr, "%d+(N-%d)*%d", &first, &from, &step); err != nil {
				t.Fatalf("expression %q: %v", expr, err)
			}
			return first + (n-from)*step
		}
		if _, err := fmt.Sscanf(rest, "%d)", &limit); err != nil {
			t.Fatalf("expression %q: %v", expr, err)
		}
		_, rest, _ = strings.Cut(rest, "),")
		line, other, _ := strings.Cut(rest, ",")
		if n < limit {
			expr = line
		} else {
			expr = strings.TrimSuffix(other, ")")
		}
	}
}

func times(t *rapid.T) []int64 {
	pts := []int64{rapid.Int64Range(-1000, 1<<40).Draw(t, "first")}
	for range rapid.IntRange(0, 20).Draw(t, "frames") {
		pts = append(pts, pts[len(pts)-1]+rapid.SampledFrom([]int64{1, 512, 512, 512, 700}).Draw(t, "step"))
	}
	return pts
}

func TestTimesExpressionGivesEveryFrameItsTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pts := times(t)
		expr := timesExpression(pts)
		for n, want := range pts {
			if got := evaluate(t, expr, int64(n)); got != want {
				t.Fatalf("%s of frame %d is %d, want %d", expr, n, got, want)
			}
		}
	})
}

func TestTimesExpressionIsUnderstoodByFFmpeg(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	for _, pts := range [][]int64{{7}, {0, 512, 1024}, {5, 6, 8, 11, 15, 20}, {100, 612, 1124, 1130, 1136, 9000}} {
		graph := fmt.Sprintf("color=black:size=16x16:rate=25,trim=end_frame=%d,settb=1/12800,setpts=%s,showinfo@out=checksum=0[o]", len(pts), timesExpression(pts))
		log, err := ffmpegRun{program: "ffmpeg", args: []string{"-filter_complex", graph, "-map", "[o]", "-fps_mode", "passthrough", "-f", "null", "-"}}.run(t.Context())
		if err != nil || !slices.Equal(log.pts, pts) {
			t.Errorf("times %v became %v: %v", pts, log.pts, err)
		}
	}
}

func TestFailuresAreClassified(t *testing.T) {
	exit := exec.Command("sh", "-c", "exit 1").Run()
	killed := exec.Command("sh", "-c", "kill -9 $$").Run()
	for _, tc := range []struct {
		name  string
		err   error
		tail  []string
		kind  FailureKind
		cause string
	}{
		{"a full disk", exit, []string{"av_interleaved_write_frame(): No space left on device", "Conversion failed!"}, FailureNoSpace, "no space left"},
		{"an unknown filter", exit, []string{"[AVFilterGraph @ 0x1] No such filter: 'nosuch'", "Error initializing complex filters."}, FailureConfig, "nosuch"},
		{"an unknown option", exit, []string{"Error parsing options for encoder"}, FailureConfig, "settings"},
		{"damaged video", exit, []string{"[h264 @ 0x1] error while decoding MB 1 2", "Error while decoding stream #0:0: Invalid data found when processing input", "Conversion failed!"}, FailureInput, "damaged"},
		{"damage that only the decoder tells of", exit, []string{"[h264 @ 0x1] error while decoding MB 14 7, bytestream 940", "[h264 @ 0x1] concealing 135 DC, 135 AC, 135 MV errors in P frame", "Conversion failed!"}, FailureInput, "damaged"},
		{"no moov", exit, []string{"[mov @ 0x1] moov atom not found"}, FailureInput, "moov atom not found"},
		{"killed", killed, []string{"Error parsing a filter"}, FailureTransient, "killed"},
		{"anything else", exit, []string{"Connection reset by peer"}, FailureTransient, "Connection reset by peer"},
		{"silence", exit, nil, FailureTransient, "said nothing"},
		{"only vague words", exit, []string{"Conversion failed!"}, FailureTransient, "Conversion failed!"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := (&ffmpegLog{tail: tc.tail}).failure(tc.err)
			if f.Kind != tc.kind || !strings.Contains(f.Error(), tc.cause) {
				t.Errorf("%s: %s, want %s with %q", f.Kind, f, tc.kind, tc.cause)
			}
			if !slices.Equal(f.LogTail, tc.tail) {
				t.Errorf("log tail %q", f.LogTail)
			}
		})
	}
	for _, tc := range []struct {
		err  error
		want FailureKind
	}{
		{errors.New("x"), FailureTransient},
		{fmt.Errorf("put: %w", store.ErrNoSpace), FailureNoSpace},
		{fmt.Errorf("run: %w", &Failure{Kind: FailureInput, Err: errors.New("x")}), FailureInput},
		{&Failure{Kind: FailureConfig, Err: store.ErrNoSpace}, FailureConfig},
	} {
		if got := KindOf(tc.err); got != tc.want {
			t.Errorf("KindOf(%v) = %s, want %s", tc.err, got, tc.want)
		}
	}
}

func TestFFmpegsWordsAreRead(t *testing.T) {
	text, err := os.Open(filepath.Join("testdata", "ffmpeg-5.1.stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	log := &ffmpegLog{sourceFrames: map[int]int{}}
	var calls []int
	log.read(text, func(n int) { calls = append(calls, n) })
	if !slices.Equal(log.pts, []int64{0, 512, 1024}) || !slices.Equal(calls, []int{1, 2, 3}) {
		t.Errorf("frames at %v, told %v", log.pts, calls)
	}
	if log.sourceFrames[0] != 3 || log.sourceFrames[1] != 3 {
		t.Errorf("source frames %v", log.sourceFrames)
	}
	want := sprocket.Pixels{Width: 64, Height: 48, Format: "yuv420p", SampleAspect: rational(4, 3), Range: "tv", Space: "bt709", Transfer: "bt709", Primaries: "bt709"}
	if log.pixels != want {
		t.Errorf("pixels %+v, want %+v", log.pixels, want)
	}
	for _, line := range log.tail {
		if strings.Contains(line, "showinfo") || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "Input #") {
			t.Errorf("the tail has %q", line)
		}
	}
}

// FuzzFFmpegLog reads what no FFmpeg said.
func FuzzFFmpegLog(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "ffmpeg-5.1.stderr"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("[showinfo@out @ 0x1] n: 0 pts: 99999999999999999999 pts_time:0 fmt:x sar:0/0 s:1x1 i:P"))
	f.Add([]byte("\r\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		log := &ffmpegLog{sourceFrames: map[int]int{}}
		calls := 0
		log.read(bytes.NewReader(data), func(n int) {
			if calls++; n != calls {
				t.Errorf("frame %d was told as %d", calls, n)
			}
		})
		if calls != len(log.pts) || len(log.tail) > tailLines {
			t.Errorf("%d frames told, %d kept; a tail of %d lines", calls, len(log.pts), len(log.tail))
		}
		_ = log.failure(errors.New("x")).Error()
	})
}

func TestASignedAddressIsNeverTold(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	const secret = "X-Amz-Signature=0123456789abcdef"
	url := "http://127.0.0.1:1/film.mp4?" + secret
	node := sprocket.Node{Name: "decode", Stages: []sprocket.StageUse{use(t, "decode", `{}`)}, Upstreams: make([]sprocket.Upstream, 1), Output: sprocket.Frames, OutputIndex: -1}
	role := Role{
		Node: node, TimeBase: rational(1, 25),
		Inputs: []Input{{URL: url, Name: "film.mp4", Clock: sprocket.Clock{TimeBase: rational(1, 25), Rate: rational(25, 1), Constant: true}}},
	}
	task := sprocket.Task{Inputs: [][]sprocket.Item{{{Type: sprocket.Chunks, End: 25, Source: &sprocket.SourceRange{EndPTS: 25, Frames: 25}}}}}
	sound := role
	sound.Audio = &AudioRole{Codec: "aac", Channels: 2}
	for name, r := range map[string]Role{"picture": role, "sound": sound} {
		t.Run(name, func(t *testing.T) {
			e, err := New(Env{Dir: t.TempDir(), FFmpeg: "ffmpeg", Partial: func(Sound) {}}, r, task)
			if err != nil {
				t.Fatal(err)
			}
			err = e.Process(t.Context())
			var f *Failure
			if !errors.As(err, &f) {
				t.Fatalf("Process: %v, want a Failure", err)
			}
			said := f.Error() + "\n" + strings.Join(f.LogTail, "\n")
			if strings.Contains(said, secret) || strings.Contains(said, "0123456789abcdef") {
				t.Errorf("the signature was told:\n%s", said)
			}
			if len(f.LogTail) == 0 {
				t.Error("no log")
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFFmpegThatIsMissingOrStoppedIsTransient(t *testing.T) {
	_, err := ffmpegRun{program: "/no/such/ffmpeg"}.run(t.Context())
	if KindOf(err) != FailureTransient || !strings.Contains(err.Error(), "install ffmpeg") {
		t.Errorf("missing: %v", err)
	}
	testenv.Need(t, testenv.FFmpeg)
	ctx, cancel := context.WithCancel(t.Context())
	run := ffmpegRun{program: "ffmpeg", args: []string{"-re", "-f", "lavfi", "-i", "testsrc2,showinfo@out=checksum=0", "-f", "null", "-"}, frame: func(int) { cancel() }}
	if _, err := run.run(ctx); !errors.Is(err, context.Canceled) || KindOf(err) != FailureTransient {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTasksThatDoNotFitTheRoleAreRefused(t *testing.T) {
	if _, err := New(Env{}, Role{}, sprocket.Task{}); err == nil {
		t.Error("a role without a stage was taken")
	}
	role := Role{Node: sprocket.Node{Stages: []sprocket.StageUse{use(t, "decode", `{}`)}, Upstreams: make([]sprocket.Upstream, 1)}}
	if _, err := New(Env{}, role, sprocket.Task{}); err == nil {
		t.Error("a task without inputs was taken")
	}
}
