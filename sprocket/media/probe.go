package media

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/sprocket"
)

// Info is what is known about an input before any frame of it is decoded.
type Info struct {
	// Container is FFmpeg's name of the container format, "mov,mp4,m4a,3gp,3g2,mj2".
	Container string
	// Duration is the length of the longest track; 0 when unknown.
	Duration time.Duration
	Video    VideoInfo
	// Audio is the first audio track, nil when there is none.
	Audio *AudioInfo
	// Index says where the video track's frames are.
	Index *Index
}

// VideoInfo describes the video track. Ticks are of TimeBase.
type VideoInfo struct {
	// StreamIndex is the track's index among all streams, as FFmpeg counts
	// them ("-map 0:N").
	StreamIndex int
	// Codec and Profile are FFmpeg's names, "h264" and "High".
	Codec, Profile string
	// Pixels are the decoded pictures as shown: after display rotation.
	Pixels sprocket.Pixels
	// Rotation is by how many degrees, clockwise, the decoder's pictures are
	// turned for display: 0, 90, 180 or 270. FFmpeg does it unless told not to.
	Rotation int
	// TimeBase is the length of a tick in seconds.
	TimeBase sprocket.Rational
	// StartPTS is the first frame's time and EndPTS the end of the last one,
	// as well as the container's index tells.
	StartPTS, EndPTS int64
	// FrameRate is the nominal rate in frames a second; zero when unknown.
	FrameRate sprocket.Rational
	// Constant says that every frame is within one tick of where FrameRate
	// puts it, counted from StartPTS. Where FrameCount is -1 it says so as far
	// as the key frames, the first frames and the last group of pictures tell.
	Constant bool
	// FrameCount is the number of frames shown, -1 when unknown.
	FrameCount int
	// BitRate is in bits a second, 0 when unknown.
	BitRate int64
}

// AudioInfo describes an audio track.
type AudioInfo struct {
	// StreamIndex is the track's index among all streams.
	StreamIndex int
	// Codec and Profile are FFmpeg's names, "aac" and "LC".
	Codec, Profile string
	// SampleRate is in samples a second.
	SampleRate int
	Channels   int
	// StartTime is when the sound starts, in seconds on the input's clock.
	StartTime float64
	// TimeBase is the length of a tick of the track in seconds.
	TimeBase sprocket.Rational
	// Duration is the track's length, 0 when unknown.
	Duration time.Duration
}

// Probe finds out what src holds, without decoding it. The times of frames come
// from the container's index, of which only the needed parts are read: MP4 and
// QuickTime, Matroska and WebM with cues. Any other container is read to its end
// once. ffprobe must be in PATH. The errors are *InputError where the input is
// at fault. Probe may be called concurrently.
func Probe(ctx context.Context, src *Source) (*Info, error) {
	report, err := readStreams(ctx, src)
	if err != nil {
		return nil, err
	}
	info, video, err := report.info(src.Name())
	if err != nil {
		return nil, err
	}
	table, err := readFrameTable(ctx, src, info, video)
	if err != nil {
		return nil, err
	}
	v := &info.Video
	info.Index = table.index
	v.StartPTS, v.EndPTS, v.FrameCount = table.startPTS, table.endPTS, table.index.Len()
	v.FrameRate, v.Constant = gridRate(video, v.TimeBase, table)
	return info, nil
}

// readFrameTable reads the container's index, and lists the packets where that
// does not do or does not agree with what FFmpeg sees.
func readFrameTable(ctx context.Context, src *Source, info *Info, video *probeStream) (*frameTable, error) {
	var table *frameTable
	err := errUnindexed
	v := info.Video
	start, known := video.startPTS()
	switch {
	case !known:
	case strings.Contains(info.Container, "mp4"):
		id, parseErr := strconv.ParseUint(video.ID, 0, 32)
		if parseErr == nil && v.TimeBase.Num == 1 {
			table, err = readMP4Index(src, uint32(id), v.TimeBase.Den)
		}
	case strings.Contains(info.Container, "matroska"):
		rate, _ := nominalRate(video)
		table, err = readMKVIndex(src, v.StreamIndex, v.TimeBase, rate, start)
	}
	if err == nil && table.startPTS == start {
		return table, nil
	}
	if err != nil && !errors.Is(err, errUnindexed) {
		return nil, err
	}
	return scanIndex(ctx, src, v.StreamIndex)
}

// gridRate returns the rate whose grid the frames keep to, and whether there
// is one; else the nominal rate.
func gridRate(video *probeStream, timeBase sprocket.Rational, table *frameTable) (rate sprocket.Rational, constant bool) {
	nominal, average := nominalRate(video)
	if table.index.Len() < 0 {
		return nominal, table.constant
	}
	for _, rate := range []sprocket.Rational{nominal, average} {
		if !rate.IsZero() && table.index.onGrid(1/(rate.Float()*timeBase.Float())) {
			return rate, true
		}
	}
	return nominal, false
}

// nominalRate returns the rate that the frames are meant to have, and their
// average one. FFmpeg's r_frame_rate is the lowest rate on whose grid all times
// lie: the nominal rate, unless times vary freely (it is then far too high) or
// pictures are interlaced (twice the rate).
func nominalRate(video *probeStream) (nominal, average sprocket.Rational) {
	lowest, err := sprocket.ParseRational(video.RFrameRate)
	if err != nil || lowest.Num < 0 {
		lowest = sprocket.Rational{}
	}
	average, err = sprocket.ParseRational(video.AvgFrameRate)
	if err != nil || average.Num < 0 {
		average = sprocket.Rational{}
	}
	const plausible = 0.7 // as many frames may be missing from the grid
	switch {
	case average.IsZero():
		return lowest, lowest
	case lowest.IsZero() || average.Float() < plausible*lowest.Float() || average.Float() > 1.05*lowest.Float():
		return average, average
	}
	return lowest, average
}
