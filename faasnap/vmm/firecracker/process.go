package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/tail"
)

// The names of what is in a VM's directory, which Firecracker runs in. State
// files hold them as they are, so the VM that one is restored to finds its own.
const (
	apiSocket   = "api.sock"
	agentSocket = "agent.sock"
	faultSocket = "faults.sock"
)

// process is a Firecracker.
type process struct {
	cmd     *exec.Cmd
	stderr  tail.Buffer
	done    chan struct{}
	err     error // set before done is closed
	closing atomic.Bool
}

// startProcess starts a Firecracker in dir and in the network namespace at
// that path, if one is given.
func startProcess(binary, dir, namespace string, console io.Writer) (*process, error) {
	p := &process{done: make(chan struct{})}
	// Its log goes where its panics go; a guest's console is its output.
	p.cmd = exec.Command(binary, "--api-sock", apiSocket, "--log-path", "/proc/self/fd/2", "--level", "Warn")
	p.cmd.Dir = dir
	p.cmd.Stderr = &p.stderr
	if console != nil {
		p.cmd.Stdout = vmm.Patient(console)
	}
	p.cmd.WaitDelay = time.Second
	sys.NewGroup(p.cmd)
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// The thread is the process's parent, and is in its namespace: it stays
		// until it ends.
		err := sys.OnThread(func() error {
			if namespace != "" {
				if err := sys.EnterNetwork(namespace); err != nil {
					started <- err
					return err
				}
			}
			defer sys.DieWithParent(p.cmd)()
			err := p.cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			err = p.cmd.Wait()
			if errors.Is(err, exec.ErrWaitDelay) {
				err = nil // somebody is slow to take the console
			}
			return err
		})
		if err != nil && !p.closing.Load() {
			p.err = fmt.Errorf("firecracker ended: %w%s", err, p.said())
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start firecracker: %w", err)
	}
	return p, nil
}

// said is what the process has said, to be put behind an error.
func (p *process) said() string {
	if s := p.stderr.String(); s != "" {
		return "; it said: " + s
	}
	return ""
}

// because adds to the error of a request why the process has ended, if it has,
// or what it has said.
func (p *process) because(err error) error {
	var fault *faultError
	if !errors.As(err, &fault) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		select {
		case <-p.done:
		case <-time.After(endTime): // it may be about to
		}
	}
	select {
	case <-p.done:
		if p.err == nil || errors.Is(err, p.err) {
			return err
		}
		return fmt.Errorf("%w: %w", err, p.err)
	default:
		return fmt.Errorf("%w%s", err, p.said())
	}
}

// endTime is how long a process that has broken off its connections may take to
// end.
const endTime = 100 * time.Millisecond

// kill ends the process and waits for it. It starts none that could outlive it.
func (p *process) kill() error {
	p.closing.Store(true)
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-p.done
	return err
}

// retry calls f until it returns no error, more and more rarely, as long as the
// process is there and does not refuse.
func (p *process) retry(ctx context.Context, f func(context.Context) error) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := f(ctx)
		var fault *faultError
		if err == nil || errors.As(err, &fault) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the last attempt: %w", ctx.Err(), err)
		case <-p.done:
			if p.err != nil {
				return p.err
			}
			return fmt.Errorf("firecracker has ended%s", p.said())
		case <-time.After(wait):
		}
	}
}
