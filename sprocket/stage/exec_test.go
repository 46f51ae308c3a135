package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/store"
)

// execBed is a task of the stage exec with three frames, in ticks of 1/12800.
type execBed struct {
	t    *testing.T
	env  Env
	role Role
	task sprocket.Task
}

func newExecBed(t *testing.T, returns sprocket.DataType, config string) *execBed {
	t.Helper()
	testenv.Need(t, testenv.FFmpeg)
	st, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &execBed{t: t, env: Env{Output: st, Work: st, Dir: t.TempDir(), FFmpeg: "ffmpeg", Progress: func(int) {}}}
	b.role = Role{
		TimeBase: rational(1, 12800),
		Inputs:   []Input{{Name: "in.mp4", Clock: sprocket.Clock{TimeBase: rational(1, 12800), Rate: rational(25, 1), Constant: true}}},
		Node: sprocket.Node{
			Name: "mine", Stages: []sprocket.StageUse{use(t, "exec", config)}, Output: returns, OutputIndex: -1, Format: FormatRaw,
			Upstreams: []sprocket.Upstream{{Port: "frames", Type: sprocket.Frames}},
		},
	}
	// Frames as another worker leaves them.
	name := filepath.Join(t.TempDir(), "frames.nut")
	if _, err := (ffmpegRun{program: "ffmpeg", args: []string{
		"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25", "-frames:v", "3", "-vf", "format=yuv420p,settb=1/12800", "-c:v", "rawvideo", "-enc_time_base", "1:12800", "-f", "nut", name,
	}}).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := st.PutFile(t.Context(), "frames/a.nut", name); err != nil {
		t.Fatal(err)
	}
	b.task = sprocket.Task{Seq: 4, Inputs: [][]sprocket.Item{{{
		Type: sprocket.Frames, Seq: 4, Chunk: 2, End: 3 * 512, Pixels: &sprocket.Pixels{Width: 64, Height: 48, Format: "yuv420p"},
		Frames: []sprocket.FrameRange{{Key: "frames/a.nut", PTS: []int64{0, 512, 1024}}},
	}}}}
	return b
}

// run does all three steps.
func (b *execBed) run() (Result, error) {
	b.t.Helper()
	e, err := New(b.env, b.role, b.task)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := e.Fetch(b.t.Context()); err != nil {
		return Result{}, err
	}
	if err := e.Process(b.t.Context()); err != nil {
		return Result{}, err
	}
	return e.Emit(b.t.Context())
}

func shell(script string) string {
	text, _ := json.Marshal([]string{"sh", "-c", script, "sh", "{in}", "{out}", "{task}"})
	return fmt.Sprintf(`{"command":%s}`, text)
}

