package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/media"
)

// execTask runs a command of the user's: frames become numbered picture files
// in the input directory, and what the command leaves in the output directory
// becomes the result. docs/formats/exec.md describes the contract. The command
// runs with the worker's rights; nothing isolates it.
type execTask struct {
	*ffmpegTask
	stage   sprocket.StageUse
	in, out string
	// made are the files that the command left, with their times.
	made []madeFile
}

// execDescription is the JSON file that tells the command about its task.
type execDescription struct {
	Node     string            `json:"node"`
	Task     int64             `json:"task"`
	Chunk    int64             `json:"chunk"`
	TimeBase sprocket.Rational `json:"time_base"`
	Start    int64             `json:"start"`
	End      int64             `json:"end"`
	Input    string            `json:"input"`
	Output   string            `json:"output"`
	Accepts  sprocket.DataType `json:"accepts"`
	Returns  sprocket.DataType `json:"returns"`
	Files    []madeFile        `json:"files"`
	Pixels   *sprocket.Pixels  `json:"pixels,omitempty"`
}

// madeFile is a file with the time at which it is shown.
type madeFile struct {
	File string `json:"file"`
	PTS  int64  `json:"pts"`
}

// resultList is the name of the file in which a command can say which of its
// files to take, and when they are shown.
const resultList = "output.json"

func newExecTask(env Env, role Role, task sprocket.Task) *execTask {
	return &execTask{
		ffmpegTask: newFFmpegTask(env, role, task), stage: role.Node.Stages[0],
		in: filepath.Join(env.Dir, "in"), out: filepath.Join(env.Dir, "out"),
	}
}

// Process gives the command its input and runs it.
func (t *execTask) Process(ctx context.Context) error {
	t.log, t.segment, t.init, t.made = &ffmpegLog{}, nil, nil, nil
	for _, dir := range []string{t.in, t.out} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if n := len(t.role.Node.Upstreams); n != 1 {
		return &Failure{Kind: FailureConfig, Stage: t.stage.Node, Err: fmt.Errorf("exec takes one stream, frames or chunks; this node has %d", n)}
	}
	start, end := t.task.Range()
	d := execDescription{
		Node: t.stage.Node, Task: t.task.Seq, Chunk: t.task.Chunk(), TimeBase: t.role.TimeBase, Start: start, End: end,
		Input: t.in, Output: t.out, Accepts: t.role.Node.Upstreams[0].Type, Returns: t.role.Node.Output,
	}
	var err error
	if d.Accepts == sprocket.Frames {
		d.Files, d.Pixels, err = t.writeFrames(ctx)
	} else {
		d.Files, err = t.writeChunks(ctx)
	}
	if err != nil {
		return err
	}
	if len(d.Files) == 0 {
		return nil
	}
	if err := t.runCommand(ctx, d); err != nil {
		return &Failure{Kind: KindOf(err), Stage: t.stage.Node, Err: err, LogTail: t.log.tail}
	}
	if err := t.collect(d); err != nil {
		return &Failure{Kind: FailureConfig, Stage: t.stage.Node, Err: err, LogTail: t.log.tail}
	}
	switch d.Returns {
	case sprocket.Frames:
		return t.readFrames(ctx)
	case sprocket.Chunks:
		return t.readChunk(ctx, start, end)
	}
	return nil
}

// writeFrames turns the task's frames into numbered files.
func (t *execTask) writeFrames(ctx context.Context) ([]madeFile, *sprocket.Pixels, error) {
	ports, err := t.ports()
	if err != nil || len(ports) == 0 {
		return nil, nil, err
	}
	var g graph
	link := g.chain(ports[0].filter, fmt.Sprintf("[0:%d]", t.streamOf(0)))
	link = g.chain(fmt.Sprintf("format=rgb24,settb=%s,showinfo@out=checksum=0", t.role.TimeBase), link)
	format := t.stage.Params.String("format")
	args := append(slices.Clone(ports[0].args), "-filter_complex", g.String(), "-map", link,
		"-fps_mode", "passthrough", "-enc_time_base", fmt.Sprintf("1:%d", t.role.TimeBase.Den), "-f", "image2", filepath.Join(t.in, "%06d."+format))
	log, err := ffmpegRun{program: t.env.FFmpeg, args: args}.run(ctx)
	if err != nil {
		return nil, nil, t.explain(err, ports)
	}
	files := make([]madeFile, len(log.pts))
	for i, pts := range log.pts {
		files[i] = madeFile{File: fmt.Sprintf("%06d.%s", i+1, format), PTS: pts}
	}
	return files, &ports[0].pixels, nil
}

