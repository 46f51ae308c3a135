package testenv

import (
	_ "embed"
	"fmt"
	"path"
	"strings"
)

//go:embed mustrun.txt
var mustRunText string

// Entry is one line of the must-run list.
type Entry struct {
	// Package is the package's folder, seen from the root of the repository,
	// with forward slashes; "." is the root.
	Package string
	// Test is the name of a top-level test function.
	Test string
	// Line is where the entry is in mustrun.txt, counted from 1.
	Line int
}

// MustRun returns the must-run list in the order of its file. The error names
// the first line that is not a comment, blank or "package TestName", or that
// repeats an earlier one.
func MustRun() ([]Entry, error) {
	return parseList(mustRunText)
}

// list answers which tests must run.
type list []Entry

// mustRun returns the list, empty if it is malformed: the test of MustRun is
// what fails then, once and with the line.
func mustRun() list {
	entries, err := MustRun()
	if err != nil {
		return nil
	}
	return entries
}

// has reports whether the test, or the test that it is a subtest of, is on the
// list.
func (l list) has(folder, test string) bool {
	top, _, _ := strings.Cut(test, "/")
	for _, e := range l {
		if e.Package == folder && e.Test == top {
			return true
		}
	}
	return false
}

func parseList(text string) ([]Entry, error) {
	var entries list
	line := 0
	for raw := range strings.Lines(text) {
		line++
		fields := strings.Fields(raw)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("parse mustrun.txt: line %d: want \"package TestName\", have %q", line, strings.TrimSpace(raw))
		}
		folder, test := fields[0], fields[1]
		if path.Clean(folder) != folder || path.IsAbs(folder) || strings.HasPrefix(folder, "..") {
			return nil, fmt.Errorf("parse mustrun.txt: line %d: package %q is not a folder seen from the repository's root", line, folder)
		}
		if !strings.HasPrefix(test, "Test") && !strings.HasPrefix(test, "Fuzz") || strings.Contains(test, "/") {
			return nil, fmt.Errorf("parse mustrun.txt: line %d: %q is not the name of a test function", line, test)
		}
		if entries.has(folder, test) {
			return nil, fmt.Errorf("parse mustrun.txt: line %d: %s %s is on the list already", line, folder, test)
		}
		entries = append(entries, Entry{Package: folder, Test: test, Line: line})
	}
	return entries, nil
}
