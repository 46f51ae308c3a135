package pages

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"sort"
)

// Source is what serves a region of guest memory.
type Source uint8

// The sources. Their numbers are part of the encoding.
const (
	// Zero is anonymous memory, which the kernel fills with zeros.
	Zero Source = iota
	// Memory is the memory file, at the offset that equals the guest address.
	Memory
	// Loading is the loading-set file.
	Loading
)

// String returns the source's name.
func (s Source) String() string {
	switch s {
	case Zero:
		return "zero"
	case Memory:
		return "memory"
	case Loading:
		return "loading"
	}
	return fmt.Sprintf("source %d", uint8(s))
}

// MaxPages is how large guest memory may be: 8 TiB.
const MaxPages = 1 << 31

// Region is a range of guest memory that one mapping serves.
type Region struct {
	Range
	Source Source
	// Group is the lowest working-set group that has a page in the region, from
	// 0; 0 unless Source is Loading.
	Group int
	// Offset is where in the source's file the region begins, in pages; 0 if
	// Source is Zero.
	Offset int
}

// Plan is how guest memory is restored: every page is in exactly one region. It
// is not changed once made, and may be used concurrently.
type Plan struct {
	// Pages is the size of guest memory.
	Pages int
	// LoadingPages is the size of the loading-set file.
	LoadingPages int
	// Regions are in the order of addresses; each begins where the last ended
	// and has another source.
	Regions []Region
}

const (
	// DefaultMergeGap is the largest distance at which regions of the loading
	// set become one, in pages (thesis 5.3.6).
	DefaultMergeGap = 32
	// DefaultMaxMappings leaves a VMM seven eighths of the kernel's default
	// vm.max_map_count (65530) for itself. Each mapping costs a restore some
	// microseconds.
	DefaultMaxMappings = 8192
	// MinMappings is what any guest memory can be mapped with: the loading set,
	// and zero, cold, zero pages at either side of it.
	MinMappings = 7
)

// Stored returns the pages that are not zero regions: a file has them.
func (p *Plan) Stored() Set {
	stored := NewSet(p.Pages)
	for _, r := range p.Regions {
		if r.Source != Zero {
			stored.AddRange(r.Range)
		}
	}
	return stored
}

// Options are the choices that a planner has. DefaultOptions are the thesis's.
type Options struct {
	// MergeGap is the largest number of pages between two regions of the
	// loading set for them to be made one; what is between is loaded with them.
	// 0 merges nothing.
	MergeGap int
	// MaxMappings is how many regions a plan may have, at least MinMappings.
	// Where memory is more scattered, both MergeGap and the distance at which
	// cold regions are made one (else 0: zero pages are not read) grow by as
	// little as is enough.
	MaxMappings int
}

// DefaultOptions returns DefaultMergeGap and DefaultMaxMappings.
func DefaultOptions() Options {
	return Options{MergeGap: DefaultMergeGap, MaxMappings: DefaultMaxMappings}
}

// Make plans how to restore guest memory of which the pages of nonZero are not
// zero, given the working set of earlier invocations, which may be empty (then
// nothing is loaded ahead). The loading set is the working set without zero
// pages. The error says what is wrong with the arguments.
func Make(nonZero Set, working WorkingSet, o Options) (*Plan, error) {
	if o.MergeGap < 0 {
		return nil, fmt.Errorf("plan: merge gap of %d pages", o.MergeGap)
	}
	if o.MaxMappings < MinMappings {
		return nil, fmt.Errorf("plan: at most %d mappings: want at least %d", o.MaxMappings, MinMappings)
	}
	if nonZero.pages > MaxPages {
		return nil, fmt.Errorf("plan: %d pages of guest memory: want at most %d", nonZero.pages, MaxPages)
	}
	if working.Pages != nonZero.pages && len(working.Groups) > 0 {
		return nil, fmt.Errorf("plan: a working set of %d pages for %d pages of guest memory", working.Pages, nonZero.pages)
	}
	if err := working.Check(); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	runs := makeRuns(nonZero, working)
	p := &Plan{Pages: nonZero.pages}
	coldGap, n := 0, count(runs, o.MergeGap, 0)
	if n > o.MaxMappings {
		// More distance never makes more regions, and the distance of all
		// pages makes no more than MinMappings.
		enough := func(gap int) bool {
			n = count(runs, max(o.MergeGap, gap), gap)
			return n <= o.MaxMappings
		}
		coldGap = 1
		for !enough(coldGap) {
			coldGap *= 2
		}
		coldGap = coldGap/2 + 1 + sort.Search(coldGap-coldGap/2-1, func(i int) bool { return enough(coldGap/2 + 1 + i) })
		n = count(runs, max(o.MergeGap, coldGap), coldGap)
	}
	p.Regions = merge(runs, max(o.MergeGap, coldGap), coldGap, make([]Region, 0, n))
	p.LoadingPages = place(p.Regions)
	return p, nil
}

// run is pages of one source, without those of another among them.
type run struct {
	start, end uint32
	group      uint32
	source     Source
}

