// Package microvm is the sandbox driver that gives each sandbox a virtual machine
// of its own, restored from a FaaSnap snapshot where there is one (thesis 5.6.1).
package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
)

// DriverName is the driver's name on the command line.
const DriverName = "microvm"

// guestMarginBytes is what a guest's kernel and agent need beside the function.
const guestMarginBytes = 128 << 20

// Config is what a Driver needs. Service and Unpacker are required.
type Config struct {
	// Service runs the machines and keeps the snapshots. Closing it is the
	// caller's.
	Service *faasnap.Service
	// Unpacker gives the code of functions.
	Unpacker sandbox.Unpacker
	// Policy is DefaultPolicy if zero.
	Policy Policy
	// Log takes the driver's own troubles. May be nil.
	Log *slog.Logger
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

	mu    sync.Mutex
	boxes map[string]*box
	// functions are those that have been built, by the name that the Service
	// has them under.
	functions map[string]*known
	closed    bool
}

// known is what the driver knows of a revision of a function.
type known struct {
	// building lets one build or record at a time.
	building chan struct{}
	mu       sync.Mutex
	rate     rate
	revision string
	function string // the function's own name
}

var _ sandbox.Driver = (*Driver)(nil)

// New returns a driver.
func New(cfg Config) *Driver {
	if cfg.Policy == (Policy{}) {
		cfg.Policy = DefaultPolicy()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Driver{cfg: cfg, log: cfg.Log, boxes: make(map[string]*box), functions: make(map[string]*known)}
	d.ctx, d.stop = context.WithCancel(context.Background())
	return d
}

// Name implements sandbox.Driver.
func (d *Driver) Name() string { return DriverName }

// Isolation implements sandbox.Driver.
func (d *Driver) Isolation() string {
	return "A virtual machine with a kernel of its own: functions share nothing with the host but the virtual machine monitor, " +
		"which runs without privileges under a seccomp filter. Where KVM works the processor separates them; elsewhere QEMU's emulation does, " +
		"which QEMU's makers do not promise to be a security boundary. There is no network device; file systems are read-only but /tmp and /run, which are in the guest's memory."
}

// Recover implements sandbox.Driver: machines end with the process that started
// them, and the Service removes what they had on disk when it is opened.
func (d *Driver) Recover(context.Context) (int, error) { return 0, nil }

// Close implements sandbox.Driver.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	boxes := d.boxes
	d.boxes = make(map[string]*box)
	d.mu.Unlock()
	d.stop()
	var errs []error
	for _, b := range boxes {
		errs = append(errs, b.end())
	}
	d.work.Wait()
	return errors.Join(errs...)
}

// serviceName is what the Service knows a revision of a function as: by all that
// it is, since what is in a snapshot cannot be changed any more.
func serviceName(f *function.Function) string {
	text, err := json.Marshal(f)
	if err != nil {
		panic(err) // there is nothing in it that cannot be encoded
	}
	sum := sha256.Sum256(text)
	return "r" + hex.EncodeToString(sum[:16])
}

