package media

import (
	"bytes"
	"fmt"
	"math"
	"path"
	"strings"
	"time"

	"github.com/Eyevinn/dash-mpd/mpd"

	"github.com/volley-run/volley/sprocket"
)

// Presentation is what manifests say of one output: the segments that exist so
// far. The zero value of Audio means silence.
type Presentation struct {
	Video, Audio Rendition
	// Complete says that no segment will follow.
	Complete bool
	// Planned is how long the output will be, for players that join early.
	Planned time.Duration
	// LongestSegment bounds every segment's duration, also of those to come.
	LongestSegment time.Duration
	// Origin is when the first segment was published.
	Origin time.Time
}

// Rendition is one track's segments in order.
type Rendition struct {
	Codecs    string
	TimeBase  sprocket.Rational
	FrameRate sprocket.Rational
	// Width and Height are as coded; SampleAspect zero means square.
	Width, Height int
	SampleAspect  sprocket.Rational
	// SampleRate and Channels describe audio.
	SampleRate, Channels int
	// Init is the path of the initialisation segment, relative to the manifest.
	Init string
	// Media is the path of the segments with "$Time$" for the start tick.
	Media    string
	Segments []Segmented
}

// Segmented is one published segment.
type Segmented struct {
	// Start and Duration are ticks.
	Start, Duration int64
	SizeBytes       int64
}

// Empty reports whether r has no segments.
func (r Rendition) Empty() bool { return len(r.Segments) == 0 }

// End returns the tick at which the last segment ends.
func (r Rendition) End() int64 {
	if r.Empty() {
		return 0
	}
	last := r.Segments[len(r.Segments)-1]
	return last.Start + last.Duration
}

func (r Rendition) duration() time.Duration {
	if r.Empty() {
		return 0
	}
	return r.TimeBase.Duration(r.End())
}

func (r Rendition) name(s Segmented) string {
	return strings.Replace(r.Media, "$Time$", fmt.Sprint(s.Start), 1)
}

// bandwidth returns the peak and average bit rates over whole segments.
func (r Rendition) bandwidth() (peak, average int) {
	var bits, seconds float64
	for _, s := range r.Segments {
		b, d := float64(s.SizeBytes*8), r.TimeBase.Seconds(s.Duration)
		bits, seconds = bits+b, seconds+d
		peak = max(peak, int(math.Ceil(b/d)))
	}
	if seconds > 0 {
		average = int(math.Ceil(bits / seconds))
	}
	return peak, average
}

// DASH returns the MPEG-DASH manifest (ISO/IEC 23009-1, live profile, segment
// timeline): type "static" once complete, "dynamic" before, so that a manifest
// of an unfinished run never looks whole.
func (p Presentation) DASH() ([]byte, error) {
	kind := mpd.STATIC_TYPE
	if !p.Complete {
		kind = mpd.DYNAMIC_TYPE
	}
	m := mpd.NewMPD(kind)
	m.Profiles = "urn:mpeg:dash:profile:isoff-live:2011,urn:mpeg:dash:profile:cmaf:2019"
	m.MinBufferTime = mpd.Ptr(mpd.Duration(2 * time.Second))
	m.MaxSegmentDuration = mpd.Ptr(mpd.Duration(p.LongestSegment))
	if p.Complete {
		m.MediaPresentationDuration = mpd.Ptr(mpd.Duration(max(p.Video.duration(), p.Audio.duration())))
	} else {
		// Everything listed is there already, however much faster than real
		// time it was made: the presentation "started" long enough ago.
		started := p.Origin.Add(-p.Planned - time.Minute).UTC()
		m.AvailabilityStartTime = mpd.DateTime(started.Format(time.RFC3339))
		m.PublishTime = mpd.DateTime(time.Now().UTC().Format(time.RFC3339))
		m.MinimumUpdatePeriod = mpd.Ptr(mpd.Duration(time.Second))
	}
	period := mpd.NewPeriod()
	period.Id = "0"
	period.Start = mpd.Ptr(mpd.Duration(0))
	m.AppendPeriod(period)
	if !p.Video.Empty() {
		set := mpd.NewAdaptationSetWithParams("video", "video/mp4", true, 1)
		_, average := p.Video.bandwidth()
		rep := mpd.NewVideoRepresentation("video", p.Video.Codecs, "", frameRate(p.Video.FrameRate), average, p.Video.Width, p.Video.Height)
		if sar := p.Video.SampleAspect; !sar.IsZero() {
			rep.Sar = mpd.RatioType(fmt.Sprintf("%d:%d", sar.Num, sar.Den))
		}
		set.SegmentTemplate = p.Video.template()
		set.AppendRepresentation(rep)
		period.AppendAdaptationSet(set)
	}
	if !p.Audio.Empty() {
		set := mpd.NewAdaptationSetWithParams("audio", "audio/mp4", true, 1)
		_, average := p.Audio.bandwidth()
		rep := mpd.NewAudioRepresentation("audio", p.Audio.Codecs, "", average, p.Audio.SampleRate)
		rep.AudioChannelConfigurations = []*mpd.DescriptorType{
			mpd.NewDescriptor("urn:mpeg:dash:23003:3:audio_channel_configuration:2011", fmt.Sprint(p.Audio.Channels), ""),
		}
		set.SegmentTemplate = p.Audio.template()
		set.AppendRepresentation(rep)
		period.AppendAdaptationSet(set)
	}
	var buf bytes.Buffer
	if _, err := m.Write(&buf, "  ", true); err != nil {
		return nil, fmt.Errorf("write DASH manifest: %w", err)
	}
	buf.WriteByte('\n')
	return buf.Bytes(), nil
}

