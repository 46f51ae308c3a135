package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// plain writes each snapshot as a line.
type plain struct {
	w      io.Writer
	phases []string // of the last line
	last   string
}

func (p *plain) wait(s Snapshot, since time.Duration) time.Duration {
	if p.last == "" || !slices.Equal(phases(s), p.phases) {
		return 0
	}
	return lineInterval - since
}

func (p *plain) draw(s Snapshot) {
	p.phases = phases(s)
	line := plainLine(s)
	if line == p.last {
		return
	}
	p.last = line
	_, _ = io.WriteString(p.w, line+"\n") // see New: errors are ignored
}

func (p *plain) print(text []byte) (int, error) { return p.w.Write(text) }

func (p *plain) finish(last Snapshot) { p.draw(last) }

// phases says which rows wait, run and are complete. A change is worth a line
// of its own.
func phases(s Snapshot) []string {
	var out []string
	for _, r := range s.Rows {
		phase := "waits"
		switch {
		case r.Total >= 0 && r.Done >= r.Total:
			phase = "complete"
		case r.Done > 0 || r.Running > 0:
			phase = "runs"
		}
		out = append(out, r.Name+" "+phase)
	}
	return out
}

func plainLine(s Snapshot) string {
	var parts []string
	for _, r := range s.Rows {
		part := r.Name + " " + counts(r)
		if r.Note != "" {
			part += ", " + r.Note
		}
		parts = append(parts, clean(part))
	}
	if s.Line != "" {
		parts = append(parts, clean(s.Line))
	}
	return strings.Join(parts, "; ")
}

// counts writes the numbers of a row: "12/40 (3 running)".
func counts(r Row) string {
	total := "?"
	if r.Total >= 0 {
		total = fmt.Sprint(r.Total)
	}
	if r.Running == 0 {
		return fmt.Sprintf("%d/%s", r.Done, total)
	}
	return fmt.Sprintf("%d/%s (%d running)", r.Done, total, r.Running)
}
