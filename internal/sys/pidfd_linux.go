package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pidfd is a process file descriptor in the runtime's poller, so that waiting
// costs no thread.
type pidfd struct{ file *os.File }

func openPidfd(pid int) (pidfd, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return pidfd{}, fmt.Errorf("open process %d: %w", pid, os.ErrProcessDone)
	}
	if err != nil {
		return pidfd{}, fmt.Errorf("open process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return pidfd{}, fmt.Errorf("open process %d: %w", pid, err)
	}
	return pidfd{os.NewFile(uintptr(fd), fmt.Sprintf("process %d", pid))}, nil
}

func (p pidfd) kill() error {
	var killed error
	err := p.control(func(conn syscall.RawConn) error {
		return conn.Control(func(fd uintptr) { killed = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	})
	if err := errors.Join(err, killed); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.file.Name(), err)
	}
	return nil
}

func (p pidfd) wait(ctx context.Context) error {
	// A deadline in the past wakes the reader; it is taken back because others
	// may wait too.
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		err := p.control(func(conn syscall.RawConn) error {
			return conn.Read(func(fd uintptr) bool {
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(poll, 0)
				if err != nil || n == 0 {
					return false
				}
				// No child of ours: its parent takes the status.
				_ = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil)
				return true
			})
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if _, closed := p.file.Stat(); errors.Is(closed, os.ErrClosed) {
				err = os.ErrClosed // the poller has an error of its own for that
			}
			if err != nil {
				return fmt.Errorf("wait for %s: %w", p.file.Name(), err)
			}
			return nil
		}
		if err := p.file.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("wait for %s: %w", p.file.Name(), err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (p pidfd) control(f func(syscall.RawConn) error) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	return f(conn)
}

func (p pidfd) close() error { return p.file.Close() }
