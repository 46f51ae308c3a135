package media

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/Eyevinn/mp4ff/avc"
	"github.com/Eyevinn/mp4ff/hevc"
	"github.com/Eyevinn/mp4ff/mp4"
)

// Track is one track of encoded samples as an encoder wrote them, before they
// get their place on the output's timeline.
type Track struct {
	// TimeScale is the number of ticks a second of the samples' times.
	TimeScale uint32
	// Offset is how far the first sample's presentation lies after the start of
	// the input, in ticks: negative for audio that begins with encoder priming.
	Offset int64
	entry  mp4.Box
	width  int
	height int
	video  bool
	trex   *mp4.TrexBox
}

// Sample is one encoded frame or audio packet.
type Sample struct {
	Data []byte
	// PTS and DTS are in ticks of the track, from an arbitrary origin.
	PTS, DTS int64
	// Duration in ticks, as the encoder knew it; 0 if it did not.
	Duration int64
	// Sync samples can be decoded without others.
	Sync bool
}

// ReadFragments reads a fragmented MP4 with one track, as FFmpeg streams it,
// and calls each with the samples of every fragment in order. Each fragment is
// held in memory while it is handled. The track is returned also when there
// were no fragments; it is nil when r was empty.
func ReadFragments(r io.Reader, each func(*Track, []Sample) error) (*Track, error) {
	var (
		track *Track
		moof  *mp4.MoofBox
		pos   uint64
	)
	for {
		var box mp4.Box
		err := guard(func() (err error) {
			box, err = mp4.DecodeBox(pos, r)
			return err
		})
		if errors.Is(err, io.EOF) {
			return track, nil
		}
		if err != nil {
			return track, fmt.Errorf("read encoder output at byte %d: %w", pos, err)
		}
		pos += box.Size()
		switch b := box.(type) {
		case *mp4.MoovBox:
			if err := guard(func() (err error) {
				track, err = newTrack(b)
				return err
			}); err != nil {
				return nil, err
			}
		case *mp4.MoofBox:
			moof = b
		case *mp4.MdatBox:
			if track == nil || moof == nil {
				return track, fmt.Errorf("read encoder output at byte %d: media data without a header", pos)
			}
			var samples []Sample
			if err := guard(func() (err error) {
				samples, err = track.samples(moof, b)
				return err
			}); err != nil {
				return track, err
			}
			if err := each(track, samples); err != nil {
				return track, err
			}
			moof = nil
		}
	}
}

// guard calls f and turns a panic into an error: mp4ff takes it for granted that
// boxes hold what the format asks for.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("read encoder output: its boxes are malformed: %v", r)
		}
	}()
	return f()
}

func newTrack(moov *mp4.MoovBox) (*Track, error) {
	if len(moov.Traks) != 1 || moov.Mvex == nil {
		return nil, fmt.Errorf("read encoder output: want a fragmented file with one track, got %d tracks", len(moov.Traks))
	}
	trak := moov.Trak
	entries := trak.Mdia.Minf.Stbl.Stsd.Children
	if len(entries) != 1 {
		return nil, fmt.Errorf("read encoder output: want one sample description, got %d", len(entries))
	}
	t := &Track{TimeScale: trak.Mdia.Mdhd.Timescale, entry: entries[0], trex: moov.Mvex.Trex}
	switch e := entries[0].(type) {
	case *mp4.VisualSampleEntryBox:
		t.video, t.width, t.height = true, int(e.Width), int(e.Height)
		e.CompressorName = ""
		e.Children = withoutBitrate(e.Children)
		if err := keepTrailer(e); err != nil {
			return nil, err
		}
		e.Btrt = nil
	case *mp4.AudioSampleEntryBox:
		e.Children = withoutBitrate(e.Children)
		e.Btrt = nil
	}
	if trak.Edts != nil {
		for _, elst := range trak.Edts.Elst {
			for _, edit := range elst.Entries {
				if edit.MediaTime < 0 {
					t.Offset += int64(edit.SegmentDuration) * int64(t.TimeScale) / int64(moov.Mvhd.Timescale)
				} else {
					t.Offset -= edit.MediaTime
				}
			}
		}
	}
	return t, nil
}

// withoutBitrate drops the bit rate box: it differs from chunk to chunk, and
// all chunks share one initialisation segment.
func withoutBitrate(children []mp4.Box) []mp4.Box {
	return slices.DeleteFunc(slices.Clone(children), func(b mp4.Box) bool { return b.Type() == "btrt" })
}

