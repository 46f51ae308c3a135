package media

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"

	"github.com/volley-run/volley/sprocket"
)

// EBML element IDs of Matroska and WebM, with their length markers.
const (
	idEBML           = 0x1A45DFA3
	idSegment        = 0x18538067
	idSeekHead       = 0x114D9B74
	idSeek           = 0x4DBB
	idSeekID         = 0x53AB
	idSeekPosition   = 0x53AC
	idInfo           = 0x1549A966
	idTimestampScale = 0x2AD7B1
	idDuration       = 0x4489
	idTracks         = 0x1654AE6B
	idTrackEntry     = 0xAE
	idTrackNumber    = 0xD7
	idTrackType      = 0x83
	idCodecID        = 0x86
	idDefaultDur     = 0x23E383
	idCues           = 0x1C53BB6B
	idCuePoint       = 0xBB
	idCueTime        = 0xB3
	idCuePositions   = 0xB7
	idCueTrack       = 0xF7
	idCueCluster     = 0xF1
	idCluster        = 0x1F43B675
	idTimestamp      = 0xE7
	idSimpleBlock    = 0xA3
	idBlockGroup     = 0xA0
	idBlock          = 0xA1
	idBlockDuration  = 0x9B
)

const (
	// maxElements bounds what one parent may hold; two hours of cues are some
	// thousand.
	maxElements = 1 << 20
	// maxTailBytes bounds how much of the film's end is walked to find the
	// last frame.
	maxTailBytes = 64 << 20

	mkvVideo = 1
)

// element is where an EBML element lies. end is math.MaxInt64 for an element
// of unknown size, as live recordings have.
type element struct {
	id        uint32
	body, end int64
}

func (e element) unknownSize() bool { return e.end == math.MaxInt64 }

// readElement reads the header of the element at off.
func readElement(r io.ReaderAt, off int64) (element, error) {
	var h [12]byte // four bytes of ID, eight of size
	n, err := r.ReadAt(h[:], off)
	if n == 0 {
		return element{}, err
	}
	id, idLen := vint(h[:n], 4)
	if idLen == 0 {
		return element{}, fmt.Errorf("no element at byte %d", off)
	}
	size, sizeLen := vint(h[idLen:n], 8)
	if sizeLen == 0 {
		return element{}, fmt.Errorf("no element size at byte %d", off)
	}
	size &^= 1 << (7 * sizeLen) // the length marker
	e := element{id: uint32(id), body: off + int64(idLen+sizeLen)}
	switch {
	case size == 1<<(7*sizeLen)-1:
		e.end = math.MaxInt64
	case int64(size) > maxTicks || e.body > maxTicks:
		return element{}, fmt.Errorf("element at byte %d says that it has %d bytes", off, size)
	default:
		e.end = e.body + int64(size)
	}
	return e, nil
}

// vint reads a number of at most limit bytes whose leading zero bits tell its
// length. The length marker stays in the number. length is 0 when b is too
// short or no such number.
func vint(b []byte, limit int) (n uint64, length int) {
	if len(b) == 0 || b[0] == 0 {
		return 0, 0
	}
	length = bits.LeadingZeros8(b[0]) + 1
	if length > limit || length > len(b) {
		return 0, 0
	}
	for _, c := range b[:length] {
		n = n<<8 | uint64(c)
	}
	return n, length
}

// eachElement calls visit for the elements between start and end until it
// returns false. It stops without error where the input ends.
func eachElement(r io.ReaderAt, start, end int64, visit func(element) (bool, error)) error {
	for n := 0; start < end; n++ {
		if n == maxElements {
			return fmt.Errorf("more than %d elements", maxElements)
		}
		e, err := readElement(r, start)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if more, err := visit(e); err != nil || !more {
			return err
		}
		start = e.end
	}
	return nil
}

// readUint reads the element's number.
func readUint(r io.ReaderAt, e element) (uint64, error) {
	n := e.end - e.body
	if n > 8 {
		return 0, fmt.Errorf("number of %d bytes", n)
	}
	b, err := readAll(r, e.body, n)
	if err != nil {
		return 0, err
	}
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v, nil
}

// readFloat reads the element's floating-point number.
func readFloat(r io.ReaderAt, e element) (float64, error) {
	v, err := readUint(r, e)
	switch e.end - e.body {
	case 4:
		return float64(math.Float32frombits(uint32(v))), err
	case 8:
		return math.Float64frombits(v), err
	}
	return 0, err
}

