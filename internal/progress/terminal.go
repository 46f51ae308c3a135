package progress

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// ANSI escape sequences.
const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	clearLine  = "\x1b[K" // from the cursor on
	clearBelow = "\x1b[J" // from the cursor on
	green      = "\x1b[32m"
	yellow     = "\x1b[33m"
	faint      = "\x1b[2m"
	plainText  = "\x1b[0m"
)

// terminal draws rows in place. Between two calls the cursor is in the first
// column below what is drawn.
type terminal struct {
	w      io.Writer
	size   func() (width, height int)
	color  bool
	lines  int // that are drawn
	shown  Snapshot
	closed bool
}

func (t *terminal) wait(_ Snapshot, since time.Duration) time.Duration {
	return redrawInterval - since
}

func (t *terminal) draw(s Snapshot) {
	var b bytes.Buffer
	t.compose(&b, s)
	_, _ = t.w.Write(b.Bytes()) // see New: errors are ignored
}

func (t *terminal) print(text []byte) (int, error) {
	if t.lines == 0 || t.closed {
		return t.w.Write(text)
	}
	var b bytes.Buffer
	t.up(&b)
	b.WriteString(clearBelow)
	b.Write(text)
	if !bytes.HasSuffix(text, []byte("\n")) {
		b.WriteByte('\n')
	}
	t.lines = 0
	t.compose(&b, t.shown)
	if _, err := t.w.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(text), nil
}

func (t *terminal) finish(Snapshot) {
	t.closed = true
	if t.lines == 0 {
		return
	}
	var b bytes.Buffer
	t.up(&b)
	b.WriteString(clearBelow + showCursor)
	_, _ = t.w.Write(b.Bytes()) // see New: errors are ignored
	t.lines = 0
}

// up moves the cursor to the first line that is drawn.
func (t *terminal) up(b *bytes.Buffer) {
	b.WriteByte('\r')
	if t.lines > 0 {
		fmt.Fprintf(b, "\x1b[%dA", t.lines)
	}
}

// compose writes what replaces the lines drawn before by s. All of it goes out
// in one write, so that the terminal does not flicker.
func (t *terminal) compose(b *bytes.Buffer, s Snapshot) {
	width, height := t.size()
	b.WriteString(hideCursor)
	t.up(b)
	lines := layout(s, width-1, height-1, t.color) // the last column would wrap, the last line scroll
	for _, l := range lines {
		b.WriteString(l + clearLine + "\n")
	}
	b.WriteString(clearBelow)
	t.lines, t.shown = len(lines), s
}

// layout turns s into at most height lines of at most width columns.
func layout(s Snapshot, width, height int, color bool) []string {
	width, height = max(width, 1), max(height, 1)
	room := height
	if s.Line != "" && room > 1 {
		room--
	}
	rows, hidden := s.Rows, 0
	if len(rows) > room {
		hidden = len(rows) - room + 1
		rows = rows[:room-1]
	}
	names, numbers, notes := 0, 0, 0
	for _, r := range rows {
		names = max(names, columns(clean(r.Name)))
		numbers = max(numbers, len(counts(r)))
		notes = max(notes, columns(clean(r.Note)))
	}
	names = min(names, max(width/3, 8))
	var lines []string
	for _, r := range rows {
		lines = append(lines, row(r, rowWidths{width, names, numbers, notes}, color))
	}
	if hidden > 0 {
		lines = append(lines, fit(fmt.Sprintf("... and %d more", hidden), width))
	}
	if s.Line != "" && len(lines) < height {
		lines = append(lines, fit(clean(s.Line), width))
	}
	return lines
}

// rowWidths are the columns of a line and of the parts that stand below each
// other.
type rowWidths struct{ line, name, numbers, note int }

// The bar takes what room the other parts leave, within these bounds. Where
// that is too little it goes first; after it the end of the line.
const minBar, maxBar = 6, 40

func row(r Row, w rowWidths, color bool) string {
	name := pad(fit(clean(r.Name), w.name), w.name) + "  "
	tail := pad(counts(r), w.numbers)
	room := w.line - w.name - w.numbers - len("  [] ")
	if w.note > 0 {
		room -= w.note + len("  ")
	}
	if r.Note != "" {
		tail += "  " + clean(r.Note)
	}
	tail = strings.TrimRight(tail, " ")
	if room < minBar {
		return fit(name+tail, w.line)
	}
	return name + bar(r, min(room, maxBar), color) + " " + tail
}

// bar draws "[====>>    ]": done, running, waiting. It has dots when the total
// is unknown.
func bar(r Row, width int, color bool) string {
	paint := func(code, s string) string {
		if !color || s == "" {
			return s
		}
		return code + s + plainText
	}
	if r.Total < 0 {
		return "[" + paint(faint, strings.Repeat(".", width)) + "]"
	}
	part := func(n int) int {
		if n >= r.Total || r.Total == 0 {
			return width
		}
		return int(int64(max(n, 0)) * int64(width) / int64(r.Total))
	}
	done := part(r.Done)
	running := max(part(r.Done+r.Running)-done, 0)
	if r.Running > 0 && running == 0 && done < width {
		running = 1
	}
	return "[" + paint(green, strings.Repeat("=", done)) + paint(yellow, strings.Repeat(">", running)) +
		strings.Repeat(" ", width-done-running) + "]"
}

// clean replaces what would move the cursor or change the terminal's state.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// fit shortens s to width columns.
func fit(s string, width int) string {
	if columns(s) <= width {
		return s
	}
	const mark = "..."
	if width <= len(mark) {
		return mark[:max(width, 0)]
	}
	used := 0
	for i, r := range s {
		used += runeColumns(r)
		if used > width-len(mark) {
			return s[:i] + mark
		}
	}
	return s
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-columns(s), 0))
}

func columns(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

// runeColumns is how many columns terminals give to r: two for the characters
// of East Asian scripts and for emoji.
func runeColumns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana),
		r >= 0x3000 && r <= 0x303f, r >= 0xff01 && r <= 0xff60, r >= 0x1f300 && r <= 0x1faff:
		return 2
	}
	return 1
}
