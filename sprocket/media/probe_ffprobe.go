package media

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/sprocket"
)

// maxReportBytes bounds ffprobe's description of an input; a usual one has
// 4 KB.
const maxReportBytes = 16 << 20

// probeReport is the part of ffprobe's JSON report that is used.
type probeReport struct {
	Streams []probeStream `json:"streams"`
	Format  struct {
		Name     string `json:"format_name"`
		Duration string `json:"duration"`
	} `json:"format"`
}

type probeStream struct {
	Index          int               `json:"index"`
	ID             string            `json:"id"`
	CodecType      string            `json:"codec_type"`
	CodecName      string            `json:"codec_name"`
	Profile        string            `json:"profile"`
	Width          int               `json:"width"`
	Height         int               `json:"height"`
	PixFmt         string            `json:"pix_fmt"`
	SampleAspect   string            `json:"sample_aspect_ratio"`
	ColorRange     string            `json:"color_range"`
	ColorSpace     string            `json:"color_space"`
	ColorTransfer  string            `json:"color_transfer"`
	ColorPrimaries string            `json:"color_primaries"`
	RFrameRate     string            `json:"r_frame_rate"`
	AvgFrameRate   string            `json:"avg_frame_rate"`
	TimeBase       string            `json:"time_base"`
	StartPTS       *int64            `json:"start_pts"`
	StartTime      string            `json:"start_time"`
	Duration       string            `json:"duration"`
	BitRate        string            `json:"bit_rate"`
	SampleRate     string            `json:"sample_rate"`
	Channels       int               `json:"channels"`
	Disposition    map[string]int    `json:"disposition"`
	Tags           map[string]string `json:"tags"`
	SideData       []struct {
		Type     string   `json:"side_data_type"`
		Rotation *float64 `json:"rotation"`
	} `json:"side_data_list"`
}

func (s *probeStream) startPTS() (int64, bool) {
	if s.StartPTS == nil {
		return 0, false
	}
	return *s.StartPTS, true
}

// isPicture reports a stream that is a cover or a preview, not a film.
func (s *probeStream) isPicture() bool {
	return s.Disposition["attached_pic"] != 0 || s.Disposition["still_image"] != 0 ||
		s.Disposition["timed_thumbnails"] != 0
}

// clockwise returns how far the pictures are turned for display. FFmpeg gives
// the angle against the clock.
func (s *probeStream) clockwise() int {
	for _, d := range s.SideData {
		if d.Rotation == nil || math.Abs(*d.Rotation) > 360 {
			continue
		}
		quarters := math.Round(-*d.Rotation / 90)
		if math.Abs(-*d.Rotation-90*quarters) > 1 {
			return 0 // FFmpeg turns such pictures without changing their size
		}
		return (int(quarters)*90 + 360) % 360
	}
	return 0
}

// readStreams has ffprobe describe the input.
func readStreams(ctx context.Context, src *Source) (*probeReport, error) {
	var report probeReport
	_, err := runFFprobe(ctx, src, func(r io.Reader) error {
		return json.NewDecoder(io.LimitReader(r, maxReportBytes)).Decode(&report)
	}, "-show_streams", "-show_format", "-of", "json")
	if err != nil {
		return nil, err
	}
	if len(report.Streams) == 0 {
		return nil, diagnose(src, "its index names no tracks")
	}
	return &report, nil
}

// info turns the report into an Info that lacks what the index tells.
func (p *probeReport) info(name string) (*Info, *probeStream, error) {
	if what := notCuttable(p.Format.Name); what != "" {
		return nil, nil, &InputError{Input: name, Kind: Unsupported, Err: fmt.Errorf("is %s, not a video file", what),
			Remedy: "give a video file, such as MP4, WebM or MKV"}
	}
	var video, audio *probeStream
	for i := range p.Streams {
		s := &p.Streams[i]
		if s.CodecType == "video" && !s.isPicture() && video == nil {
			video = s
		}
		if s.CodecType == "audio" && audio == nil {
			audio = s
		}
	}
	if video == nil {
		e := &InputError{Input: name, Kind: NoVideo, Err: errors.New("has no video track"), Remedy: "give a file with video"}
		if audio != nil {
			e.Err = fmt.Errorf("has no video track, only %s audio", audio.CodecName)
		}
		return nil, nil, e
	}
	v, err := video.videoInfo(name)
	if err != nil {
		return nil, nil, err
	}
	return &Info{
		Container: p.Format.Name,
		Duration:  seconds(p.Format.Duration),
		Video:     v,
		Audio:     audio.audioInfo(),
	}, video, nil
}