func TestACommandTurnsFramesIntoFrames(t *testing.T) {
	b := newExecBed(t, sprocket.Frames, shell(`test "$1" = "$VOLLEY_IN" && test "$2" = "$VOLLEY_OUT" && test "$3" = "$VOLLEY_TASK" && cp "$1"/*.png "$2" && cp "$3" `+"/dev/stderr"))
	res, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	it := res.Item
	if res.Frames != 3 || it.Seq != 4 || it.Chunk != 2 || it.FrameCount() != 3 || it.Frames[0].PTS[2] != 1024 || it.Pixels.Width != 64 {
		t.Errorf("result %+v", res)
	}
	if _, err := b.env.Work.Stat(t.Context(), it.Frames[0].Key); err != nil {
		t.Error(err)
	}
	// Each step may be repeated.
	if again, err := b.run(); err != nil || again.Item.FrameCount() != 3 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestTheTasksDescriptionIsWhole(t *testing.T) {
	b := newExecBed(t, sprocket.Images, shell(`cp "$3" "$2/task.txt"`))
	res, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(b.env.Work.(store.LocalPather).LocalPath(res.Item.Objects[0].Key))
	if err != nil {
		t.Fatal(err)
	}
	var d execDescription
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Node != "exec-node" || d.Task != 4 || d.Chunk != 2 || d.TimeBase != rational(1, 12800) || d.End != 3*512 || d.Accepts != sprocket.Frames || d.Returns != sprocket.Images {
		t.Errorf("description %s", text)
	}
	if len(d.Files) != 3 || d.Files[1] != (madeFile{File: "000002.png", PTS: 512}) || d.Pixels == nil {
		t.Errorf("files %+v", d.Files)
	}
}

func TestACommandChoosesItsFilesAndTimes(t *testing.T) {
	b := newExecBed(t, sprocket.Frames, shell(`cp "$1"/000001.png "$2/x.png"; echo '{"files":[{"file":"x.png","pts":3},{"file":"x.png","pts":700}]}' > "$2/output.json"`))
	res, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Item.Frames[0].PTS; len(got) != 2 || got[0] != 3 || got[1] != 700 {
		t.Errorf("times %v", got)
	}
}

func TestACommandMakesAChunk(t *testing.T) {
	b := newExecBed(t, sprocket.Chunks, shell(`ffmpeg -v error -framerate 25 -i "$1/%06d.png" -pix_fmt yuv420p -c:v libx264 "$2/out.mp4"`))
	res, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	if it := res.Item; it.Start != 0 || it.End != 3*512 || len(it.Init) == 0 || it.Objects[0].Count != 3 {
		t.Errorf("result %+v", res)
	}
}

func TestACommandThatFails(t *testing.T) {
	const echo = `echo "the reason" >&2; `
	for _, tc := range []struct {
		name    string
		returns sprocket.DataType
		config  string
		kind    FailureKind
		want    string
	}{
		{"a non-zero exit", sprocket.Frames, shell(echo + "exit 7"), FailureTransient, "exit status 7"},
		{"a missing program", sprocket.Frames, `{"command":["no-such-program-anywhere"]}`, FailureConfig, "no-such-program-anywhere"},
		{"a missing path", sprocket.Frames, `{"command":["/no/such/program"]}`, FailureConfig, "give a program that is in PATH"},
		{"too few files", sprocket.Frames, shell(echo + `cp "$1/000001.png" "$2"`), FailureConfig, "got 3 frames and left 1 files"},
		{"no file for a chunk", sprocket.Chunks, shell(echo), FailureConfig, "left 0 files"},
		{"two files for a chunk", sprocket.Chunks, shell(`touch "$2/a" "$2/b"`), FailureConfig, "left 2 files"},
		{"a list that is no JSON", sprocket.Frames, shell(`echo '{' > "$2/output.json"`), FailureConfig, "read the command's output.json"},
		{"a list that escapes", sprocket.Images, shell(`echo '{"files":[{"file":"../task.json","pts":0}]}' > "$2/output.json"`), FailureConfig, "not inside the output directory"},
		{"a list with an absolute path", sprocket.Images, shell(`echo '{"files":[{"file":"/etc/passwd","pts":0}]}' > "$2/output.json"`), FailureConfig, "not inside the output directory"},
		{"a list of what is not there", sprocket.Images, shell(`echo '{"files":[{"file":"x.png","pts":0}]}' > "$2/output.json"`), FailureConfig, "not there"},
		{"a time outside of the task", sprocket.Images, shell(`touch "$2/x"; echo '{"files":[{"file":"x","pts":99999}]}' > "$2/output.json"`), FailureConfig, "must rise within [0, 1536)"},
		{"times that do not rise", sprocket.Images, shell(`touch "$2/x"; echo '{"files":[{"file":"x","pts":5},{"file":"x","pts":5}]}' > "$2/output.json"`), FailureConfig, "files[1] has pts 5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newExecBed(t, tc.returns, tc.config).run()
			var f *Failure
			if !errors.As(err, &f) {
				t.Fatalf("error %v, want a Failure", err)
			}
			if f.Kind != tc.kind || f.Stage != "exec-node" || !strings.Contains(f.Error(), tc.want) {
				t.Errorf("%s failure of %s: %v; want %s with %q", f.Kind, f.Stage, f, tc.kind, tc.want)
			}
			if strings.Contains(tc.config, "the reason") && strings.Join(f.LogTail, "") != "the reason" {
				t.Errorf("log tail %q", f.LogTail)
			}
		})
	}
}

func TestALinkOutOfTheOutputDirectoryIsRefused(t *testing.T) {
	b := newExecBed(t, sprocket.Images, shell(`ln -s /etc/passwd "$2/x"; echo '{"files":[{"file":"x","pts":0}]}' > "$2/output.json"`))
	if res, err := b.run(); err == nil {
		text, _ := os.ReadFile(b.env.Work.(store.LocalPather).LocalPath(res.Item.Objects[0].Key))
		t.Errorf("a link to /etc/passwd was published, with %d bytes", len(text))
	}
}

func TestACommandThatTakesTooLongIsKilledWithItsChildren(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	b := newExecBed(t, sprocket.Frames, `{"command":["sh","-c","sleep 600 & echo $! > `+pid+`; wait"],"timeout":"300ms"}`)
	begun := time.Now()
	_, err := b.run()
	if err == nil || !strings.Contains(err.Error(), "took longer than 300ms") || KindOf(err) != FailureTransient {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begun); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	// The child is gone, or waits as a zombie for whoever adopted it.
	stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(text)), "stat"))
	if err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the command's child still runs: %s", stat)
	}
}

func TestExecRefusesChunksOfAnInput(t *testing.T) {
	b := newExecBed(t, sprocket.Images, shell("true"))
	b.role.Node.Upstreams[0].Type = sprocket.Chunks
	b.task.Inputs[0][0] = sprocket.Item{Type: sprocket.Chunks, Source: &sprocket.SourceRange{}}
	if _, err := b.run(); KindOf(err) != FailureConfig || !strings.Contains(err.Error(), "put decode") {
		t.Errorf("error %v", err)
	}
}

func TestATaskWithoutFramesRunsNoCommand(t *testing.T) {
	b := newExecBed(t, sprocket.Frames, shell("exit 1"))
	b.task.Inputs[0][0].Frames = nil
	if res, err := b.run(); err != nil || res.Frames != 0 || len(res.Item.Frames) != 0 {
		t.Errorf("result %+v, %v", res, err)
	}
}
