package media

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/store"
)

// Format is how an output is handed to the user.
type Format string

// The output formats. DASH and HLS describe the same segments, so both
// manifests are written for either.
const (
	FormatDASH Format = "dash"
	FormatHLS  Format = "hls"
	FormatMP4  Format = "mp4"
)

// Names of the files of an output.
const (
	DASHManifest = "manifest.mpd"
	HLSPlaylist  = "playlist.m3u8"
	JoinedMP4    = "output.mp4"
	ImageList    = "images.json"
	ThumbnailVTT = "thumbnails.vtt"
)

// Longest gap between two writes of a growing manifest.
const manifestEvery = 500 * time.Millisecond

// PublisherConfig describes one output.
type PublisherConfig struct {
	// Store takes the files; Prefix is put before their names ("" or
	// "output_1/").
	Store  store.Store
	Prefix string
	Format Format
	// Type is what the pipeline's output carries: chunks or images.
	Type     sprocket.DataType
	TimeBase sprocket.Rational
	// FrameRate and SampleAspect go into the manifests.
	FrameRate    sprocket.Rational
	SampleAspect sprocket.Rational
	// Start and End are the ticks that the output is planned to cover.
	Start, End     int64
	LongestSegment time.Duration
	// Audio says that sound will be published as well.
	Audio bool
	// FFmpeg is the program that joins segments; TempDir is where.
	FFmpeg, TempDir string
	Now             func() time.Time
}

// Publisher turns the items of an output into something that can be played:
// segments appear in manifests as soon as all before them are there. It is not
// safe for concurrent use.
type Publisher struct {
	cfg     PublisherConfig
	show    Presentation
	waiting map[int64]sprocket.Item
	next    int64 // sequence number of the next item to publish
	init    []byte
	audio   AudioTrack
	images  []Image
	frames  int
	origin  time.Time
	written time.Time
	dirty   bool
}

// AudioTrack is the sound as the audio task hands it over.
type AudioTrack struct {
	Init                 []byte `json:"init"`
	Codecs               string `json:"codecs"`
	TimeScale            int64  `json:"time_scale"`
	SampleRate, Channels int
}

// NewPublisher returns a publisher that has written nothing yet.
func NewPublisher(cfg PublisherConfig) *Publisher {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Publisher{cfg: cfg, waiting: map[int64]sprocket.Item{}}
	p.show.Planned = cfg.TimeBase.Duration(cfg.End)
	p.show.LongestSegment = cfg.LongestSegment
	p.show.Video = Rendition{
		TimeBase: cfg.TimeBase, FrameRate: cfg.FrameRate, SampleAspect: cfg.SampleAspect,
		Init: "video/init.mp4", Media: "video/$Time$.m4s",
	}
	return p
}

// SegmentKey returns where the video segment that starts at tick belongs,
// relative to an output's prefix.
func SegmentKey(tick int64) string { return fmt.Sprintf("video/%d.m4s", tick) }

// AudioSegmentKey is the same for sound, in the audio track's own ticks.
func AudioSegmentKey(tick int64) string { return fmt.Sprintf("audio/%d.m4s", tick) }

// OutputPrefix returns where output n's files go.
func OutputPrefix(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("output_%d/", n)
}

// Playable reports whether a player would have something to show by now.
func (p *Publisher) Playable() bool {
	return !p.origin.IsZero()
}

// Published returns how many frames or images are in the output so far, and up
// to which tick.
func (p *Publisher) Published() (frames int, end int64) { return p.frames, p.show.Video.End() }

// Add takes an item of the output, in any order.
func (p *Publisher) Add(ctx context.Context, it sprocket.Item) error {
	p.waiting[it.Seq] = it
	for {
		next, ok := p.waiting[p.next]
		if !ok {
			break
		}
		delete(p.waiting, p.next)
		p.next++
		if err := p.publish(ctx, next); err != nil {
			return err
		}
	}
	return p.Flush(ctx, false)
}

func (p *Publisher) publish(ctx context.Context, it sprocket.Item) error {
	p.dirty = true
	if p.cfg.Type == sprocket.Images {
		for _, obj := range it.Objects {
			p.images = append(p.images, Image{File: obj.Key[len(p.cfg.Prefix):], Time: p.cfg.TimeBase.Duration(obj.PTS)})
			p.frames++
		}
		return nil
	}
	for _, obj := range it.Objects {
		if p.init == nil {
			if err := p.begin(ctx, it.Init); err != nil {
				return err
			}
		}
		if !bytes.Equal(p.init, it.Init) {
			return fmt.Errorf("publish chunk %d: its encoder settings differ from those of the first chunk, so that one initialisation segment cannot serve both; use the same size, pixel format and encoder options for all chunks", it.Chunk)
		}
		start := obj.PTS
		p.show.Video.Segments = append(p.show.Video.Segments, Segmented{Start: start, Duration: it.End - start, SizeBytes: obj.SizeBytes})
		p.frames += obj.Count
	}
	return nil
}

