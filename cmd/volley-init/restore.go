//go:build unix

package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// restorer makes a machine that goes on from a snapshot one of its own. What it
// does is a part of how long an invocation takes.
type restorer struct {
	// instance is the contents of the file with the machine's id: writing to
	// memory needs no call of the system.
	instance []byte
	// urandom takes entropy.
	urandom *os.File
}

// idBytes is how long a machine's id is: that of a UUID as text.
const idBytes = 36

// newRestorer is called once the machine's root is there.
func newRestorer() (*restorer, error) {
	f, err := os.OpenFile(instanceFile, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("keep the machine's id: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(idBytes); err != nil {
		return nil, fmt.Errorf("keep the machine's id: %w", err)
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, idBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("keep the machine's id: %w", err)
	}
	copy(mapped, strings.Repeat("-", idBytes)) // the page is there from now on
	urandom, err := sys.OpenEntropy()
	if err != nil {
		return nil, err
	}
	return &restorer{instance: mapped, urandom: urandom}, nil
}

// restore does what the host says about a restored machine.
func (r *restorer) restore(to *frame.Restore) error {
	if err := sys.SetClock(time.Unix(0, to.Time)); err != nil {
		return err
	}
	if err := sys.AddEntropy(r.urandom, to.Seed[:]); err != nil {
		return err
	}
	copy(r.instance, to.ID)
	if to.Network != nil {
		return join(to.Network)
	}
	return nil
}

// errNoID says that a restored machine was given no id of its own.
var errNoID = fmt.Errorf("the restored machine has no id of %d characters", idBytes)

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
	s.clockSet = true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instance, s.network = to.ID, to.Network
	return nil
}

// validID says whether an id can be told in a header.
func validID(id string) bool {
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return len(id) == idBytes
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

// spareThreads is how many threads wait for work in a snapshot. A restored guest
// is slow at first, which the runtime takes for calls of the system that block,
// and makes threads to go on with: that costs more than all else it does.
const spareThreads = 4

// makeThreads makes the runtime start as many threads as are spared, by blocking
// that many at once.
func makeThreads() {
	var ends [2]int
	if syscall.Pipe(ends[:]) != nil {
		return // a guest without spare threads is as good, only slower
	}
	var wg sync.WaitGroup
	for range spareThreads {
		wg.Go(func() {
			_, _ = syscall.Read(ends[0], make([]byte, 1)) // one byte, or the end
		})
	}
	time.Sleep(20 * time.Millisecond)
	_ = syscall.Close(ends[1])
	wg.Wait()
	_ = syscall.Close(ends[0])
}

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
		makeThreads()
	}
	_ = s.enc.Quiet(&frame.Quiet{Number: asked.Number}) // listen notices a host that is gone
}
