package controller

import (
	"time"

	"github.com/volley-run/volley/sophon/wire"
)

// Bounds of what is kept of results that nobody waits for.
const (
	orphanAge   = time.Minute
	orphanBytes = 64 << 20
)

// orphan is a result without a call: its invocation was accepted by an earlier
// leader, or was given up. An asynchronous one comes back through the queue,
// and then need not run again.
type orphan struct {
	result  *wire.Result
	invoker string
	at      time.Time
}

type orphans struct {
	results map[string]orphan
	bytes   int
	// settled are asynchronous invocations whose attempt has ended here, so
	// that its result, which invokers repeat until they are told that it came,
	// is not taken for that of the next attempt. older is the same of the
	// minute before.
	settled, older map[string]bool
	turned         time.Time
}

func (o *orphans) add(res *wire.Result, invoker string) {
	if o.settled[res.RequestId] || o.older[res.RequestId] {
		return
	}
	if old, ok := o.results[res.RequestId]; ok {
		o.bytes -= len(old.result.Payload)
	}
	if o.bytes+len(res.Payload) > orphanBytes {
		delete(o.results, res.RequestId)
		return
	}
	o.results[res.RequestId] = orphan{res, invoker, time.Now()}
	o.bytes += len(res.Payload)
}

func (o *orphans) take(id string) (orphan, bool) {
	r, ok := o.results[id]
	if ok {
		delete(o.results, id)
		o.bytes -= len(r.result.Payload)
	}
	return r, ok
}

func (o *orphans) settle(id string) {
	if o.settled == nil {
		o.settled = map[string]bool{}
	}
	o.settled[id] = true
}

// purge forgets what is old.
func (o *orphans) purge(now time.Time) {
	for id, r := range o.results {
		if now.Sub(r.at) > orphanAge {
			o.take(id)
		}
	}
	if now.Sub(o.turned) > orphanAge {
		o.older, o.settled, o.turned = o.settled, nil, now
	}
}

// takeOver spares a redelivered asynchronous invocation from being run again:
// where it has ended meanwhile, the call ends too, and where it runs for an
// earlier leader, the call waits for that.
func (t *term) takeOver(k *call, rev *revision) bool {
	if o, ok := t.orphans.take(k.inv.ID); ok {
		t.add(k, rev)
		t.complete(k, o.result, o.invoker)
		return true
	}
	if t.foreign[k.inv.ID] == nil {
		return false
	}
	k.adopted = true
	t.add(k, rev)
	return true
}

// loseForeign fails the call, if there is one, of a request that ran for an
// earlier leader on an invoker that does not know it any more.
func (t *term) loseForeign(id string) {
	at := t.foreign[id]
	delete(t.foreign, id)
	if k := t.calls[id]; k != nil && k.adopted {
		t.finish(k, lostOn(at.name, k.inv.Function))
	}
}

// forgetForeign drops requests that a full report does not list any more.
func (t *term) forgetForeign(p *peer, r *wire.Report) {
	var runs map[string]bool
	for id, at := range t.foreign {
		if at != p {
			continue
		}
		if runs == nil {
			runs = map[string]bool{}
			for _, ch := range r.Changes {
				runs[ch.RequestId] = true
			}
		}
		if !runs[id] {
			t.loseForeign(id)
		}
	}
}