// begin writes the initialisation segment that all video segments share.
func (p *Publisher) begin(ctx context.Context, init []byte) error {
	track, err := DescribeInit(init)
	if err != nil {
		return err
	}
	p.init = init
	p.show.Video.Codecs = track.Codecs()
	p.show.Video.Width, p.show.Video.Height = track.Size()
	return p.put(ctx, p.show.Video.Init, init)
}

// AddAudio takes the next stretch of sound. track is the same every time.
func (p *Publisher) AddAudio(ctx context.Context, track AudioTrack, segments []sprocket.Object) error {
	if p.audio.Init == nil {
		p.audio = track
		p.show.Audio = Rendition{
			Codecs: track.Codecs, TimeBase: sprocket.Rational{Num: 1, Den: track.TimeScale},
			SampleRate: track.SampleRate, Channels: track.Channels,
			Init: "audio/init.mp4", Media: "audio/$Time$.m4s",
		}
		if err := p.put(ctx, p.show.Audio.Init, track.Init); err != nil {
			return err
		}
	}
	for _, obj := range segments {
		// A restarted audio task tells of the same segments again.
		known := slices.ContainsFunc(p.show.Audio.Segments, func(s Segmented) bool { return s.Start == obj.PTS })
		if !known {
			p.show.Audio.Segments = append(p.show.Audio.Segments, Segmented{Start: obj.PTS, Duration: int64(obj.Count), SizeBytes: obj.SizeBytes})
			p.dirty = true
		}
	}
	return p.Flush(ctx, false)
}

// Flush writes the manifests if there is something new: at once for what first
// makes the output playable, else not more often than every half second unless
// now is set.
func (p *Publisher) Flush(ctx context.Context, now bool) error {
	if p.cfg.Format == FormatMP4 || p.cfg.Type != sprocket.Chunks || !p.dirty {
		return nil
	}
	if p.show.Video.Empty() || (p.cfg.Audio && p.show.Audio.Empty()) {
		return nil
	}
	if !now && !p.origin.IsZero() && p.cfg.Now().Sub(p.written) < manifestEvery {
		return nil
	}
	if p.origin.IsZero() {
		p.origin = p.cfg.Now()
		p.show.Origin = p.origin
	}
	mpd, err := p.show.DASH()
	if err != nil {
		return err
	}
	if err := p.put(ctx, DASHManifest, mpd); err != nil {
		return err
	}
	for name, text := range p.show.HLS(HLSPlaylist) {
		if err := p.put(ctx, name, text); err != nil {
			return err
		}
	}
	p.written, p.dirty = p.cfg.Now(), false
	return nil
}

// Finish completes the output and returns the name of its main file. It fails
// if items are missing, and leaves manifests that say so.
func (p *Publisher) Finish(ctx context.Context) (string, error) {
	if len(p.waiting) > 0 {
		return "", fmt.Errorf("finish output: item %d never came, though %d later ones did", p.next, len(p.waiting))
	}
	if p.cfg.Type == sprocket.Images {
		return p.finishImages(ctx)
	}
	if p.show.Video.Empty() {
		return "", errors.New("finish output: the pipeline produced no frames")
	}
	if p.cfg.Format == FormatMP4 {
		return path.Join(p.cfg.Prefix, JoinedMP4), p.join(ctx)
	}
	p.show.Complete, p.dirty = true, true
	if err := p.Flush(ctx, true); err != nil {
		return "", err
	}
	if p.cfg.Format == FormatHLS {
		return path.Join(p.cfg.Prefix, HLSPlaylist), nil
	}
	return path.Join(p.cfg.Prefix, DASHManifest), nil
}

func (p *Publisher) finishImages(ctx context.Context) (string, error) {
	type entry struct {
		File string  `json:"file"`
		Time float64 `json:"time"`
	}
	list := make([]entry, 0, len(p.images))
	for _, img := range p.images {
		list = append(list, entry{img.File, img.Time.Seconds()})
	}
	text, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return "", fmt.Errorf("write image list: %w", err)
	}
	if err := p.put(ctx, ThumbnailVTT, WebVTT(p.images, p.show.Planned)); err != nil {
		return "", err
	}
	if err := p.put(ctx, ImageList, append(text, '\n')); err != nil {
		return "", err
	}
	return path.Join(p.cfg.Prefix, ImageList), nil
}

func (p *Publisher) put(ctx context.Context, name string, data []byte) error {
	if _, err := p.cfg.Store.Put(ctx, p.cfg.Prefix+name, bytes.NewReader(data)); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	return nil
}
