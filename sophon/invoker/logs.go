package invoker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

const (
	// maxQueuedLines and maxQueuedLineBytes bound the log lines that wait for
	// the bus; more than that is dropped.
	maxQueuedLines     = 8192
	maxQueuedLineBytes = 16 << 20
	// gatherLines is how long lines wait for others: what a function writes in
	// that time goes into one record, which costs hardly more than that of one
	// line. maxRecordBytes ends the wait early.
	gatherLines    = 5 * time.Millisecond
	maxRecordBytes = 256 << 10
	// logRetry is the wait after the log could not be reached.
	logRetry = time.Second
)

// logWriter takes the lines that functions write to the log on the bus.
type logWriter struct {
	bus     bus.Bus
	options bus.LogOptions
	log     *slog.Logger
	dropped prometheus.Counter

	lines chan function.LogLine
	bytes atomic.Int64
	// lost counts dropped lines that the log itself was not told of.
	lost atomic.Int64
	// records are being gathered, by function. Only run uses them.
	records map[string]*logRecord
}

// logRecord is lines of one function, as JSON.
type logRecord struct {
	data  []byte
	lines int
}

func newLogWriter(b bus.Bus, o bus.LogOptions, log *slog.Logger, dropped prometheus.Counter) *logWriter {
	return &logWriter{bus: b, options: o, log: log, dropped: dropped, lines: make(chan function.LogLine, maxQueuedLines), records: map[string]*logRecord{}}
}

// write takes a line, and never blocks.
func (w *logWriter) write(l function.LogLine) {
	if w.bytes.Add(int64(len(l.Text))) <= maxQueuedLineBytes {
		select {
		case w.lines <- l:
			return
		default:
		}
	}
	w.bytes.Add(-int64(len(l.Text)))
	w.dropped.Inc()
	w.lost.Add(1)
}

// run writes until the context ends, and then what is there already.
func (w *logWriter) run(ctx context.Context) {
	var log bus.Log
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			w.drain(log)
			return
		case <-due:
			w.flush(log)
			due = nil
		case l := <-w.lines:
			if log == nil {
				if log = w.open(ctx); log == nil {
					w.dropped.Inc()
					continue
				}
			}
			w.add(log, l)
			if due == nil {
				due = time.After(gatherLines)
			}
		}
	}
}

// open opens the log, as long as the context lasts.
func (w *logWriter) open(ctx context.Context) bus.Log {
	for {
		log, err := w.bus.Log(ctx, wire.LogName, w.options)
		if err == nil {
			return log
		}
		if ctx.Err() != nil {
			return nil
		}
		w.log.Warn("cannot open the log of functions", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logRetry):
		}
	}
}

// drain writes the lines that are there, or counts them where there is no log.
func (w *logWriter) drain(log bus.Log) {
	for {
		select {
		case l := <-w.lines:
			if log == nil {
				w.dropped.Inc()
				continue
			}
			w.add(log, l)
		default:
			w.flush(log)
			return
		}
	}
}

// add puts a line into its function's record, after a note of what was lost
// before it.
func (w *logWriter) add(log bus.Log, l function.LogLine) {
	w.bytes.Add(-int64(len(l.Text)))
	r := w.records[l.Function]
	if r == nil {
		r = &logRecord{}
		w.records[l.Function] = r
	}
	if n := w.lost.Swap(0); n > 0 {
		r.add(function.LogLine{
			Time: l.Time, Function: l.Function, Container: l.Container, Stream: "platform",
			Text: fmt.Sprintf("%d log lines of this invoker's functions were dropped before this one: the log was slow", n),
		})
	}
	r.add(l)
	if len(r.data) > maxRecordBytes {
		w.flush(log)
	}
}

func (r *logRecord) add(l function.LogLine) {
	line, err := json.Marshal(l)
	if err != nil { // a time beyond the year 9999
		return
	}
	r.data = append(append(r.data, line...), '\n')
	r.lines++
}

// flush writes what was gathered.
func (w *logWriter) flush(log bus.Log) {
	for name, r := range w.records {
		if err := log.Append(wire.LogSubject(name), r.data); err != nil {
			w.dropped.Add(float64(r.lines))
			w.lost.Add(int64(r.lines))
		}
	}
	clear(w.records)
}
