package invoker

import (
	"time"

	"github.com/volley-run/volley/sophon/wire"
)

const (
	// maxVolatileAge and maxVolatileBytes bound what is kept that need not be
	// durable, after it was reported and until it is acknowledged.
	maxVolatileAge   = 30 * time.Second
	maxVolatileBytes = 64 << 20
	// letterBytes is what a letter takes beside its payload, roughly.
	letterBytes = 256
)

// letter is one result or refusal for the controller.
type letter struct {
	result  *wire.Result
	refusal *wire.Refusal
	durable bool
	report  uint64 // the report that it last went with; 0 if none yet
	sent    time.Time
}

func (l *letter) request() string {
	if l.result != nil {
		return l.result.GetRequestId()
	}
	return l.refusal.GetRequestId()
}

// sizeBytes is about what it takes in a report.
func (l *letter) sizeBytes() int {
	if l.result == nil {
		return letterBytes + len(l.refusal.GetReason())
	}
	return letterBytes + len(l.result.GetPayload()) + len(l.result.GetLogTail()) + len(l.result.GetError())
}

// outbox is what the controller is to be told, and what it was told but has
// not acknowledged. The zero value is empty; the Invoker's mutex guards it.
type outbox struct {
	full  bool   // the next report is a full one
	stale uint32 // since the last report
	seq   uint64 // of the last report

	// letters are in the order of their reports; those from unsent on went
	// with none yet. Removed ones are nil.
	letters  []*letter
	unsent   int
	results  map[string]*letter // by request
	refusals int                // among the letters
	// volatileBytes is the size of what is kept and not durable.
	volatileBytes int
}

func (o *outbox) result(r *wire.Result, durable bool) {
	l := &letter{result: r, durable: durable}
	if o.results == nil {
		o.results = map[string]*letter{}
	}
	o.results[r.GetRequestId()] = l
	o.add(l)
}

func (o *outbox) refusal(r *wire.Refusal, durable bool) {
	o.refusals++
	o.add(&letter{refusal: r, durable: durable})
}

// retract drops the refusals of a request that was sent again: it is not to be
// taken for refused a second time.
func (o *outbox) retract(request string) {
	if o.refusals == 0 {
		return
	}
	for i, l := range o.letters {
		if l != nil && l.refusal != nil && l.request() == request {
			o.drop(i)
		}
	}
}

func (o *outbox) add(l *letter) {
	if !l.durable {
		o.volatileBytes += l.sizeBytes()
	}
	o.letters = append(o.letters, l)
}

// again has a kept result reported once more. It reports whether there is one.
func (o *outbox) again(request string) bool {
	l := o.results[request]
	if l == nil {
		return false
	}
	for i, have := range o.letters[:o.unsent] {
		if have == l {
			o.letters[i] = nil
			l.report = 0
			o.letters = append(o.letters, l)
			break
		}
	}
	return true
}

// acknowledge drops what went with reports up to seq. A number beyond the last
// report is meant for an earlier boot.
func (o *outbox) acknowledge(seq uint64) {
	if seq > o.seq {
		return
	}
	n := 0
	for ; n < o.unsent; n++ {
		l := o.letters[n]
		if l != nil && l.report > seq {
			break
		}
		o.drop(n)
	}
	o.shift(n)
}

// drop removes the letter at an index.
func (o *outbox) drop(i int) {
	l := o.letters[i]
	if l == nil {
		return
	}
	o.letters[i] = nil
	if l.result != nil && o.results[l.request()] == l {
		delete(o.results, l.request())
	}
	if l.refusal != nil {
		o.refusals--
	}
	if !l.durable {
		o.volatileBytes -= l.sizeBytes()
	}
}

// shift removes the first n places, which are empty.
func (o *outbox) shift(n int) {
	o.letters = o.letters[n:]
	o.unsent -= n
	if len(o.letters) == 0 {
		o.letters = nil
	}
}

// trim drops what was reported, need not be durable, and is too old or too
// much to be kept for an acknowledgement.
func (o *outbox) trim(now time.Time) {
	kept := o.letters[:0]
	unsent := 0
	for i, l := range o.letters {
		sent := i < o.unsent
		if l != nil && sent && !l.durable && (o.volatileBytes > maxVolatileBytes || now.Sub(l.sent) > maxVolatileAge) {
			o.drop(i)
			l = nil
		}
		if l == nil {
			continue
		}
		kept = append(kept, l)
		if sent {
			unsent++
		}
	}
	clear(o.letters[len(kept):])
	o.letters, o.unsent = kept, unsent
}

// take numbers the next reports and fills them with what is to be told: at
// least one, and each with at most budget bytes of letters, except that one
// letter always fits. Whatever else is to be told goes with the last one: a
// container's change never precedes the result that it comes from. After a
// full report's turn everything that is kept was told again.
func (o *outbox) take(now time.Time, budget int) []*wire.Report {
	if o.full {
		o.unsent = 0
	}
	o.seq++
	report := &wire.Report{Seq: o.seq}
	reports := []*wire.Report{report}
	size := 0
	for _, l := range o.letters[o.unsent:] {
		if l == nil {
			continue
		}
		if n := l.sizeBytes(); size > 0 && size+n > budget {
			o.seq++
			report = &wire.Report{Seq: o.seq}
			reports = append(reports, report)
			size = 0
		}
		size += l.sizeBytes()
		l.report, l.sent = report.GetSeq(), now
		if l.result != nil {
			report.Results = append(report.Results, l.result)
		} else {
			report.Refusals = append(report.Refusals, l.refusal)
		}
	}
	o.unsent = len(o.letters)
	report.Stale, o.stale = o.stale, 0
	report.Full, o.full = o.full, false
	if o.volatileBytes > maxVolatileBytes {
		o.trim(now)
	}
	return reports
}
