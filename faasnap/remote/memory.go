package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/store"
)

const (
	// fetchTimeout bounds how long a guest waits for a chunk.
	fetchTimeout = 30 * time.Second
	// completeParallel is how many chunks are fetched at a time when all are.
	completeParallel = 8
	// chunkPages is how many pages of guest memory a checksum is of.
	chunkPages = snapshot.ChunkSize / pages.Size
)

// Memory is the guest memory of a lazy snapshot: a sparse file with the chunks
// that have been fetched, and a store that has all. A chunk is fetched once
// whoever wants it, compared with its checksum before anybody sees it, and kept
// for later, also by other processes. Its methods may be called concurrently,
// but Close only when no other is under way. At most one Memory of a snapshot is
// open at a time.
type Memory struct {
	snap *snapshot.Snapshot
	from store.Store
	// part and present are the snapshot's PartFile and PresentFile, loading is its
	// LoadingFile.
	part, present, loading *os.File
	// cold is how many pages come before each chunk in the store's object, and at
	// its end how many that has.
	cold []int

	ctx     context.Context // of fetching: the guest that was first may end before others
	cancel  context.CancelFunc
	fetches sync.WaitGroup

	mu      sync.Mutex
	bits    []byte // what present says
	good    []bool // which chunks were seen to be in order since Open
	flights map[int]*flight

	completing sync.Mutex // held by Complete
	complete   bool
}

// flight is the fetching of a chunk.
type flight struct {
	done  chan struct{}
	bytes int64 // how many came from the store; fixed, as err, when done is closed
	err   error
}

// Open opens the memory of a lazy snapshot, which is fetched from that store. The
// caller closes it.
func Open(s *snapshot.Snapshot, from store.Store) (*Memory, error) {
	m := &Memory{snap: s, from: from, cold: []int{0}, flights: map[int]*flight{}}
	p := s.Plan()
	counts := make([]int, (p.Pages+chunkPages-1)/chunkPages)
	for _, r := range p.Regions {
		for at := r.Start; at < r.End && r.Source == pages.Memory; {
			end := min(r.End, (at/chunkPages+1)*chunkPages)
			counts[at/chunkPages] += end - at
			at = end
		}
	}
	for i, n := range counts {
		m.cold = append(m.cold, m.cold[i]+n)
	}
	m.good = make([]bool, len(counts))
	m.bits = make([]byte, (len(counts)+7)/8)
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open memory in %s: %w", from.URL(), err), m.Close())
	}
	return m, nil
}

