package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/media"
)

// ffmpegTask runs a chain of fused stages in one FFmpeg process.
type ffmpegTask struct {
	env  Env
	role Role
	task sprocket.Task
	// files are the local frames objects by key.
	files     map[string]fetched
	bytesRead int64

	log *ffmpegLog
	// tolerant means that decoders take references to missing frames.
	tolerant bool
	// segment is the encoded chunk, with its initialisation segment.
	segment, init []byte
	samples       int
	segmentStart  int64
	end           int64
}

func newFFmpegTask(env Env, role Role, task sprocket.Task) *ffmpegTask {
	return &ffmpegTask{env: env, role: role, task: task, files: map[string]fetched{}}
}

// sink returns the stage that ends the chain if it is one that makes something
// else than frames.
func (t *ffmpegTask) sink() sprocket.StageUse {
	return t.role.Node.Stages[len(t.role.Node.Stages)-1]
}

// Fetch makes the frames that other tasks left available as local files.
// Chunks of an input are read by FFmpeg itself.
func (t *ffmpegTask) Fetch(ctx context.Context) error {
	for _, items := range t.task.Inputs {
		for _, it := range items {
			for _, r := range it.Frames {
				if _, ok := t.files[r.Key]; ok {
					continue
				}
				f, n, err := localFile(ctx, t.env.Work, r.Key, t.env.Dir)
				if err != nil {
					return &Failure{Kind: KindOf(err), Err: err}
				}
				t.files[r.Key] = f
				t.bytesRead += n
			}
		}
	}
	return nil
}

// port is one stream of frames into the chain.
type port struct {
	args   []string
	filter string
	pixels sprocket.Pixels
	// expect is how many frames should come, -1 if unknown; where says from
	// what, for messages.
	expect int
	where  string
	// last is the time of the last frame, where that is known.
	last *int64
}

// Process runs FFmpeg. A key frame in the middle of an open group of pictures
// refers to frames before it, to say that they are not needed any more. A
// decoder that starts there takes this for damage if it is strict: it gets
// another try in which it only ends at pictures that it cannot decode.
func (t *ffmpegTask) Process(ctx context.Context) error {
	err := t.process(ctx)
	if err != nil && !t.tolerant && t.log.missesReferences() {
		t.tolerant = true
		err = t.process(ctx)
	}
	return err
}

func (t *ffmpegTask) process(ctx context.Context) error {
	ports, err := t.ports()
	if err != nil {
		return err
	}
	t.log, t.segment, t.init = &ffmpegLog{}, nil, nil
	if len(ports) == 0 {
		return nil // no frames in this stretch of the input
	}
	var g graph
	var args, links []string
	var px []sprocket.Pixels
	for i, p := range ports {
		args = append(args, p.args...)
		links = append(links, g.chain(p.filter, fmt.Sprintf("[%d:%d]", i, t.streamOf(i))))
		px = append(px, p.pixels)
	}
	start, end := t.task.Range()
	frame := t.clock().FrameTicks(t.role.TimeBase)
	link := links[0]
	for i, u := range t.role.Node.Stages {
		if i > 0 {
			links = []string{link}
		}
		if link, err = g.stageFilter(u, links, px, t.role.TimeBase, frame, len(ports) > 1 && t.more(1)); err != nil {
			return &Failure{Kind: FailureConfig, Stage: u.Node, Err: err}
		}
	}
	run := ffmpegRun{program: t.env.FFmpeg, frame: t.env.Progress}
	for _, in := range t.role.Inputs {
		if strings.Contains(in.URL, "://") {
			run.secrets = append(run.secrets, in.URL)
		}
	}
	switch sink := t.sink(); sink.Stage {
	case "encode":
		err = t.encode(ctx, run, &g, link, args, sink.Params, start, end, frame)
	case "thumbnails":
		err = t.pictures(ctx, run, &g, link, args, sink.Params)
	default:
		err = t.frames(ctx, run, &g, link, args)
	}
	if err != nil {
		return t.explain(err, ports)
	}
	// Only the first stream is read to its end in any case.
	if got, p := t.log.sourceFrames[0], ports[0]; p.expect >= 0 && got != p.expect {
		return &Failure{Kind: FailureInput, Stage: t.role.Node.Stages[0].Node, LogTail: t.log.tail,
			Err: fmt.Errorf("decoded %d of the %d frames in %s: the file is damaged there, or its index is wrong%s", got, p.expect, p.where, t.concealHint())}
	}
	return nil
}

