package sprocket

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Error returns one line for each problem:
//
//	file:line:col: $.path: message (hint)
//
// with what is not known left out.
func (e *SpecError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.in(e.File)
	}
	return strings.Join(lines, "\n")
}

// in writes the problem as one line.
func (p Problem) in(file string) string {
	var b strings.Builder
	b.WriteString(file)
	if p.Line > 0 {
		if file == "" {
			b.WriteString("line ")
		} else {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%d:%d", p.Line, p.Col)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	b.WriteString(parenthesised(p.Hint))
	return b.String()
}

// sortProblems brings the problems into the order of the text. Those without a
// position keep their place.
func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
}

// fieldPath returns the JSON path of a member of the object at path.
func fieldPath(path, name string) string {
	if plainName.MatchString(name) {
		return path + "." + name
	}
	return path + "[" + string(quoteJSON(name)) + "]"
}

// indexPath returns the JSON path of an element of the array at path.
func indexPath(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

func parenthesised(hint string) string {
	if hint == "" {
		return ""
	}
	return " (" + hint + ")"
}

// suggest is the hint for an unknown word: the known one that looks most like
// it, or all of them after the intro ("the stages are").
func suggest(word string, known []string, intro string) string {
	if hint := didYouMean(word, known); hint != "" {
		return hint
	}
	if len(known) == 0 {
		return intro + ": none"
	}
	return intro + ": " + strings.Join(known, ", ")
}

func didYouMean(word string, known []string) string {
	if best := closest(word, known); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return ""
}

// closest returns the known word that is most like the given one, or "" when
// none is much like it.
func closest(word string, known []string) string {
	const (
		longest   = 64 // keeps the comparison of hostile texts cheap
		shortened = 3  // from here on, the start of a word stands for it
	)
	if word == "" || len(word) > longest {
		return ""
	}
	best, bestDistance := "", 1+max(1, len(word)/3)
	for _, k := range known {
		if k == word {
			continue
		}
		d := editDistance(strings.ToLower(word), strings.ToLower(k))
		if len(word) >= shortened && strings.HasPrefix(k, word) {
			d = 1
		}
		if d < bestDistance && d < len(k) {
			best, bestDistance = k, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func editDistance(a, b string) int {
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	before, last, row := rows[0], rows[1], rows[2]
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// abbreviate cuts s to at most n runes, the last being "…" when it was longer.
func abbreviate(s string, n int) string {
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return s
}

// parentPath returns the path of what holds the value at path, "" for the root.
func parentPath(path string) string {
	cut := ""
	switch {
	case strings.HasSuffix(path, `"]`):
		cut = `["` // quotes inside the name are escaped
	case strings.HasSuffix(path, "]"):
		cut = "["
	default:
		cut = "."
	}
	return path[:max(strings.LastIndex(path, cut), 0)]
}
