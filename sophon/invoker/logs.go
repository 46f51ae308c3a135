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
}

func newLogWriter(b bus.Bus, o bus.LogOptions, log *slog.Logger, dropped prometheus.Counter) *logWriter {
	return &logWriter{bus: b, options: o, log: log, dropped: dropped, lines: make(chan function.LogLine, maxQueuedLines)}
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
	for {
		select {
		case <-ctx.Done():
			w.drain(log)
			return
		case l := <-w.lines:
			if log == nil {
				if log = w.open(ctx); log == nil {
					w.dropped.Inc()
					continue
				}
			}
			w.append(log, l)
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
			w.append(log, l)
		default:
			return
		}
	}
}

func (w *logWriter) append(log bus.Log, l function.LogLine) {
	w.bytes.Add(-int64(len(l.Text)))
	if n := w.lost.Swap(0); n > 0 {
		note := function.LogLine{
			Time: l.Time, Function: l.Function, Container: l.Container, Stream: "platform",
			Text: fmt.Sprintf("%d log lines of this invoker's functions were dropped before this one: the log was slow", n),
		}
		if !w.put(log, note) {
			w.lost.Add(n)
		}
	}
	if !w.put(log, l) {
		w.dropped.Inc()
		w.lost.Add(1)
	}
}

func (w *logWriter) put(log bus.Log, l function.LogLine) bool {
	data, err := json.Marshal(l)
	if err != nil { // a time beyond the year 9999
		return false
	}
	return log.Append(wire.LogSubject(l.Function), data) == nil
}
