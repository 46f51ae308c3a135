package mem

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/volley-run/volley/faasnap/pages"
)

// scanBuffer is how much of a file is read at once: it stays in the cache of a
// core between being read and being looked at.
const scanBuffer = 256 << 10

// Scan returns which pages of a guest's memory file are not zero: those that
// hold any byte but 0 in the first size bytes of f. Holes are not read (Linux).
// The error is io.ErrUnexpectedEOF, wrapped, if the file is shorter. Scan may
// move the offset of f, and needs nobody to write to it meanwhile.
//
// It reads instead of mapping, which would be faster, so that an error of the
// disk is an error here and not a signal.
func Scan(f *os.File, size int64) (pages.Set, error) {
	n, err := pageCount(f, size)
	if err != nil {
		return pages.Set{}, fmt.Errorf("scan %s: %w", f.Name(), err)
	}
	data, err := Data(f, size)
	if err != nil {
		return pages.Set{}, fmt.Errorf("scan: %w", err)
	}
	nonZero := pages.NewSet(n)
	buf := make([]byte, scanBuffer)
	zero := make([]byte, pages.Size)
	for _, r := range data {
		for at := r.Start; at < r.End; {
			b := buf[:min(len(buf), (r.End-at)*pages.Size)]
			if _, err := f.ReadAt(b, int64(at)*pages.Size); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return pages.Set{}, fmt.Errorf("scan %s at %d: %w", f.Name(), int64(at)*pages.Size, err)
			}
			for ; len(b) > 0; b = b[pages.Size:] {
				if !bytes.Equal(b[:pages.Size], zero) {
					nonZero.Add(at)
				}
				at++
			}
		}
	}
	return nonZero, nil
}

// Data returns which pages of the first size bytes of f are not wholly in
// holes, in order. Where holes cannot be told, that is all of them. It may move
// the offset of f.
func Data(f *os.File, size int64) ([]pages.Range, error) {
	n, err := pageCount(f, size)
	if err != nil {
		return nil, fmt.Errorf("find data in %s: %w", f.Name(), err)
	}
	var data []pages.Range
	for at := int64(0); at < size; {
		start, end, err := nextData(f, at, size)
		if err != nil {
			return nil, fmt.Errorf("find data in %s: %w", f.Name(), err)
		}
		if start >= size {
			break
		}
		r := pages.Range{Start: int(start / pages.Size), End: min(n, int((end+pages.Size-1)/pages.Size))}
		if last := len(data) - 1; last >= 0 && data[last].End >= r.Start {
			data[last].End = r.End
		} else {
			data = append(data, r)
		}
		at = end
	}
	return data, nil
}

// pageCount returns how many pages size bytes are, which f has to have.
func pageCount(f *os.File, size int64) (int, error) {
	if size < 0 || size%pages.Size != 0 || size/pages.Size > pages.MaxPages {
		return 0, fmt.Errorf("%d bytes of memory: want a multiple of %d up to %d", size, pages.Size, int64(pages.MaxPages)*pages.Size)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() < size {
		return 0, fmt.Errorf("%d bytes: want %d: %w", info.Size(), size, io.ErrUnexpectedEOF)
	}
	return int(size / pages.Size), nil
}

// MakeSparse makes a hole of every page of f that is not in keep, which frees
// its room on disk and makes it zero. Where there are no holes (file systems
// without them, other systems than Linux) it writes zeros instead.
func MakeSparse(f *os.File, keep pages.Set) error {
	data, err := Data(f, int64(keep.Pages())*pages.Size)
	if err != nil {
		return fmt.Errorf("make sparse: %w", err)
	}
	full := pages.NewSet(keep.Pages())
	for _, r := range data {
		full.AddRange(r)
	}
	for r := range full.Without(keep).Ranges() {
		if err := punch(f, int64(r.Start)*pages.Size, int64(r.Len())*pages.Size); err != nil {
			return fmt.Errorf("make %s sparse at %d: %w", f.Name(), int64(r.Start)*pages.Size, err)
		}
	}
	return nil
}
