package agent

import (
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// logger puts the lines of the function and of the platform in one order,
// passes them on, and keeps the last of them where they were asked for.
type logger struct {
	opts Options

	mu sync.Mutex
	// wanted says that last is kept; request and initDuration are the running
	// invocation's.
	wanted       bool
	last         []byte
	request      string
	initDuration time.Duration
}

func newLogger(opts Options) *logger { return &logger{opts: opts} }

// lines takes what the function wrote.
func (l *logger) lines(lines frame.Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on() {
		return
	}
	at := time.UnixMicro(lines.Time)
	stream := streamName(lines.Stream)
	for line, rest, ok := frame.Line(lines.Lines); ok; line, rest, ok = frame.Line(rest) {
		l.write(at, lines.ID, stream, strings.ToValidUTF8(string(line), "\uFFFD"))
	}
}

func streamName(s frame.Stream) string {
	switch s {
	case frame.Stdout:
		return "stdout"
	case frame.Stderr:
		return "stderr"
	}
	return "platform"
}

// begin opens the log of an invocation. initDuration is not 0 for the first.
func (l *logger) begin(req sandbox.Request, initDuration time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = req.LogTail
	l.last = l.last[:0]
	l.request, l.initDuration = req.ID, initDuration
	if l.on() {
		l.platform("START RequestId: " + req.ID + " Version: " + function.LatestVersion)
	}
}

// end writes the platform's report on the invocation.
func (l *logger) end(run time.Duration, peakBytes int64, failed *functionError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on() {
		return
	}
	if failed != nil && failed.platform {
		l.platform(failed.Message)
	}
	l.platform("END RequestId: " + l.request)
	ms := float64(run) / float64(time.Millisecond)
	var b []byte
	b = append(b, "REPORT RequestId: "...)
	b = append(b, l.request...)
	b = append(b, "\tDuration: "...)
	b = strconv.AppendFloat(b, ms, 'f', 2, 64)
	b = append(b, " ms\tBilled Duration: "...)
	b = strconv.AppendInt(b, int64(math.Ceil(ms)), 10)
	b = append(b, " ms\tMemory Size: "...)
	b = strconv.AppendInt(b, int64(l.opts.Function.MemoryMB), 10)
	b = append(b, " MB\tMax Memory Used: "...)
	b = strconv.AppendInt(b, (peakBytes+(1<<20)-1)>>20, 10)
	b = append(b, " MB"...)
	if l.initDuration > 0 {
		b = append(b, "\tInit Duration: "...)
		b = strconv.AppendFloat(b, float64(l.initDuration)/float64(time.Millisecond), 'f', 2, 64)
		b = append(b, " ms"...)
	}
	if failed != nil && failed.platform {
		if failed.Type == typeTimeout {
			b = append(b, "\tStatus: timeout"...)
		} else {
			b = append(b, "\tStatus: error\tError Type: "...)
			b = append(b, failed.Type...)
		}
	}
	l.platform(string(b))
}

// on reports whether anybody wants lines. The lock is held.
func (l *logger) on() bool { return l.wanted || l.opts.Log != nil }

func (l *logger) platform(text string) { l.write(time.Now(), l.request, "platform", text) }

// write passes a line on. The lock is held.
func (l *logger) write(at time.Time, request, stream, text string) {
	if l.wanted {
		l.last = append(append(l.last, text...), '\n')
		// Moving bytes at every line would cost more than some room.
		if len(l.last) > 4*function.MaxLogTailBytes {
			l.last = append(l.last[:0], lastBytes(l.last)...)
		}
	}
	if l.opts.Log != nil {
		l.opts.Log(function.LogLine{
			Time: at, Function: l.opts.Function.Name, Container: l.opts.Container,
			Request: request, Stream: stream, Text: text,
		})
	}
}

func lastBytes(b []byte) []byte { return b[max(0, len(b)-function.MaxLogTailBytes):] }

// keepTail begins or ends keeping the last lines.
func (l *logger) keepTail(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = yes
	if !yes {
		l.last = nil
	}
}

// tail returns the last 4 KiB of what was kept.
func (l *logger) tail() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]byte(nil), lastBytes(l.last)...)
}

// takeTail is tail, or nil if it was not asked for, and ends keeping lines.
func (l *logger) takeTail() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.wanted {
		return nil
	}
	l.wanted = false
	return append([]byte(nil), lastBytes(l.last)...)
}
