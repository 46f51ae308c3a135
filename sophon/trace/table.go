package trace

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// table reads a CSV file row by row and tells where a field stands.
type table struct {
	file   string
	csv    *csv.Reader
	header []string
	// row is the current one; the next call of next overwrites it.
	row []string
}

// newTable reads the header. The text may be compressed with gzip.
func newTable(file string, r io.Reader) (*table, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	if magic, _ := b.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, &ParseError{File: file, Err: fmt.Errorf("cannot be uncompressed: %w", err), Remedy: "copy it again"}
		}
		b = bufio.NewReaderSize(z, 64<<10)
	}
	if mark, _ := b.Peek(3); bytes.Equal(mark, []byte("\xef\xbb\xbf")) {
		_, _ = b.Discard(3)
	}
	t := &table{file: file, csv: csv.NewReader(b)}
	t.csv.ReuseRecord = true
	t.csv.FieldsPerRecord = -1 // next counts them and says where
	row, err := t.csv.Read()
	if errors.Is(err, io.EOF) {
		return nil, &ParseError{File: file, Err: errors.New("is empty"), Remedy: "it must begin with a line of column names"}
	}
	if err != nil {
		return nil, t.wrap(err)
	}
	seen := map[string]bool{}
	for i, name := range row {
		name = strings.TrimSpace(name)
		if seen[name] {
			return nil, t.errorAt(i, name, errors.New("is there twice"), "remove one of the two columns")
		}
		seen[name] = true
		t.header = append(t.header, name)
	}
	return t, nil
}

// next reads a row, or returns io.EOF.
func (t *table) next() error {
	row, err := t.csv.Read()
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil {
		return t.wrap(err)
	}
	t.row = row
	if len(row) != len(t.header) {
		last := len(row) - 1
		return t.errorAt(last, "", fmt.Errorf("the row has %d fields, but there are %d columns", len(row), len(t.header)),
			"correct or remove the row; it may have been cut short")
	}
	return nil
}

// column returns the index of a column that must be there.
func (t *table) column(name string) (int, error) {
	for i, have := range t.header {
		if have == name {
			return i, nil
		}
	}
	return 0, &ParseError{File: t.file, Line: 1, Field: name, Err: errors.New("is missing"),
		Remedy: "check that this is a file of the Azure Functions data set of 2019"}
}

// optional returns the index of a column, or -1.
func (t *table) optional(name string) int {
	i, err := t.column(name)
	if err != nil {
		return -1
	}
	return i
}

// id returns a field that must not be empty.
func (t *table) id(column int) (string, error) {
	if t.row[column] == "" {
		return "", t.bad(column, errors.New("is empty"))
	}
	return strings.Clone(t.row[column]), nil
}

// number returns a field that must be a finite number, not negative.
func (t *table) number(column int) (float64, error) {
	v, err := strconv.ParseFloat(t.row[column], 64)
	if err != nil || v < 0 || v > 1e15 || v != v {
		return 0, t.bad(column, fmt.Errorf("%q is not a number of at least 0", t.row[column]))
	}
	return v, nil
}

// count returns a field that must be a whole number, not negative.
func (t *table) count(column int) (uint32, error) {
	v, err := strconv.ParseUint(t.row[column], 10, 32)
	if err != nil {
		return 0, t.bad(column, fmt.Errorf("%q is not a count of invocations", t.row[column]))
	}
	return uint32(v), nil
}

// bad is the error for a field of the current row.
func (t *table) bad(column int, err error) error {
	return t.errorAt(column, t.header[column], err, "correct the field or remove the row")
}

func (t *table) errorAt(column int, field string, err error, remedy string) error {
	line, col := t.csv.FieldPos(column)
	return &ParseError{File: t.file, Line: line, Column: col, Field: field, Err: err, Remedy: remedy}
}

// wrap turns an error of reading into a ParseError, unless the file cannot be
// read at all.
func (t *table) wrap(err error) error {
	var (
		syntax  *csv.ParseError
		corrupt flate.CorruptInputError
	)
	switch {
	case errors.As(err, &syntax):
		return &ParseError{File: t.file, Line: syntax.Line, Column: syntax.Column, Err: syntax.Err, Remedy: "correct or remove the row"}
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &corrupt):
		return &ParseError{File: t.file, Err: fmt.Errorf("cannot be uncompressed: %w", err), Remedy: "copy it again"}
	}
	return fmt.Errorf("read %s: %w", t.file, err)
}