// writeChunks writes each encoded chunk as a playable file.
func (t *execTask) writeChunks(ctx context.Context) ([]madeFile, error) {
	var files []madeFile
	for _, it := range t.task.Inputs[0] {
		if it.Source != nil {
			return nil, &Failure{Kind: FailureConfig, Stage: t.stage.Node, Err: errors.New("exec cannot take chunks of an input as they are, because a chunk need not begin at a key frame; put decode (and encode) before it")}
		}
		for _, obj := range it.Objects {
			from := t.env.Work
			if obj.Output {
				from = t.env.Output
			}
			r, err := from.Get(ctx, obj.Key, 0, -1)
			if err != nil {
				return nil, err
			}
			name := fmt.Sprintf("chunk-%06d.mp4", it.Seq)
			err = writeAll(filepath.Join(t.in, name), io.MultiReader(bytes.NewReader(it.Init), r))
			if closeErr := r.Close(); err == nil {
				err = closeErr
			}
			if err != nil {
				return nil, err
			}
			files = append(files, madeFile{File: name, PTS: obj.PTS})
		}
	}
	return files, nil
}

func writeAll(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (t *execTask) runCommand(ctx context.Context, d execDescription) error {
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(t.env.Dir, "task.json")
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return err
	}
	argv := t.stage.Params.Strings("command")
	if len(argv) == 0 {
		return &Failure{Kind: FailureConfig, Err: errors.New("the command is empty")}
	}
	expand := strings.NewReplacer("{in}", t.in, "{out}", t.out, "{task}", path)
	for i := range argv {
		argv[i] = expand.Replace(argv[i])
	}
	ctx, cancel := context.WithTimeout(ctx, t.stage.Params.Duration("timeout"))
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "VOLLEY_IN="+t.in, "VOLLEY_OUT="+t.out, "VOLLEY_TASK="+path)
	sys.NewGroup(cmd)
	release := sys.DieWithParent(cmd)
	defer release()
	cmd.Cancel = func() error { return sys.KillGroup(cmd.Process.Pid) }
	var output tailBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Run()
	t.log.tail = output.lines()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission):
		return &Failure{Kind: FailureConfig, Err: fmt.Errorf("start the command %q: %w; give a program that is in PATH, or a path", argv[0], err)}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the command %q took longer than %s; raise the parameter timeout", argv[0], t.stage.Params.Duration("timeout"))
	}
	return fmt.Errorf("the command %q: %w", argv[0], err)
}

// tailBuffer keeps the end of what is written to it.
type tailBuffer struct{ data []byte }

func (b *tailBuffer) Write(p []byte) (int, error) {
	const limit = 8 << 10
	b.data = append(b.data, p...)
	if len(b.data) > limit {
		b.data = slices.Clone(b.data[len(b.data)-limit:])
	}
	return len(p), nil
}

func (b *tailBuffer) lines() []string {
	lines := strings.Split(strings.TrimSpace(string(b.data)), "\n")
	return lines[max(0, len(lines)-tailLines):]
}

// collect finds the files that the command left.
func (t *execTask) collect(d execDescription) error {
	text, err := os.ReadFile(filepath.Join(t.out, resultList))
	if err == nil {
		var list struct {
			Files []madeFile `json:"files"`
		}
		if err := json.Unmarshal(text, &list); err != nil {
			return fmt.Errorf("read the command's %s: %w", resultList, err)
		}
		for i, f := range list.Files {
			if !filepath.IsLocal(f.File) {
				return fmt.Errorf("the command's %s: files[%d] %q is not inside the output directory", resultList, i, f.File)
			}
			if f.PTS < d.Start || f.PTS >= d.End || (i > 0 && f.PTS <= list.Files[i-1].PTS) {
				return fmt.Errorf("the command's %s: files[%d] has pts %d; they must rise within [%d, %d)", resultList, i, f.PTS, d.Start, d.End)
			}
			if _, err := os.Stat(filepath.Join(t.out, f.File)); err != nil {
				return fmt.Errorf("the command's %s names a file that is not there: %w", resultList, err)
			}
		}
		t.made = list.Files
		return nil
	}
	entries, err := os.ReadDir(t.out)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			t.made = append(t.made, madeFile{File: e.Name()})
		}
	}
	switch {
	case d.Returns == sprocket.Images:
		for i := range t.made {
			t.made[i].PTS = d.Start + int64(i)
		}
	case d.Returns == sprocket.Frames && len(t.made) != len(d.Files):
		return fmt.Errorf("the command got %d frames and left %d files in the output directory; leave one for each, or say in %s which are shown when", len(d.Files), len(t.made), resultList)
	case d.Returns == sprocket.Frames:
		for i := range t.made {
			t.made[i].PTS = d.Files[i].PTS
		}
	case d.Returns == sprocket.Chunks && len(t.made) != 1:
		return fmt.Errorf("the command left %d files in the output directory; leave one video file", len(t.made))
	}
	return nil
}

