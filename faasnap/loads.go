package faasnap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/remote"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
)

// loads is what brings a guest's memory in beside the VMM: a loader, or a
// handler of page faults.
type loads struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// own are closed when all has ended.
	own []io.Closer
	// loaded is closed when all that is read ahead has been, or failed is.
	loaded   chan struct{}
	once     sync.Once
	failed   chan struct{}
	failOnce sync.Once
	err      error // fixed when failed is closed
	mu       sync.Mutex
	// guest is whose page faults are handled here; nil if it is nobody's.
	guest *mem.Guest
	// begin is when loading began, took how long it took, and bytes what there
	// is to load.
	begin time.Time
	took  time.Duration // fixed when loaded is closed
	bytes int64
	// fetched is how many bytes have come from an object store, and fetching how
	// many requests for some are under way.
	fetched, fetching atomic.Int64
}

func newLoads() *loads {
	l := &loads{loaded: make(chan struct{}), failed: make(chan struct{}), begin: time.Now()}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// done says that everything has been read ahead.
func (l *loads) done() {
	l.once.Do(func() {
		l.took = time.Since(l.begin)
		close(l.loaded)
	})
}

// stats tells what has been loaded so far.
func (l *loads) stats() LoadStats {
	s := LoadStats{FetchedBytes: l.fetched.Load()}
	select {
	case <-l.loaded:
		s.Took, s.Bytes = l.took, l.bytes
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.guest != nil {
		s.Faults = l.guest.Stats()
	}
	return s
}

// fail says that memory cannot be served.
func (l *loads) fail(err error) {
	l.failOnce.Do(func() {
		l.err = err
		close(l.failed)
	})
}

// giveUp says that the guest has not done in time what it was to do. If it waits
// for an object store, that is why.
func (l *loads) giveUp() {
	if l.fetching.Load() > 0 {
		l.fail(fmt.Errorf("the guest waits for pages that do not come: %w: it does not answer", remote.ErrStore))
	}
}

// failure returns why memory cannot be served, or nil.
func (l *loads) failure() error {
	select {
	case <-l.failed:
		return l.err
	default:
		return nil
	}
}

// wait waits until all that is read ahead has been, and found to be in order.
func (l *loads) wait(ctx context.Context) error {
	if err := l.failure(); err != nil {
		return err
	}
	select {
	case <-l.loaded:
		return nil
	case <-l.failed:
		return l.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// bind returns a context that ends when memory cannot be served: a VMM that
// waits for a page does nothing else. The caller calls end.
func (l *loads) bind(ctx context.Context) (bound context.Context, end func()) {
	bound, cancel := context.WithCancelCause(ctx)
	l.wg.Go(func() {
		select {
		case <-l.failed:
			cancel(l.err)
		case <-bound.Done():
		}
	})
	return bound, func() { cancel(context.Canceled) }
}

// stopOnFailure ends a VMM whose memory cannot be served.
func (l *loads) stopOnFailure(m vmm.VM) {
	l.wg.Go(func() {
		select {
		case <-l.failed:
			_ = m.Close() // it is idempotent, and tells nothing new
		case <-l.ctx.Done():
		}
	})
}

// close ends everything. The VMM has ended.
func (l *loads) close() {
	l.cancel()
	l.wg.Wait()
	if l.guest != nil {
		// Not before: pages that are missing would become zero.
		_ = l.guest.Close()
	}
	for _, c := range l.own {
		_ = c.Close()
	}
}

// load reads the loading-set file, once for all machines that want it at a time.
// progress, if not nil, gets a byte for each chunk, and is closed.
func (v *VM) load(l *loads, src *source, progress *os.File) error {
	if src.plan.LoadingPages == 0 {
		l.done()
		if progress != nil {
			return progress.Close()
		}
		return nil
	}
	f, err := os.Open(src.path(snapshot.LoadingFile))
	if err != nil {
		if progress != nil {
			_ = progress.Close()
		}
		return fmt.Errorf("open loading set: %w", err)
	}
	l.own = append(l.own, f)
	l.bytes = int64(src.plan.LoadingPages) * pages.Size
	file := src.snapshot.Loading(f)
	key := file.Name
	if progress != nil {
		// Its progress is for one machine.
		key += " " + v.id
		check := file.Check
		file.Check = func(offset int64, chunk []byte) error {
			if err := check(offset, chunk); err != nil {
				return err
			}
			_, _ = progress.Write([]byte{1}) // the VMM may have ended
			return nil
		}
	}
	l.wg.Go(func() {
		if progress != nil {
			defer progress.Close()
		}
		switch err := v.service.loader.Load(l.ctx, key, file); {
		case err == nil:
			l.done()
		case l.ctx.Err() == nil:
			l.fail(err)
		}
	})
	return nil
}

// readRanges reads working-set pages of the memory file into the page cache.
func (v *VM) readRanges(l *loads, src *source, memory string) error {
	ranges, err := v.ranges(src)
	if err != nil {
		return err
	}
	f, err := os.Open(memory)
	if err != nil {
		return fmt.Errorf("open memory file: %w", err)
	}
	l.own = append(l.own, f)
	for _, r := range ranges {
		l.bytes += int64(r.Len()) * pages.Size
	}
	l.wg.Go(func() {
		buf := make([]byte, mem.LoadChunk)
		for _, r := range ranges {
			for at := r.Start; at < r.End; {
				n := min(r.End-at, len(buf)/pages.Size)
				if _, err := f.ReadAt(buf[:n*pages.Size], int64(at)*pages.Size); err != nil {
					l.fail(fmt.Errorf("read memory file: %w", err))
					return
				}
				at += n
				if l.ctx.Err() != nil {
					return
				}
			}
		}
		l.done()
	})
	return nil
}

// ranges returns what a mode without a loading-set file reads ahead, in order.
func (v *VM) ranges(src *source) ([]pages.Range, error) {
	if v.mode == Regions {
		var ranges []pages.Range
		for _, r := range src.plan.Loads() {
			ranges = append(ranges, r.Range)
		}
		return ranges, nil
	}
	working := src.working
	if v.mode.faults() {
		var err error
		if working, err = src.faults(); err != nil {
			return nil, err
		}
	}
	if v.mode == Concurrent {
		return slices.Collect(working.Set().Ranges()), nil
	}
	var ranges []pages.Range
	for _, g := range working.Groups {
		ranges = append(ranges, g...)
	}
	return ranges, nil
}

// faults returns the pages that REAP has recorded.
func (s *source) faults() (pages.WorkingSet, error) {
	var w pages.WorkingSet
	encoded, err := os.ReadFile(s.path(faultsFile))
	if errors.Is(err, os.ErrNotExist) {
		return w, errors.New("no page faults have been recorded: record the snapshot with faults")
	}
	if err == nil {
		err = w.UnmarshalBinary(encoded)
	}
	if err != nil {
		return w, fmt.Errorf("read recorded page faults: %w", err)
	}
	return w, nil
}

// reapPlan is REAP's memory: recorded pages from one file, all others, zero or
// not, from the memory file.
func reapPlan(faults pages.WorkingSet) (*pages.Plan, error) {
	all := pages.NewSet(faults.Pages)
	all.AddRange(pages.Range{Start: 0, End: faults.Pages})
	return pages.Make(all, faults, pages.Options{MaxMappings: 1 << 20})
}

// faultFiles returns what a handler of page faults serves a guest from, and the
// path of what it reads ahead.
func (v *VM) faultFiles(src *source, o RestoreOptions) (files mem.GuestFiles, loading string, err error) {
	switch v.mode {
	case FaaSnapFaults:
		files = mem.GuestFiles{Plan: src.plan, Check: src.snapshot.Loading(nil).Check}
		return files, src.path(snapshot.LoadingFile), nil
	case REAP:
		faults, err := src.faults()
		if err != nil {
			return files, "", err
		}
		files.Plan, err = reapPlan(faults)
		files.FaultPages = 1
		return files, src.path(reapFile), err
	default: // recordingFaults
		files.Plan, err = reapPlan(pages.WorkingSet{Pages: int(src.function.GuestMemoryBytes / pages.Size)})
		files.FaultPages = 1
		files.Faulted = o.faulted
		return files, "", err
	}
}

// handle listens on a socket for a VMM, and serves its guest's page faults from
// the two files until it ends.
func (v *VM) handle(l *loads, socket string, files mem.GuestFiles, memory, loading string) error {
	for _, to := range []struct {
		path string
		file *io.ReaderAt
	}{{memory, &files.Memory}, {loading, &files.Loading}} {
		if to.path == "" { // there is none, or it is no file
			continue
		}
		f, err := os.Open(to.path)
		if err != nil {
			return fmt.Errorf("serve page faults: %w", err)
		}
		l.own = append(l.own, f)
		*to.file = f
	}
	listener, err := sys.ListenUnix(socket) // it goes with the machine's directory
	if err != nil {
		return fmt.Errorf("serve page faults: %w", err)
	}
	// Its directory is out of reach for others than this user and the VMM.
	if err := os.Chmod(socket, 0o666); err != nil {
		return errors.Join(fmt.Errorf("serve page faults: %w", err), listener.Close())
	}
	files.Loaded = l.done
	l.bytes = int64(files.Plan.LoadingPages) * pages.Size
	l.wg.Go(func() {
		<-l.ctx.Done()
		_ = listener.Close()
	})
	l.wg.Go(func() {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return // the machine was closed before the VMM came
		}
		defer conn.Close()
		guest, err := mem.Handshake(conn)
		if err != nil {
			l.fail(err)
			return
		}
		l.mu.Lock()
		l.guest = guest
		l.mu.Unlock()
		if err := guest.Serve(l.ctx, files); err != nil && l.ctx.Err() == nil {
			l.fail(err)
		}
	})
	return nil
}