// keepTrailer makes sure that the H.264 configuration of e is written as it was
// read. mp4ff counts the four bytes that follow the parameter sets in all High
// profiles, but leaves them out for those of 4:4:4 and lossless video.
func keepTrailer(e *mp4.VisualSampleEntryBox) error {
	if e.AvcC == nil || e.AvcC.NoTrailingInfo {
		return nil
	}
	switch e.AvcC.AVCProfileIndication {
	case 66, 77, 88, 100, 110, 122, 144:
		return nil
	}
	rec := e.AvcC.DecConfRec
	rec.NoTrailingInfo = true
	var buf bytes.Buffer
	if err := rec.Encode(&buf); err != nil {
		return fmt.Errorf("read encoder output: %w", err)
	}
	buf.Write([]byte{0xfc | rec.ChromaFormat, 0xf8 | rec.BitDepthLumaMinus1, 0xf8 | rec.BitDepthChromaMinus1, rec.NumSPSExt})
	for i, child := range e.Children {
		if child.Type() == "avcC" {
			e.Children[i] = mp4.CreateUnknownBox("avcC", uint64(8+buf.Len()), buf.Bytes())
		}
	}
	return nil
}

func (t *Track) samples(moof *mp4.MoofBox, mdat *mp4.MdatBox) ([]Sample, error) {
	frag := mp4.NewFragment()
	frag.AddChild(moof)
	frag.AddChild(mdat)
	full, err := frag.GetFullSamples(t.trex)
	if err != nil {
		return nil, fmt.Errorf("read encoder output: %w", err)
	}
	out := make([]Sample, 0, len(full))
	for _, s := range full {
		out = append(out, Sample{
			Data: s.Data, DTS: int64(s.DecodeTime), PTS: s.PresentationTime(),
			Duration: int64(s.Dur), Sync: !mp4.DecodeSampleFlags(s.Flags).SampleIsNonSync,
		})
	}
	return out, nil
}

// Size returns the pictures' width and height as coded; 0 for audio.
func (t *Track) Size() (width, height int) { return t.width, t.height }

// Codecs returns the track's RFC 6381 codecs parameter, "avc1.64001F".
func (t *Track) Codecs() string {
	switch e := t.entry.(type) {
	case *mp4.VisualSampleEntryBox:
		if e.AvcC != nil && len(e.AvcC.SPSnalus) > 0 {
			if sps, err := avc.ParseSPSNALUnit(e.AvcC.SPSnalus[0], false); err == nil {
				return avc.CodecString(e.Type(), sps)
			}
		}
		if e.HvcC != nil {
			if nalus := e.HvcC.GetNalusForType(hevc.NALU_SPS); len(nalus) > 0 {
				if sps, err := hevc.ParseSPSNALUnit(nalus[0]); err == nil {
					return hevc.CodecString(e.Type(), sps)
				}
			}
		}
	case *mp4.AudioSampleEntryBox:
		if e.Type() == "mp4a" && e.Esds != nil && e.Esds.DecConfigDescriptor != nil {
			d := e.Esds.DecConfigDescriptor
			if d.ObjectType == 0x40 && d.DecSpecificInfo != nil && len(d.DecSpecificInfo.DecConfig) > 0 {
				return fmt.Sprintf("mp4a.40.%d", d.DecSpecificInfo.DecConfig[0]>>3)
			}
			return fmt.Sprintf("mp4a.%02X", d.ObjectType)
		}
		if e.Type() == "Opus" {
			return "opus"
		}
	}
	return t.entry.Type()
}

// Init returns the CMAF initialisation segment for the track, with times in
// timeScale ticks a second. skip is how many ticks at the start of the media
// are not to be shown (encoder priming). Equal encoder settings give equal
// bytes: that is how one segment can serve all chunks.
func (t *Track) Init(timeScale uint32, skip int64) ([]byte, error) {
	kind := "audio"
	if t.video {
		kind = "video"
	}
	init := mp4.NewMP4Init()
	init.AddChild(mp4.NewFtyp("iso6", 0, []string{"iso6", "cmfc", "mp41"}))
	moov := mp4.NewMoovBox()
	init.AddChild(moov)
	mvhd := mp4.CreateMvhd()
	mvhd.Timescale = timeScale
	moov.AddChild(mvhd)
	moov.AddChild(mp4.NewMvexBox())
	trak := init.AddEmptyTrack(timeScale, kind, "und")
	trak.Mdia.Minf.Stbl.Stsd.AddChild(t.entry)
	if t.video {
		width, height := t.shown()
		trak.Tkhd.Width, trak.Tkhd.Height = mp4.Fixed32(width<<16), mp4.Fixed32(height<<16)
	}
	if skip > 0 {
		edts := &mp4.EdtsBox{}
		edts.AddChild(&mp4.ElstBox{Entries: []mp4.ElstEntry{{MediaTime: skip, MediaRateInteger: 1}}})
		trak.AddChild(edts)
	}
	var buf bytes.Buffer
	if err := init.Encode(&buf); err != nil {
		return nil, fmt.Errorf("write initialisation segment: %w", err)
	}
	return buf.Bytes(), nil
}

