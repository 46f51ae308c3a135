package mem

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/faasnap/pages"
)

// Stats may be called during Serve.
func (g *Guest) Stats() GuestStats {
	return GuestStats{g.stats.faults.Load(), g.stats.copied.Load(), g.stats.ahead.Load(), g.stats.zeroed.Load()}
}

const (
	// faultPages is how much is copied upon a fault on a page of the memory
	// file, if it is missing: what read-ahead would bring.
	faultPages = 16
	// aheadPages is how much of the loading set is copied before faults are
	// looked for again.
	aheadPages = 64
)

// Serve restores a guest while it runs: it leaves zero regions to the kernel,
// copies the loading set in the order of its file, and everything else when the
// guest faults on it. It returns nil when the VMM has ended, and the error of ctx
// when that has. Any other error means that pages cannot be served. In both cases
// guest threads that wait for a page wait on: the caller ends the VMM, and then
// calls Close. It must be called once.
func (g *Guest) Serve(ctx context.Context, f GuestFiles) error {
	if f.FaultPages == 0 {
		f.FaultPages = faultPages
	}
	s := &server{Guest: g, files: f, removed: pages.NewSet(f.Plan.Pages), events: make([]byte, 32*64), buf: make([]byte, faultPages*pages.Size)}
	if err := s.check(); err != nil {
		return fmt.Errorf("serve page faults: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("serve page faults: %w", err)
	}
	defer unix.Close(wake)
	s.wakeFD = wake
	ctx, cancel := context.WithCancel(ctx)
	s.ahead = make(chan ahead, 4)
	s.fetched = make(chan fetched, 64)
	defer s.helpers.Wait() // before wake is closed
	defer cancel()
	s.helpers.Go(func() { s.readAhead(ctx) })
	s.helpers.Go(func() { <-ctx.Done(); s.wakeUp() })
	err = s.run(ctx)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve page faults of process %d: %w", g.pid, err)
	}
	return nil
}

// errGone is that the VMM has ended.
var errGone = errors.New("the VMM has ended")

// server is one Serve. Only the goroutine of run touches the guest, so that
// nothing is copied to pages whose removal has been read.
type server struct {
	*Guest
	files   GuestFiles
	removed pages.Set // pages that the guest has given back, which are zero if it wants them again
	faults  []uint64  // addresses that were read but not served
	events  []byte
	buf     []byte
	ahead   chan ahead
	fetched chan fetched
	helpers sync.WaitGroup // all goroutines but that of run
	wakeFD  int
}

// fetched is a page whose contents have come from afar, or why not.
type fetched struct {
	page int
	err  error
}

// ahead is a piece of the loading set, or what comes after the last one.
type ahead struct {
	last    bool
	page    int
	content []byte
	err     error
}

func (s *server) check() error {
	p := s.files.Plan
	if err := p.Check(); err != nil {
		return err
	}
	if n := s.files.FaultPages; n < 1 || n > faultPages || n&(n-1) != 0 {
		return fmt.Errorf("%d pages to a fault: want a power of two up to %d", n, faultPages)
	}
	if p.LoadingPages > 0 && s.files.Loading == nil {
		return fmt.Errorf("no loading-set file: want one of %d pages", p.LoadingPages)
	}
	end := uint64(0)
	for _, r := range s.regions {
		if r.Offset != end {
			return fmt.Errorf("the VMM's regions leave out guest memory at %d", end)
		}
		end = r.Offset + r.Size
	}
	if want := uint64(p.Pages) * pages.Size; end != want {
		return fmt.Errorf("the VMM has %d bytes of guest memory: want %d", end, want)
	}
	return nil
}

