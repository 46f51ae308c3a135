//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

const (
	// readBytes is how much is read from the function's output at once.
	readBytes = 64 << 10
	// drainReads bounds how often finish reads from an output that never runs
	// dry.
	drainReads = 32
)

// logs takes what the function writes, cuts it into lines and sends them to the
// host under the request id that runs. What is over the limits of an
// invocation is counted and dropped, so that a flood costs neither memory nor
// the time of others. It may be used concurrently.
type logs struct {
	enc                *frame.Encoder
	maxLines, maxBytes int
	outputs            [2]*output

	mu  sync.Mutex
	buf []byte
	// batch are the lines of the Log under construction.
	batch []byte
	id    string
	// lines and bytes were passed on, and the dropped were not, since begin.
	lines, bytes               int
	droppedLines, droppedBytes int
}

// output is one of the function's streams.
type output struct {
	stream frame.Stream
	// file is this end of the pipe; remote is the function's, until it runs.
	file, remote *os.File
	fd           int
	// part is a line whose end has not come yet.
	part   []byte
	closed bool
}

func newLogs(enc *frame.Encoder, maxLines, maxBytes int) (*logs, error) {
	l := &logs{enc: enc, maxLines: maxLines, maxBytes: maxBytes, buf: make([]byte, readBytes)}
	for i, stream := range []frame.Stream{frame.Stdout, frame.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("capture the function's output: %w", err)
		}
		raw, err := r.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("capture the function's output: %w", err)
		}
		o := &output{stream: stream, file: r, remote: w}
		if err := raw.Control(func(fd uintptr) { o.fd = int(fd) }); err != nil {
			return nil, fmt.Errorf("capture the function's output: %w", err)
		}
		l.outputs[i] = o
	}
	return l, nil
}

// remotes returns the function's standard output and standard error.
func (l *logs) remotes() (stdout, stderr *os.File) { return l.outputs[0].remote, l.outputs[1].remote }

// start closes the copies of the function's ends and begins to read.
func (l *logs) start() error {
	for _, o := range l.outputs {
		if err := o.remote.Close(); err != nil {
			return fmt.Errorf("capture the function's output: %w", err)
		}
		raw, err := o.file.SyscallConn()
		if err != nil {
			return fmt.Errorf("capture the function's output: %w", err)
		}
		go func() {
			// Each time there is something to read; the end of it is in o.
			_ = raw.Read(func(uintptr) bool {
				for l.read(o) {
				}
				return o.isClosed(l)
			})
		}()
	}
	return nil
}

// read takes what an output has, up to a buffer. It returns false if that was
// nothing, for now or for ever.
func (l *logs) read(o *output) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.closed {
		return false
	}
	// finish reads on its own behalf, so this cannot go through o.file, which
	// serves one reader at a time.
	n, err := syscall.Read(o.fd, l.buf)
	switch {
	case errors.Is(err, syscall.EINTR):
		return true
	case errors.Is(err, syscall.EAGAIN):
		return false
	case err != nil || n == 0:
		o.closed = true
		return false
	}
	l.split(o, l.buf[:n])
	return true
}

func (o *output) isClosed(l *logs) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return o.closed
}

// split cuts p into lines and sends them. The lock is held.
func (l *logs) split(o *output, p []byte) {
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		line := p[:i]
		if len(o.part) > 0 {
			o.part = l.long(append(o.part, line...))
			line = o.part
		}
		l.add(bytes.TrimSuffix(line, []byte{'\r'}))
		o.part = o.part[:0]
		p = p[i+1:]
	}
	o.part = l.long(append(o.part, p...))
	if cap(o.part) > 2*frame.MaxLine {
		o.part = bytes.Clone(o.part)
	}
	l.send(o.stream)
}

// long cuts pieces of MaxLine off the front of a line and returns the rest.
func (l *logs) long(line []byte) []byte {
	for len(line) > frame.MaxLine {
		l.add(line[:frame.MaxLine])
		line = append(line[:0], line[frame.MaxLine:]...)
	}
	return line
}

// add puts a line into the batch, or counts it. The lock is held.
func (l *logs) add(line []byte) {
	if l.lines >= l.maxLines || l.bytes+len(line) > l.maxBytes {
		l.lines = l.maxLines // a short line after a long one would look odd
		l.droppedLines++
		l.droppedBytes += len(line)
		return
	}
	l.lines++
	l.bytes += len(line)
	l.batch = frame.AppendLine(l.batch, line)
}

// send sends the batch. The lock is held. A host that is gone is noticed
// elsewhere.
func (l *logs) send(stream frame.Stream) {
	if len(l.batch) == 0 {
		return
	}
	_ = l.enc.Log(&frame.Log{Stream: stream, Time: time.Now().UnixMicro(), ID: l.id, Lines: l.batch})
	l.batch = l.batch[:0]
}

// begin starts the log of an invocation.
func (l *logs) begin(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	l.lines, l.bytes = 0, 0
}

// finish sends all that has been written so far, lines without an end too, and
// says what was dropped.
func (l *logs) finish() {
	l.drain()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.outputs {
		if len(o.part) > 0 {
			l.add(o.part)
			o.part = o.part[:0]
			l.send(o.stream)
		}
	}
	if l.droppedLines == 0 {
		return
	}
	note := fmt.Sprintf("%d lines (%d bytes) of log were dropped: an invocation may log %d lines and %d bytes",
		l.droppedLines, l.droppedBytes, l.maxLines, l.maxBytes)
	l.droppedLines, l.droppedBytes = 0, 0
	l.batch = frame.AppendLine(l.batch, []byte(note))
	l.send(frame.Platform)
}

// between ends the log of an invocation: what is written from now on has no
// request id.
func (l *logs) between() {
	l.drain()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = ""
}

// drain reads what the outputs have.
func (l *logs) drain() {
	for _, o := range l.outputs {
		for range drainReads {
			if !l.read(o) {
				break
			}
		}
	}
}
