//go:build unix

package main

import (
	"errors"
	"sync"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// heldBack is how long the report of an error waits for what the runtime does
// after it: ask for the next event, or end, as many do after a panic. The host
// then knows whether the sandbox can go on.
const heldBack = 100 * time.Millisecond

// heldBackEmulated is the same in a virtual machine, whose processor may be
// emulated: there, a runtime takes long to end.
const heldBackEmulated = time.Second

// session is the life of one function: the events it gets and what it says.
type session struct {
	boot frame.Boot
	enc  *frame.Encoder
	logs *logs
	// restorer is set in a virtual machine.
	restorer *restorer
	// clockSet says that the machine's clock is the host's; one that was booted
	// starts with one that is up to a second behind.
	clockSet bool

	// events has the event that waits for the function to ask for it.
	events chan *invocation
	// ending takes the first reason to end; over is closed then.
	ending chan frame.Exit
	over   chan struct{}

	mu sync.Mutex
	// ready says that the function has asked for an event.
	ready bool
	// timer ends the initialisation, and later the current invocation.
	timer   *time.Timer
	current *invocation
	// reporting counts ends of invocations that are not reported yet, nor held:
	// the end of the function comes after them.
	reporting sync.WaitGroup
	// held is an error that is not reported yet; heldTimer reports it.
	held      *frame.Reply
	heldTimer *time.Timer
	isOver    bool
	// waiting says that the function waits for an event, quiescing, if it is
	// not nil, that the host waits for that.
	waiting   bool
	quiescing *frame.Quiesce
	// instance is the id of the restored machine and network its network, if it
	// is on one, until an event takes them.
	instance string
	network  *frame.Network
}

// invocation is an event under way.
type invocation struct {
	frame.Event
	// due is when it is to be ended.
	due time.Time
	// taken says that the function has got it.
	taken bool
	// instance is the id of the machine, and network its network, if it was
	// restored since the event before.
	instance string
	network  *frame.Network
	// streaming says that a streamed answer has begun.
	streaming bool
}

func newSession(boot frame.Boot, enc *frame.Encoder, logs *logs) *session {
	s := &session{
		boot: boot, enc: enc, logs: logs,
		events: make(chan *invocation, 1),
		ending: make(chan frame.Exit, 1),
		over:   make(chan struct{}),
	}
	s.timer = time.AfterFunc(boot.InitTimeout, s.timeUp)
	return s
}

// listen acts on what the host says until it is gone.
func (s *session) listen(dec *frame.Decoder) {
	owed := false // an answer to a Restore, which can wait for an event after it
	for {
		if owed && !dec.Buffered() {
			owed = false
			_ = s.enc.Encode(frame.TypeRestored, nil)
		}
		t, body, err := dec.Next()
		if err != nil {
			s.end(frame.Exit{Reason: frame.ReasonShutdown, Detail: "the host is gone"})
			return
		}
		switch t {
		case frame.TypeEvent:
			ev, err := frame.ParseEvent(body)
			if err != nil {
				s.end(frame.Exit{Reason: frame.ReasonShutdown, Detail: err.Error()})
				return
			}
			ev.ClientContext = dec.Keep(ev.ClientContext)
			ev.Payload = dec.Keep(ev.Payload)
			if s.restorer != nil && !s.clockSet {
				s.clockSet = true
				// As much as is known about the time: what cannot be set stays.
				_ = sys.SetClock(time.UnixMicro(ev.Deadline - ev.Budget))
			}
			s.arrive(&invocation{Event: ev})
		case frame.TypeRestore:
			if err := s.restored(body); err != nil {
				_ = s.enc.Encode(frame.TypeRestored, []byte(err.Error()))
				s.end(frame.Exit{Reason: frame.ReasonShutdown, Detail: err.Error()})
				return
			}
			owed = true
		case frame.TypeQuiesce:
			q, err := frame.ParseQuiesce(body)
			if err != nil {
				s.end(frame.Exit{Reason: frame.ReasonShutdown, Detail: err.Error()})
				return
			}
			s.quiesce(q)
		case frame.TypeCancel:
			s.cancel(string(body))
		case frame.TypeShutdown:
			s.end(frame.Exit{Reason: frame.ReasonShutdown})
		}
	}
}

// arrive makes an event the current invocation.
func (s *session) arrive(inv *invocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isOver || s.current != nil {
		return // the host does not send a second one before the answer to the first
	}
	s.current = inv
	inv.instance, s.instance = s.instance, ""
	inv.network, s.network = s.network, nil
	budget := time.Duration(inv.Budget) * time.Microsecond
	inv.due = time.Now().Add(budget)
	s.timer.Reset(budget)
	s.events <- inv
}

func (s *session) cancel(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && s.current.ID == id {
		s.endLocked(frame.Exit{Reason: frame.ReasonCanceled})
	}
}

// timeUp ends a function that took too long. The timer may have been late
// itself: an answer that was first counts.
func (s *session) timeUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.ready:
		s.endLocked(frame.Exit{Reason: frame.ReasonInitTimeout})
	case s.current != nil && !time.Now().Before(s.current.due):
		s.endLocked(frame.Exit{Reason: frame.ReasonDeadline})
	}
}

// errOver says that the function is being ended.
var errOver = errors.New("the sandbox is being shut down")

// errOutOfTurn says that the runtime asked for an event while it had one.
var errOutOfTurn = errors.New("the runtime has not answered its event yet")

