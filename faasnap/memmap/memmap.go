// Package memmap draws how a restore plan serves guest memory: which parts are
// zero, which are read on demand, and which are read ahead, by working-set
// group. It is pure: no I/O, no state.
package memmap

import (
	"fmt"
	"strings"

	"github.com/volley-run/volley/faasnap/pages"
)

// Cell is a stretch of guest memory that is drawn as one thing.
type Cell struct {
	pages.Range
	// Zero, Cold and Loading are how many of its pages are anonymous memory,
	// read from the memory file on demand, and read ahead.
	Zero, Cold, Loading int
	// Group is the lowest working-set group in it; only if Loading is not 0.
	Group int
}

// Source is what the cell is drawn as: zero if all of it is, and else whichever
// of the two files serves more of it.
func (c Cell) Source() pages.Source {
	switch {
	case c.Loading > 0 && c.Loading >= c.Cold:
		return pages.Loading
	case c.Cold > 0:
		return pages.Memory
	}
	return pages.Zero
}

// Cells divides guest memory into at most n stretches of the same length, of
// which the last may be shorter. n is at least 1.
func Cells(p *pages.Plan, n int) []Cell {
	per := cellPages(p, n)
	var cells []Cell
	at := 0
	for start := 0; start < p.Pages; start += per {
		c := Cell{Range: pages.Range{Start: start, End: min(start+per, p.Pages)}}
		for at < len(p.Regions) {
			r := p.Regions[at]
			c.add(r, min(r.End, c.End)-max(r.Start, c.Start))
			if r.End > c.End {
				break // it goes on in the next cell
			}
			at++
		}
		cells = append(cells, c)
	}
	return cells
}

// cellPages is how many pages a cell has.
func cellPages(p *pages.Plan, n int) int { return max(1, (p.Pages+n-1)/n) }

func (c *Cell) add(r pages.Region, n int) {
	if n <= 0 {
		return
	}
	switch r.Source {
	case pages.Zero:
		c.Zero += n
	case pages.Memory:
		c.Cold += n
	case pages.Loading:
		if c.Loading == 0 || r.Group < c.Group {
			c.Group = r.Group
		}
		c.Loading += n
	}
}

// groups is how many working-set groups the loading set has regions of.
func groups(p *pages.Plan) int {
	n := 0
	for _, r := range p.Regions {
		if r.Source == pages.Loading {
			n = max(n, r.Group+1)
		}
	}
	return n
}

// size prints an amount of memory, which is a whole number of KiB.
func size(bytes int64) string {
	switch {
	case bytes >= 1<<30 && bytes%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 10<<20:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}

// digits are how groups are drawn in text; those beyond are plus signs.
const digits = "0123456789abcdefghijklmnopqrstuvwxyz"

func (c Cell) rune() byte {
	switch c.Source() {
	case pages.Zero:
		return '.'
	case pages.Memory:
		return '#'
	}
	if c.Group < len(digits) {
		return digits[c.Group]
	}
	return '+'
}

// Text draws a plan in lines of columns characters, rows lines at most, with
// addresses before them and a legend below. With colour it is for a terminal
// that takes ANSI sequences of 256 colours.
func Text(p *pages.Plan, columns, rows int, colour bool) string {
	cells := Cells(p, columns*rows)
	last := groups(p) - 1
	var b strings.Builder
	for start := 0; start < len(cells); start += columns {
		fmt.Fprintf(&b, "%10s  ", size(int64(cells[start].Start)*pages.Size))
		previous := ""
		for _, c := range cells[start:min(start+columns, len(cells))] {
			if code := c.ansi(last); colour && code != previous {
				b.WriteString(code)
				previous = code
			}
			b.WriteByte(c.rune())
		}
		if colour {
			b.WriteString(reset)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\n%10s  %s a character; . zero, # cold", "", size(int64(cellPages(p, columns*rows))*pages.Size))
	switch {
	case last == 0:
		b.WriteString(", 0 loading set")
	case last > 0:
		fmt.Fprintf(&b, ", 0-%c loading set by group", Cell{Loading: 1, Group: last}.rune())
	}
	b.WriteByte('\n')
	return b.String()
}

const reset = "\x1b[0m"

// ansi is the sequence that begins the cell's colour.
func (c Cell) ansi(last int) string {
	switch c.Source() {
	case pages.Zero:
		return "\x1b[38;5;240m"
	case pages.Memory:
		return "\x1b[38;5;250m"
	}
	scale := [...]int{202, 208, 214, 220, 148, 78, 44, 39, 33, 27}
	return fmt.Sprintf("\x1b[1;38;5;%dm", scale[c.Group*(len(scale)-1)/max(last, 1)])
}
