package mem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// LoadChunk is how much of a loading-set file is read at once, and what is
// checked at once.
const LoadChunk = 1 << 20

// LoadFile is a loading-set file as a Loader reads it.
type LoadFile struct {
	// Name is for errors.
	Name string
	// File is read from its beginning. It has to stay open until Load has
	// returned to everybody.
	File io.ReaderAt
	// Size is how much is read, in bytes.
	Size int64
	// Check, if there is one, looks at each chunk of LoadChunk bytes (the last
	// may be shorter). An error ends the load.
	Check func(offset int64, chunk []byte) error
}

// Loader reads loading-set files into the page cache while the guests that need
// them run already (concurrent paging, thesis 5.3.2). The zero value is ready
// for use, by any number of goroutines.
type Loader struct {
	mu    sync.Mutex
	loads map[string]*load
}

// load is one reading of a file that callers wait for.
type load struct {
	cancel  context.CancelFunc
	waiting int
	done    chan struct{}
	err     error // once done is closed
}

// Load reads a file in order, once, and returns when all of it is in the page
// cache. Calls with the same key while it is being read wait for the same
// reading, so that a burst of restores reads a snapshot once; a later call reads
// again, since the pages may be gone by then. A call ends early with its
// context; when the last has, so does the reading, before that call returns.
//
// An error of the disk or of the file's Check goes to all who wait. Guests that
// run from the file then have to be stopped.
func (l *Loader) Load(ctx context.Context, key string, f LoadFile) error {
	ld := l.join(key, f)
	select {
	case <-ld.done:
	case <-ctx.Done():
	}
	last := l.leave(key, ld)
	if last {
		ld.cancel()
		<-ld.done
	}
	if err := ctx.Err(); err != nil && (!last || errors.Is(ld.err, context.Canceled)) {
		return fmt.Errorf("load %s: %w", f.Name, err)
	}
	<-ld.done // closed, unless the context has ended
	return ld.err
}

// join starts to wait for the load of that key, and starts it if nobody has.
func (l *Loader) join(key string, f LoadFile) *load {
	l.mu.Lock()
	defer l.mu.Unlock()
	ld := l.loads[key]
	if ld == nil {
		ctx, cancel := context.WithCancel(context.Background())
		ld = &load{cancel: cancel, done: make(chan struct{})}
		if l.loads == nil {
			l.loads = map[string]*load{}
		}
		l.loads[key] = ld
		go func() {
			ld.err = read(ctx, f)
			l.forget(key, ld)
			close(ld.done)
		}()
	}
	ld.waiting++
	return ld
}

// leave stops waiting and reports whether nobody else is. A load that nobody
// waits for is not joined any more.
func (l *Loader) leave(key string, ld *load) bool {
	l.mu.Lock()
	ld.waiting--
	last := ld.waiting == 0
	if last && l.loads[key] == ld {
		delete(l.loads, key)
	}
	l.mu.Unlock()
	return last
}

func (l *Loader) forget(key string, ld *load) {
	l.mu.Lock()
	if l.loads[key] == ld {
		delete(l.loads, key)
	}
	l.mu.Unlock()
}

// read reads a file in order, and checks it.
func read(ctx context.Context, f LoadFile) error {
	buf := make([]byte, min(LoadChunk, f.Size))
	for at := int64(0); at < f.Size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("load %s: %w", f.Name, err)
		}
		b := buf[:min(int64(len(buf)), f.Size-at)]
		if err := readFull(f.File, b, at); err != nil {
			return fmt.Errorf("load %s at %d: %w", f.Name, at, err)
		}
		if f.Check != nil {
			if err := f.Check(at, b); err != nil {
				return fmt.Errorf("load %s: %w", f.Name, err)
			}
		}
		at += int64(len(b))
	}
	return nil
}

// readFull fills b. The end of the file is io.ErrUnexpectedEOF.
func readFull(f io.ReaderAt, b []byte, offset int64) error {
	n, err := f.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
