package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

// Restore is what a guest is told when it goes on from a snapshot.
type Restore = frame.Restore

// Network is how a guest is on a network.
type Network = frame.Network

// errNotRestored says that a guest refused to go on from a snapshot: no event
// has reached its function.
var errNotRestored = errors.New("the guest could not be restored")

// Resume begins the conversation over conn, which it owns from now on, with a
// volley-init whose function was ready for an event when its virtual machine
// was written down. It tells volley-init what r says; a zero Time is the time
// at which it does, a zero Seed is drawn at random. It does not wait for the
// answer, so the first invocation may follow at once; if the guest cannot do
// what r says, that invocation fails with sandbox.ErrNotStarted and the Agent
// is broken. After an error conn is closed.
func Resume(ctx context.Context, conn Conn, r Restore, opts Options) (*Agent, error) {
	now := time.Now()
	a := newAgent(conn, opts)
	a.started, a.ready = now, now
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("resume function %s: %w", opts.Function.Name, context.Cause(ctx)), conn.Close())
	}
	if r.Seed == [frame.SeedBytes]byte{} {
		rand.Read(r.Seed[:]) // never fails
	}
	if r.Time == 0 {
		r.Time = time.Now().UnixNano()
	}
	// The stream is empty and takes so little at once.
	if err := a.enc.Restore(&r); err != nil {
		return nil, errors.Join(fmt.Errorf("resume function %s: %w", opts.Function.Name, err), conn.Close())
	}
	go a.read()
	return a, nil
}

// Quiesce waits until nothing is under way in a sandbox that runs no
// invocation: the function waits for an event, and all that it has logged has
// arrived. Then its virtual machine can be written down. An event undoes it. It is
// called by one goroutine at a time.
func (a *Agent) Quiesce(ctx context.Context) error {
	number := a.quiesced.Add(1)
	if err := a.enc.Quiesce(&frame.Quiesce{Number: number}); err != nil {
		return fmt.Errorf("quiesce sandbox: %w", err)
	}
	for {
		select {
		case q := <-a.quiet:
			if q.Number == number {
				return nil
			} // else nobody waited for it
		case <-a.done:
			return fmt.Errorf("quiesce sandbox: volley-init ended: %w", a.readErr)
		case <-ctx.Done():
			return fmt.Errorf("quiesce sandbox: %w", context.Cause(ctx))
		}
	}
}

// quieted passes on that the guest is quiet. Of several answers that nobody has
// taken, the one to the newest question counts. Only the reader calls it, so
// there is always room.
func (a *Agent) quieted(q frame.Quiet) {
	select {
	case old := <-a.quiet:
		if old.Number > q.Number {
			q = old
		}
	default:
	}
	a.quiet <- q
}
