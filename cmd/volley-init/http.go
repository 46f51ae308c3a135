//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// This file reads HTTP/1.1 requests as far as runtimes make them. net/http
// would cost more time per event than all the rest of volley-init, and twice
// its memory.

const (
	// maxRequestLine and maxHeaders bound what comes before a body, and after a
	// chunked one. Runtimes put whole stack traces into a header.
	maxRequestLine = 8 << 10
	maxHeaders     = 3 << 20
)

// errMalformed says that a client does not speak HTTP/1.1.
var errMalformed = errors.New("malformed request")

// request is one request. Its fields are valid until the next is read.
type request struct {
	method, path []byte
	// contentType and so on are the values of headers that matter here.
	contentType  []byte
	responseMode []byte
	errorType    []byte
	// errorBody is a trailer; errorType is one too where it was a header not.
	errorBody []byte
	// closing says that the client wants the connection to end.
	closing bool
	// expecting says that the client waits for leave to send the body.
	expecting bool
	chunked   bool
	// length is that of the body, unless it is chunked.
	length int64
}

// reader reads the requests of one connection.
type reader struct {
	br   *bufio.Reader
	long []byte // a line that did not fit br's buffer
	req  request
	// continueWith, if the client waits for it, is called before the body is
	// read.
	continueWith func() error

	// What is left of the body: of the current chunk if it is chunked.
	left int64
	// ended says that the body has been read to its end.
	ended bool
	// headerBytes counts what the headers or trailers took.
	headerBytes int
}

func newReader(r io.Reader) *reader {
	return &reader{br: bufio.NewReaderSize(r, 4<<10)}
}

// next reads the next request up to its body. The error is io.EOF if the
// client is done, and wraps errMalformed if it does not speak HTTP/1.1.
func (r *reader) next() (*request, error) {
	r.headerBytes = 0
	line, err := r.line()
	if err != nil {
		return nil, err
	}
	if len(line) > maxRequestLine {
		return nil, fmt.Errorf("%w: request line of %d bytes", errMalformed, len(line))
	}
	method, rest, ok1 := bytes.Cut(line, []byte{' '})
	path, version, ok2 := bytes.Cut(rest, []byte{' '})
	minor, ok3 := bytes.CutPrefix(version, []byte("HTTP/1."))
	if !ok1 || !ok2 || !ok3 || len(minor) != 1 || len(method) == 0 || len(path) == 0 || path[0] != '/' {
		return nil, fmt.Errorf("%w: no request line", errMalformed)
	}
	old := minor[0] == '0'
	q := &r.req
	*q = request{
		method: append(q.method[:0], method...), path: append(q.path[:0], path...),
		contentType: q.contentType[:0], responseMode: q.responseMode[:0], errorType: q.errorType[:0], errorBody: q.errorBody[:0],
		closing: old,
	}
	hasLength := false
	err = r.fields(func(name, value []byte) error {
		switch {
		case is(name, "content-length"):
			n, err := strconv.ParseUint(string(value), 10, 63)
			if err != nil || hasLength && int64(n) != q.length {
				return fmt.Errorf("%w: content length %q", errMalformed, value)
			}
			q.length, hasLength = int64(n), true
		case is(name, "transfer-encoding"):
			if !is(value, "chunked") {
				return fmt.Errorf("%w: transfer encoding %q", errMalformed, value)
			}
			q.chunked = true
		case is(name, "connection"):
			q.closing = is(value, "close") || q.closing && !is(value, "keep-alive")
		case is(name, "expect"):
			q.expecting = is(value, "100-continue")
		case is(name, "content-type"):
			q.contentType = append(q.contentType[:0], value...)
		case is(name, "lambda-runtime-function-response-mode"):
			q.responseMode = append(q.responseMode[:0], value...)
		default:
			r.errorField(name, value)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if q.chunked && (hasLength || old) {
		return nil, fmt.Errorf("%w: transfer encoding with a content length or in HTTP/1.0", errMalformed)
	}
	r.left, r.ended = q.length, !q.chunked && q.length == 0
	return q, nil
}

// errorField takes what may be a header or a trailer.
func (r *reader) errorField(name, value []byte) {
	switch {
	case is(name, "lambda-runtime-function-error-type"):
		r.req.errorType = append(r.req.errorType[:0], value...)
	case is(name, "lambda-runtime-function-error-body"):
		r.req.errorBody = append(r.req.errorBody[:0], value...)
	}
}

// fields reads headers or trailers up to the empty line after them.
func (r *reader) fields(each func(name, value []byte) error) error {
	for {
		line, err := r.line()
		if err != nil {
			return unexpected(err)
		}
		if len(line) == 0 {
			return nil
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t") {
			return fmt.Errorf("%w: no header: %q", errMalformed, line[:min(len(line), 80)])
		}
		if err := each(name, bytes.Trim(value, " \t")); err != nil {
			return err
		}
	}
}

// line reads a line without its end. It is valid until the next is read.
func (r *reader) line() ([]byte, error) {
	r.long = r.long[:0]
	for {
		part, err := r.br.ReadSlice('\n')
		r.headerBytes += len(part)
		if r.headerBytes > maxHeaders {
			return nil, fmt.Errorf("%w: headers of over %d bytes", errMalformed, maxHeaders)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			r.long = append(r.long, part...)
			continue
		}
		if err != nil {
			if len(part)+len(r.long) > 0 {
				err = unexpected(err)
			}
			return nil, err
		}
		if len(r.long) > 0 {
			r.long = append(r.long, part...)
			part = r.long
		}
		return bytes.TrimSuffix(part[:len(part)-1], []byte{'\r'}), nil
	}
}

// Read reads the body of the request that next returned last. At its end, the
// trailers are in the request.
func (r *reader) Read(p []byte) (int, error) {
	if r.ended {
		return 0, io.EOF
	}
	if r.req.expecting {
		r.req.expecting = false
		if err := r.continueWith(); err != nil {
			return 0, err
		}
	}
	if r.left == 0 { // only between chunks
		if err := r.chunk(); err != nil {
			return 0, unexpected(err)
		}
		if r.ended {
			return 0, io.EOF
		}
	}
	n, err := r.br.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if err != nil {
		return n, unexpected(err)
	}
	if r.left == 0 {
		if !r.req.chunked {
			r.ended = true
			return n, nil
		}
		if err := r.chunkEnd(); err != nil {
			return n, unexpected(err)
		}
	}
	return n, nil
}

// chunk reads the head of the next chunk, and the trailers after the last.
func (r *reader) chunk() error {
	r.headerBytes = 0
	line, err := r.line()
	if err != nil {
		return err
	}
	size, _, _ := bytes.Cut(line, []byte{';'})
	n, err := strconv.ParseUint(string(bytes.TrimRight(size, " \t")), 16, 63)
	if err != nil || n > math.MaxInt64 {
		return fmt.Errorf("%w: size of a chunk: %q", errMalformed, line[:min(len(line), 80)])
	}
	r.left = int64(n)
	if n > 0 {
		return nil
	}
	r.ended = true
	return r.fields(func(name, value []byte) error {
		r.errorField(name, value)
		return nil
	})
}

// chunkEnd reads the line end after a chunk.
func (r *reader) chunkEnd() error {
	line, err := r.line()
	if err != nil {
		return err
	}
	if len(line) > 0 {
		return fmt.Errorf("%w: a chunk is longer than it says", errMalformed)
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// is reports whether a header's name or value is the given lower-case word.
func is(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != word[i] {
			return false
		}
	}
	return true
}
