package stage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/media"
)

// soundSegment is about how long a stretch of published sound is.
const soundSegmentSeconds = 4

// soundTask carries an input's sound over, once and whole: copied where players
// of MP4 can play it, else encoded as AAC. Segments are published while it
// runs.
type soundTask struct {
	env   Env
	role  Role
	sound Sound
	bytes int64
}

func newSoundTask(env Env, role Role) *soundTask { return &soundTask{env: env, role: role} }

// copied are the codecs that MP4 carries and browsers play.
func copied(codec string) bool { return codec == "aac" || codec == "opus" || codec == "mp3" }

// Fetch has nothing to do: FFmpeg reads the input itself.
func (t *soundTask) Fetch(context.Context) error { return nil }

// Process streams the sound out of the input and stores it segment by segment.
func (t *soundTask) Process(ctx context.Context) error {
	a := t.role.Audio
	in := t.role.Inputs[a.Input]
	t.sound, t.bytes = Sound{}, 0
	args := []string{"-vn", "-sn", "-dn"}
	if strings.HasPrefix(in.URL, "http") {
		args = append(args, reconnect()...)
	}
	args = append(args, "-i", in.URL, "-map", fmt.Sprintf("0:%d", a.Stream))
	if copied(a.Codec) {
		args = append(args, "-c:a", "copy")
		if a.Codec == "aac" {
			// MPEG-TS puts a header before every packet that MP4 does not know;
			// packets without one pass unchanged.
			args = append(args, "-bsf:a", "aac_adtstoasc")
		}
	} else {
		args = append(args, "-c:a", "aac", "-b:a", fmt.Sprintf("%dk", 64*max(1, min(a.Channels, 6))), "-af", "aresample=async=1:min_hard_comp=0.1")
	}
	if a.EndSeconds > 0 {
		args = append(args, "-t", number(a.EndSeconds))
	}
	args = append(args, "-map_metadata", "-1", "-movflags", "+delay_moov+default_base_moof", "-frag_duration", fmt.Sprint(soundSegmentSeconds*1_000_000), "-f", "mp4", "pipe:1")
	run := ffmpegRun{program: t.env.FFmpeg, args: args}
	if strings.Contains(in.URL, "://") {
		run.secrets = []string{in.URL}
	}
	run.stdout = func(r io.Reader) error {
		_, err := media.ReadFragments(r, func(track *media.Track, samples []media.Sample) error { return t.segment(ctx, track, samples) })
		return err
	}
	_, err := run.run(ctx)
	return err
}

// segment publishes one stretch of sound. A stretch that begins before the
// picture is told by an edit list; one that begins after it by its time.
func (t *soundTask) segment(ctx context.Context, track *media.Track, samples []media.Sample) error {
	if len(samples) == 0 {
		return nil
	}
	if t.sound.Track.Init == nil {
		init, err := track.Init(track.TimeScale, max(0, -track.Offset))
		if err != nil {
			return err
		}
		t.sound.Track = media.AudioTrack{
			Init: init, Codecs: track.Codecs(), TimeScale: int64(track.TimeScale),
			SampleRate: t.role.Audio.SampleRate, Channels: t.role.Audio.Channels,
		}
	}
	late := max(0, track.Offset)
	pts := make([]int64, len(samples))
	for i, s := range samples {
		pts[i] = s.DTS + late
		if i > 0 && pts[i] <= pts[i-1] {
			pts[i] = pts[i-1] + 1
		}
	}
	last := samples[len(samples)-1]
	end := pts[len(pts)-1] + max(1, last.Duration)
	data, err := media.Segment(samples, pts, end, 0, uint32(len(t.sound.Segments)+1))
	if err != nil {
		return err
	}
	obj := sprocket.Object{Key: t.role.OutputPrefix + media.AudioSegmentKey(pts[0]), PTS: pts[0], Count: int(end - pts[0])}
	if obj.SizeBytes, err = t.env.Output.Put(ctx, obj.Key, bytes.NewReader(data)); err != nil {
		return &Failure{Kind: KindOf(err), Stage: "audio", Err: err}
	}
	t.bytes += obj.SizeBytes
	t.sound.Segments = append(t.sound.Segments, obj)
	t.env.Partial(Sound{Track: t.sound.Track, Segments: []sprocket.Object{obj}})
	return nil
}

// Emit returns what was published.
func (t *soundTask) Emit(context.Context) (Result, error) {
	return Result{Sound: &t.sound, BytesWritten: t.bytes}, nil
}

// Close has nothing to remove.
func (t *soundTask) Close() error { return nil }
