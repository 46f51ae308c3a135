package media

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// scanIndex lists every packet of a stream with ffprobe. It reads the whole
// input once, and is for containers without an index that this package reads:
// MPEG-TS, fragmented MP4, AVI, FLV, and files with unusual edit lists.
func scanIndex(ctx context.Context, src *Source, stream int) (*frameTable, error) {
	var packets packetList
	complaints, err := runFFprobe(ctx, src, packets.read,
		"-select_streams", strconv.Itoa(stream),
		"-show_entries", "packet=pts,dts,duration,flags", "-of", "compact=p=0")
	if err != nil {
		return nil, err
	}
	if strings.Contains(complaints, "partial file") {
		return nil, &InputError{Input: src.Name(), Kind: Truncated,
			Err:    fmt.Errorf("is cut off after about %d frames", len(packets.pts)),
			Remedy: "fetch it again"}
	}
	return packets.table(src.Name())
}

// packetList gathers the lines of an ffprobe packet listing.
type packetList struct {
	pts, keys []int64
	last, end int64
	hidden    bool // a key frame is not shown
	untimed   int
}

func (l *packetList) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		l.add(lines.Text())
	}
	return lines.Err()
}

// add takes one line, "pts=3003|dts=0|duration=3003|flags=K_".
func (l *packetList) add(line string) {
	pts, dts, duration := int64(-1), int64(-1), int64(0)
	hasPTS, hasDTS, isPacket := false, false, false
	flags := ""
	for field := range strings.SplitSeq(line, "|") {
		name, value, _ := strings.Cut(field, "=")
		n, err := strconv.ParseInt(value, 10, 64)
		valid := err == nil && n > -maxTicks && n < maxTicks
		switch name {
		case "pts":
			pts, hasPTS = n, valid
		case "dts":
			dts, hasDTS = n, valid
		case "duration":
			if valid {
				duration = n
			}
		case "flags":
			flags, isPacket = value, true
		}
	}
	if !isPacket {
		return // side data of the packet before
	}
	if !hasPTS {
		if !hasDTS {
			l.untimed++
			return
		}
		pts = dts // AVI keeps only these
	}
	key := strings.Contains(flags, "K")
	if strings.Contains(flags, "D") {
		l.hidden = l.hidden || key && len(l.pts) == 0
		return
	}
	if len(l.pts) == 0 || pts > l.last {
		l.last, l.end = pts, pts+duration
	}
	l.pts = append(l.pts, pts)
	if key {
		l.keys = append(l.keys, pts)
	}
}

func (l *packetList) table(name string) (*frameTable, error) {
	if len(l.pts) == 0 {
		e := &InputError{Input: name, Kind: Corrupt, Err: errors.New("its video track has no frames"),
			Remedy: "fetch or export it again"}
		if l.untimed > 0 {
			e.Err = errors.New("its frames have no times")
			e.with(Unsupported, "put it into a container first: ffmpeg -i INPUT -c copy out.mp4")
		}
		return nil, e
	}
	index := NewIndex(l.keys, l.pts)
	start := index.at(0)
	if l.hidden {
		index = NewIndex(append(l.keys, start), l.pts)
	}
	if len(index.keys) == 0 {
		return nil, &InputError{Input: name, Kind: Corrupt, Err: errors.New("its video track has no key frame"),
			Remedy: "fetch or export it again"}
	}
	return &frameTable{index: index, startPTS: start, endPTS: l.end}, nil
}
