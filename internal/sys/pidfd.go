package sys

import "context"

// Process is a hold on a process, child or not, that stays good when the
// process has ended and its number serves another one. It needs Linux 5.3;
// elsewhere OpenProcess fails with errors.ErrUnsupported. Its methods may be
// called concurrently.
type Process struct {
	pid int
	fd  pidfd
}

// OpenProcess takes hold of the process with that number. One that does not
// exist gives an error that wraps os.ErrProcessDone. The caller closes it.
func OpenProcess(pid int) (*Process, error) {
	fd, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	return &Process{pid: pid, fd: fd}, nil
}

// Pid returns the number that the process has or had.
func (p *Process) Pid() int { return p.pid }

// Kill sends SIGKILL. A process that has ended is no error.
func (p *Process) Kill() error { return p.fd.kill() }

// Wait waits until the process has ended. It takes the exit status of a child,
// or of an orphan that has become one, so that no zombie is left of it. It
// returns the context's error when that ends first, and os.ErrClosed after
// Close.
func (p *Process) Wait(ctx context.Context) error { return p.fd.wait(ctx) }

// Close lets go of the process and ends every Wait.
func (p *Process) Close() error { return p.fd.close() }