func (s *server) wakeUp() {
	_, _ = unix.Write(s.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails if it is about to wake anyway
}

// readAhead reads the loading set, and hands it to run.
func (s *server) readAhead(ctx context.Context) {
	send := func(a ahead) bool {
		select {
		case s.ahead <- a:
			s.wakeUp()
			return true
		case <-ctx.Done():
			return false
		}
	}
	regions := s.files.Plan.Loads()
	size := int64(s.files.Plan.LoadingPages) * pages.Size
	for at := int64(0); at < size; {
		chunk := make([]byte, min(LoadChunk, size-at))
		err := readFull(s.files.Loading, chunk, at)
		if err == nil && s.files.Check != nil {
			err = s.files.Check(at, chunk)
		}
		if err != nil {
			send(ahead{err: fmt.Errorf("read loading set at %d: %w", at, err)})
			return
		}
		first := int(at / pages.Size)
		at += int64(len(chunk))
		for len(chunk) > 0 {
			r := regions[0]
			n := min(r.Offset+r.Len()-first, len(chunk)/pages.Size, aheadPages)
			if !send(ahead{page: r.Start + first - r.Offset, content: chunk[:n*pages.Size]}) {
				return
			}
			chunk = chunk[n*pages.Size:]
			first += n
			if first == r.Offset+r.Len() {
				regions = regions[1:]
			}
		}
	}
	send(ahead{last: true})
}

// run serves faults first, and the loading set while there are none.
func (s *server) run(ctx context.Context) error {
	for _, r := range s.files.Plan.Regions {
		if r.Source != pages.Zero {
			continue
		}
		err := s.each(r.Range, func(fd uffd, addr, size uint64) error {
			err := fd.unregister(addr, size)
			if errors.Is(err, unix.ENOMEM) {
				// The VMM has ended, or has as many mappings as it may have: then
				// faults on these pages are served as others are.
				return nil
			}
			return s.tolerate(err)
		})
		if err != nil {
			return fmt.Errorf("leave zero pages %v to the kernel: %w", r.Range, err)
		}
	}
	poll := []unix.PollFd{{Fd: int32(s.pidfd), Events: unix.POLLIN}, {Fd: int32(s.wakeFD), Events: unix.POLLIN}}
	for _, fd := range s.fds {
		poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for {
		timeout := -1
		if len(s.ahead) > 0 || len(s.fetched) > 0 || len(s.faults) > 0 {
			timeout = 0
		}
		if _, err := unix.Poll(poll, timeout); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		if poll[0].Revents != 0 {
			return errGone
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if poll[1].Revents != 0 {
			_, _ = unix.Read(s.wakeFD, make([]byte, 8)) // what for is looked at below
		}
		if err := s.readEvents(); err != nil {
			return err
		}
		for len(s.faults) > 0 {
			addr := s.faults[0]
			s.faults = s.faults[1:]
			if err := s.serve(ctx, addr); err != nil {
				return err
			}
		}
		select {
		case f := <-s.fetched:
			if f.err != nil {
				return f.err
			}
			if err := s.copyFile(f.page); err != nil {
				return err
			}
		case a := <-s.ahead:
			if a.last {
				if s.files.Loaded != nil {
					s.files.Loaded()
				}
				continue
			}
			if a.err != nil {
				return a.err
			}
			n, err := s.copyPages(a.page, a.content)
			s.stats.ahead.Add(int64(n))
			if err != nil {
				return err
			}
		default:
		}
	}
}

// readEvents takes all events that there are: removals count at once, faults
// are kept.
func (s *server) readEvents() error {
	for _, fd := range s.fds {
		for {
			messages, err := fd.read(s.events)
			if err != nil {
				return fmt.Errorf("read events: %w", err)
			}
			if len(messages) == 0 {
				break
			}
			for _, m := range messages {
				switch m.event {
				case uffdEventPageFault:
					s.faults = append(s.faults, m.start)
				case uffdEventRemove, uffdEventUnmap:
					s.remove(m.start, m.end)
				default:
					return fmt.Errorf("event %#x, which no VMM should cause", m.event)
				}
			}
		}
	}
	return nil
}

// remove notes that the guest does not need the contents of a range any more.
func (s *server) remove(start, end uint64) {
	for _, r := range s.regions {
		from, to := max(start, r.Address), min(end, r.Address+r.Size)
		if from < to {
			s.removed.AddRange(pages.Range{Start: int((from - r.Address + r.Offset) / pages.Size), End: int((to - r.Address + r.Offset) / pages.Size)})
		}
	}
}

// serve makes the page at an address present.
func (s *server) serve(ctx context.Context, addr uint64) error {
	s.stats.faults.Add(1)
	i := 0
	for i < len(s.regions) && (addr < s.regions[i].Address || addr-s.regions[i].Address >= s.regions[i].Size) {
		i++
	}
	if i == len(s.regions) {
		return fmt.Errorf("page fault at %#x, which is not guest memory", addr)
	}
	page := int((addr - s.regions[i].Address + s.regions[i].Offset) / pages.Size)
	if s.files.Faulted != nil {
		s.files.Faulted(page)
	}
	r, around := s.around(page)
	if s.removed.Has(page) || r.Source == pages.Zero {
		return s.zero(page)
	}
	if r.Source == pages.Memory && s.files.Fetch != nil {
		s.helpers.Go(func() { s.fetch(ctx, page, around) })
		return nil
	}
	return s.copyFile(page)
}

// around returns the region of a page, and what of it a fault on that page makes
// present.
func (s *server) around(page int) (pages.Region, pages.Range) {
	r, _ := s.files.Plan.At(page)
	first := page &^ (s.files.FaultPages - 1)
	return r, pages.Range{Start: max(r.Start, first), End: min(r.End, first+s.files.FaultPages)}
}

// fetch has pages of the memory file fetched, and hands the one that is waited
// for to run.
func (s *server) fetch(ctx context.Context, page int, around pages.Range) {
	err := s.files.Fetch(ctx, int64(around.Start)*pages.Size, int64(around.Len())*pages.Size)
	if err != nil {
		err = fmt.Errorf("fetch guest pages %v: %w", around, err)
	}
	select {
	case s.fetched <- fetched{page, err}:
		s.wakeUp()
	case <-ctx.Done():
	}
}

// copyFile makes a page, and what is around it, present from its file.
func (s *server) copyFile(page int) error {
	r, around := s.around(page)
	file := s.files.Memory
	if r.Source == pages.Loading {
		file = s.files.Loading
	}
	b := s.buf[:around.Len()*pages.Size]
	if err := readFull(file, b, int64(r.Offset+around.Start-r.Start)*pages.Size); err != nil {
		return fmt.Errorf("read guest pages %v from %v file: %w", around, r.Source, err)
	}
	if _, err := s.copyPages(around.Start, b); err != nil {
		return err
	}
	if s.removed.Has(page) { // meanwhile
		return s.zero(page)
	}
	return nil
}

// zero makes a page present as zeros, unless it is present.
func (s *server) zero(page int) error {
	return s.each(pages.Range{Start: page, End: page + 1}, func(fd uffd, addr, size uint64) error {
		for {
			err := fd.zero(addr, size)
			switch {
			case err == nil:
				s.stats.zeroed.Add(1)
				return nil
			case errors.Is(err, unix.EAGAIN):
				if err := s.settle(fd); err != nil {
					return err
				}
			case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT):
				return s.tolerate(fd.wake(addr, size))
			default:
				return s.tolerate(err)
			}
		}
	})
}

// copyPages makes pages present with these contents, except those that are
// present or removed, and returns how many it copied.
func (s *server) copyPages(page int, b []byte) (int, error) {
	copied := 0
	first := page
	err := s.each(pages.Range{Start: page, End: page + len(b)/pages.Size}, func(fd uffd, addr, size uint64) error {
		for done := uint64(0); done < size; {
			at := first + int(done/pages.Size)
			if s.removed.Has(at) {
				done += pages.Size
				continue
			}
			end := at
			for end < first+int(size/pages.Size) && !s.removed.Has(end) {
				end++
			}
			part := b[(at-page)*pages.Size : (end-page)*pages.Size]
			n, err := fd.copyTo(addr+done, part)
			copied += n / pages.Size
			done += uint64(n)
			switch {
			case err == nil:
			case errors.Is(err, unix.EAGAIN):
				// A part is done, or the guest's memory is changing.
				if err := s.settle(fd); err != nil {
					return err
				}
			case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT):
				if err := s.tolerate(fd.wake(addr+done, pages.Size)); err != nil {
					return err
				}
				done += pages.Size
			default:
				if err := s.tolerate(err); err != nil {
					return fmt.Errorf("copy to guest page %d: %w", at, err)
				}
				return nil
			}
		}
		first += int(size / pages.Size)
		return nil
	})
	s.stats.copied.Add(int64(copied))
	return copied, err
}

// settle reads the events for which the kernel wants to be asked again.
func (s *server) settle(fd uffd) error {
	// The event may be a moment late. A VMM that ends meanwhile has none.
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(s.pidfd), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 1); err != nil && err != unix.EINTR {
		return fmt.Errorf("poll: %w", err)
	}
	if poll[1].Revents != 0 {
		return errGone
	}
	return s.readEvents()
}

// tolerate returns nil for what becomes of a VMM that ends or has unmapped its
// memory, which run finds out, and else err.
func (s *server) tolerate(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// each calls f with the addresses of guest pages, once for each of the VMM's
// regions that has some of them.
func (s *server) each(r pages.Range, f func(fd uffd, addr, size uint64) error) error {
	start, end := uint64(r.Start)*pages.Size, uint64(r.End)*pages.Size
	i := sort.Search(len(s.regions), func(i int) bool { return s.regions[i].Offset+s.regions[i].Size > start })
	for ; i < len(s.regions) && s.regions[i].Offset < end; i++ {
		h := s.regions[i]
		from, to := max(start, h.Offset), min(end, h.Offset+h.Size)
		if err := f(s.fds[s.of[i]], h.Address+from-h.Offset, to-from); err != nil {
			return err
		}
	}
	return nil
}
