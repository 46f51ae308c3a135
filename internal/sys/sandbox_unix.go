//go:build unix

package sys

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// AdoptOrphans makes this process the parent of its descendants whose own
// parent has ended (Linux; nothing elsewhere), so that none gets out of reach.
// This process has to wait for them.
func AdoptOrphans() error { return adoptOrphans() }

// ReapAdopted waits for the children of this process that have ended and are
// named command (Linux; nothing elsewhere): orphans that it has adopted. It must
// not start programs of that name itself, whose ends others wait for.
func ReapAdopted(command string) { reapAdopted(command) }

// ForbidTracing keeps other processes of the same user from tracing this one
// and from reading its memory and descriptors (Linux; nothing elsewhere).
func ForbidTracing() error { return forbidTracing() }

// CloseOnExecFrom arranges that descriptors from fd on are closed in programs
// that this process starts.
func CloseOnExecFrom(fd int) error { return closeOnExecFrom(fd) }

// DeathSignal arranges, where the system can (Linux), that a process started
// with attr is killed when the thread that starts it ends, as all do with
// their process.
func DeathSignal(attr *syscall.SysProcAttr) { deathSignal(attr) }

// SignalDescendants sends a signal to all children of this process, their
// children and so on; process 1 sends it to all that it can see. One that is
// gone by then is no error. Processes may come into being meanwhile.
func SignalDescendants(sig syscall.Signal) error { return signalDescendants(sig) }

// Descendants returns the children of a process, their children and so on.
func Descendants(pid int) ([]int, error) { return descendants(pid) }

// MoveDescriptor moves descriptor fd to a new number, which is closed in
// programs that this process starts, and puts a copy of instead in its place.
func MoveDescriptor(fd, instead int) (moved int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	moved, err = syscall.Dup(fd)
	if err != nil {
		return -1, fmt.Errorf("move descriptor %d: %w", fd, err)
	}
	syscall.CloseOnExec(moved)
	if err := unix.Dup2(instead, fd); err != nil {
		return -1, fmt.Errorf("replace descriptor %d: %w", fd, err)
	}
	return moved, nil
}