// more reports whether the frames of a port go on to the end of the task.
func (t *ffmpegTask) more(port int) bool {
	items := t.task.Inputs[port]
	return len(items) > 0 && items[len(items)-1].More
}

// explain adds where in the input a failure happened.
func (t *ffmpegTask) explain(err error, ports []port) error {
	var f *Failure
	if !errors.As(err, &f) {
		return err
	}
	if f.Stage == "" {
		f.Stage = t.role.Node.Stages[0].Node
		if f.Kind == FailureConfig {
			for _, u := range t.role.Node.Stages {
				if u.Stage == "filter" {
					f.Stage = u.Node
				}
			}
		}
	}
	if f.Kind == FailureInput {
		f.Err = fmt.Errorf("%w, in %s%s", f.Err, ports[0].where, t.concealHint())
	}
	return f
}

// concealHint says how to go on with a damaged input.
func (t *ffmpegTask) concealHint() string {
	if u := t.role.Node.Stages[0]; u.Stage == "decode" {
		return fmt.Sprintf("; get a whole copy, or go on with what can be decoded by --set %s.errors=conceal", u.Node)
	}
	return ""
}

// clock is that of the input which the node follows.
func (t *ffmpegTask) clock() sprocket.Clock { return t.role.Inputs[t.role.Node.Follows].Clock }

func (t *ffmpegTask) streamOf(port int) int {
	if items := t.task.Inputs[port]; len(items) > 0 && items[0].Source != nil {
		return t.role.Inputs[items[0].Source.Input].Stream
	}
	return 0
}

// ports describes the streams of frames into the chain. Streams without frames
// at the end of the list are left out; without any in the first there is
// nothing to do.
func (t *ffmpegTask) ports() ([]port, error) {
	var ports []port
	var until *int64
	for i, items := range t.task.Inputs {
		var p port
		var err error
		switch {
		case len(items) == 1 && items[0].Source != nil:
			p = t.sourcePort(i, *items[0].Source)
		case slices.ContainsFunc(items, func(it sprocket.Item) bool { return it.Source != nil || len(it.Objects) > 0 }):
			return nil, &Failure{Kind: FailureConfig, Stage: t.role.Node.Stages[0].Node, Err: errors.New("the stage takes one chunk of an input, or frames, at a time; use the delivery function \"default\"")}
		default:
			p, err = t.framesPort(i, items, until)
		}
		if err != nil {
			return nil, err
		}
		if p.args == nil {
			break
		}
		until = p.last
		ports = append(ports, p)
	}
	return ports, nil
}

func (t *ffmpegTask) sourcePort(i int, r sprocket.SourceRange) port {
	in := t.role.Inputs[r.Input]
	args := []string{"-threads", "1"}
	expect := r.Frames
	if t.role.Node.Stages[0].Params.String("errors") == "fail" {
		args = append(args, "-xerror")
		if !t.tolerant {
			args = append(args, "-err_detect", "explode")
		}
	} else {
		expect = -1 // some may be beyond concealing
	}
	// A seek target is in microseconds: round up, so that it is not before the
	// key frame.
	seek := math.Ceil(in.Clock.TimeBase.Seconds(r.SeekPTS)*1e6) / 1e6
	args = append(args, "-seek_timestamp", "1", "-noaccurate_seek", "-ss", fmt.Sprintf("%.6f", seek), "-copyts")
	if strings.HasPrefix(in.URL, "http") {
		args = append(args, reconnect()...)
	}
	args = append(args, "-an", "-sn", "-dn", "-i", in.URL)
	until := "the end"
	if !r.Last {
		until = fmt.Sprintf("%.3f s", in.Clock.TimeBase.Seconds(r.EndPTS))
	}
	return port{
		args: args, pixels: in.Pixels, expect: expect,
		filter: sourceFilter(i, r, in.Clock, t.role.TimeBase),
		where:  fmt.Sprintf("input %s from %.3f s to %s", in.Name, in.Clock.TimeBase.Seconds(r.LeadPTS), until),
	}
}

