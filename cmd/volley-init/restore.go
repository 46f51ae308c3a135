//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// restorer makes a machine that goes on from a snapshot one of its own. What it
// does is a part of how long an invocation takes.
type restorer struct {
	// instance takes the machine's id; it is open, which saves time later.
	instance *os.File
}

// newRestorer is called once the machine's root is there.
func newRestorer() (*restorer, error) {
	f, err := os.OpenFile(instanceFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("keep the machine's id: %w", err)
	}
	return &restorer{instance: f}, nil
}

// restore does what the host says about a restored machine.
func (r *restorer) restore(to *frame.Restore) error {
	if err := sys.SetClock(time.Unix(0, to.Time)); err != nil {
		return err
	}
	if err := sys.AddEntropy(to.Seed[:]); err != nil {
		return err
	}
	fd := int(r.instance.Fd())
	if _, err := syscall.Pwrite(fd, []byte(to.ID), 0); err != nil {
		return fmt.Errorf("keep the machine's id: %w", err)
	}
	if err := syscall.Ftruncate(fd, int64(len(to.ID))); err != nil {
		return fmt.Errorf("keep the machine's id: %w", err)
	}
	return nil
}

// errNoID says that a restored machine was given no id of its own.
var errNoID = errors.New("the restored machine has no id")

// restored acts on a Restore. After an error the session is over: a copy that
// draws the same random numbers as another must not serve anybody. Outside a
// virtual machine clock and random numbers are the host's.
func (s *session) restored(body []byte) error {
	to, err := frame.ParseRestore(body)
	if err == nil && !validID(to.ID) {
		err = errNoID
	}
	if err == nil && s.restorer != nil {
		err = s.restorer.restore(&to)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instance = to.ID
	return nil
}

// validID says whether an id can be told in a header.
func validID(id string) bool {
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return id != ""
}

// quiesce answers a Quiesce once nothing is under way.
func (s *session) quiesce(q frame.Quiesce) {
	s.mu.Lock()
	s.quiescing = &q
	now := s.waiting && s.current == nil
	s.mu.Unlock()
	if now {
		s.quiet()
	}
}

// keepFreeBytes is how much memory is left to the kernel while the rest of what
// is free is made zero, so that it need not drop caches for that.
const keepFreeBytes = 48 << 20

// quiet answers a Quiesce, if there is one. The function waits for an event.
func (s *session) quiet() {
	s.mu.Lock()
	asked := s.quiescing
	s.quiescing = nil
	s.mu.Unlock()
	if asked == nil {
		return
	}
	s.logs.finish()
	// What this process does not need any more need not be in a snapshot.
	debug.FreeOSMemory()
	if s.restorer != nil {
		// What was in use once takes room in a snapshot, and is read for nothing
		// when the guest gives it out again (thesis 5.3.5). A guest that cannot
		// is as good, only larger.
		_ = sys.ZeroFreeMemory(keepFreeBytes)
	}
	free, err := sys.FreeMemory()
	if err != nil {
		free = 0 // not known
	}
	_ = s.enc.Quiet(&frame.Quiet{Number: asked.Number, FreeBytes: free}) // listen notices a host that is gone
}
