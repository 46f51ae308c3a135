package mem

import (
	"context"
	"io"

	"github.com/volley-run/volley/faasnap/pages"
)

// GuestFiles are what a guest's memory is served from.
type GuestFiles struct {
	Plan *pages.Plan
	// Memory and Loading are the plan's files. Loading may be nil if the plan
	// loads nothing.
	Memory, Loading io.ReaderAt
	// Fetch, if there is one, brings bytes of Memory from afar, to be read there
	// when it has returned nil. Several calls are under way at a time, while
	// faults on other pages are served.
	Fetch func(ctx context.Context, offset, length int64) error
	// Check, if there is one, looks at the loading set as it is read: see
	// LoadFile. It needs the whole set, in chunks of LoadChunk.
	Check func(offset int64, chunk []byte) error
	// FaultPages is how many pages a fault on the memory file makes present, as
	// far as they are served alike: a power of two, at most 16; 0 is 16.
	FaultPages int
	// Faulted, if there is one, gets each page that the guest waits for, in
	// order, from Serve's goroutine.
	Faulted func(page int)
	// Loaded, if there is one, is called once, from Serve's goroutine, when all
	// of the loading set has been copied into the guest.
	Loaded func()
}

// GuestStats is how a guest's memory has been served so far.
type GuestStats struct {
	// Faults is how many page faults the guest has waited for.
	Faults int64
	// CopiedPages is how many pages were copied into the guest, AheadPages how
	// many of them before a fault asked for them, as loading set.
	CopiedPages, AheadPages int64
	// ZeroedPages is how many pages were made zero upon a fault.
	ZeroedPages int64
}
