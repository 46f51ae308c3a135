package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
)

// Recorder finds out in which order the pages of a memory file become resident
// while a guest runs from it. What is resident when recording begins counts as
// the first round's: call Evict before the guest starts. It is not for
// concurrent use.
type Recorder struct {
	mapped  []byte
	vec     []byte
	seen    pages.Set
	working pages.WorkingSet
}

// NewRecorder returns a recorder of the first size bytes of f, which it keeps
// mapped, without reading, until Close. The caller needs to own the file, as
// for Resident.
func NewRecorder(f *os.File, size int64) (*Recorder, error) {
	if os.Getpagesize() != pages.Size {
		return nil, fmt.Errorf("record: %w on a host with pages of %d bytes: want %d", errors.ErrUnsupported, os.Getpagesize(), pages.Size)
	}
	n, err := pageCount(f, size)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", f.Name(), err)
	}
	r := &Recorder{seen: pages.NewSet(n), working: pages.WorkingSet{Pages: n}, vec: make([]byte, min(n, 1<<16))}
	if n == 0 {
		return r, nil
	}
	if r.mapped, err = mapCached(f, size); err != nil {
		return nil, fmt.Errorf("record %s: map: %w", f.Name(), err)
	}
	return r, nil
}

// Close ends recording. It may be called again.
func (r *Recorder) Close() error {
	m := r.mapped
	r.mapped = nil
	if m == nil {
		return nil
	}
	if err := unmapCached(m); err != nil {
		return fmt.Errorf("unmap recorded memory: %w", err)
	}
	return nil
}

// Round makes a working-set group of the pages that are resident and were not
// in an earlier round, and returns how many that are.
func (r *Recorder) Round() (int, error) {
	resident := pages.NewSet(r.working.Pages)
	if r.mapped == nil && r.working.Pages > 0 {
		return 0, fmt.Errorf("record a round: %w", os.ErrClosed)
	}
	if err := r.resident(resident); err != nil {
		return 0, fmt.Errorf("record a round: %w", err)
	}
	return r.working.Add(r.seen, resident), nil
}

// Run does a round each time that the resident set of a process, as rss returns
// it in pages, has grown by group pages, looking every interval; and a last one
// when ctx is done, which is how recording ends. It returns what rss does if
// that fails, unless the process is gone (os.ErrProcessDone or
// os.ErrNotExist), which ends recording too.
func (r *Recorder) Run(ctx context.Context, group int, interval time.Duration, rss func() (int, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := 0
	for {
		select {
		case <-ctx.Done():
			_, err := r.Round()
			return err
		case <-tick.C:
		}
		now, err := rss()
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrNotExist) {
			_, err := r.Round()
			return err
		}
		if err != nil {
			return fmt.Errorf("record: %w", err)
		}
		last = min(last, now) // a process can also shrink
		if now-last < group {
			continue
		}
		if _, err := r.Round(); err != nil {
			return err
		}
		last = now
	}
}

// WorkingSet returns what has been recorded. Further rounds do not change it.
func (r *Recorder) WorkingSet() pages.WorkingSet {
	w := r.working
	w.Groups = append([]pages.Group(nil), w.Groups...)
	return w
}

// RSS returns how large the resident set of a process is, in pages. The error is
// os.ErrProcessDone or os.ErrNotExist, wrapped, if there is no such process.
func RSS(pid int) (int, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if errors.Is(err, syscall.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return 0, fmt.Errorf("resident set of process %d: %w", pid, err)
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0, fmt.Errorf("resident set of process %d: malformed %q", pid, text)
	}
	n, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0, fmt.Errorf("resident set of process %d: %w", pid, err)
	}
	return n, nil
}