// Create implements sandbox.Driver: from a snapshot if there is one, else by
// booting.
func (d *Driver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	defer d.work.Done()
	b, err := d.create(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	d.mu.Lock()
	closed := d.closed
	if !closed {
		d.boxes[spec.ID] = b
	}
	d.mu.Unlock()
	if closed {
		return nil, errors.Join(errClosed, b.end())
	}
	return b, nil
}

var errClosed = errors.New("the driver is closed")

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

func (d *Driver) create(ctx context.Context, spec sandbox.Spec) (*box, error) {
	if spec.Function.Network != function.NetworkNone && spec.Function.Network != "" {
		return nil, function.Errorf(function.InvalidParameter,
			"function %s: virtual machines have no network yet: use network %q, or the driver runc", spec.Function.Name, function.NetworkNone)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	name := serviceName(spec.Function)
	k := d.known(name, spec.Function)
	f, err := d.build(ctx, name, k, spec.Function)
	if err != nil {
		return nil, err
	}
	b := &box{id: spec.ID, driver: d, known: k, function: f}
	start := faasnap.StartOptions{Log: spec.Log}
	b.vm, err = d.cfg.Service.Restore(ctx, name, faasnap.FaaSnap, faasnap.RestoreOptions{StartOptions: start})
	if err == nil {
		return b, nil
	}
	switch {
	case errors.Is(err, faasnap.ErrNotFound):
	case ctx.Err() != nil:
		return nil, err
	default:
		// Another is made after the first invocation.
		d.log.Warn("a snapshot cannot be restored; booting instead", "function", spec.Function.Name, "err", err)
		if errors.Is(err, snapshot.ErrDamaged) {
			if err := d.cfg.Service.RemoveSnapshot(name); err != nil {
				d.log.Warn("a damaged snapshot cannot be removed", "function", spec.Function.Name, "err", err)
			}
		}
	}
	b.booted = true
	if b.vm, err = d.cfg.Service.Boot(ctx, f, start); err != nil {
		return nil, err
	}
	return b, nil
}

// known returns what is known of a revision. What is known of an earlier one is
// forgotten, and its snapshot removed.
func (d *Driver) known(name string, f *function.Function) *known {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.functions[name]; k != nil {
		return k
	}
	for old, k := range d.functions {
		if k.function == f.Name {
			delete(d.functions, old)
			d.forget(old)
		}
	}
	k := &known{building: make(chan struct{}, 1), revision: f.Revision, function: f.Name}
	d.functions[name] = k
	return k
}

// forget removes a revision's snapshot and function, if they are there.
func (d *Driver) forget(name string) {
	for _, err := range []error{d.cfg.Service.RemoveSnapshot(name), d.cfg.Service.RemoveFunction(name)} {
		if err != nil && !errors.Is(err, faasnap.ErrNotFound) {
			d.log.Warn("what is left of a function cannot be removed", "err", err)
		}
	}
}

// build returns a revision's function, building what it boots if need be.
func (d *Driver) build(ctx context.Context, name string, k *known, f *function.Function) (*faasnap.Function, error) {
	select {
	case k.building <- struct{}{}:
		defer func() { <-k.building }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if built, err := d.cfg.Service.Function(name); err == nil {
		return built, nil
	}
	if f.PackageType == function.Image {
		return nil, function.Errorf(function.InvalidImage, "function %s: this driver runs functions of package type Zip", f.Name)
	}
	code, err := d.cfg.Unpacker.Unpack(ctx, f)
	if err != nil {
		return nil, err
	}
	defer code.Release()
	built := &faasnap.Function{Function: *f, GuestMemoryBytes: (int64(f.MemoryMB)<<20 + guestMarginBytes + 2<<20 - 1) &^ (2<<20 - 1)}
	if built.Image, err = d.cfg.Service.Builder().Function(ctx, f.Runtime, code.Dir); err != nil {
		return nil, err
	}
	return built, d.cfg.Service.AddFunctionAs(name, built)
}

// invoked is called after each invocation of a sandbox, with its event if it
// went well.
func (d *Driver) invoked(b *box, payload []byte) {
	now := time.Now()
	b.known.mu.Lock()
	b.known.rate.note(now, d.cfg.Policy.HalfLife)
	kind := d.cfg.Policy.choose(&b.known.rate, now)
	b.known.mu.Unlock()
	if !b.booted || kind != Recorded || payload == nil {
		return
	}
	select {
	case b.known.building <- struct{}{}:
	default:
		return // somebody records already
	}
	if d.begin() != nil {
		<-b.known.building
		return
	}
	go func() {
		defer d.work.Done()
		defer func() { <-b.known.building }()
		d.record(b, payload)
	}()
}

// record makes a revision's snapshot, in a machine of its own so that it holds
// nobody up.
func (d *Driver) record(b *box, payload []byte) {
	name := serviceName(&b.function.Function)
	if _, err := d.cfg.Service.Snapshot(d.ctx, name); err == nil {
		return
	}
	d.bound()
	_, err := d.cfg.Service.Record(d.ctx, b.function, faasnap.RecordOptions{Name: name, Inputs: [][]byte{payload}})
	switch {
	case err == nil:
		d.log.Info("took a snapshot", "function", b.function.Name)
	case d.ctx.Err() == nil:
		d.log.Warn("cannot take a snapshot", "function", b.function.Name, "err", err)
	}
}

// bound makes room for one more snapshot, and removes those that are not worth
// keeping any longer.
func (d *Driver) bound() {
	names, err := d.cfg.Service.Snapshots()
	if err != nil {
		d.log.Warn("cannot list snapshots", "err", err)
		return
	}
	now := time.Now()
	worth := func(name string) (perDay float64, kind Kind) {
		d.mu.Lock()
		k := d.functions[name]
		d.mu.Unlock()
		if k == nil {
			return 0, Plain // of an earlier process: nothing is known, so it goes first
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.rate.perDay(now, d.cfg.Policy.HalfLife), d.cfg.Policy.choose(&k.rate, now)
	}
	kept := len(names)
	for kept > 0 {
		least, rate := "", 0.0
		for _, name := range names {
			if name == "" {
				continue
			}
			perDay, kind := worth(name)
			if kind == None || kept >= d.cfg.Policy.MaxSnapshots && (least == "" || perDay < rate) {
				least, rate = name, perDay
				if kind == None {
					break
				}
			}
		}
		if least == "" {
			return
		}
		if err := d.cfg.Service.RemoveSnapshot(least); err != nil {
			d.log.Warn("cannot remove a snapshot", "err", err)
			return
		}
		for i, name := range names {
			if name == least {
				names[i] = ""
			}
		}
		kept--
	}
}
