// Package microvm is the sandbox driver that gives each sandbox a virtual machine
// of its own, restored from a FaaSnap snapshot where there is one (thesis 5.6.1).
//
// A function's first machine is booted. Once an invocation of it has gone well, a
// snapshot is recorded with that event as input, in a machine of its own, so that
// nobody is held up. That runs the event again, which nobody can notice: machines
// have no network and no disk to write to. Functions on a job's network could be
// noticed, so they are written down without an event, as they are after their
// initialisation. What is kept of whom on disk, a Policy decides.
package microvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/image"
)

// DriverName is the driver's name on the command line.
const DriverName = "microvm"

// defaultInitTimeout is three times what AWS Lambda gives, since processors may be
// emulated.
const defaultInitTimeout = 30 * time.Second

// Images gives access to the images of functions of package type Image. It may
// be used concurrently.
type Images interface {
	// Open returns the unpacked image of f. The caller releases it.
	Open(ctx context.Context, f *function.Function) (*image.Image, error)
}

// Config is what a Driver needs. Service and Unpacker are required.
type Config struct {
	// Service runs the machines and keeps the snapshots; all that is in it is the
	// driver's. Closing it is the caller's.
	Service *faasnap.Service
	// Mode is how FaaSnap snapshots are restored: faasnap.FaaSnap if empty.
	Mode faasnap.Mode
	// Unpacker gives the code of functions.
	Unpacker sandbox.Unpacker
	// Images may be nil: functions of package type Image are refused then.
	Images Images
	// Networks, if not nil, are the job networks of this node. Their places have
	// taps.
	Networks sandbox.Networks
	// Policy is DefaultPolicy if zero.
	Policy Policy
	// InitTimeout bounds the initialisation of a function that is booted, after
	// the kernel has started; a function with a longer timeout has that long.
	// Zero is 30 s.
	InitTimeout time.Duration
	// MaxProcesses bounds processes and threads of a function. Zero is 1024.
	// Snapshots have the bound that was when they were taken.
	MaxProcesses int
	// Log takes the driver's own troubles. May be nil.
	Log *slog.Logger
	// Observe is told how each sandbox that could be made came about. It may be
	// called concurrently, and may be nil.
	Observe func(faasnap.Mode, faasnap.Times)
}

// Driver implements sandbox.Driver.
type Driver struct {
	cfg Config
	log *slog.Logger

	// ctx ends, with stop, what is being done when the driver is closed; work
	// is all of that.
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	// recorder is had by the one that records: that takes a machine's memory.
	recorder chan struct{}

	mu    sync.Mutex
	boxes map[string]*box
	// revisions are those that are known, by the name that the Service has them
	// under.
	revisions map[string]*revision
	closed    bool
	closeOnce sync.Once
	closeErr  error
}

var _ sandbox.Driver = (*Driver)(nil)

// New returns a driver. What the Service has of an earlier one is used again, and
// what is of no use is removed. The caller closes it before the Service.
func New(cfg Config) (*Driver, error) {
	if cfg.Policy == (Policy{}) {
		cfg.Policy = DefaultPolicy()
	}
	if cfg.Mode == "" {
		cfg.Mode = faasnap.FaaSnap
	}
	if cfg.InitTimeout == 0 {
		cfg.InitTimeout = defaultInitTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Policy.check(); err != nil {
		return nil, fmt.Errorf("make driver %s: %w", DriverName, err)
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log, recorder: make(chan struct{}, 1),
		boxes: make(map[string]*box), revisions: make(map[string]*revision),
	}
	if err := d.remember(); err != nil {
		return nil, fmt.Errorf("make driver %s: %w", DriverName, err)
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.work.Go(d.tidyRegularly)
	return d, nil
}

// Name implements sandbox.Driver.
func (d *Driver) Name() string { return DriverName }

// Isolation implements sandbox.Driver.
func (d *Driver) Isolation() string {
	return "A virtual machine with a kernel of its own: functions share nothing with the host but the virtual machine monitor, " +
		"which runs without privileges under a seccomp filter. Where KVM works the processor separates them; elsewhere QEMU's emulation does, " +
		"which QEMU's makers do not promise to be a security boundary. There is no network device unless the function is on a job's network, where it cannot send from another address than its own; file systems are read-only but /tmp and /run, which are in the guest's memory."
}

// Recover implements sandbox.Driver: machines end with the process that started
// them, and the Service removes what they had on disk when it is opened.
func (d *Driver) Recover(context.Context) (int, error) { return 0, nil }

// Close implements sandbox.Driver. Snapshots stay.
func (d *Driver) Close() error {
	d.closeOnce.Do(func() {
		d.mu.Lock()
		d.closed = true
		boxes := make([]*box, 0, len(d.boxes))
		for _, b := range d.boxes {
			boxes = append(boxes, b)
		}
		d.mu.Unlock()
		d.stop()
		errs := make([]error, len(boxes))
		var wg sync.WaitGroup
		for i, b := range boxes {
			wg.Go(func() { errs[i] = b.Close(context.Background()) })
		}
		wg.Wait()
		d.work.Wait()
		d.closeErr = errors.Join(errs...)
	})
	return d.closeErr
}

// begin counts work that Close waits for.
func (d *Driver) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	d.work.Add(1)
	return nil
}

var errClosed = fmt.Errorf("driver %s: %w", DriverName, os.ErrClosed)

var idPattern = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// Create implements sandbox.Driver: from a snapshot if there is one, else by
// booting.
func (d *Driver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	b, err := d.create(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	return b, nil
}

func (d *Driver) create(ctx context.Context, spec sandbox.Spec) (*box, error) {
	if !idPattern.MatchString(spec.ID) {
		return nil, errors.New("that is no id: use 1 to 64 letters, digits and '-'")
	}
	if err := d.checkNetwork(spec.Function); err != nil {
		return nil, err
	}
	b := &box{id: spec.ID, driver: d, started: make(chan struct{})}
	ctx, b.cancel = context.WithCancel(ctx)
	defer b.cancel()
	if err := d.register(b); err != nil {
		return nil, err
	}
	defer d.work.Done()
	// Before it is waited for.
	defer close(b.started)
	if err := b.start(ctx, spec); err != nil {
		d.unregister(b)
		return nil, errors.Join(err, b.leave())
	}
	if ctx.Err() != nil {
		// Close may have come too early to find the machine.
		d.unregister(b)
		return nil, errors.Join(context.Cause(ctx), b.vm.Close(), b.leave())
	}
	return b, nil
}

// register makes b one of the driver's, and counts its start as work.
func (d *Driver) register(b *box) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	if d.boxes[b.id] != nil {
		return errors.New("the id is in use")
	}
	d.boxes[b.id] = b
	d.work.Add(1)
	return nil
}

func (d *Driver) unregister(b *box) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.boxes, b.id)
}
