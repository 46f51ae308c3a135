//go:build unix

// Package process is the sandbox driver for development: functions run as plain
// processes of the user, with no isolation at all. It needs no privileges and
// nothing but volley-init and, for some runtimes, an interpreter.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/tail"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
	"github.com/volley-run/volley/sandbox/runtimes"
)

// DriverName is the driver's name on the command line.
const DriverName = "process"

const (
	// openFiles is how many files each of a function's processes may have open,
	// as on AWS Lambda.
	openFiles = 1024
	// closeTime bounds the orderly end of a sandbox; then it is killed.
	closeTime = 5 * time.Second
)

// Config is what a Driver needs. Dir, Init and Unpacker are required.
type Config struct {
	// Dir is the driver's own directory. It is made if need be.
	Dir string
	// Init is the path of the volley-init program.
	Init string
	// Unpacker gives the code of functions.
	Unpacker sandbox.Unpacker
	// InitTimeout bounds the initialisation of a function; a function with a
	// longer timeout has that long. Zero is 10 s.
	InitTimeout time.Duration
	// Logger takes the driver's own troubles. Nil is slog.Default().
	Logger *slog.Logger
}

// Driver implements sandbox.Driver.
type Driver struct {
	cfg Config
	// path is PATH as functions see it.
	path string

	// ctx ends, with stop, what is being created when the driver is closed.
	ctx      context.Context
	stop     context.CancelFunc
	creating sync.WaitGroup

	mu     sync.Mutex
	boxes  map[string]*box
	closed bool
}

var _ sandbox.Driver = (*Driver)(nil)

// New returns a driver, whose directory holds the runtime clients then.
func New(cfg Config) (*Driver, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare the process driver: %w", err)
	}
	cfg.Dir = dir
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if _, err := exec.LookPath(cfg.Init); err != nil {
		return nil, fmt.Errorf("prepare the process driver: volley-init: %w (build it with `make build`)", err)
	}
	d := &Driver{cfg: cfg, path: agent.DefaultPath, boxes: map[string]*box{}}
	d.ctx, d.stop = context.WithCancel(context.Background())
	// Interpreters may be anywhere on a developer's machine.
	if p := os.Getenv("PATH"); p != "" {
		d.path += string(os.PathListSeparator) + p
	}
	if err := os.MkdirAll(d.boxesDir(), 0o755); err != nil {
		return nil, fmt.Errorf("prepare the process driver: %w", err)
	}
	if err := runtimes.Write(d.runtimeDir()); err != nil {
		return nil, fmt.Errorf("prepare the process driver: %w", err)
	}
	return d, nil
}

func (d *Driver) boxesDir() string   { return filepath.Join(d.cfg.Dir, "sandboxes") }
func (d *Driver) runtimeDir() string { return filepath.Join(d.cfg.Dir, "runtime") }

// Name implements sandbox.Driver.
func (d *Driver) Name() string { return DriverName }

// Isolation implements sandbox.Driver.
func (d *Driver) Isolation() string {
	return "None: functions run as processes of the user who runs the invoker, see and can change all that this user can, " +
		"share the host's network, and have no limit of memory, CPU or processes; only time, open files and the size of each file are bounded. " +
		"For development, with code that you trust."
}

// Recover implements sandbox.Driver. The processes of an earlier invoker ended
// with it; what is left are directories.
func (d *Driver) Recover(context.Context) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(d.boxesDir())
	if err != nil {
		return 0, fmt.Errorf("recover sandboxes: %w", err)
	}
	n := 0
	for _, e := range entries {
		if _, ours := d.boxes[e.Name()]; ours {
			continue
		}
		if err := removeAll(filepath.Join(d.boxesDir(), e.Name())); err != nil {
			return n, fmt.Errorf("recover sandbox %s: %w", e.Name(), err)
		}
		n++
	}
	return n, nil
}

// Close implements sandbox.Driver.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	d.creating.Wait()
	d.mu.Lock()
	var boxes []*box
	for _, b := range d.boxes {
		boxes = append(boxes, b)
	}
	d.mu.Unlock()
	errs := make([]error, len(boxes))
	var wg sync.WaitGroup
	for i, b := range boxes {
		wg.Go(func() { errs[i] = b.Close(context.Background()) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

var idPattern = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// Create implements sandbox.Driver.
func (d *Driver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	f := spec.Function
	if !idPattern.MatchString(spec.ID) {
		return nil, fmt.Errorf("create sandbox: %q is no id", spec.ID)
	}
	if f.PackageType == function.Image {
		return nil, function.Errorf(function.InvalidImage,
			"function %s: the process driver runs no images: use the driver runc or runsc, or deploy the code as a directory or zip file", f.Name)
	}
	if _, ok := f.Network.Job(); ok {
		return nil, function.Errorf(function.InvalidParameter, "function %s: the process driver has no job networks: use the driver runc", f.Name)
	}
	b := &box{id: spec.ID, driver: d, dir: filepath.Join(d.boxesDir(), spec.ID), ended: make(chan struct{})}
	if err := d.register(b); err != nil {
		return nil, err
	}
	defer d.creating.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	if err := b.start(ctx, spec); err != nil {
		return nil, b.abandon(err)
	}
	return b, nil
}

// register makes b one of the driver's, and counts it as being created.
func (d *Driver) register(b *box) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("create sandbox: the driver is closed")
	}
	if d.boxes[b.id] != nil {
		return fmt.Errorf("create sandbox: id %s is taken", b.id)
	}
	d.boxes[b.id] = b
	d.creating.Add(1)
	return nil
}

func (d *Driver) forget(b *box) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.boxes, b.id)
}

