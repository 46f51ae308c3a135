package mem

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/faasnap/pages"
)

// Mapping is guest memory laid out by a plan in this process. What is written to
// it stays in the process; the files do not change.
type Mapping struct {
	mapped []byte
	base   unsafe.Pointer
}

// Map lays a plan over addresses that nobody uses. The files may be closed
// afterwards, but not made shorter: their pages are read when they are touched,
// and a page that is gone by then is a SIGBUS. loading may be nil if the plan
// loads nothing. The caller ends the mapping with Close.
func Map(p *pages.Plan, memory, loading *os.File) (*Mapping, error) {
	if p.Pages == 0 {
		return &Mapping{}, nil
	}
	size := uintptr(p.Pages) * pages.Size
	base, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map plan: reserve %d bytes of addresses: %w", size, err)
	}
	m := &Mapping{mapped: unsafe.Slice((*byte)(base), int(size)), base: base}
	if err := Overlay(base, p, memory, loading); err != nil {
		_ = m.Close() // the error is the other's
		return nil, err
	}
	return m, nil
}

// Bytes returns guest memory, until Close.
func (m *Mapping) Bytes() []byte { return m.mapped }

// Close unmaps guest memory. It may be called again.
func (m *Mapping) Close() error {
	if m.mapped == nil {
		return nil
	}
	size := uintptr(len(m.mapped))
	m.mapped = nil
	if err := unix.MunmapPtr(m.base, size); err != nil {
		return fmt.Errorf("unmap plan: %w", err)
	}
	return nil
}

// Overlay lays a plan over the addresses from base on, replacing what is mapped
// there: anonymous memory for all of it, then the memory file over every stretch
// without zero pages, then the regions of the loading set, each from its place
// in the loading-set file (thesis 5.3.8). Nothing is read. The plan has to be
// one that Check is content with. After an error the addresses hold parts of the
// plan, and are of no use but to be unmapped.
func Overlay(base unsafe.Pointer, p *pages.Plan, memory, loading *os.File) error {
	if os.Getpagesize() != pages.Size {
		return fmt.Errorf("map plan: host pages of %d bytes: want %d", os.Getpagesize(), pages.Size)
	}
	// Past its end a file cannot be read but can be mapped.
	if _, err := pageCount(memory, int64(p.Pages)*pages.Size); err != nil {
		return fmt.Errorf("map plan: memory file %s: %w", memory.Name(), err)
	}
	if p.LoadingPages > 0 {
		if loading == nil {
			return fmt.Errorf("map plan: no loading-set file: want one of %d pages", p.LoadingPages)
		}
		if _, err := pageCount(loading, int64(p.LoadingPages)*pages.Size); err != nil {
			return fmt.Errorf("map plan: loading-set file %s: %w", loading.Name(), err)
		}
	}
	lay := func(what string, r pages.Range, fd, flags, offset int) error {
		at := unsafe.Add(base, r.Start*pages.Size)
		_, err := unix.MmapPtr(fd, int64(offset)*pages.Size, at, uintptr(r.Len())*pages.Size,
			unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED|unix.MAP_NORESERVE|flags)
		if err != nil {
			return fmt.Errorf("map %s to guest pages %v: %w", what, r, err)
		}
		return nil
	}
	if p.Pages == 0 {
		return nil
	}
	if err := lay("anonymous memory", pages.Range{End: p.Pages}, -1, unix.MAP_ANONYMOUS, 0); err != nil {
		return err
	}
	for _, r := range stretches(p.Regions) {
		if err := lay("memory file", r, int(memory.Fd()), 0, r.Start); err != nil {
			return err
		}
	}
	for _, r := range p.Regions {
		if r.Source != pages.Loading {
			continue
		}
		if err := lay("loading-set file", r.Range, int(loading.Fd()), 0, r.Offset); err != nil {
			return err
		}
	}
	return nil
}

// stretches returns the ranges from a memory region to the last before a zero
// region. Loading regions in between are part of them, as they are mapped on
// top: that takes fewer calls.
func stretches(regions []pages.Region) []pages.Range {
	var out []pages.Range
	open := false
	for _, r := range regions {
		switch {
		case r.Source == pages.Zero:
			open = false
		case r.Source == pages.Memory && open:
			out[len(out)-1].End = r.End
		case r.Source == pages.Memory:
			out = append(out, r.Range)
			open = true
		}
	}
	return out
}
