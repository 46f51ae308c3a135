package pages

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
)

// Size is the size of a guest page in bytes.
const Size = 4096

// Range is the pages from Start to before End.
type Range struct {
	Start, End int
}

// Len returns how many pages the range has.
func (r Range) Len() int { return r.End - r.Start }

// String returns the range as [Start,End).
func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.Start, r.End) }

// Set is a set of pages out of the first Pages pages: a bit for each. Like a
// map, a copy shares its contents with the original. A set may be read
// concurrently, but not while it is changed.
type Set struct {
	words []uint64 // bits from pages up are zero
	pages int
}

// NewSet returns an empty set for pages pages. It panics if pages is negative.
func NewSet(pages int) Set {
	return Set{words: make([]uint64, (pages+63)/64), pages: pages}
}

// Pages returns how many pages there are, in the set or not.
func (s Set) Pages() int { return s.pages }

// Has reports whether the page is in the set. Pages that do not exist are not.
func (s Set) Has(page int) bool {
	return page >= 0 && page < s.pages && s.words[page/64]>>(page%64)&1 == 1
}

// Add puts a page into the set. It panics if there is no such page.
func (s Set) Add(page int) { s.AddRange(Range{page, page + 1}) }

// AddRange puts pages into the set. It panics if one does not exist.
func (s Set) AddRange(r Range) {
	if r.Start < 0 || r.End > s.pages || r.Start > r.End {
		panic(fmt.Sprintf("pages: range %v in a set of %d pages", r, s.pages))
	}
	if r.Start == r.End {
		return
	}
	first, last := r.Start/64, (r.End-1)/64
	head := ^uint64(0) << (r.Start % 64)
	tail := ^uint64(0) >> (63 - (r.End-1)%64)
	if first == last {
		s.words[first] |= head & tail
		return
	}
	s.words[first] |= head
	for i := first + 1; i < last; i++ {
		s.words[i] = ^uint64(0)
	}
	s.words[last] |= tail
}

// AddSet puts the pages of t into s. It panics if t is for another number of
// pages.
func (s Set) AddSet(t Set) {
	s.same(t)
	for i, w := range t.words {
		s.words[i] |= w
	}
}

// Without returns the pages of s that are not in t. It panics if t is for
// another number of pages.
func (s Set) Without(t Set) Set {
	s.same(t)
	out := NewSet(s.pages)
	for i, w := range s.words {
		out.words[i] = w &^ t.words[i]
	}
	return out
}

// Intersect returns the pages that are in both s and t. It panics if t is for
// another number of pages.
func (s Set) Intersect(t Set) Set {
	s.same(t)
	out := NewSet(s.pages)
	for i, w := range s.words {
		out.words[i] = w & t.words[i]
	}
	return out
}

// Clone returns a copy of the set that shares nothing with it.
func (s Set) Clone() Set { return Set{words: slices.Clone(s.words), pages: s.pages} }

// Equal reports whether both sets have the same pages and are for the same
// number of them.
func (s Set) Equal(t Set) bool { return s.pages == t.pages && slices.Equal(s.words, t.words) }

// Count returns how many pages are in the set.
func (s Set) Count() int {
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// Ranges returns the pages of the set as ranges, as long as they can be, in
// the order of addresses.
func (s Set) Ranges() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for start := s.next(0, 1); start < s.pages; {
			end := s.next(start, 0)
			if !yield(Range{start, end}) {
				return
			}
			start = s.next(end, 1)
		}
	}
}

// next returns the first page from page on whose bit is bit, or s.pages.
func (s Set) next(page int, bit uint64) int {
	if page >= s.pages {
		return s.pages
	}
	flip := bit - 1 // all ones to look for zeros
	i := page / 64
	w := (s.words[i] ^ flip) &^ (1<<(page%64) - 1)
	for w == 0 {
		i++
		if i == len(s.words) {
			return s.pages
		}
		w = s.words[i] ^ flip
	}
	return min(i*64+bits.TrailingZeros64(w), s.pages)
}

func (s Set) same(t Set) {
	if s.pages != t.pages {
		panic(fmt.Sprintf("pages: sets of %d and of %d pages", s.pages, t.pages))
	}
}
