package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/Eyevinn/mp4ff/bits"
	"github.com/Eyevinn/mp4ff/mp4"
)

// errUnindexed says that the container has no index that this package
// understands, so that the packets must be listed instead.
var errUnindexed = errors.New("no usable index")

const (
	// maxBoxes bounds the boxes of one level; films have a few dozen.
	maxBoxes = 1 << 16
	// maxTableBytes bounds one sample table: 16 million frames.
	maxTableBytes = 128 << 20
	// maxTicks bounds times, so that sums of them do not overflow.
	maxTicks = math.MaxInt64 / 8
)

// frameTable is what a container's index says about the video track.
type frameTable struct {
	index *Index
	// startPTS is the first frame shown and endPTS the end of the last one.
	startPTS, endPTS int64
	// constant tells, for an index that knows no frames, whether the frame
	// rate is.
	constant bool
}

// mp4Box is where a box lies. Offsets are from the start of the file; end may
// lie beyond the end of what there is.
type mp4Box struct {
	name             string
	start, body, end int64
}

func (b mp4Box) bodyBytes() int64 { return b.end - b.body }

// eachBox calls visit for the boxes between start and end until it returns
// false. A box that reaches beyond end is visited too, as the last one.
func eachBox(r io.ReaderAt, start, end int64, visit func(mp4Box) (bool, error)) error {
	for n := 0; end-start >= 8; n++ {
		if n == maxBoxes {
			return fmt.Errorf("more than %d boxes", maxBoxes)
		}
		b, err := readBoxHeader(r, start, end)
		if err != nil {
			return err
		}
		if more, err := visit(b); err != nil || !more {
			return err
		}
		start = b.end
	}
	return nil
}

func readBoxHeader(r io.ReaderAt, start, end int64) (mp4Box, error) {
	var h [16]byte
	n, err := r.ReadAt(h[:min(16, end-start)], start)
	if n < 8 {
		return mp4Box{}, fmt.Errorf("read box at byte %d: %w", start, err)
	}
	b := mp4Box{name: string(h[4:8]), start: start, body: start + 8}
	size := int64(binary.BigEndian.Uint32(h[:4]))
	switch size {
	case 0: // to the end of the file
		size = end - start
	case 1:
		if n < 16 {
			return mp4Box{}, fmt.Errorf("box %q at byte %d is cut off", b.name, start)
		}
		b.body += 8
		large := binary.BigEndian.Uint64(h[8:])
		if large > maxTicks {
			return mp4Box{}, fmt.Errorf("box %q at byte %d says that it has %d bytes", b.name, start, large)
		}
		size = int64(large)
	}
	if size < b.body-start || start > maxTicks {
		return mp4Box{}, fmt.Errorf("box %q at byte %d says that it has %d bytes", b.name, start, size)
	}
	b.end = start + size
	return b, nil
}

// mp4Layout is what the top-level boxes of an MP4 file show.
type mp4Layout struct {
	moov       mp4Box // zero when there is none
	fragmented bool   // there are moof boxes
	cut        bool   // the last box reaches beyond the file
}

// layOutMP4 walks the top-level boxes up to moov, or to the end.
func layOutMP4(r io.ReaderAt, size int64) (mp4Layout, error) {
	var l mp4Layout
	err := eachBox(r, 0, size, func(b mp4Box) (bool, error) {
		l.cut = b.end > size
		switch b.name {
		case "moov":
			l.moov = b
			return false, nil
		case "moof":
			l.fragmented = true
			return false, nil
		}
		return true, nil
	})
	return l, err
}

// readMP4Index reads the index of one track of a plain MP4 or QuickTime file:
// the headers of the boxes and the track's own tables, nothing else. It returns
// errUnindexed where the file is of a kind that needs the packets themselves,
// and a Truncated error where frames lie beyond the end of the file.
func readMP4Index(src *Source, trackID uint32, timescale int64) (*frameTable, error) {
	layout, err := layOutMP4(src, src.Size())
	if err != nil || layout.fragmented || layout.moov.name == "" {
		return nil, readFailure(err)
	}
	t, err := readTrack(src, layout.moov, trackID)
	if err != nil {
		return nil, readFailure(err)
	}
	frames, err := t.samples(src.Size())
	if err != nil {
		return nil, errUnindexed
	}
	if frames.readable < frames.total {
		return nil, &InputError{Input: src.Name(), Kind: Truncated,
			Err: fmt.Errorf("only %d of its %d frames are there: the file has %d bytes and should have at least %d",
				frames.readable, frames.total, src.Size(), frames.endByte),
			Remedy: "fetch it again"}
	}
	if t.timescale != timescale {
		return nil, errUnindexed
	}
	return t.frames(frames.total)
}