// box is a sandbox.
type box struct {
	id     string
	driver *Driver
	dir    string
	pkg    *sandbox.Package
	cmd    *exec.Cmd
	memory *meter
	// ended is closed when volley-init has ended, after which nothing runs.
	ended chan struct{}

	// agent is nil until the function is initialised.
	agent *agent.Agent

	closing sync.Once
	closed  error
}

var _ sandbox.Sandbox = (*box)(nil)

func (b *box) start(ctx context.Context, spec sandbox.Spec) error {
	f := spec.Function
	pkg, err := b.driver.cfg.Unpacker.Unpack(ctx, f)
	if err != nil {
		return err
	}
	b.pkg = &pkg
	tmp := filepath.Join(b.dir, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	boot, err := agent.Command(f, spec.ID, agent.Layout{
		TaskRoot: pkg.Dir, RuntimeDir: b.driver.runtimeDir(), TmpDir: tmp, Path: b.driver.path,
	}, nil)
	if err != nil {
		return err
	}
	if b.driver.cfg.InitTimeout > 0 {
		boot.InitTimeout = max(b.driver.cfg.InitTimeout, f.Timeout)
	}
	boot.Limits = frame.Limits{OpenFiles: openFiles, FileBytes: uint64(f.TmpMB) << 20, NoCore: true}
	conn, err := b.startInit()
	if err != nil {
		return err
	}
	b.memory = newMeter(b.cmd.Process.Pid)
	a, err := agent.Start(ctx, conn, boot, agent.Options{
		Function: f, Container: spec.ID, Log: spec.Log, PeakMemory: b.memory.peak,
	})
	if err != nil {
		return err
	}
	b.agent = a
	return nil
}

// startInit starts volley-init and returns the conversation with it.
func (b *box) startInit() (agent.Conn, error) {
	pipes, err := agent.NewPipes()
	if err != nil {
		return agent.Conn{}, err
	}
	troubles := &tail.Buffer{}
	cmd := exec.Command(b.driver.cfg.Init)
	cmd.Env = []string{}
	cmd.Dir = b.dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pipes.Stdin, pipes.Stdout, troubles
	sys.NewGroup(cmd)
	err = cmd.Start()
	err = errors.Join(err, pipes.CloseRemote())
	if err != nil {
		return agent.Conn{}, errors.Join(fmt.Errorf("start volley-init: %w", err), pipes.Host.Close())
	}
	b.cmd = cmd
	go func() {
		defer close(b.ended)
		if err := cmd.Wait(); err != nil {
			b.driver.cfg.Logger.Error("volley-init failed", "sandbox", b.id, "error", err, "stderr", troubles.String())
		}
	}()
	return pipes.Host, nil
}

// abandon undoes a start that failed with err.
func (b *box) abandon(err error) error {
	if closeErr := b.Close(context.Background()); closeErr != nil {
		b.driver.cfg.Logger.Error("sandbox could not be removed", "sandbox", b.id, "error", closeErr)
	}
	return err
}

// ID implements sandbox.Sandbox.
func (b *box) ID() string { return b.id }

// Invoke implements sandbox.Sandbox.
func (b *box) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	return b.agent.Invoke(ctx, req)
}

// Pause implements sandbox.Sandbox: it stops the processes that are there.
func (b *box) Pause(context.Context) error { return b.signal(syscall.SIGSTOP) }

// Resume implements sandbox.Sandbox.
func (b *box) Resume(context.Context) error { return b.signal(syscall.SIGCONT) }

func (b *box) signal(sig syscall.Signal) error {
	pids, err := sys.Descendants(b.cmd.Process.Pid)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal process %d of sandbox %s: %w", pid, b.id, err)
		}
	}
	return nil
}

// Usage implements sandbox.Sandbox. The most memory is that of the function's
// first process.
func (b *box) Usage(context.Context) (sandbox.Usage, error) { return b.memory.usage() }

// Done implements sandbox.Sandbox.
func (b *box) Done() <-chan struct{} { return b.ended }

// Close implements sandbox.Sandbox.
func (b *box) Close(ctx context.Context) error {
	b.closing.Do(func() { b.closed = b.close(ctx) })
	return b.closed
}

func (b *box) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	var errs []error
	if b.cmd != nil {
		errs = append(errs, b.end(ctx))
	}
	errs = append(errs, removeAll(b.dir))
	if b.pkg != nil {
		b.pkg.Release()
	}
	b.driver.forget(b)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close sandbox %s: %w", b.id, err)
	}
	return nil
}

// end ends volley-init and the function, by force if ctx ends.
func (b *box) end(ctx context.Context) error {
	if b.agent != nil {
		// A pause would keep the function from seeing SIGTERM.
		_ = b.Resume(ctx)
		if err := b.agent.Shutdown(ctx); err != nil {
			b.driver.cfg.Logger.Warn("sandbox did not end by itself", "sandbox", b.id, "error", err)
		}
	}
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
	}
	pids, err := sys.Descendants(b.cmd.Process.Pid)
	err = errors.Join(err, sys.KillGroup(b.cmd.Process.Pid))
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
	}
	<-b.ended
	return err
}

// removeAll removes a directory, also where a function has taken away its own
// rights.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walkErr := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			// Before it is read.
			return os.Chmod(path, 0o700)
		}
		return err
	})
	return errors.Join(walkErr, os.RemoveAll(dir))
}