// framesPort reads frames items back: one object, or several in a row.
// Frames after until, if given, are left out.
func (t *ffmpegTask) framesPort(i int, items []sprocket.Item, until *int64) (port, error) {
	var ranges []sprocket.FrameRange
	var pts []int64
	var px *sprocket.Pixels
	for _, it := range items {
		for _, r := range it.Frames {
			if len(r.PTS) > 0 {
				ranges = append(ranges, r)
				pts = append(pts, r.PTS...)
			}
		}
		if px == nil {
			px = it.Pixels
		}
	}
	if len(ranges) > 0 && until != nil {
		// Filters that join streams would go on with the later frames of this
		// one, once the first stream has ended.
		last := sort.Search(len(pts), func(k int) bool { return pts[k] > *until })
		pts = pts[:last]
	}
	if len(ranges) == 0 || len(pts) == 0 {
		return port{}, nil
	}
	if px == nil {
		return port{}, errors.New("frames without a description of their pixels")
	}
	p := port{pixels: *px, expect: len(pts), last: &pts[len(pts)-1], filter: framesFilter(i, pts, *px, t.role.TimeBase), where: "frames of the stage before"}
	if len(ranges) == 1 {
		p.args = []string{"-copyts", "-f", "nut", "-i", t.files[ranges[0].Key].path}
		return p, nil
	}
	list, err := t.concatList(i, ranges)
	if err != nil {
		return port{}, err
	}
	// The list's clock starts at its first object.
	p.args = []string{"-copyts", "-f", "concat", "-safe", "0", "-i", list}
	p.filter = fmt.Sprintf("settb=%s,setpts=PTS-STARTPTS+%d,", t.role.TimeBase, ranges[0].Base) + p.filter
	return p, nil
}

// concatList writes the list of objects for FFmpeg's concat demuxer. Durations
// are differences of rounded times, so that rounding does not add up.
func (t *ffmpegTask) concatList(port int, ranges []sprocket.FrameRange) (string, error) {
	var b strings.Builder
	b.WriteString("ffconcat version 1.0\n")
	micro := sprocket.Rational{Num: 1, Den: 1_000_000}
	for i, r := range ranges {
		fmt.Fprintf(&b, "file '%s'\n", strings.ReplaceAll(t.files[r.Key].path, "'", `'\''`))
		if i+1 < len(ranges) {
			from, to := t.role.TimeBase.Rescale(r.Base, micro), t.role.TimeBase.Rescale(ranges[i+1].Base, micro)
			fmt.Fprintf(&b, "duration %d.%06d\n", (to-from)/1_000_000, (to-from)%1_000_000)
		}
	}
	name := filepath.Join(t.env.Dir, fmt.Sprintf("list-%d.txt", port))
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		return "", fmt.Errorf("list frames objects: %w", err)
	}
	return name, nil
}

// primingFrames is how many copies of a chunk's first frame are encoded before
// it and dropped again. A fresh x264 encodes its very first frame without
// looking ahead and, until it has seen an inter-coded frame, without its usual
// ratio between frame types. That costs quality in the whole scene that follows;
// with a chunk every few seconds it would add up. The copies cost next to
// nothing.
const primingFrames = 2

