package mem

import (
	"fmt"
	"os"

	"github.com/volley-run/volley/faasnap/pages"
)

// Resident returns which pages of the first size bytes of f are in the page
// cache: read by anybody, or fetched by read-ahead (thesis 5.3.4). As of Linux
// 5.2 the caller has to own the file or may write to it; the kernel claims that
// all pages of other files are resident.
func Resident(f *os.File, size int64) (pages.Set, error) {
	r, err := NewRecorder(f, size)
	if err != nil {
		return pages.Set{}, fmt.Errorf("find resident pages: %w", err)
	}
	defer r.Close()
	resident := pages.NewSet(r.working.Pages)
	if err := r.resident(resident); err != nil {
		return pages.Set{}, fmt.Errorf("find resident pages of %s: %w", f.Name(), err)
	}
	return resident, nil
}

// Evict drops the pages of f from the page cache, but for those that somebody
// has mapped or that could not be written to disk.
func Evict(f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("evict: %w", err)
	}
	if err := dropCached(f); err != nil {
		return fmt.Errorf("evict %s from the page cache: %w", f.Name(), err)
	}
	return nil
}

// resident adds to s what is in the page cache.
func (r *Recorder) resident(s pages.Set) error {
	const step = 1 << 16 // pages, so that the vector stays in cache
	for at := 0; at < s.Pages(); at += step {
		n := min(step, s.Pages()-at)
		vec := r.vec[:n]
		if err := mincore(r.mapped[at*pages.Size:(at+n)*pages.Size], vec); err != nil {
			return fmt.Errorf("mincore: %w", err)
		}
		for i := 0; i < n; {
			if vec[i]&1 == 0 {
				i++
				continue
			}
			start := i
			for i < n && vec[i]&1 == 1 {
				i++
			}
			s.AddRange(pages.Range{Start: at + start, End: at + i})
		}
	}
	return nil
}