// readFailure keeps errors of the source and makes all others errUnindexed:
// what FFmpeg makes of a strange index then decides.
func readFailure(err error) error {
	if KindOf(err) != "" {
		return err
	}
	return errUnindexed
}

// mp4Track holds the tables of one track.
type mp4Track struct {
	timescale, movieTimescale int64
	stts                      *mp4.SttsBox
	ctts                      *mp4.CttsBox // nil: frames are in decoding order
	stss                      *mp4.StssBox // nil: every frame is a key frame
	rap                       *mp4.SbgpBox // nil: no further random access points
	stsz                      *mp4.StszBox
	stsc                      *mp4.StscBox
	offsets                   []uint64
	edits                     []mp4.ElstEntry
}

// readTrack finds the track with the given id and reads its tables. The track
// is nil, with an error, when there is no such track.
func readTrack(r io.ReaderAt, moov mp4Box, id uint32) (*mp4Track, error) {
	var movieTimescale int64
	var found *mp4Track
	err := eachBox(r, moov.body, moov.end, func(b mp4Box) (bool, error) {
		switch b.name {
		case "mvhd":
			box, err := decodeBox(r, b)
			if err != nil {
				return false, err
			}
			if h, ok := box.(*mp4.MvhdBox); ok {
				movieTimescale = int64(h.Timescale)
			}
		case "mvex", "cmov":
			return false, errUnindexed
		case "trak":
			t := &mp4Track{}
			trackID, err := t.read(r, b, 0)
			if err != nil {
				return false, err
			}
			if trackID == id && found == nil {
				found = t
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if found == nil || found.stts == nil || found.stsz == nil || found.stsc == nil || found.offsets == nil {
		return nil, errUnindexed
	}
	found.movieTimescale = movieTimescale
	return found, nil
}

// read gathers the tables below a box and returns the track id if it is there.
func (t *mp4Track) read(r io.ReaderAt, parent mp4Box, depth int) (id uint32, err error) {
	err = eachBox(r, parent.body, parent.end, func(b mp4Box) (bool, error) {
		switch b.name {
		case "mdia", "minf", "stbl", "edts":
			if depth == 4 {
				return false, errors.New("boxes are nested too deeply")
			}
			_, err := t.read(r, b, depth+1)
			return true, err
		case "tkhd", "mdhd", "stts", "ctts", "stss", "stsz", "stsc", "stco", "co64", "elst", "sbgp":
			box, err := decodeBox(r, b)
			if err != nil {
				return false, err
			}
			if h, ok := box.(*mp4.TkhdBox); ok {
				id = h.TrackID
			}
			t.add(box)
		}
		return true, nil
	})
	return id, err
}

func (t *mp4Track) add(box mp4.Box) {
	switch box := box.(type) {
	case *mp4.MdhdBox:
		t.timescale = int64(box.Timescale)
	case *mp4.SttsBox:
		t.stts = box
	case *mp4.CttsBox:
		t.ctts = box
	case *mp4.StssBox:
		t.stss = box
	case *mp4.StszBox:
		t.stsz = box
	case *mp4.StscBox:
		t.stsc = box
	case *mp4.StcoBox:
		t.offsets = make([]uint64, len(box.ChunkOffset))
		for i, offset := range box.ChunkOffset {
			t.offsets[i] = uint64(offset)
		}
	case *mp4.Co64Box:
		t.offsets = box.ChunkOffset
	case *mp4.ElstBox:
		t.edits = box.Entries
	case *mp4.SbgpBox:
		if box.GroupingType == "rap " {
			t.rap = box
		}
	}
}

// decodeBox reads a leaf box and has mp4ff decode it.
func decodeBox(r io.ReaderAt, b mp4Box) (box mp4.Box, err error) {
	if b.bodyBytes() > maxTableBytes {
		return nil, fmt.Errorf("box %q has %d bytes", b.name, b.bodyBytes())
	}
	body, err := readAll(r, b.body, b.bodyBytes())
	if err != nil {
		return nil, fmt.Errorf("read box %q: %w", b.name, err)
	}
	// The decoders check sizes, not every count: a hostile box must not end the
	// program.
	defer func() {
		if p := recover(); p != nil {
			box, err = nil, fmt.Errorf("decode box %q: %v", b.name, p)
		}
	}()
	// The header that the decoders compare counts with is always a short one.
	header := mp4.BoxHeader{Name: b.name, Size: uint64(8 + len(body)), Hdrlen: 8}
	sr := bits.NewFixedSliceReader(body)
	box, err = mp4.DecodeBoxBodySR(uint64(b.start), header, sr)
	if err == nil {
		err = sr.AccError()
	}
	if err != nil {
		return nil, fmt.Errorf("decode box %q: %w", b.name, err)
	}
	return box, nil
}

// readAll reads n bytes at off. It never holds more than twice what is really
// there, whatever n says.
func readAll(r io.ReaderAt, off, n int64) ([]byte, error) {
	const trusted = 1 << 20
	if n <= trusted {
		buf := make([]byte, n)
		if got, err := r.ReadAt(buf, off); int64(got) < n {
			return nil, err
		}
		return buf, nil
	}
	// One byte at the far end tells whether the rest exists.
	if got, err := r.ReadAt(make([]byte, 1), off+n-1); got < 1 {
		return nil, err
	}
	buf := make([]byte, n)
	if got, err := r.ReadAt(buf, off); int64(got) < n {
		return nil, err
	}
	return buf, nil
}

// sampleBytes is where a track's samples lie in the file.
type sampleBytes struct {
	total    int   // samples in the tables
	readable int   // samples that end inside the file
	endByte  int64 // where the last one ends
}

// samples compares the tables with the size of the file.
func (t *mp4Track) samples(fileSize int64) (sampleBytes, error) {
	s := sampleBytes{total: int(t.stsz.SampleNumber)}
	uniform := int64(t.stsz.SampleUniformSize)
	// Sizes of their own are backed by bytes of the table; a uniform size is
	// not, so the file itself must back it.
	if uniform == 0 && len(t.stsz.SampleSize) < s.total || uniform > 0 && int64(s.total) > fileSize {
		return s, errors.New("more samples than there can be")
	}
	n := 0
	entry := 0
	for chunk := 1; chunk <= len(t.offsets) && n < s.total; chunk++ {
		for entry+1 < len(t.stsc.Entries) && int64(t.stsc.Entries[entry+1].FirstChunk) <= int64(chunk) {
			entry++
		}
		if entry >= len(t.stsc.Entries) || t.offsets[chunk-1] > maxTicks {
			return s, errors.New("chunks without samples")
		}
		at := int64(t.offsets[chunk-1])
		for range t.stsc.Entries[entry].SamplesPerChunk {
			if n == s.total {
				break
			}
			if uniform > 0 {
				at += uniform
			} else {
				at += int64(t.stsz.SampleSize[n])
			}
			n++
			if at <= fileSize {
				s.readable++
			}
			s.endByte = max(s.endByte, at)
		}
	}
	if n < s.total {
		return s, errors.New("samples without a chunk")
	}
	return s, nil
}

// edit is the part of a track that is shown: the composition times in
// [from, to), moved by shift.
type edit struct{ from, to, shift int64 }

// shown works out the track's edit list, as far as it is one stretch at normal
// speed, after an optional delay.
func (t *mp4Track) shown() (edit, error) {
	e := edit{from: math.MinInt64, to: math.MaxInt64}
	edits := t.edits
	if len(edits) == 0 {
		return e, nil
	}
	var delay int64
	if edits[0].MediaTime == -1 {
		if delay = t.mediaTicks(edits[0].SegmentDuration); delay < 0 {
			return e, errUnindexed
		}
		edits = edits[1:]
	}
	if len(edits) != 1 || edits[0].MediaTime < 0 || edits[0].MediaTime > maxTicks ||
		edits[0].MediaRateInteger != 1 || edits[0].MediaRateFraction != 0 {
		return e, errUnindexed
	}
	e.from = edits[0].MediaTime
	e.shift = delay - e.from
	if length := edits[0].SegmentDuration; length > 0 {
		ticks := t.mediaTicks(length)
		if ticks < 0 {
			return e, errUnindexed
		}
		e.to = e.from + ticks
	}
	return e, nil
}

// mediaTicks converts from the film's time scale to the track's, -1 when that
// is out of range.
func (t *mp4Track) mediaTicks(d uint64) int64 {
	if t.movieTimescale <= 0 || t.timescale <= 0 || d > uint64(maxTicks/t.timescale) {
		return -1
	}
	return (int64(d)*t.timescale + t.movieTimescale/2) / t.movieTimescale
}

// frames works out when each of the track's n samples is shown.
func (t *mp4Track) frames(n int) (*frameTable, error) {
	e, err := t.shown()
	if err != nil {
		return nil, err
	}
	if t.stss != nil && len(t.stss.SampleNumber) == 0 {
		return nil, errUnindexed
	}
	var (
		pts     = make([]int64, 0, n)
		keys    []int64
		hidden  bool // a key frame lies before the edit
		last    = int64(math.MinInt64)
		end     int64
		dts     int64
		isKey   = t.keyFrames()
		offsets = cttsCursor{box: t.ctts}
		i       int
	)
	for entry, count := range t.stts.SampleCount {
		duration := int64(t.stts.SampleTimeDelta[entry])
		for range count {
			if i == n {
				return nil, errUnindexed // more times than samples
			}
			cts := dts + offsets.next()
			key := isKey(uint32(i + 1))
			switch {
			case cts < e.from:
				hidden = hidden || key
			case cts < e.to:
				at := cts + e.shift
				pts = append(pts, at)
				if key {
					keys = append(keys, at)
				}
				if at > last {
					last, end = at, at+duration
				}
			}
			i++
			if dts += duration; dts > maxTicks {
				return nil, errUnindexed
			}
		}
	}
	if i != n || len(pts) == 0 {
		return nil, errUnindexed
	}
	slices.Sort(pts)
	if hidden && !slices.Contains(keys, pts[0]) {
		keys = append(keys, pts[0])
	}
	if len(keys) == 0 {
		return nil, errUnindexed
	}
	return &frameTable{index: NewIndex(keys, pts), startPTS: pts[0], endPTS: end}, nil
}

// keyFrames returns a function that tells of rising sample numbers whether
// decoding can start there.
func (t *mp4Track) keyFrames() func(sample uint32) bool {
	if t.stss == nil {
		return func(uint32) bool { return true }
	}
	sync := t.stss.SampleNumber
	rap := sbgpCursor{box: t.rap}
	return func(sample uint32) bool {
		for len(sync) > 0 && sync[0] < sample {
			sync = sync[1:]
		}
		inGroup := rap.next()
		return inGroup || len(sync) > 0 && sync[0] == sample
	}
}

// cttsCursor gives the composition offsets of one sample after the other.
type cttsCursor struct {
	box    *mp4.CttsBox
	sample uint32
	entry  int
}

func (c *cttsCursor) next() int64 {
	if c.box == nil {
		return 0
	}
	c.sample++
	for c.entry < len(c.box.SampleOffset) && c.box.EndSampleNr[c.entry+1] < c.sample {
		c.entry++
	}
	if c.entry == len(c.box.SampleOffset) {
		return 0
	}
	return int64(c.box.SampleOffset[c.entry])
}

// sbgpCursor tells of one sample after the other whether it is in a group.
type sbgpCursor struct {
	box   *mp4.SbgpBox
	entry int
	used  uint32
}

func (c *sbgpCursor) next() bool {
	if c.box == nil {
		return false
	}
	for c.entry < len(c.box.SampleCounts) && c.used >= c.box.SampleCounts[c.entry] {
		c.entry, c.used = c.entry+1, 0
	}
	if c.entry == len(c.box.SampleCounts) {
		return false
	}
	c.used++
	return c.box.GroupDescriptionIndices[c.entry] > 0
}