// notCuttable names formats that FFmpeg opens but that are no film in one
// file: it shows any text as a terminal's screen, for instance.
func notCuttable(format string) string {
	switch {
	case format == "tty":
		return "text"
	case format == "image2" || strings.HasSuffix(format, "_pipe"):
		return "a picture"
	case format == "hls" || format == "dash" || strings.Contains(format, "concat"):
		return "a playlist"
	}
	return ""
}

func (s *probeStream) videoInfo(name string) (VideoInfo, error) {
	timeBase, err := sprocket.ParseRational(s.TimeBase)
	if err != nil || timeBase.IsZero() || timeBase.Num < 0 || s.Width <= 0 || s.Height <= 0 || s.CodecName == "" {
		return VideoInfo{}, &InputError{Input: name, Kind: Corrupt,
			Err:    errors.New("its video track lacks a codec, a picture size or a time base"),
			Remedy: "fetch or export it again"}
	}
	v := VideoInfo{
		StreamIndex: s.Index,
		Codec:       s.CodecName,
		Profile:     s.Profile,
		Rotation:    s.clockwise(),
		TimeBase:    timeBase,
		BitRate:     s.bitRate(),
	}
	aspect, err := sprocket.ParseRational(s.SampleAspect)
	if err != nil || aspect.Num < 0 {
		aspect = sprocket.Rational{}
	}
	v.Pixels = sprocket.Pixels{
		Width: s.Width, Height: s.Height,
		Format:       s.PixFmt,
		SampleAspect: aspect,
		Range:        knownName(s.ColorRange),
		Space:        knownName(s.ColorSpace),
		Transfer:     knownName(s.ColorTransfer),
		Primaries:    knownName(s.ColorPrimaries),
	}
	if v.Rotation == 90 || v.Rotation == 270 {
		v.Pixels.Width, v.Pixels.Height = s.Height, s.Width
		v.Pixels.SampleAspect = aspect.Invert()
	}
	return v, nil
}

func (s *probeStream) bitRate() int64 {
	for _, text := range []string{s.BitRate, s.Tags["BPS"]} {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 {
			return n
		}
	}
	return 0
}

func (s *probeStream) audioInfo() *AudioInfo {
	if s == nil {
		return nil
	}
	a := &AudioInfo{
		StreamIndex: s.Index,
		Codec:       s.CodecName,
		Profile:     s.Profile,
		Channels:    s.Channels,
		Duration:    seconds(s.Duration),
	}
	if n, err := strconv.Atoi(s.SampleRate); err == nil {
		a.SampleRate = n
	}
	if t, err := strconv.ParseFloat(s.StartTime, 64); err == nil {
		a.StartTime = t
	}
	if r, err := sprocket.ParseRational(s.TimeBase); err == nil {
		a.TimeBase = r
	}
	return a
}

// knownName drops FFmpeg's words for "not known".
func knownName(s string) string {
	if s == "unknown" || s == "unspecified" || s == "reserved" {
		return ""
	}
	return s
}

// seconds reads "30.000000"; 0 stands for what is no length of time.
func seconds(s string) time.Duration {
	t, err := strconv.ParseFloat(s, 64)
	if err != nil || t < 0 || t > math.MaxInt64/1e9 {
		return 0
	}
	return time.Duration(math.Round(t * 1e9))
}

