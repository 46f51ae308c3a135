package invoker

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/wire"
)

const (
	// envelopeBytes is what a report may take beside its letters and changes.
	envelopeBytes = 64 << 10
	// changeBytes is what a change takes beside its names, roughly.
	changeBytes = 96
)

// reportLoop reports whenever there is something to say, and at least once in
// a ping's time; finally, when the context ends, a last time. What comes up
// while a report is on its way goes with the next one.
func (v *Invoker) reportLoop(ctx context.Context) {
	timer := time.NewTimer(0) // the first report is due at once
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			v.report()
			flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
			defer cancel()
			if err := v.config.Bus.Flush(flush); err != nil {
				v.log.Warn("cannot flush the last report", "error", err)
			}
			return
		case <-v.wake:
		case <-timer.C:
		}
		v.report()
		timer.Reset(v.config.Ping)
	}
}

// report tells the controller all that it was not told.
func (v *Invoker) report() {
	for _, r := range v.compose() {
		data, err := proto.Marshal(r)
		if err == nil {
			err = v.config.Bus.Publish(wire.ReportSubject, data)
		}
		if err != nil {
			// The next report, after a ping's time or when the bus is there
			// again, tells everything.
			v.log.Warn("cannot report to the controller", "error", err)
			v.mu.Lock()
			v.outbox.full = true
			v.mu.Unlock()
			return
		}
	}
}

// compose makes the reports that are due.
func (v *Invoker) compose() []*wire.Report {
	v.mu.Lock()
	defer v.mu.Unlock()
	full := v.outbox.full
	var changes []*wire.Change
	size := 0
	if full {
		changes = v.snapshot()
	} else {
		changes = wireChanges(v.pool.Changes())
	}
	for _, c := range changes {
		size += changeBytes + len(c.GetContainer()) + len(c.GetFunctionKey()) + len(c.GetRequestId())
	}
	// Letters and changes that are too much for one message go apart.
	room := v.maxPayload - size
	apart := room < 0
	if apart || room < v.maxPayload/2 {
		room = v.maxPayload / 2
	}
	reports := v.outbox.take(time.Now(), room)
	last := reports[len(reports)-1]
	if full || !apart {
		last.Changes = changes
	} else {
		reports, last = v.spread(reports, changes)
	}
	for _, r := range reports {
		r.Invoker, r.Boot, r.Epoch, r.Seen = v.config.Name, v.boot, v.epoch, v.seen
		r.Leaving, r.CapacityMb = v.leaving, v.config.CapacityMB
	}
	if full {
		last.Driver, last.Isolation = v.config.Driver.Name(), v.config.Driver.Isolation()
	}
	return reports
}

// spread puts changes that are too many for one report into further ones.
func (v *Invoker) spread(reports []*wire.Report, changes []*wire.Change) ([]*wire.Report, *wire.Report) {
	last := reports[len(reports)-1]
	size := 0
	for _, c := range changes {
		n := changeBytes + len(c.GetContainer()) + len(c.GetFunctionKey()) + len(c.GetRequestId())
		if size += n; size > v.maxPayload/2 {
			v.outbox.seq++
			last = &wire.Report{Seq: v.outbox.seq}
			reports = append(reports, last)
			size = n
		}
		last.Changes = append(last.Changes, c)
	}
	return reports, last
}

// snapshot describes every container there is.
func (v *Invoker) snapshot() []*wire.Change {
	changes := wireChanges(v.pool.Snapshot())
	for _, ch := range changes {
		if c := v.containers[ch.GetContainer()]; c != nil {
			ch.RssBytes = c.rssBytes
		}
	}
	return changes
}

func wireChanges(changes []sophon.Change) []*wire.Change {
	if len(changes) == 0 {
		return nil
	}
	out := make([]*wire.Change, len(changes))
	all := make([]wire.Change, len(changes))
	for i := range changes {
		ch, w := &changes[i], &all[i]
		w.Container, w.State, w.RequestId = ch.Container, wire.State(ch.State), ch.Job
		w.MemoryMb, w.ColdNano = ch.MemoryMB, int64(ch.Cold)
		if ch.Function != nil {
			w.FunctionKey = ch.Function.Key
		}
		if !ch.Made.IsZero() {
			w.UsedUnixNano, w.MadeUnixNano, w.Uses = ch.Used.UnixNano(), ch.Made.UnixNano(), int64(ch.Uses)
		}
		out[i] = w
	}
	return out
}
