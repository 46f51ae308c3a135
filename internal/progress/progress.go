// Package progress shows on a terminal how far a run has come: one row with a
// bar for each part of it, redrawn in place. Where there is no terminal it
// writes plain lines, few enough for a log file.
package progress

import (
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"
)

// Snapshot is all that a Display shows at one time.
type Snapshot struct {
	Rows []Row
	// Line stands below the rows: a summary such as "12 workers, 3.1 s left".
	Line string
}

// Row is how far one part of a run has come.
type Row struct {
	Name string
	// Done and Running are how many of Total are finished and under way. Total
	// is -1 while it is unknown.
	Done, Running, Total int
	// Note is free text, "123.4 frames/s".
	Note string
}

// Mode is how a Display shows progress.
type Mode int

// The modes.
const (
	// Auto means Terminal when the writer is a terminal that can move its
	// cursor, else Plain.
	Auto Mode = iota
	// Terminal redraws rows in place with ANSI escape sequences.
	Terminal
	// Plain writes lines.
	Plain
)

// Clock tells the time. The real one is the default.
type Clock interface {
	Now() time.Time
	// After returns a channel on which the time comes once d has passed.
	After(d time.Duration) <-chan time.Time
}

// Options change how a Display looks. The zero value is right for commands.
type Options struct {
	Mode Mode
	// Width and Height are the terminal's columns and lines. When 0 the
	// terminal is asked at each redraw; one that does not say has 80 by 24.
	Width, Height int
	// NoColor leaves out colours. So does the environment variable NO_COLOR,
	// when it is not empty.
	NoColor bool
	// Clock is nil for the real clock.
	Clock Clock
}

// The least time between two redraws, and between two plain lines of the same
// phase.
const (
	redrawInterval = 100 * time.Millisecond
	lineInterval   = 2 * time.Second
)

// Display shows the latest Snapshot. It is safe for concurrent use. New starts
// one goroutine, which Close ends and waits for.
type Display struct {
	clock Clock
	wake  chan struct{} // capacity 1: there is a new snapshot
	done  chan struct{}
	ended chan struct{}
	close func()

	mu       sync.Mutex // never held while writing, so that Update does not wait for the terminal
	snapshot Snapshot
	updated  bool

	drawing sync.Mutex // held while writing
	screen  screen
}

// screen is where snapshots appear.
type screen interface {
	// wait returns how long s must wait, when the last one was drawn since ago.
	wait(s Snapshot, since time.Duration) time.Duration
	draw(s Snapshot)
	// print writes text above whatever is drawn.
	print(text []byte) (int, error)
	// finish leaves the screen as the user shall find it.
	finish(last Snapshot)
}

// New returns a Display that writes to w until Close. Nothing is written before
// the first Update. Errors of w are ignored: a run does not fail because nobody
// watches.
func New(w io.Writer, opts Options) *Display {
	d := &Display{
		clock: opts.Clock,
		wake:  make(chan struct{}, 1),
		done:  make(chan struct{}),
		ended: make(chan struct{}),
	}
	if d.clock == nil {
		d.clock = realClock{}
	}
	d.close = sync.OnceFunc(func() { close(d.done) })
	if opts.Mode == Terminal || (opts.Mode == Auto && isTerminal(w)) {
		d.screen = &terminal{
			w:     w,
			size:  func() (int, int) { return size(w, opts) },
			color: !opts.NoColor && os.Getenv("NO_COLOR") == "",
		}
	} else {
		d.screen = &plain{w: w}
	}
	go d.run()
	return d
}

// Update shows s, at once or when the last redraw is long enough ago. It does
// not wait for the writer and keeps no reference to s.Rows. After Close it does
// nothing.
func (d *Display) Update(s Snapshot) {
	s.Rows = slices.Clone(s.Rows)
	d.mu.Lock()
	d.snapshot, d.updated = s, true
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Write prints text above the rows; loggers write here while a Display is open.
// In Terminal mode p must be whole lines. After Close it writes straight on.
func (d *Display) Write(p []byte) (int, error) {
	d.drawing.Lock()
	defer d.drawing.Unlock()
	return d.screen.print(p)
}

// Close ends the display: on a terminal the rows disappear and the cursor comes
// back; in Plain mode the last Snapshot is written unless it was. Close waits
// for the writer. It may be called more than once.
func (d *Display) Close() {
	d.close()
	<-d.ended
}

func (d *Display) run() {
	defer close(d.ended)
	var drawn time.Time
	var due <-chan time.Time
	for {
		select {
		case <-d.wake:
		case <-due:
			due = nil
		case <-d.done:
			d.drawing.Lock()
			defer d.drawing.Unlock()
			if s, ok := d.latest(); ok {
				d.screen.finish(s)
			}
			return
		}
		s, _ := d.latest()
		now := d.clock.Now()
		if wait := d.screen.wait(s, now.Sub(drawn)); wait > 0 {
			if due == nil {
				due = d.clock.After(wait)
			}
			continue
		}
		d.drawing.Lock()
		d.screen.draw(s)
		d.drawing.Unlock()
		drawn, due = now, nil
	}
}

func (d *Display) latest() (s Snapshot, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snapshot, d.updated
}

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

func size(w io.Writer, opts Options) (width, height int) {
	width, height = 80, 24
	if f, ok := w.(*os.File); ok {
		if c, l, err := term.GetSize(int(f.Fd())); err == nil && c > 0 && l > 0 {
			width, height = c, l
		}
	}
	if opts.Width > 0 {
		width = opts.Width
	}
	if opts.Height > 0 {
		height = opts.Height
	}
	return width, height
}
