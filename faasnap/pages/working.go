package pages

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// GroupPages is how many pages a working-set group has, more or less, unless
// told otherwise: a round of recording ends when that many are new (thesis
// 5.3.3).
const GroupPages = 1024

// Group is one working-set group: pages that became resident in the same round
// of recording, in the order of addresses, not touching each other.
type Group []Range

// WorkingSet is what a recorded invocation made resident: page cache and all,
// so that it holds what read-ahead fetched too (host page recording, thesis
// 5.3.4). Groups come in the order of the rounds.
type WorkingSet struct {
	// Pages is the size of guest memory.
	Pages int
	// Groups are in the order in which they became resident. A page that is in
	// several counts as one of the first.
	Groups []Group
}

// Add adds the next group: the pages that are resident now and were not in an
// earlier round. No new pages make no group. It returns how many pages are new
// and changes seen, which holds the pages of all earlier rounds.
func (w *WorkingSet) Add(seen, resident Set) int {
	fresh := resident.Without(seen)
	group := slices.Collect(fresh.Ranges())
	if len(group) == 0 {
		return 0
	}
	seen.AddSet(fresh)
	w.Groups = append(w.Groups, group)
	return fresh.Count()
}

// Set returns the pages of all groups. It panics where Check would complain.
func (w WorkingSet) Set() Set {
	s := NewSet(w.Pages)
	for _, g := range w.Groups {
		for _, r := range g {
			s.AddRange(r)
		}
	}
	return s
}

// Check returns an error if a group has a range that is empty, out of order,
// touching the one before, or not within guest memory.
func (w WorkingSet) Check() error {
	if w.Pages < 0 || w.Pages > MaxPages {
		return fmt.Errorf("%d pages of guest memory: want 0 to %d", w.Pages, MaxPages)
	}
	for i, g := range w.Groups {
		end := -1
		for _, r := range g {
			if r.Start <= end || r.End <= r.Start || r.End > w.Pages {
				return fmt.Errorf("group %d: range %v after page %d of %d", i, r, end, w.Pages)
			}
			end = r.End
		}
	}
	return nil
}

const (
	workingMagic   = "VOLLEYWS"
	workingVersion = 1
	workingHeader  = 24
)

// MarshalBinary returns the working set in the form that docs/formats/snapshot.md
// describes.
func (w WorkingSet) MarshalBinary() ([]byte, error) {
	if err := w.Check(); err != nil {
		return nil, fmt.Errorf("encode working set: %w", err)
	}
	b := append([]byte(nil), workingMagic...)
	b = binary.LittleEndian.AppendUint32(b, workingVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(w.Groups)))
	b = binary.LittleEndian.AppendUint64(b, uint64(w.Pages))
	for _, g := range w.Groups {
		b = binary.AppendUvarint(b, uint64(len(g)))
		end := 0
		for _, r := range g {
			b = binary.AppendUvarint(b, uint64(r.Start-end))
			b = binary.AppendUvarint(b, uint64(r.Len()))
			end = r.End
		}
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary wrote, into w, and refuses anything
// else.
func (w *WorkingSet) UnmarshalBinary(b []byte) error {
	got, err := decodeWorkingSet(b)
	if err != nil {
		return fmt.Errorf("decode working set: %w", err)
	}
	*w = got
	return nil
}

func decodeWorkingSet(b []byte) (WorkingSet, error) {
	var w WorkingSet
	if len(b) < workingHeader || string(b[:8]) != workingMagic {
		return w, errors.New("not a working set")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != workingVersion {
		return w, fmt.Errorf("version %d: this program knows %d", v, workingVersion)
	}
	groups := int(binary.LittleEndian.Uint32(b[12:]))
	pages := binary.LittleEndian.Uint64(b[16:])
	if pages > MaxPages {
		return w, fmt.Errorf("%d pages of guest memory: want at most %d", pages, MaxPages)
	}
	w.Pages = int(pages)
	rest := bytes.NewReader(b[workingHeader:])
	if groups > rest.Len() {
		return w, fmt.Errorf("truncated: %d groups in %d bytes", groups, rest.Len())
	}
	for i := range groups {
		g, err := decodeGroup(rest, w.Pages)
		if err != nil {
			return w, fmt.Errorf("group %d: %w", i, err)
		}
		w.Groups = append(w.Groups, g)
	}
	if rest.Len() > 0 {
		return w, fmt.Errorf("%d bytes after the last group", rest.Len())
	}
	return w, w.Check()
}

func decodeGroup(rest *bytes.Reader, pages int) (Group, error) {
	n, err := uvarint(rest, rest.Len()/2)
	if err != nil {
		return nil, fmt.Errorf("number of ranges: %w", err)
	}
	g := make(Group, 0, n)
	end := 0
	for range n {
		gap, err := uvarint(rest, pages)
		if err != nil {
			return nil, fmt.Errorf("start of a range: %w", err)
		}
		length, err := uvarint(rest, pages)
		if err != nil {
			return nil, fmt.Errorf("length of a range: %w", err)
		}
		g = append(g, Range{end + gap, end + gap + length})
		end += gap + length
		if end > pages {
			return nil, fmt.Errorf("range that ends at page %d of %d", end, pages)
		}
	}
	return g, nil
}

// uvarint reads a number in its shortest form that is at most limit.
func uvarint(r *bytes.Reader, limit int) (int, error) {
	before := r.Len()
	v, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, fmt.Errorf("truncated: %w", err)
	}
	if v > uint64(limit) {
		return 0, fmt.Errorf("%d: want at most %d", v, limit)
	}
	if used := before - r.Len(); used != len(binary.AppendUvarint(nil, v)) {
		return 0, fmt.Errorf("%d in %d bytes: want the shortest form", v, used)
	}
	return int(v), nil
}

// Merge returns the pages of several working sets of one guest memory, each in
// the earliest group that it is in of any: what any of several recorded inputs
// wanted, in the order in which it may be wanted. It panics if they are of
// different sizes.
func Merge(sets ...WorkingSet) WorkingSet {
	if len(sets) == 0 {
		return WorkingSet{}
	}
	merged := WorkingSet{Pages: sets[0].Pages}
	seen := NewSet(merged.Pages)
	for group := 0; ; group++ {
		more := false
		now := seen.Clone()
		for _, w := range sets {
			if w.Pages != merged.Pages {
				panic("pages: working sets of different sizes")
			}
			if group >= len(w.Groups) {
				continue
			}
			more = true
			for _, r := range w.Groups[group] {
				now.AddRange(r)
			}
		}
		if !more {
			return merged
		}
		merged.Add(seen, now)
	}
}