// encode ends the graph in an encoder and makes a CMAF segment of what it
// gives.
func (t *ffmpegTask) encode(ctx context.Context, run ffmpegRun, g *graph, link string, args []string, p sprocket.Params, start, end, frame int64) error {
	tb := t.role.TimeBase
	prime, primed := "", 0
	if p.String("codec") == "libx264" {
		primed = primingFrames
		prime = fmt.Sprintf(",tpad=start=%d:start_mode=clone", primed)
	}
	even := ""
	if strings.HasPrefix(p.String("pix_fmt"), "yuv42") {
		even = "crop=w='trunc(iw/2)*2':h='trunc(ih/2)*2':x=0:y=0,"
	}
	out := g.chain(fmt.Sprintf("%sformat=%s,settb=%s,trim=start_pts=%d:end_pts=%s,showinfo@out=checksum=0%s",
		even, p.String("pix_fmt"), tb, start-frame/2, t.trimEnd(end), prime), link)
	args = append(args, "-filter_complex", g.String(), "-map", out)
	if primed > 0 {
		args = append(args, "-forced-idr", "1", "-force_key_frames", fmt.Sprintf("expr:eq(n,%d)", primed))
	}
	args = append(args, "-c:v", p.String("codec"), "-preset", p.String("preset"), "-crf", number(p.Float("crf")), "-threads", fmt.Sprint(p.Int("threads")))
	if v := p.String("tune"); v != "" {
		args = append(args, "-tune", v)
	}
	if v := encoderParams(p); v != "" {
		args = append(args, "-"+strings.TrimPrefix(p.String("codec"), "lib")+"-params", v)
	}
	if p.String("codec") == "libx265" {
		args = append(args, "-tag:v", "hvc1")
	}
	args = append(args, colorArgs(t.role.Inputs[t.role.Node.Follows].Pixels)...)
	if rate := t.clock().Rate; !rate.IsZero() {
		args = append(args, "-r", rate.String())
	}
	args = append(args, "-fps_mode", "passthrough", "-enc_time_base", fmt.Sprintf("%d:%d", tb.Num, tb.Den),
		"-video_track_timescale", fmt.Sprint(tb.Den), "-map_metadata", "-1",
		"-movflags", "+empty_moov+default_base_moof+frag_keyframe", "-f", "mp4", "pipe:1")
	run.args = args
	var samples []media.Sample
	var track *media.Track
	run.stdout = func(r io.Reader) (err error) {
		track, err = media.ReadFragments(r, func(_ *media.Track, s []media.Sample) error {
			samples = append(samples, s...)
			return nil
		})
		return err
	}
	var err error
	if t.log, err = run.run(ctx); err != nil {
		return err
	}
	if len(samples) > 0 {
		samples = samples[min(primed, len(samples)):]
	}
	t.samples, t.end = len(samples), end
	if len(samples) == 0 {
		return nil
	}
	pts := t.log.pts
	if len(pts) != len(samples) {
		return &Failure{Kind: FailureTransient, Stage: t.sink().Node, LogTail: t.log.tail, Err: fmt.Errorf("the encoder took %d frames and gave %d", len(pts), len(samples))}
	}
	pts[0] = max(pts[0], start)
	if last := pts[len(pts)-1]; last >= end || t.isLast() {
		t.end = last + frame
	}
	t.segmentStart = pts[0]
	if t.segment, err = media.Segment(samples, pts, t.end, media.ReorderFrames*frame, uint32(t.task.Seq+1)); err != nil {
		return &Failure{Kind: FailureConfig, Stage: t.sink().Node, Err: fmt.Errorf("%w; a filter must keep the frames' times", err)}
	}
	t.init, err = track.Init(uint32(tb.Den), media.ReorderFrames*frame)
	return err
}

// encoderParams returns the encoder's private options.
func encoderParams(p sprocket.Params) string {
	params := p.String("params")
	if p.String("codec") == "libx265" {
		return strings.Trim("log-level=error:pools=1:frame-threads=1:"+params, ":")
	}
	return params
}

// isLast reports whether the task's input has no end of its own: the last
// frame then lasts as long as the others.
func (t *ffmpegTask) isLast() bool {
	items := t.task.Inputs[0]
	last := items[len(items)-1]
	return last.Source != nil && last.Source.Last
}

func (t *ffmpegTask) trimEnd(end int64) string {
	if t.isLast() {
		return fmt.Sprint(int64(math.MaxInt64))
	}
	return fmt.Sprint(end)
}

func colorArgs(px sprocket.Pixels) []string {
	var args []string
	for _, kv := range [][2]string{{"-color_range", px.Range}, {"-colorspace", px.Space}, {"-color_trc", px.Transfer}, {"-color_primaries", px.Primaries}} {
		if kv[1] != "" {
			args = append(args, kv[0], kv[1])
		}
	}
	return args
}

// framesFile is where frames are collected before they are stored.
const framesFile = "frames.nut"