// makeRuns returns guest memory as the longest runs of zero, cold and
// loading-set pages.
func makeRuns(nonZero Set, working WorkingSet) []run {
	loading := NewSet(nonZero.pages)
	var groupOf []uint32
	if len(working.Groups) > 0 {
		groupOf = make([]uint32, nonZero.pages)
	}
	for i, g := range slices.Backward(working.Groups) {
		for _, r := range g {
			loading.AddRange(r)
			of := groupOf[r.Start:r.End]
			for j := range of {
				of[j] = uint32(i)
			}
		}
	}
	loading = loading.Intersect(nonZero)

	runs := make([]run, 0, countKinds(nonZero, loading))
	for start := 0; start < nonZero.pages; {
		end := nextKind(nonZero, loading, start)
		r := run{start: uint32(start), end: uint32(end)}
		switch {
		case loading.Has(start):
			r.source = Loading
			r.group = slices.Min(groupOf[start:end])
		case nonZero.Has(start):
			r.source = Memory
		}
		runs = append(runs, r)
		start = end
	}
	return runs
}

// countKinds returns at least how many times nextKind has to be called to get
// from the first page to the end.
func countKinds(a, b Set) int {
	n := 1
	var lastA, lastB uint64
	for i := range a.words {
		wa, wb := a.words[i], b.words[i]
		n += bits.OnesCount64((wa ^ (wa<<1 | lastA)) | (wb ^ (wb<<1 | lastB)))
		lastA, lastB = wa>>63, wb>>63
	}
	return n
}

// nextKind returns the first page after page whose membership in a or b is
// another, or the end.
func nextKind(a, b Set, page int) int {
	i := page / 64
	likeA := -(a.words[i] >> (page % 64) & 1)
	likeB := -(b.words[i] >> (page % 64) & 1)
	diff := ((a.words[i] ^ likeA) | (b.words[i] ^ likeB)) &^ (1<<(page%64) - 1)
	for diff == 0 {
		i++
		if i == len(a.words) {
			return a.pages
		}
		diff = (a.words[i] ^ likeA) | (b.words[i] ^ likeB)
	}
	return min(i*64+bits.TrailingZeros64(diff), a.pages)
}

// merge appends the runs to out as regions, with loading runs at most
// loadingGap apart, and cold runs at most coldGap zero pages apart, made one.
func merge(runs []run, loadingGap, coldGap int, out []Region) []Region {
	last := -1 // the last loading region in out
	for _, r := range runs {
		n := len(out)
		switch {
		case r.source == Loading && last >= 0 && int(r.start)-out[last].End <= loadingGap:
			out = out[:last+1]
			out[last].End = int(r.end)
			out[last].Group = min(out[last].Group, int(r.group))
			continue
		case r.source == Loading:
			last = n
		case r.source == Memory && n >= 2 && out[n-2].Source == Memory && out[n-1].Source == Zero && out[n-1].Len() <= coldGap:
			out = out[:n-1]
			out[n-2].End = int(r.end)
			continue
		}
		out = append(out, Region{Range: Range{int(r.start), int(r.end)}, Source: r.source, Group: int(r.group)})
	}
	return out
}

// count returns how many regions merge makes.
func count(runs []run, loadingGap, coldGap int) int {
	n := 0
	loads, loadEnd := 0, -1-loadingGap                         // how many there were at the last loading region, and where that ends
	before, last := run{source: Loading}, run{source: Loading} // the last two; what there is none of merges with nothing
	for _, r := range runs {
		switch {
		case r.source == Loading && int(r.start)-loadEnd <= loadingGap:
			n = loads
			last = r
		case r.source == Memory && before.source == Memory && last.source == Zero && int(last.end-last.start) <= coldGap:
			n--
			before, last = run{source: Loading}, r
		default:
			n++
			before, last = last, r
		}
		if r.source == Loading {
			loads, loadEnd = n, int(r.end)
		}
	}
	return n
}

// place sets where each region is in its file, and returns the size of the
// loading-set file: in the order of groups, then of addresses, without gaps
// (thesis 5.3.7).
func place(regions []Region) int {
	var loading []*Region
	for i := range regions {
		r := &regions[i]
		switch r.Source {
		case Memory:
			r.Offset = r.Start
		case Loading:
			loading = append(loading, r)
		}
	}
	slices.SortStableFunc(loading, func(a, b *Region) int { return cmp.Compare(a.Group, b.Group) })
	offset := 0
	for _, r := range loading {
		r.Offset = offset
		offset += r.Len()
	}
	return offset
}

// Loads returns the regions of the loading set in the order of their file.
func (p *Plan) Loads() []Region {
	var loading []Region
	for _, r := range p.Regions {
		if r.Source == Loading {
			loading = append(loading, r)
		}
	}
	slices.SortFunc(loading, func(a, b Region) int { return cmp.Compare(a.Offset, b.Offset) })
	return loading
}

// Count returns how many pages a source serves, in how many regions.
func (p *Plan) Count(s Source) (pages, regions int) {
	for _, r := range p.Regions {
		if r.Source == s {
			pages += r.Len()
			regions++
		}
	}
	return pages, regions
}

// At returns the region that serves a page; false if there is no such page.
func (p *Plan) At(page int) (Region, bool) {
	i := sort.Search(len(p.Regions), func(i int) bool { return p.Regions[i].End > page })
	if page < 0 || i == len(p.Regions) {
		return Region{}, false
	}
	return p.Regions[i], true
}