func (r Rendition) template() *mpd.SegmentTemplateType {
	t := mpd.NewSegmentTemplate()
	t.Initialization, t.Media = r.Init, r.Media
	t.Timescale = mpd.Ptr(uint32(r.TimeBase.Den))
	t.SegmentTimeline = mpd.NewSegmentTimeline()
	next := int64(-1)
	for _, s := range r.Segments {
		runs := t.SegmentTimeline.S
		if n := len(runs); n > 0 && s.Start == next && runs[n-1].D == uint64(s.Duration) {
			runs[n-1].R++
		} else {
			run := &mpd.S{D: uint64(s.Duration)}
			if s.Start != next {
				run.T = mpd.Ptr(uint64(s.Start))
			}
			t.SegmentTimeline.S = append(runs, run)
		}
		next = s.Start + s.Duration
	}
	return t
}

func frameRate(r sprocket.Rational) string {
	if r.Den == 1 {
		return fmt.Sprint(r.Num)
	}
	if r.IsZero() {
		return ""
	}
	return r.String()
}

// HLS file names beside the master playlist.
const (
	hlsVideo = "video.m3u8"
	hlsAudio = "audio.m3u8"
)

// HLS returns the playlists (RFC 8216 with fragmented MP4) by file name, the
// master under master. They are of type EVENT without an end tag until the
// presentation is complete.
func (p Presentation) HLS(master string) map[string][]byte {
	var b strings.Builder
	b.WriteString("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n")
	peak, average := p.Video.bandwidth()
	codecs := p.Video.Codecs
	group := ""
	files := map[string][]byte{}
	if !p.Audio.Empty() {
		audioPeak, audioAverage := p.Audio.bandwidth()
		peak, average = peak+audioPeak, average+audioAverage
		codecs += "," + p.Audio.Codecs
		group = `,AUDIO="audio"`
		fmt.Fprintf(&b, "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"audio\",DEFAULT=YES,AUTOSELECT=YES,CHANNELS=\"%d\",URI=\"%s\"\n", p.Audio.Channels, hlsAudio)
		files[hlsAudio] = p.playlist(p.Audio)
	}
	rate := ""
	if !p.Video.FrameRate.IsZero() {
		rate = fmt.Sprintf(",FRAME-RATE=%.3f", p.Video.FrameRate.Float())
	}
	fmt.Fprintf(&b, "#EXT-X-STREAM-INF:BANDWIDTH=%d,AVERAGE-BANDWIDTH=%d,CODECS=\"%s\",RESOLUTION=%dx%d%s%s\n%s\n",
		peak, average, codecs, p.Video.Width, p.Video.Height, rate, group, hlsVideo)
	files[hlsVideo] = p.playlist(p.Video)
	files[master] = []byte(b.String())
	return files
}

func (p Presentation) playlist(r Rendition) []byte {
	target := p.LongestSegment
	for _, s := range r.Segments {
		target = max(target, r.TimeBase.Duration(s.Duration))
	}
	kind := "EVENT"
	if p.Complete {
		kind = "VOD"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:%d\n#EXT-X-PLAYLIST-TYPE:%s\n#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MEDIA-SEQUENCE:0\n", int(math.Ceil(target.Seconds())), kind)
	fmt.Fprintf(&b, "#EXT-X-MAP:URI=\"%s\"\n", r.Init)
	for _, s := range r.Segments {
		fmt.Fprintf(&b, "#EXTINF:%.6f,\n%s\n", r.TimeBase.Seconds(s.Duration), r.name(s))
	}
	if p.Complete {
		b.WriteString("#EXT-X-ENDLIST\n")
	}
	return b.Bytes()
}

// WebVTT returns a thumbnail track: which image to show when hovering over
// which time.
func WebVTT(images []Image, end time.Duration) []byte {
	var b bytes.Buffer
	b.WriteString("WEBVTT\n")
	for i, img := range images {
		until := end
		if i+1 < len(images) {
			until = images[i+1].Time
		}
		fmt.Fprintf(&b, "\n%s --> %s\n%s\n", vttTime(img.Time), vttTime(max(until, img.Time)), img.File)
	}
	return b.Bytes()
}

// Image is one published picture.
type Image struct {
	// File is its path relative to the output's directory.
	File string
	Time time.Duration
}

// ImageName returns the file name of a picture shown at t: names sort by time.
func ImageName(t time.Duration, format string) string {
	ms := t.Round(time.Millisecond).Milliseconds()
	return path.Join("images", fmt.Sprintf("%02d-%02d-%02d.%03d.%s", ms/3_600_000, ms/60_000%60, ms/1000%60, ms%1000, format))
}

func vttTime(t time.Duration) string {
	ms := t.Round(time.Millisecond).Milliseconds()
	return fmt.Sprintf("%02d:%02d:%02d.%03d", ms/3_600_000, ms/60_000%60, ms/1000%60, ms%1000)
}