// frames ends the graph in a lossless file of frames.
func (t *ffmpegTask) frames(ctx context.Context, run ffmpegRun, g *graph, link string, args []string) error {
	tb := t.role.TimeBase
	codec := []string{"-c:v", "rawvideo"}
	format := ""
	switch t.role.Node.Format {
	case FormatFFV1:
		codec = []string{"-c:v", "ffv1", "-level", "3", "-g", "1", "-threads", "1"}
	case FormatPNG:
		codec = []string{"-c:v", "png", "-compression_level", "1", "-threads", "1"}
		format = "format=rgb24,"
	}
	out := g.chain(fmt.Sprintf("%ssettb=%s,showinfo@out=checksum=0", format, tb), link)
	args = append(args, "-filter_complex", g.String(), "-map", out)
	args = append(args, codec...)
	run.args = append(args, "-fps_mode", "passthrough", "-enc_time_base", fmt.Sprintf("%d:%d", tb.Num, tb.Den),
		"-map_metadata", "-1", "-f", "nut", filepath.Join(t.env.Dir, framesFile))
	var err error
	t.log, err = run.run(ctx)
	return err
}

// pictures ends the graph in numbered picture files.
func (t *ffmpegTask) pictures(ctx context.Context, run ffmpegRun, g *graph, link string, args []string, p sprocket.Params) error {
	if err := removePictures(t.env.Dir); err != nil {
		return err
	}
	out := g.chain(fmt.Sprintf("settb=%s,showinfo@out=checksum=0", t.role.TimeBase), link)
	args = append(args, "-filter_complex", g.String(), "-map", out)
	if p.String("format") == "jpg" {
		args = append(args, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "3")
	}
	run.args = append(args, "-fps_mode", "passthrough", "-enc_time_base", fmt.Sprintf("1:%d", t.role.TimeBase.Den),
		"-f", "image2", filepath.Join(t.env.Dir, "picture-%06d."+p.String("format")))
	var err error
	t.log, err = run.run(ctx)
	return err
}

func removePictures(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "picture-*"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("remove earlier pictures: %w", err)
		}
	}
	return nil
}

// Emit stores the result.
func (t *ffmpegTask) Emit(ctx context.Context) (Result, error) {
	start, end := t.task.Range()
	it := sprocket.Item{Type: t.role.Node.Output, Seq: t.task.Seq, Chunk: t.task.Chunk(), Start: start, End: end, More: t.more(0)}
	res := Result{Frames: len(t.log.pts), BytesRead: t.bytesRead}
	var err error
	switch {
	case len(t.log.pts) == 0:
	case it.Type == sprocket.Chunks:
		it.Start, it.End, it.Init = t.segmentStart, t.end, t.init
		obj := sprocket.Object{Key: t.resultKey(media.SegmentKey(t.segmentStart)), PTS: t.segmentStart, Count: t.samples, Output: t.role.Node.OutputIndex >= 0}
		obj.SizeBytes, err = t.resultStore().Put(ctx, obj.Key, bytes.NewReader(t.segment))
		it.Objects = []sprocket.Object{obj}
	case it.Type == sprocket.Images:
		it.Objects, err = t.emitPictures(ctx)
	default:
		px := t.log.pixels
		it.Pixels = &px
		key := fmt.Sprintf("frames/%s/%08d.nut", t.role.Node.Name, t.task.Seq)
		it.Frames = []sprocket.FrameRange{{Key: key, Base: t.log.pts[0], PTS: t.log.pts}}
		res.BytesWritten, err = t.env.Work.PutFile(ctx, key, filepath.Join(t.env.Dir, framesFile))
	}
	if err != nil {
		return Result{}, &Failure{Kind: KindOf(err), Stage: t.sink().Node, Err: err}
	}
	for _, obj := range it.Objects {
		res.BytesWritten += obj.SizeBytes
	}
	res.Item = it
	return res, nil
}

func (t *ffmpegTask) emitPictures(ctx context.Context) ([]sprocket.Object, error) {
	format := t.sink().Params.String("format")
	var objects []sprocket.Object
	for i, pts := range t.log.pts {
		obj := sprocket.Object{Key: t.resultKey(media.ImageName(t.role.TimeBase.Duration(pts), format)), PTS: pts, Output: t.role.Node.OutputIndex >= 0}
		var err error
		obj.SizeBytes, err = t.resultStore().PutFile(ctx, obj.Key, filepath.Join(t.env.Dir, fmt.Sprintf("picture-%06d.%s", i+1, format)))
		if err != nil {
			return nil, err
		}
		objects = append(objects, obj)
	}
	return objects, nil
}

// Close removes nothing: the worker owns the directory.
func (t *ffmpegTask) Close() error { return nil }