// next returns the next event for the function, waiting for it.
func (s *session) next() (*invocation, error) {
	s.mu.Lock()
	if s.isOver {
		s.mu.Unlock()
		return nil, errOver
	}
	if s.current != nil && s.current.taken {
		s.mu.Unlock()
		return nil, errOutOfTurn
	}
	first := !s.ready
	if first {
		s.ready = true
		if s.current == nil {
			s.timer.Stop()
		}
	}
	s.mu.Unlock()
	s.release(false)
	s.logs.between()
	if first {
		if err := s.enc.Encode(frame.TypeReady, nil); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.waiting = true
	quiet := s.quiescing != nil && s.current == nil
	s.mu.Unlock()
	if quiet {
		s.quiet()
	}
	select {
	case inv := <-s.events:
		s.mu.Lock()
		inv.taken = true
		s.waiting = false
		s.mu.Unlock()
		s.logs.begin(inv.ID)
		return inv, nil
	case <-s.over:
		return nil, errOver
	}
}

// giveBack makes an event that could not be delivered wait for the next time
// that the function asks.
func (s *session) giveBack(inv *invocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == inv {
		inv.taken = false
		s.events <- inv
	}
}

// running returns the invocation with the given id if the function has it and
// has not begun to answer it.
func (s *session) running(id []byte) *invocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if inv := s.current; inv != nil && inv.taken && !inv.streaming && inv.ID == string(id) {
		return inv
	}
	return nil
}

// answer reports the whole answer to inv. It returns false if that comes too
// late.
func (s *session) answer(inv *invocation, contentType string, payload []byte) bool {
	if !s.complete(inv) {
		return false
	}
	defer s.reporting.Done()
	s.logs.finish()
	s.report(frame.TypeResponse, &frame.Reply{ID: inv.ID, Kind: contentType, Payload: payload})
	return true
}

// fail reports an error instead of an answer. payload must not change after.
func (s *session) fail(inv *invocation, kind string, payload []byte) bool {
	if !s.complete(inv) {
		return false
	}
	defer s.reporting.Done()
	s.logs.finish()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = &frame.Reply{ID: inv.ID, Kind: kind, Payload: payload}
	wait := heldBack
	if s.restorer != nil {
		wait = heldBackEmulated
	}
	s.heldTimer = time.AfterFunc(wait, func() { s.release(false) })
	return true
}

// release reports the error that is held back, if one is.
func (s *session) release(broken bool) {
	s.mu.Lock()
	held := s.held
	s.held = nil
	s.mu.Unlock()
	if held == nil {
		return
	}
	s.heldTimer.Stop()
	held.Broken = broken
	s.report(frame.TypeError, held)
}

// beginStream reports that a streamed answer begins.
func (s *session) beginStream(inv *invocation, contentType string) bool {
	s.mu.Lock()
	ok := s.current == inv && !inv.streaming && !s.isOver
	if ok {
		inv.streaming = true
	}
	s.mu.Unlock()
	if ok {
		s.report(frame.TypeStreamHead, &frame.Reply{ID: inv.ID, Kind: contentType})
	}
	return ok
}

// piece reports the next bytes of a streamed answer.
func (s *session) piece(inv *invocation, p []byte) {
	s.report(frame.TypeStreamPiece, &frame.Reply{ID: inv.ID, Payload: p})
}

// endStream reports the end of a streamed answer, with an error if kind is not
// empty.
func (s *session) endStream(inv *invocation, kind string, payload []byte) {
	if s.complete(inv) {
		defer s.reporting.Done()
		s.logs.finish()
		s.report(frame.TypeStreamEnd, &frame.Reply{ID: inv.ID, Kind: kind, Payload: payload})
	}
}

// complete ends inv, unless something else has. The caller reports that, and
// tells reporting.
func (s *session) complete(inv *invocation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != inv || s.isOver {
		return false
	}
	s.timer.Stop()
	s.current = nil
	s.reporting.Add(1) // before the end, which waits
	return true
}

// failInit reports that the function could not be initialised. It returns
// false if it is initialised.
func (s *session) failInit(kind string, payload []byte) bool {
	s.mu.Lock()
	ok := !s.ready && !s.isOver
	s.mu.Unlock()
	if !ok {
		return false
	}
	s.logs.finish()
	s.report(frame.TypeInitError, &frame.Reply{Kind: kind, Payload: payload})
	s.end(frame.Exit{Reason: frame.ReasonInitError})
	return true
}

// report tells the host. A host that is gone is noticed by listen.
func (s *session) report(t frame.Type, r *frame.Reply) { _ = s.enc.Reply(t, r) }

// processEnded is called when the function's process has ended.
func (s *session) processEnded(e frame.Exit) {
	if e.Killed && s.restorer != nil {
		// The whole machine is the function's, and so is its memory. Without an
		// answer it was killed by somebody.
		kills, err := sys.OOMKills()
		e.OutOfMemory = err == nil && kills > 0
	}
	s.end(e)
}

// end ends the session; the first reason counts.
func (s *session) end(e frame.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(e)
}

func (s *session) endLocked(e frame.Exit) {
	if s.isOver {
		return
	}
	s.isOver = true
	s.timer.Stop()
	if s.current != nil {
		e.ID, e.Unseen = s.current.ID, !s.current.taken
	}
	s.ending <- e
	close(s.over)
}

// finish waits for a reason to end, ends the function and all that it started,
// and tells the host.
func (s *session) finish(f *functionProcess) error {
	e := <-s.ending
	gone := make(chan error, 1)
	// The host may be slow to take the rest of the log: that must not keep the
	// function alive.
	go func() { gone <- f.killAll(s.boot.Grace) }()
	s.logs.finish()
	s.reporting.Wait()
	s.release(true)
	// A host that is gone is a reason to end, and no fault.
	_ = s.enc.JSON(frame.TypeExited, e)
	return <-gone
}
