package trace

import (
	"fmt"
	"strings"
)

// ParseError tells where a file of a trace is wrong. Every error of Open that
// comes from a file's contents is one.
type ParseError struct {
	// File is the path of the file.
	File string
	// Line and Column count from 1, Column in bytes; 0 where they do not apply.
	// Both are of the text, also in a compressed file.
	Line, Column int
	// Field is the name of the CSV column, or empty.
	Field string
	// Err says what is wrong, Remedy what to do about it.
	Err    error
	Remedy string
}

func (e *ParseError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Column)
		}
	}
	if e.Field != "" {
		fmt.Fprintf(&b, ": column %s", e.Field)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Remedy != "" {
		fmt.Fprintf(&b, "; %s", e.Remedy)
	}
	return b.String()
}

func (e *ParseError) Unwrap() error { return e.Err }