// shown returns the size of the picture on a screen with square pixels.
func (t *Track) shown() (width, height uint32) {
	width, height = uint32(t.width), uint32(t.height)
	if e, ok := t.entry.(*mp4.VisualSampleEntryBox); ok && e.Pasp != nil && e.Pasp.VSpacing > 0 {
		width = uint32(math.Round(float64(width) * float64(e.Pasp.HSpacing) / float64(e.Pasp.VSpacing)))
	}
	return width, height
}

// ReorderFrames is by how many frames video is decoded ahead of being shown:
// what encoders with reordered (B) frames need by default.
const ReorderFrames = 2

// Segment returns one CMAF segment, a fragment by itself, that holds samples in
// decoding order. pts are the presentation times on the output's timeline, one
// per sample but in rising order; the last sample to be shown lasts until end.
//
// Decoding times are the same list of times, taken in decoding order, so that a
// segment's decoding begins exactly at the tick at which its presentation
// begins, and segments join without gap or overlap. delay is by how many ticks
// all samples are presented later than their time says; the edit list of Init,
// with skip equal to delay, takes that back. It makes room for reordered
// frames without negative composition offsets, which demuxers treat
// differently.
func Segment(samples []Sample, pts []int64, end, delay int64, number uint32) ([]byte, error) {
	if len(samples) == 0 || len(samples) != len(pts) {
		return nil, fmt.Errorf("write segment: %d samples but %d presentation times", len(samples), len(pts))
	}
	shown := presentation(samples, pts)
	decode := decodeTimes(shown, pts, delay)
	frag, err := mp4.CreateFragment(number, 1)
	if err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	for i, s := range samples {
		next := end
		if i+1 < len(decode) {
			next = decode[i+1]
		}
		duration := next - decode[i]
		if duration <= 0 || duration > math.MaxUint32 || decode[i] < 0 {
			return nil, fmt.Errorf("write segment: frame %d of %d at tick %d lasts %d ticks", i, len(pts), decode[i], duration)
		}
		flags := mp4.NonSyncSampleFlags
		if s.Sync {
			flags = mp4.SyncSampleFlags
		}
		frag.AddFullSample(mp4.FullSample{
			Sample:     mp4.Sample{Flags: flags, Dur: uint32(duration), Size: uint32(len(s.Data)), CompositionTimeOffset: int32(shown[i] + delay - decode[i])},
			DecodeTime: uint64(decode[i]),
			Data:       s.Data,
		})
	}
	frag.EncOptimize = mp4.OptimizeTrun
	var buf bytes.Buffer
	if err := mp4.NewStyp("msdh", 0, []string{"msdh", "msix", "cmfs"}).Encode(&buf); err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	if err := frag.Encode(&buf); err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	return buf.Bytes(), nil
}

// presentation returns when each sample is shown: the rising times pts, dealt
// out in the order of the samples' own presentation times.
func presentation(samples []Sample, pts []int64) []int64 {
	order := make([]int, len(samples))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(samples[a].PTS, samples[b].PTS) })
	shown := make([]int64, len(samples))
	for rank, i := range order {
		shown[i] = pts[rank]
	}
	return shown
}

// decodeTimes returns rising decoding times that begin like pts and, where the
// order of frames allows, lie no later than delay after a frame's presentation.
func decodeTimes(shown, pts []int64, delay int64) []int64 {
	decode := slices.Clone(pts)
	for i := len(decode) - 1; i >= 0; i-- {
		decode[i] = min(decode[i], shown[i]+delay)
		if i+1 < len(decode) {
			decode[i] = min(decode[i], decode[i+1]-1)
		}
	}
	decode[0] = pts[0]
	for i := 1; i < len(decode); i++ {
		decode[i] = max(decode[i], decode[i-1]+1)
	}
	return decode
}

// DescribeInit reads back what an initialisation segment says of its track.
func DescribeInit(init []byte) (track *Track, err error) {
	err = guard(func() (err error) {
		box, err := mp4.DecodeFile(bytes.NewReader(init))
		if err != nil {
			return fmt.Errorf("read initialisation segment: %w", err)
		}
		if box.Init == nil || box.Init.Moov == nil {
			return errors.New("read initialisation segment: no moov box")
		}
		track, err = newTrack(box.Init.Moov)
		return err
	})
	return track, err
}