// runFFprobe runs ffprobe on the input and hands its output to parse. It returns
// what ffprobe complained about, though it went on. A failure of ffprobe is
// turned into an InputError.
func runFFprobe(ctx context.Context, src *Source, parse func(io.Reader) error, args ...string) (complaints string, err error) {
	address, err := src.FFmpegURL(ctx)
	if err != nil {
		return "", err
	}
	args = append([]string{"-v", "error"}, args...)
	if strings.HasPrefix(address, "http") {
		args = append(args, "-reconnect", "1", "-reconnect_on_http_error", "5xx",
			"-reconnect_delay_max", "2", "-rw_timeout", strconv.FormatInt(fetchTimeout.Microseconds(), 10))
	}
	cmd := exec.CommandContext(ctx, "ffprobe", append(args, "-i", address)...)
	cmd.WaitDelay = time.Second
	stderr := &headBuffer{limit: 4 << 10}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", fmt.Errorf("run ffprobe (install FFmpeg, or put it into PATH): %w", err)
	}
	parseErr := parse(stdout)
	// ffprobe must not block on a full pipe while it is waited for.
	_, _ = io.Copy(io.Discard, stdout)
	err = cmd.Wait()
	complaints = strings.ReplaceAll(stderr.String(), address, "")
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("probe %s: %w", src.Name(), ctx.Err())
	case err != nil || src.cache != nil && connectionFailed(complaints):
		return "", diagnose(src, complaints)
	case parseErr != nil:
		return "", fmt.Errorf("probe %s: read what ffprobe says: %w", src.Name(), parseErr)
	}
	return complaints, nil
}

// diagnose finds out why ffprobe refused the input.
func diagnose(src *Source, stderr string) error {
	var head [12]byte
	if _, err := src.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	e := &InputError{Input: src.Name(), Kind: Unsupported,
		Err:    errors.New("is not a media file that FFmpeg can read"),
		Remedy: "give a video file, such as MP4, WebM or MKV"}
	said := ffmpegComplaint(stderr)
	switch {
	case src.cache != nil && connectionFailed(stderr):
		e.Err = fmt.Errorf("FFmpeg cannot read it: %s", said)
		return e.with(Unreachable, "try again, or download it first")
	case bytes.Equal(head[:4], []byte{0x1A, 0x45, 0xDF, 0xA3}):
		if f, err := readMKVHeaders(src); err == nil {
			if err := f.checkLength(src); err != nil {
				return err
			}
		}
		e.Err = fmt.Errorf("is a damaged Matroska or WebM file: %s", said)
		return e.with(Corrupt, "fetch or export it again")
	case mp4Start(string(head[4:8])):
		layout, err := layOutMP4(src, src.Size())
		if KindOf(err) != "" {
			return err
		}
		if err == nil && (layout.cut || layout.moov.name == "") {
			e.Err = errors.New("is an MP4 file whose end, with the index (moov), is missing")
			return e.with(Truncated, "copy or record it again to the end")
		}
		e.Err = fmt.Errorf("is a damaged MP4 file: %s", said)
		return e.with(Corrupt, "fetch or export it again")
	}
	return e
}

// mp4Start reports whether a file with this first box may be MP4 or QuickTime.
func mp4Start(name string) bool {
	switch name {
	case "ftyp", "moov", "mdat", "free", "skip", "wide", "styp":
		return true
	}
	return false
}

func connectionFailed(stderr string) bool {
	for _, sign := range []string{"Server returned", "Connection", "timed out", "Input/output error", "Network", "resolve"} {
		if strings.Contains(stderr, sign) {
			return true
		}
	}
	return false
}

// ffmpegComplaint makes one short text of FFmpeg's messages, without addresses:
// they may hold secrets.
func ffmpegComplaint(stderr string) string {
	var words []string
	for _, line := range strings.Split(strings.TrimSpace(stderr), "\n") {
		if _, rest, found := strings.Cut(line, "] "); found && strings.HasPrefix(line, "[") {
			line = rest
		}
		for _, word := range strings.Fields(line) {
			if strings.Contains(word, "://") || strings.HasPrefix(word, "file:") {
				continue
			}
			words = append(words, word)
		}
	}
	text := strings.Trim(strings.Join(words, " "), ": ")
	if text == "" {
		return "no reason given"
	}
	const limit = 200
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "..."
	}
	return text
}

// headBuffer keeps the first limit bytes written to it.
type headBuffer struct {
	bytes.Buffer
	limit int
}

func (b *headBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.limit-b.Len())])
	return len(p), nil
}