// readFrames makes a frames object of the command's pictures.
func (t *execTask) readFrames(ctx context.Context) error {
	var list strings.Builder
	list.WriteString("ffconcat version 1.0\n")
	pts := make([]int64, len(t.made))
	for i, f := range t.made {
		fmt.Fprintf(&list, "file '%s'\n", strings.ReplaceAll(filepath.Join(t.out, f.File), "'", `'\''`))
		pts[i] = f.PTS
	}
	if len(pts) == 0 {
		return nil
	}
	name := filepath.Join(t.env.Dir, "made.txt")
	if err := os.WriteFile(name, []byte(list.String()), 0o600); err != nil {
		return err
	}
	var g graph
	link := g.chain(fmt.Sprintf("settb=%s,setpts=%s", t.role.TimeBase, timesExpression(pts)), "[0:0]")
	return t.frames(ctx, ffmpegRun{program: t.env.FFmpeg, frame: t.env.Progress}, &g, link, []string{"-f", "concat", "-safe", "0", "-i", name})
}

// timesExpression returns an FFmpeg expression that gives frame N the time
// pts[N]: one linear piece for each run of equal steps.
func timesExpression(pts []int64) string {
	type piece struct {
		from        int
		first, step int64
	}
	var pieces []piece
	for i := 0; i < len(pts); {
		p := piece{from: i, first: pts[i]}
		j := i + 1
		if j < len(pts) {
			p.step = pts[j] - pts[i]
			for j < len(pts) && pts[j]-pts[j-1] == p.step {
				j++
			}
		}
		pieces = append(pieces, p)
		i = j
	}
	expr := ""
	for i := len(pieces) - 1; i >= 0; i-- {
		p := pieces[i]
		line := fmt.Sprintf("%d+(N-%d)*%d", p.first, p.from, p.step)
		if expr == "" {
			expr = line
		} else {
			expr = fmt.Sprintf("if(lt(N,%d),%s,%s)", pieces[i+1].from, line, expr)
		}
	}
	return "'" + expr + "'"
}

// readChunk takes the command's video file as an encoded chunk.
func (t *execTask) readChunk(ctx context.Context, start, end int64) error {
	tb := t.role.TimeBase
	var samples []media.Sample
	var track *media.Track
	run := ffmpegRun{program: t.env.FFmpeg, args: []string{
		"-i", filepath.Join(t.out, t.made[0].File), "-map", "0:v:0", "-c", "copy", "-map_metadata", "-1",
		"-video_track_timescale", fmt.Sprint(tb.Den), "-movflags", "+empty_moov+default_base_moof+frag_keyframe", "-f", "mp4", "pipe:1",
	}}
	run.stdout = func(r io.Reader) (err error) {
		track, err = media.ReadFragments(r, func(_ *media.Track, s []media.Sample) error {
			samples = append(samples, s...)
			return nil
		})
		return err
	}
	log, err := run.run(ctx)
	if err != nil {
		return err
	}
	if len(samples) == 0 {
		return &Failure{Kind: FailureConfig, Stage: t.stage.Node, LogTail: log.tail, Err: errors.New("the command's video file holds no frames")}
	}
	pts := make([]int64, 0, len(samples))
	for _, s := range samples {
		pts = append(pts, s.PTS)
	}
	slices.Sort(pts)
	first := pts[0]
	for i := range pts {
		pts[i] += start - first
	}
	if pts[len(pts)-1] >= end {
		return &Failure{Kind: FailureConfig, Stage: t.stage.Node, Err: fmt.Errorf("the command's video lasts longer than the chunk's %.3f s", tb.Seconds(end-start))}
	}
	t.log.pts, t.samples, t.segmentStart, t.end = pts, len(samples), start, end
	delay := media.ReorderFrames * t.clock().FrameTicks(tb)
	if t.segment, err = media.Segment(samples, pts, end, delay, uint32(t.task.Seq+1)); err != nil {
		return err
	}
	t.init, err = track.Init(uint32(tb.Den), delay)
	return err
}

// Emit stores the command's results.
func (t *execTask) Emit(ctx context.Context) (Result, error) {
	if t.role.Node.Output != sprocket.Images {
		return t.ffmpegTask.Emit(ctx)
	}
	start, end := t.task.Range()
	it := sprocket.Item{Type: sprocket.Images, Seq: t.task.Seq, Chunk: t.task.Chunk(), Start: start, End: end}
	res := Result{Frames: len(t.made), BytesRead: t.bytesRead}
	for _, f := range t.made {
		obj := sprocket.Object{Key: t.resultKey(fmt.Sprintf("images/%06d-%s", t.task.Seq, filepath.Base(f.File))), PTS: f.PTS, Output: t.role.Node.OutputIndex >= 0}
		var err error
		if obj.SizeBytes, err = t.resultStore().PutFile(ctx, obj.Key, filepath.Join(t.out, f.File)); err != nil {
			return Result{}, &Failure{Kind: KindOf(err), Stage: t.stage.Node, Err: err}
		}
		res.BytesWritten += obj.SizeBytes
		it.Objects = append(it.Objects, obj)
	}
	res.Item = it
	return res, nil
}
