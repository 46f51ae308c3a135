// Package oci runs sandboxes as containers, by an OCI runtime: runc, which
// confines processes of the host's kernel, or gVisor's runsc, which gives them
// a kernel of their own in user space. Both go the same way through the code.
//
// A sandbox is one container whose first process is volley-init. Its root is
// read-only: either the host's programs (for functions of package type Zip) or
// an image, in both cases with a few files of Volley's on top. Writable are
// /tmp and /dev/shm, which live in the function's memory.
//
// The package needs Linux 5.3, root, and cgroup v1, v2 or both (hybrid).
package oci

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/image"
)

// Images gives access to the images of functions of package type Image. It may
// be used concurrently.
type Images interface {
	// Open returns the unpacked image of f. The caller releases it.
	Open(ctx context.Context, f *function.Function) (*image.Image, error)
}

// Config says how a Driver works. Runtime, Dir, Init and Unpacker are needed.
type Config struct {
	// Runtime is Runc or Runsc, which also is the Driver's name.
	Runtime string
	// Binary is the runtime's program, if it is not the one of that name in
	// PATH. Programs with runc's command line, such as crun, go as Runc.
	Binary string
	// Platform is how runsc intercepts system calls: systrap where the program
	// has it, else ptrace, if empty.
	Platform string
	// Dir is the directory of all that the driver needs on disk. One driver
	// uses it at a time.
	Dir string
	// Init is the path of volley-init, a static program.
	Init string
	// Unpacker gives access to packages.
	Unpacker sandbox.Unpacker
	// Images may be nil: functions of package type Image are refused then.
	Images Images
	// Networks, if not nil, are the job networks of this node.
	Networks sandbox.Networks
	// UID and GID are whom functions run as: 993 and 990 if 0, as on AWS
	// Lambda. The user of an image comes before them.
	UID, GID uint32
	// MaxProcesses bounds processes and threads of a sandbox, volley-init's
	// included: 1024 if 0, as on AWS Lambda. With runsc, a function that wants
	// more loses its sandbox, and may get somewhat more before that.
	MaxProcesses int
	// Parallel bounds how many containers the runtime starts at once; others
	// wait. Twice the number of CPUs if 0.
	Parallel int
	// InitTimeout bounds the initialisation of a function: 10 s, or the
	// function's own timeout where that is longer, if 0.
	InitTimeout time.Duration
	// Log takes what is not for the function's own log. May be nil.
	Log *slog.Logger
	// Observe is told how long each sandbox that could be made took. It may be
	// called concurrently, and may be nil.
	Observe func(Timings)
}

// Timings is how long the parts of Create took.
type Timings struct {
	// Prepare is for the package or image, and for the container's
	// configuration.
	Prepare time.Duration
	// Queue is the wait for other containers to be started.
	Queue time.Duration
	// Runtime is for the runtime, until the first process runs.
	Runtime time.Duration
	// Init is for volley-init and for the function's initialisation.
	Init time.Duration
}

// Total returns the sum of the parts.
func (t Timings) Total() time.Duration { return t.Prepare + t.Queue + t.Runtime + t.Init }

// The directories and files in Config.Dir.
const (
	lockName    = "lock"
	rootsName   = "roots"      // the root of host programs, and the top of images
	runtimeName = "runtime"    // the runtime's own state
	bundlesName = "containers" // one directory for each container
	mountsName  = "images"     // one mount for each image
)

// closeTime bounds how long a sandbox's removal may take.
const closeTime = 30 * time.Second

// Driver makes sandboxes with a runtime. Its methods may be called
// concurrently.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	lock   io.Closer
	engine engine
	// parent is the control group that all containers are in.
	parent    *group
	boundSwap bool
	seccomp   *specs.LinuxSeccomp
	// hostRoot is the root for packages, hostBinds what goes on it.
	hostRoot  string
	hostBinds []bind
	images    *imageMounts
	// slots bounds how many containers are started at once.
	slots chan struct{}
	// fault, in tests, makes a step of Create fail.
	fault func(step string) error

	mu sync.Mutex
	// containers is those that are being made, in use, or being removed.
	containers map[string]*container
	closed     bool
	closeOnce  sync.Once
	closeErr   error
}

var _ sandbox.Driver = (*Driver)(nil)

// New makes a Driver. The error wraps sys.ErrLocked when another process uses
// its directory. The caller closes it.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	d, err := newDriver(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("make driver %s: %w", cfg.Runtime, err)
	}
	return d, nil
}

func newDriver(ctx context.Context, cfg Config) (*Driver, error) {
	if cfg.Unpacker == nil {
		return nil, errors.New("no source of packages")
	}
	if uid := os.Geteuid(); uid != 0 {
		return nil, fmt.Errorf("containers need root, this is user %d: run as root, or use driver process", uid)
	}
	cfg.setDefaults()
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	// Runtimes resolve links in paths, and mounts are listed by resolved ones.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	lock, err := sys.LockFile(filepath.Join(cfg.Dir, lockName))
	if err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, log: cfg.Log, lock: lock, slots: make(chan struct{}, cfg.Parallel), containers: map[string]*container{}}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