// mkvTrack is one entry of Tracks.
type mkvTrack struct {
	number, kind uint64
	hasCodec     bool
	frameNanos   uint64 // 0 when the container does not say
}

// mkvFile is what the headers of a Matroska file say.
type mkvFile struct {
	segment   element
	tickNanos uint64
	duration  float64 // in ticks, 0 when the container does not say
	tracks    []mkvTrack
	cues      element // id 0 when there are none
}

// readMKVHeaders reads everything of a Matroska file that is not frames. The
// error is that of an input which is no Matroska file.
func readMKVHeaders(r io.ReaderAt) (*mkvFile, error) {
	head, err := readElement(r, 0)
	if err != nil || head.id != idEBML || head.unknownSize() {
		return nil, errors.Join(errors.New("no EBML header"), err)
	}
	f := &mkvFile{tickNanos: 1e6}
	if f.segment, err = readElement(r, head.end); err != nil || f.segment.id != idSegment {
		return nil, errors.Join(errors.New("no segment"), err)
	}
	elsewhere := map[uint32]int64{} // what the seek head points to
	seen := map[uint32]bool{}
	visit := func(e element) (bool, error) {
		if e.id == idCluster || e.unknownSize() {
			return false, nil
		}
		if seen[e.id] && e.id != idSeekHead {
			return true, nil
		}
		seen[e.id] = true
		return true, f.readHeader(r, e, elsewhere)
	}
	if err := eachElement(r, f.segment.body, f.segment.end, visit); err != nil {
		return nil, err
	}
	for _, id := range []uint32{idInfo, idTracks, idCues} {
		at, ok := elsewhere[id]
		if !ok || seen[id] {
			continue
		}
		e, err := readElement(r, at)
		if err != nil || e.id != id || e.unknownSize() {
			continue // a stale pointer: as if there were none
		}
		if err := f.readHeader(r, e, elsewhere); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *mkvFile) readHeader(r io.ReaderAt, e element, elsewhere map[uint32]int64) error {
	switch e.id {
	case idSeekHead:
		return eachElement(r, e.body, e.end, func(seek element) (bool, error) {
			if seek.id != idSeek {
				return true, nil
			}
			values, err := readUints(r, seek, idSeekID, idSeekPosition)
			if err == nil && values[1] <= maxTicks {
				elsewhere[uint32(values[0])] = f.segment.body + int64(values[1])
			}
			return true, err
		})
	case idInfo:
		return eachElement(r, e.body, e.end, func(c element) (more bool, err error) {
			switch c.id {
			case idTimestampScale:
				f.tickNanos, err = readUint(r, c)
			case idDuration:
				f.duration, err = readFloat(r, c)
			}
			return true, err
		})
	case idTracks:
		return eachElement(r, e.body, e.end, func(c element) (bool, error) {
			if c.id != idTrackEntry {
				return true, nil
			}
			t, err := readTrackEntry(r, c)
			f.tracks = append(f.tracks, t)
			return len(f.tracks) < 1<<10, err
		})
	case idCues:
		f.cues = e
	}
	return nil
}

// readUints reads those of a parent's children that are numbers with the given
// ids; 0 stands for one that is not there.
func readUints(r io.ReaderAt, parent element, ids ...uint32) ([]uint64, error) {
	values := make([]uint64, len(ids))
	err := eachElement(r, parent.body, parent.end, func(c element) (more bool, err error) {
		for i, id := range ids {
			if c.id == id {
				values[i], err = readUint(r, c)
			}
		}
		return true, err
	})
	return values, err
}

func readTrackEntry(r io.ReaderAt, e element) (t mkvTrack, err error) {
	err = eachElement(r, e.body, e.end, func(c element) (more bool, err error) {
		switch c.id {
		case idTrackNumber:
			t.number, err = readUint(r, c)
		case idTrackType:
			t.kind, err = readUint(r, c)
		case idDefaultDur:
			t.frameNanos, err = readUint(r, c)
		case idCodecID:
			t.hasCodec = true
		}
		return true, err
	})
	return t, err
}

// stream returns the track that FFmpeg counts as stream n.
func (f *mkvFile) stream(n int) (mkvTrack, bool) {
	for _, t := range f.tracks {
		switch t.kind {
		case mkvVideo, 2, 0x11, 0x21: // audio, subtitle, metadata
		default:
			continue
		}
		if !t.hasCodec {
			continue
		}
		if n == 0 {
			return t, t.kind == mkvVideo
		}
		n--
	}
	return mkvTrack{}, false
}

// keyFrames reads the cues of one track: the times of its key frames and where
// the clusters of the first and the last one start.
func (f *mkvFile) keyFrames(r io.ReaderAt, track uint64) (keys []int64, firstCluster, lastCluster int64, err error) {
	firstCluster = math.MaxInt64
	err = eachElement(r, f.cues.body, f.cues.end, func(point element) (bool, error) {
		if point.id != idCuePoint {
			return true, nil
		}
		var at uint64
		var cluster int64 = -1
		err := eachElement(r, point.body, point.end, func(c element) (more bool, err error) {
			switch c.id {
			case idCueTime:
				at, err = readUint(r, c)
			case idCuePositions:
				var v []uint64
				v, err = readUints(r, c, idCueTrack, idCueCluster)
				if err == nil && v[0] == track && v[1] <= maxTicks {
					cluster = f.segment.body + int64(v[1])
				}
			}
			return true, err
		})
		if err != nil || cluster < 0 {
			return true, err
		}
		if at > maxTicks {
			return false, errors.New("cue time out of range")
		}
		keys = append(keys, int64(at))
		firstCluster, lastCluster = min(firstCluster, cluster), max(lastCluster, cluster)
		return true, nil
	})
	return keys, firstCluster, lastCluster, err
}

// frames calls visit for the track's frames in the clusters between start and
// end, with their time and, where the block says, duration, in ticks, until it
// returns false.
func (f *mkvFile) frames(r io.ReaderAt, track uint64, start, end int64, visit func(pts, duration int64) bool) error {
	more := true
	return eachElement(r, start, end, func(cluster element) (bool, error) {
		if cluster.unknownSize() {
			return false, errors.New("cluster of unknown size")
		}
		if cluster.id != idCluster {
			return true, nil
		}
		var base int64
		err := eachElement(r, cluster.body, cluster.end, func(e element) (bool, error) {
			at, duration, mine := int64(0), int64(0), false
			var err error
			switch e.id {
			case idTimestamp:
				v, err := readUint(r, e)
				base = int64(min(v, maxTicks))
				return true, err
			case idSimpleBlock:
				at, mine, err = blockTime(r, e, track)
			case idBlockGroup:
				at, duration, mine, err = groupTime(r, e, track)
			}
			if mine && err == nil {
				more = visit(base+at, duration)
			}
			return more, err
		})
		return more, err
	})
}

// mkvTail is what lies behind the last cue of a track, in ticks.
type mkvTail struct {
	lastPTS  int64
	duration int64 // of the last frame, 0 where its block does not say
	frames   int   // from the last key frame on
}

// tail walks the clusters from start on, where the track's last key frame is.
func (f *mkvFile) tail(r io.ReaderAt, track uint64, start, size, lastKey int64) (mkvTail, error) {
	t := mkvTail{lastPTS: math.MinInt64}
	if size-start > maxTailBytes {
		return t, errors.New("the last group of pictures is too long")
	}
	err := f.frames(r, track, start, min(f.segment.end, size), func(pts, duration int64) bool {
		if pts >= lastKey {
			t.frames++
			if pts > t.lastPTS {
				t.lastPTS, t.duration = pts, duration
			}
		}
		return true
	})
	if err == nil && t.frames == 0 {
		err = errors.New("no frame after the last cue")
	}
	return t, err
}

// headOnGrid reports whether the track's first frames, from start on, are step
// ticks apart. Frames that may still have to be put in order are not judged.
func (f *mkvFile) headOnGrid(r io.ReaderAt, track uint64, start int64, step float64) (bool, error) {
	const judged, reordered = 100, 16
	var pts []int64
	err := f.frames(r, track, start, f.segment.end, func(at, _ int64) bool {
		pts = append(pts, at)
		return len(pts) < judged+reordered
	})
	if len(pts) <= reordered {
		return err == nil, err
	}
	slices.Sort(pts)
	return NewIndex(nil, pts[:len(pts)-reordered]).onGrid(step), err
}

// blockTime reads the head of a block: whether it is of the track, and its time
// from the start of the cluster.
func blockTime(r io.ReaderAt, e element, track uint64) (at int64, mine bool, err error) {
	var h [10]byte
	n, err := r.ReadAt(h[:min(int64(len(h)), e.end-e.body)], e.body)
	number, length := vint(h[:n], 8)
	if length == 0 || n < length+2 {
		return 0, false, errors.Join(errors.New("block without a head"), err)
	}
	number &^= 1 << (7 * length)
	at = int64(int16(uint16(h[length])<<8 | uint16(h[length+1])))
	return at, number == track, nil
}

func groupTime(r io.ReaderAt, group element, track uint64) (at, length int64, mine bool, err error) {
	err = eachElement(r, group.body, group.end, func(e element) (more bool, err error) {
		switch e.id {
		case idBlock:
			at, mine, err = blockTime(r, e, track)
		case idBlockDuration:
			var v uint64
			v, err = readUint(r, e)
			length = int64(min(v, maxTicks))
		}
		return true, err
	})
	return at, length, mine, err
}

// readMKVIndex reads the index of one stream of a Matroska or WebM file: its
// headers, its cues, and the heads of the blocks after the last cue. It returns
// errUnindexed where there are no cues for the stream, and a Truncated error
// where the segment is longer than the file.
func readMKVIndex(src *Source, stream int, timeBase, frameRate sprocket.Rational, startPTS int64) (*frameTable, error) {
	f, err := readMKVHeaders(src)
	if err != nil {
		return nil, readFailure(err)
	}
	if err := f.checkLength(src); err != nil {
		return nil, err
	}
	track, ok := f.stream(stream)
	tick := sprocket.Rational{Num: int64(min(f.tickNanos, maxTicks)), Den: 1e9}
	if !ok || f.cues.id == 0 || tick.IsZero() || tick.Reduce() != timeBase.Reduce() {
		return nil, errUnindexed
	}
	keys, firstCluster, lastCluster, err := f.keyFrames(src, track.number)
	if err != nil || len(keys) == 0 {
		return nil, readFailure(err)
	}
	index := NewIndex(keys, nil)
	if index.keys[0] != startPTS {
		return nil, errUnindexed
	}
	t := &frameTable{index: index, startPTS: startPTS}
	lastKey := index.keys[len(index.keys)-1]
	frameTicks := float64(track.frameNanos) / float64(f.tickNanos)
	tail, err := f.tail(src, track.number, lastCluster, src.Size(), lastKey)
	if KindOf(err) != "" {
		return nil, err
	}
	if err != nil {
		t.endPTS = int64(min(max(f.duration, float64(lastKey)), maxTicks))
		return t, nil
	}
	if t.endPTS = tail.lastPTS + tail.duration; tail.duration == 0 {
		t.endPTS += int64(math.Round(frameTicks))
	}
	if t.constant = onKeyGrid(index.keys, tail, frameTicks, timeBase, frameRate); t.constant {
		t.constant, err = f.headOnGrid(src, track.number, firstCluster, 1/(frameRate.Float()*timeBase.Float()))
	}
	if KindOf(err) != "" {
		return nil, err
	}
	return t, nil
}

// checkLength reports a file that is shorter than its segment.
func (f *mkvFile) checkLength(src *Source) error {
	if f.segment.unknownSize() || f.segment.end <= src.Size() {
		return nil
	}
	return &InputError{Input: src.Name(), Kind: Truncated,
		Err:    fmt.Errorf("has %d bytes and should have %d", src.Size(), f.segment.end),
		Remedy: "fetch it again"}
}

// onKeyGrid reports whether frames are frameTicks apart, as far as can be told
// without reading all of them: the container's frame duration agrees with the
// frame rate, every key frame lies within a tick of the grid, and no frame is
// missing behind the last key frame.
func onKeyGrid(keys []int64, tail mkvTail, frameTicks float64, timeBase, frameRate sprocket.Rational) bool {
	if frameTicks <= 0 || frameRate.IsZero() {
		return false
	}
	step := 1 / (frameRate.Float() * timeBase.Float())
	if math.Abs(frameTicks-step) > step/1000 {
		return false
	}
	for _, pts := range append(keys[:len(keys):len(keys)], tail.lastPTS) {
		n := math.Round(float64(pts-keys[0]) / step)
		if math.Abs(float64(pts-keys[0])-n*step) > 1+1e-3 {
			return false
		}
	}
	length := float64(tail.lastPTS-keys[len(keys)-1]) / step
	return math.Round(length) == float64(tail.frames-1)
}
