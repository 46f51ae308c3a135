package sys

import (
	"errors"
	"fmt"
	"runtime"
)

// OnThread calls f on an operating system thread of its own, which ends when f
// returns. What f changes about its thread (namespaces, privileges, filters of
// system calls) therefore reaches only the processes that f starts, and no
// other goroutine. The goroutines that f starts run elsewhere. If f ends its
// goroutine, as a test that fails does, so does OnThread.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go onThread(f, done)
	err, returned := <-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// onThread sends what f returns to done, and closes it, which is all that
// happens if f does not return.
func onThread(f func() error, done chan<- error) {
	defer close(done)
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if isMainThread() {
		// The main thread does not end before the process does. It stays taken
		// here meanwhile, so that the next goroutine gets another.
		defer runtime.UnlockOSThread()
		done <- OnThread(f)
		return
	}
	done <- f()
}

// EnterNetwork moves the calling thread into the network namespace at path.
// Like the functions below, it is for OnThread or for what comes before an
// exec. It needs Linux and CAP_SYS_ADMIN, in the namespace too.
func EnterNetwork(path string) error { return enterNetwork(path) }

// ProtectControlGroups gives the calling thread a mount namespace of its own, in
// which control groups can be seen but not changed, and pinned BPF objects not
// seen. Later mounts of the host appear in it. What it does holds against
// programs that have no CAP_SYS_ADMIN, and not through descriptors that they
// are given. It needs Linux 5.12 and CAP_SYS_ADMIN.
func ProtectControlGroups() error { return protectControlGroups() }

// NoNewPrivileges makes sure that neither the calling thread nor what it
// executes gains a privilege by executing something.
func NoNewPrivileges() error { return noNewPrivileges() }

// DropNetworkPrivileges takes from the calling thread, and for good from what
// it executes, the capabilities by which a program could leave its network
// namespace or control group, change the network, make packets by itself, or
// get hold of a process that can: NET_ADMIN, NET_RAW, BPF, PERFMON, SYS_ADMIN,
// SYS_PTRACE, SYS_MODULE, SYS_RAWIO, SYS_BOOT, DAC_READ_SEARCH,
// CHECKPOINT_RESTORE and SETPCAP. A thread that has none of them keeps what it
// has.
func DropNetworkPrivileges() error { return dropNetworkPrivileges() }

// SetThreadUser makes the calling thread one of that user and group, without
// further groups. A negative number leaves that one as it is.
func SetThreadUser(uid, gid int) error { return setThreadUser(uid, gid) }

// LandlockABI returns which version of Landlock the kernel has; 0 is none.
func LandlockABI() int { return landlockABI() }

// Landlock is what the kernel is to keep a thread from (landlock(7)).
type Landlock struct {
	// ScopeAbstractSockets keeps it from abstract unix sockets that others
	// made who are not under the same restriction. It needs version 6.
	ScopeAbstractSockets bool
	// NoBindTCP keeps it from binding TCP sockets. It needs version 4.
	NoBindTCP bool
}

// RestrictThread puts the calling thread and what it executes under l. The
// thread needs NoNewPrivileges or CAP_SYS_ADMIN first. Where the kernel's
// version of Landlock is too old, it changes nothing and returns an error that
// wraps errors.ErrUnsupported.
func RestrictThread(l Landlock) error {
	need := 0
	if l.NoBindTCP {
		need = 4
	}
	if l.ScopeAbstractSockets {
		need = 6
	}
	switch {
	case need == 0:
		return nil
	case landlockABI() < need:
		return fmt.Errorf("restrict by Landlock: %w: needs version %d, have %d", errors.ErrUnsupported, need, landlockABI())
	}
	return restrictThread(l)
}

// InForeground says whether the process's group is the one that its terminal
// sends the signals of keys to.
func InForeground() bool { return inForeground() }