func (c *Config) setDefaults() {
	if c.UID == 0 {
		c.UID = 993
	}
	if c.GID == 0 {
		c.GID = 990
	}
	if c.MaxProcesses == 0 {
		c.MaxProcesses = 1024
	}
	if c.Parallel == 0 {
		c.Parallel = 2 * goruntime.NumCPU()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// prepare makes what all sandboxes share.
func (d *Driver) prepare(ctx context.Context) error {
	for _, name := range []string{runtimeName, bundlesName, mountsName} {
		if err := os.MkdirAll(d.path(name), 0o711); err != nil {
			return err
		}
	}
	var err error
	if d.engine, err = findEngine(ctx, d.cfg.Runtime, d.cfg.Binary, d.path(runtimeName), d.cfg.Platform); err != nil {
		return err
	}
	mounts, err := sys.Mounts()
	if err != nil {
		return err
	}
	h, err := findHierarchy(mounts, os.DirFS("/"))
	if err != nil {
		return err
	}
	d.parent = h.group("/volley-" + shortName(d.cfg.Dir))
	if err := d.parent.prepare(); err != nil {
		return err
	}
	d.boundSwap = d.parent.boundsSwap()
	if !d.engine.ownKernel {
		d.seccomp = seccompProfile()
	}
	// A new root each time: the host may have changed.
	if err := removeTree(d.path(rootsName)); err != nil {
		return err
	}
	d.hostRoot = d.path(rootsName, "host")
	if d.hostBinds, err = buildHostRoot(d.hostRoot, "/", d.cfg.Init, mounts, d.cfg.UID, d.cfg.GID); err != nil {
		return err
	}
	top := d.path(rootsName, "top")
	d.images = &imageMounts{top: top, dir: d.path(mountsName), mounts: map[string]*imageMount{}}
	return buildTop(top, d.cfg.Init)
}

// path returns a path in the driver's directory.
func (d *Driver) path(elem ...string) string {
	return filepath.Join(append([]string{d.cfg.Dir}, elem...)...)
}

// shortName returns a short name that stands for a directory of this host.
func shortName(dir string) string {
	h := fnv.New64a()
	_, _ = io.WriteString(h, dir)
	return hex.EncodeToString(h.Sum(nil))
}

// Name returns the runtime's name.
func (d *Driver) Name() string { return d.cfg.Runtime }

// Isolation says what the runtime isolates.
func (d *Driver) Isolation() string { return d.engine.isolation }

// Create makes a sandbox.
func (d *Driver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if !validID(spec.ID) {
		return nil, fmt.Errorf("create sandbox: id %q: use 1 to 64 letters, digits and '-', not '-' first", spec.ID)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &container{
		driver: d, id: spec.ID, function: spec.Function, group: d.parent.h.group(filepath.Join(d.parent.path, spec.ID)),
		cancel: cancel, created: make(chan struct{}),
	}
	if err := d.register(c); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	timings, err := c.create(ctx, spec.Log)
	if err != nil {
		if closeErr := c.Close(context.WithoutCancel(ctx)); closeErr != nil {
			return nil, errors.Join(err, closeErr)
		}
		return nil, err
	}
	if d.cfg.Observe != nil {
		d.cfg.Observe(timings)
	}
	return c, nil
}

func validID(id string) bool {
	if id == "" || len(id) > 64 || id[0] == '-' {
		return false
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func (d *Driver) register(c *container) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("driver %s: %w", d.Name(), os.ErrClosed)
	}
	if _, taken := d.containers[c.id]; taken {
		return errors.New("the id is in use")
	}
	d.containers[c.id] = c
	return nil
}

func (d *Driver) unregister(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.containers, id)
}

// open returns the containers that there are; closing says that no others are
// to come.
func (d *Driver) open(closing bool) []*container {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = d.closed || closing
	open := make([]*container, 0, len(d.containers))
	for _, c := range d.containers {
		open = append(open, c)
	}
	return open
}

// Close closes all sandboxes, those being made included, and removes all that
// the driver has on the host but its empty directories. It is idempotent.
func (d *Driver) Close() error {
	d.closeOnce.Do(func() {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, c := range d.open(true) {
			wg.Go(func() {
				if err := c.Close(context.Background()); err != nil {
					mu.Lock()
					defer mu.Unlock()
					d.closeErr = errors.Join(d.closeErr, err)
				}
			})
		}
		wg.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		d.closeErr = errors.Join(d.closeErr, d.parent.destroy(ctx), removeTree(d.path(mountsName)), removeTree(d.path(rootsName)), d.lock.Close())
		if d.closeErr != nil {
			d.closeErr = fmt.Errorf("close driver %s: %w", d.Name(), d.closeErr)
		}
	})
	return d.closeErr
}
