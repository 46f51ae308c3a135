package microvm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
)

// closeTime bounds the orderly end of a function; then its machine is ended.
const closeTime = 3 * time.Second

// box is a sandbox.
type box struct {
	id     string
	driver *Driver
	// cancel ends the start, and started is closed at the end of that. What
	// follows is set by then.
	cancel   context.CancelFunc
	started  chan struct{}
	revision *revision
	vm       *faasnap.VM // nil if it could not be started
	network  string      // the job network that it is on, if any
	// kind is of the snapshot that it comes from.
	kind Kind

	mu     sync.Mutex
	paused bool

	closing sync.Once
	closed  error
}

var _ sandbox.Sandbox = (*box)(nil)

// start starts the machine.
func (b *box) start(ctx context.Context, spec sandbox.Spec) error {
	d := b.driver
	b.revision = d.revision(spec.Function)
	f, err := d.built(ctx, b.revision, spec.Function)
	if err != nil {
		return err
	}
	o := d.startOptions(&f.Function)
	if spec.Log != nil {
		o.Log = func(l function.LogLine) {
			l.Container = b.id
			spec.Log(l)
		}
	}
	if err := b.join(ctx, spec.Function, &o); err != nil {
		return err
	}
	restored, err := b.restore(ctx, o)
	if err != nil {
		return err
	}
	if !restored {
		if b.vm, err = d.cfg.Service.Boot(ctx, f, o); err != nil {
			return err
		}
	}
	times := b.vm.Times()
	b.revision.started(b.kind, times.Start)
	if d.cfg.Observe != nil {
		d.cfg.Observe(b.vm.Info().Mode, times)
	}
	return nil
}

// restore starts the machine from the function's snapshot, and reports whether
// there is one that is of use.
func (b *box) restore(ctx context.Context, o faasnap.StartOptions) (bool, error) {
	d, r := b.driver, b.revision
	kind := r.snapshot()
	if kind == None {
		return false, nil
	}
	mode := d.cfg.Mode
	if kind == Plain {
		mode = faasnap.Full
	}
	vm, err := d.cfg.Service.Restore(ctx, r.name, mode, faasnap.RestoreOptions{StartOptions: o})
	if err == nil {
		b.vm, b.kind = vm, kind
		return true, nil
	}
	if ctx.Err() != nil {
		return false, err
	}
	d.unrestorable(ctx, r, err)
	return false, nil
}

// ID implements sandbox.Sandbox.
func (b *box) ID() string { return b.id }

// Invoke implements sandbox.Sandbox.
func (b *box) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	resp, err := b.vm.Invoke(ctx, req)
	if errors.Is(err, snapshot.ErrDamaged) {
		b.driver.log.Error("a snapshot is damaged, and is removed", "function", b.revision.function, "err", err)
		b.driver.removeSnapshot(b.revision)
	}
	if err == nil {
		b.driver.invoked(b, req.Payload, resp.FunctionError == "" && !resp.Broken)
	}
	return resp, err
}

// Pause implements sandbox.Sandbox.
func (b *box) Pause(ctx context.Context) error { return b.pause(ctx, true) }

// Resume implements sandbox.Sandbox.
func (b *box) Resume(ctx context.Context) error { return b.pause(ctx, false) }

func (b *box) pause(ctx context.Context, pause bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.paused == pause {
		return nil
	}
	change := b.vm.Resume
	if pause {
		change = b.vm.Pause
	}
	if err := change(ctx); err != nil {
		return fmt.Errorf("pause or resume sandbox %s: %w", b.id, err)
	}
	b.paused = pause
	return nil
}

// Usage implements sandbox.Sandbox: it counts what the virtual machine monitor
// uses, which is the guest's memory as far as it has been touched, and its
// processors' time.
func (b *box) Usage(context.Context) (sandbox.Usage, error) {
	u, ok := sys.Usage(b.vm.Info().PID)
	if !ok {
		return sandbox.Usage{}, fmt.Errorf("read usage of sandbox %s: its machine has ended", b.id)
	}
	return sandbox.Usage{MemoryBytes: u.MemoryBytes, MaxMemoryBytes: u.MaxMemoryBytes, CPU: u.CPU, Processes: 1}, nil
}

// Done implements sandbox.Sandbox.
func (b *box) Done() <-chan struct{} { return b.vm.Ended() }

// Close implements sandbox.Sandbox.
func (b *box) Close(ctx context.Context) error {
	b.closing.Do(func() {
		b.cancel()
		<-b.started
		if b.vm != nil {
			b.closed = b.close(ctx)
		}
		b.driver.unregister(b)
	})
	return b.closed
}

func (b *box) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	// A pause would keep the function from seeing SIGTERM.
	if err := b.Resume(ctx); err == nil {
		b.vm.Shutdown(ctx)
	}
	if err := errors.Join(b.vm.Close(), b.leave()); err != nil {
		return fmt.Errorf("close sandbox %s: %w", b.id, err)
	}
	return nil
}
