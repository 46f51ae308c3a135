package microvm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
)

// box is a sandbox.
type box struct {
	id       string
	driver   *Driver
	known    *known
	function *faasnap.Function
	vm       *faasnap.VM
	// booted says that it does not come from a snapshot.
	booted bool

	mu     sync.Mutex
	paused bool
}

func (b *box) ID() string { return b.id }

func (b *box) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	resp, err := b.vm.Invoke(ctx, req)
	if err == nil && resp.FunctionError == "" && !resp.Broken {
		b.driver.invoked(b, req.Payload)
	}
	return resp, err
}

func (b *box) Pause(ctx context.Context) error { return b.pause(ctx, true) }

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

// Usage counts what the virtual machine monitor uses: the guest's memory as far
// as it has been touched, and its processors' time.
func (b *box) Usage(context.Context) (sandbox.Usage, error) {
	u, ok := sys.Usage(b.vm.Info().PID)
	if !ok {
		return sandbox.Usage{}, fmt.Errorf("read usage of sandbox %s: %w", b.id, errors.ErrUnsupported)
	}
	return sandbox.Usage{MemoryBytes: u.MemoryBytes, MaxMemoryBytes: u.MaxMemoryBytes, CPU: u.CPU, Processes: 1}, nil
}

func (b *box) Done() <-chan struct{} { return b.vm.Ended() }

// Close lets the function end by itself for as long as ctx allows, and then ends
// the machine.
func (b *box) Close(ctx context.Context) error {
	b.driver.mu.Lock()
	delete(b.driver.boxes, b.id)
	b.driver.mu.Unlock()
	if err := b.Resume(ctx); err == nil {
		b.vm.Shutdown(ctx)
	}
	return b.end()
}

func (b *box) end() error {
	if err := b.vm.Close(); err != nil {
		return fmt.Errorf("close sandbox %s: %w", b.id, err)
	}
	return nil
}
