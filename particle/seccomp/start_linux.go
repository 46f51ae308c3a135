package seccomp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/internal/sys"
)

// Start starts cmd under the filter and supervises it and its descendants, in
// the network namespace in which they are. prepare, if not nil, is called
// first, on the thread from which the program then inherits: it may enter
// namespaces and give up privileges. cmd is waited for by the caller.
//
// The supervisor ends with the last process, or by Close. If cmd is to die
// with its parent (SysProcAttr.Pdeathsig), it ends by Close only, and the
// signal is sent when this process ends or Close was called.
func Start(cmd *exec.Cmd, ep Endpoint, prepare func() error) (*Supervisor, error) {
	if !ep.Address.IsValid() && !ep.Address6.IsValid() {
		return nil, errors.New("supervise program: the endpoint has no address")
	}
	s := &Supervisor{endpoint: ep, listener: -1, done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := unix.Pipe2(s.wake[:], unix.O_CLOEXEC); err != nil {
		s.cancel()
		return nil, fmt.Errorf("supervise program: %w", err)
	}
	var namespace *os.File
	started := make(chan error, 1)
	go func() {
		err := sys.OnThread(func() error {
			var err error
			namespace, err = s.start(cmd, prepare)
			if err != nil {
				return err
			}
			if cmd.SysProcAttr != nil && cmd.SysProcAttr.Pdeathsig != 0 {
				started <- nil
				<-s.done // the kernel takes this thread for the parent
			}
			return nil
		})
		if err != nil || cmd.SysProcAttr == nil || cmd.SysProcAttr.Pdeathsig == 0 {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		s.release(err)
		return nil, err
	}
	go func() {
		s.release(sys.OnThread(func() error {
			defer namespace.Close()
			if err := enter(namespace); err != nil {
				return err
			}
			return s.serve()
		}))
	}()
	return s, nil
}

// start runs on the thread that the program inherits from, and returns the
// thread's network namespace.
func (s *Supervisor) start(cmd *exec.Cmd, prepare func() error) (*os.File, error) {
	if prepare != nil {
		if err := prepare(); err != nil {
			return nil, err
		}
	}
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("supervise program: %w", err)
	}
	if err := s.guard(); err != nil {
		namespace.Close()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		namespace.Close()
		return nil, err
	}
	return namespace, nil
}

// guard puts the thread under the filter.
func (s *Supervisor) guard() error {
	if err := sys.NoNewPrivileges(); err != nil {
		return fmt.Errorf("supervise program: %w", err)
	}
	// What bind(2) the kernel is told to do itself, on sockets of other
	// families, it must not do on a TCP socket put in their place.
	if err := sys.RestrictThread(sys.Landlock{NoBindTCP: true}); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("supervise program: %w", err)
	}
	fd, err := install()
	if err != nil {
		return fmt.Errorf("supervise program: %w", err)
	}
	s.listener = fd
	return nil
}

// enter moves the thread into namespace, unless it is there.
func enter(namespace *os.File) error {
	var want, have unix.Stat_t
	if err := unix.Fstat(int(namespace.Fd()), &want); err != nil {
		return fmt.Errorf("supervise program: %w", err)
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &have); err != nil {
		return fmt.Errorf("supervise program: %w", err)
	}
	if want.Ino == have.Ino && want.Dev == have.Dev {
		return nil
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("supervise program: enter its network namespace: %w", err)
	}
	return nil
}

// Probe says why the discipline does not work here: errors.ErrUnsupported,
// wrapped, if the kernel lacks something. It changes nothing.
func Probe() error {
	err := sys.OnThread(func() error {
		if err := sys.NoNewPrivileges(); err != nil {
			return err
		}
		fd, err := install()
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		return fmt.Errorf("probe seccomp user notification: %w", err)
	}
	return nil
}