func (m *Memory) open() (err error) {
	if m.part, err = os.OpenFile(m.snap.Path(snapshot.PartFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if m.present, err = os.OpenFile(m.snap.Path(snapshot.PresentFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if m.loading, err = os.Open(m.snap.Path(snapshot.LoadingFile)); err != nil {
		return err
	}
	// Chunks that a record of another length says are there, are read to see.
	if _, err := m.present.ReadAt(m.bits, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := m.part.Truncate(m.snap.Meta().MemoryBytes); err != nil {
		return err
	}
	return m.snap.Unchanged() // so these are not the files of one that has taken its place
}

// Close gives up what is being fetched, and closes the files. It is idempotent.
func (m *Memory) Close() error {
	m.cancel()
	m.fetches.Wait()
	var errs []error
	for _, f := range []**os.File{&m.part, &m.present, &m.loading} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}

// ReadAt reads guest memory that Fetch has brought. What has not been fetched is
// zero.
func (m *Memory) ReadAt(b []byte, offset int64) (int, error) { return m.part.ReadAt(b, offset) }

// Fetch brings length bytes of guest memory from offset, so that ReadAt reads
// them, and returns how many bytes came from the store for this call. It ends
// early with ctx, and within half a minute for each chunk. Errors wrap ErrStore or
// snapshot.ErrDamaged; another call tries again.
func (m *Memory) Fetch(ctx context.Context, offset, length int64) (int64, error) {
	total := int64(0)
	for chunk := int(offset / snapshot.ChunkSize); int64(chunk)*snapshot.ChunkSize < offset+length; chunk++ {
		n, err := m.chunk(ctx, chunk)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// chunk waits until a chunk is there and in order.
func (m *Memory) chunk(ctx context.Context, chunk int) (int64, error) {
	m.mu.Lock()
	if m.good[chunk] {
		m.mu.Unlock()
		return 0, nil
	}
	f, joined := m.flights[chunk]
	if !joined {
		f = &flight{done: make(chan struct{})}
		m.flights[chunk] = f
		m.fetches.Go(func() { m.fly(f, chunk) })
	}
	m.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if joined {
		return 0, f.err
	}
	return f.bytes, f.err
}

// fly brings a chunk, and tells those who wait.
func (m *Memory) fly(f *flight, chunk int) {
	if !m.kept(chunk) {
		ctx, cancel := context.WithTimeout(m.ctx, fetchTimeout)
		f.bytes, f.err = m.bring(ctx, chunk)
		cancel()
		if f.err != nil {
			f.err = fmt.Errorf("fetch page group %d from %s: %w", chunk, m.from.URL(), f.err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.err == nil {
		m.good[chunk] = true
	}
	delete(m.flights, chunk)
	close(f.done)
}

// pagesOf returns the pages of a chunk.
func (m *Memory) pagesOf(chunk int) pages.Range {
	return pages.Range{Start: chunk * chunkPages, End: min((chunk+1)*chunkPages, m.snap.Plan().Pages)}
}

// recorded reports whether the record says that a chunk is there.
func (m *Memory) recorded(chunk int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bits[chunk/8]>>(chunk%8)&1 != 0
}

// kept reports whether a chunk has been fetched before, and is in order.
func (m *Memory) kept(chunk int) bool {
	if !m.recorded(chunk) {
		return false
	}
	r := m.pagesOf(chunk)
	b := make([]byte, r.Len()*pages.Size)
	_, err := m.part.ReadAt(b, int64(r.Start)*pages.Size)
	return err == nil && m.snap.CheckMemory(chunk, b) == nil
}

// bring makes a chunk of what the store and the loading set have of it, and
// keeps it if it is in order.
func (m *Memory) bring(ctx context.Context, chunk int) (int64, error) {
	cold := make([]byte, (m.cold[chunk+1]-m.cold[chunk])*pages.Size)
	if err := m.get(ctx, cold, int64(m.cold[chunk])*pages.Size); err != nil {
		return 0, err
	}
	fetched := int64(len(cold))
	whole := m.pagesOf(chunk)
	b := make([]byte, whole.Len()*pages.Size)
	regions := m.regions(whole)
	for _, r := range regions {
		into := b[(r.Start-whole.Start)*pages.Size : (r.End-whole.Start)*pages.Size]
		if r.Source == pages.Memory {
			cold = cold[copy(into, cold):]
		} else if _, err := m.loading.ReadAt(into, int64(r.Offset)*pages.Size); err != nil {
			return fetched, fmt.Errorf("read loading set: %w", err)
		}
	}
	if err := m.snap.CheckMemory(chunk, b); err != nil {
		return fetched, err
	}
	return fetched, m.keep(chunk, b, regions)
}

// regions returns what of the plan's regions is within a range and not zero.
func (m *Memory) regions(within pages.Range) []pages.Region {
	all := m.snap.Plan().Regions
	first := sort.Search(len(all), func(i int) bool { return all[i].End > within.Start })
	var regions []pages.Region
	for _, r := range all[first:] {
		start, end := max(r.Start, within.Start), min(r.End, within.End)
		if start >= end {
			break
		}
		if r.Source != pages.Zero {
			r.Offset += start - r.Start
			r.Range = pages.Range{Start: start, End: end}
			regions = append(regions, r)
		}
	}
	return regions
}

// get fills b from the store's object.
func (m *Memory) get(ctx context.Context, b []byte, offset int64) error {
	if len(b) == 0 {
		return nil
	}
	r, err := m.from.Get(ctx, key(m.snap.Meta(), snapshot.MemoryFile), offset, int64(len(b)))
	if err != nil {
		return storeError(ctx, err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, b); err != nil {
		return storeError(ctx, err)
	}
	return nil
}

// keep writes a chunk down, what is zero as holes, and then that it is there.
// Neither is waited for to be on disk: if one is not after a crash, the checksum
// tells.
func (m *Memory) keep(chunk int, b []byte, regions []pages.Region) error {
	whole := m.pagesOf(chunk)
	if m.recorded(chunk) { // then it is damaged, maybe where it should be zero
		regions = []pages.Region{{Range: whole}}
	}
	for _, r := range regions {
		part := b[(r.Start-whole.Start)*pages.Size : (r.End-whole.Start)*pages.Size]
		if _, err := m.part.WriteAt(part, int64(r.Start)*pages.Size); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bits[chunk/8] |= 1 << (chunk % 8)
	_, err := m.present.WriteAt(m.bits[chunk/8:chunk/8+1], int64(chunk/8))
	return err
}

// Complete fetches all that is missing, and makes it the snapshot's memory file;
// see snapshot.CompleteMemory. It returns how many bytes came from the store. The
// errors are those of Fetch. Machines that use the Memory go on.
func (m *Memory) Complete(ctx context.Context) (int64, error) {
	m.completing.Lock()
	defer m.completing.Unlock()
	if m.complete {
		return 0, nil
	}
	var mu sync.Mutex
	total := int64(0)
	g, fetching := errgroup.WithContext(ctx)
	g.SetLimit(completeParallel)
	for chunk := range m.good {
		g.Go(func() error {
			n, err := m.chunk(fetching, chunk)
			mu.Lock()
			defer mu.Unlock()
			total += n
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return total, err
	}
	err := m.snap.CompleteMemory(m.part)
	m.complete = err == nil
	return total, err
}

// Verify looks whether the store has an object of the right size for guest
// memory, and returns how many bytes of it are on this disk in order. It does not
// read the object.
func (m *Memory) Verify(ctx context.Context) (int64, error) {
	info, err := m.from.Stat(ctx, key(m.snap.Meta(), snapshot.MemoryFile))
	if err != nil {
		return 0, storeError(ctx, err)
	}
	if want := int64(m.cold[len(m.cold)-1]) * pages.Size; info.SizeBytes != want {
		return 0, fmt.Errorf("%w: %s in %s has %d bytes: want %d", ErrStore, info.Key, m.from.URL(), info.SizeBytes, want)
	}
	total := int64(0)
	for chunk := range m.good {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		if m.kept(chunk) {
			total += int64(m.pagesOf(chunk).Len()) * pages.Size
		}
	}
	return total, nil
}
