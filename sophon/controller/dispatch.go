package controller

import (
	"runtime"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/wire"
)

// peer is an invoker as the leader knows it, with what is to be sent to it.
type peer struct {
	name string
	node *sophon.Node
	boot string
	// past is the boot before, whose belated reports are ignored.
	past string
	// taken is the highest report taken in without a gap; acked is what the
	// invoker was told of that.
	taken, acked uint64
	// heard is when it last reported, asked when it was last asked for a full
	// report, and synced when it last sent one.
	heard, asked, synced time.Time
	// lost is set where reports are missing: only a full one helps.
	lost      bool
	leaving   bool
	driver    string
	isolation string
	stale     uint64
	details   map[string]detail // by container

	// seq is the last message sent.
	seq     uint64
	runs    []outgoing
	cancels []string
	ends    []string
	resync  bool
	tick    bool // send even if there is nothing to say but acked
	// touched tells that it is in term.touched; sending, that somebody is
	// sending to it, who will look again afterwards.
	touched, sending bool
}

// outgoing is a Run and the placement that it carries out.
type outgoing struct {
	run       *wire.Run
	placement sophon.Placement
}

// maxBatchBytes bounds the runs in one message, unless it is only one.
const maxBatchBytes = 512 << 10

func (p *peer) pending() bool {
	return len(p.runs) > 0 || len(p.cancels) > 0 || len(p.ends) > 0 || p.resync || p.tick
}

// touch notes that a peer's outbox is not empty.
func (t *term) touch(p *peer) {
	if !p.touched {
		p.touched = true
		t.touched = append(t.touched, p)
	}
}

// message is one that is on its way.
type message struct {
	to  *peer
	msg *wire.ToInvoker
}

// take empties a peer's outbox into a message, as far as it fits.
func (t *term) take(p *peer) *wire.ToInvoker {
	p.seq++
	m := &wire.ToInvoker{Epoch: t.epoch, Seq: p.seq, Acked: p.taken, Cancel: p.cancels, End: p.ends, Resync: p.resync}
	size, n := 0, 0
	for n < len(p.runs) {
		r := p.runs[n].run
		size += len(r.Payload) + len(r.ClientContext) + len(r.Function) + 512
		if n > 0 && size > maxBatchBytes {
			break
		}
		n++
	}
	if n > 0 {
		m.Run = make([]*wire.Run, n)
		for i, o := range p.runs[:n] {
			m.Run[i] = o.run
			o.placement.Sent(p.seq)
		}
		rest := copy(p.runs, p.runs[n:])
		clear(p.runs[rest:])
		p.runs = p.runs[:rest]
	}
	p.acked = p.taken
	p.cancels, p.ends, p.resync, p.tick = nil, nil, false, false
	return m
}

// release unlocks the term and sends what is in the touched outboxes. While a
// peer is being sent to, others only fill its outbox, so that under load one
// message carries many runs, and without load none waits.
func (t *term) release() {
	if len(t.touched) == 0 {
		t.mu.Unlock()
		return
	}
	var few [4]message
	out := few[:0]
	for i, p := range t.touched {
		t.touched[i] = nil
		p.touched = false
		if !p.sending && p.pending() {
			p.sending = true
			out = append(out, message{p, t.take(p)})
		}
	}
	t.touched = t.touched[:0]
	t.mu.Unlock()
	for _, m := range out {
		t.send(m)
	}
	more := false
	t.mu.Lock()
	for _, m := range out {
		m.to.sending = false
		if m.to.pending() && !t.ended {
			t.touch(m.to)
			more = true
		}
	}
	t.mu.Unlock()
	if more {
		select {
		case t.backlog <- struct{}{}:
		default:
		}
	}
}

// gather is release for a caller that may be one of many: it lets those that
// are ready to run fill the outboxes first, so that under load messages carry
// many runs. Where there are no others it costs next to nothing.
func (t *term) gather() {
	if len(t.touched) > 0 {
		t.mu.Unlock()
		runtime.Gosched()
		t.mu.Lock()
	}
	t.release()
}

// send publishes one message. One that is lost is found out by the gap that
// the invoker sees at the next tick, and what it said is done again.
func (t *term) send(m message) {
	data, err := proto.Marshal(m.msg)
	if err == nil {
		err = t.c.cfg.Bus.Publish(wire.InvokerSubject(m.to.name), data)
	}
	if err != nil {
		t.c.log.Warn("a message to an invoker was not sent", "invoker", m.to.name, "seq", m.msg.Seq, "error", err)
	}
}

// runSender sends what has come while others were sending, until the term ends.
func (t *term) runSender() {
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-t.backlog:
			t.mu.Lock()
			t.release()
		}
	}
}

// askResync asks a peer for a full report, not more often than useful.
func (t *term) askResync(p *peer, now time.Time) {
	if now.Sub(p.asked) < resyncPatience && !p.asked.IsZero() {
		return
	}
	p.asked = now
	p.resync = true
	t.touch(p)
}

// resyncPatience is how long an answer to a request for a full report is
// waited for before it is repeated.
const resyncPatience = 250 * time.Millisecond
