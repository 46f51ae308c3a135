package faasnap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/store"
)

// Config is what a Service has to know.
type Config struct {
	// Dir is where functions, snapshots and what running virtual machines need
	// are kept. It is made if need be, for its owner only: snapshots have all
	// that functions had in memory.
	Dir string
	// Driver starts virtual machines.
	Driver vmm.Driver
	// Builder makes what they boot.
	Builder *guest.Builder
	// OpenStore opens the object stores that snapshots are pushed to and pulled
	// from; nil is store.Open.
	OpenStore func(ctx context.Context, url string) (store.Store, error)
	// Log takes what nobody is told otherwise. May be nil.
	Log *slog.Logger
}

// Service keeps functions and snapshots, and runs virtual machines. Its methods
// may be called concurrently. A directory belongs to one Service at a time.
type Service struct {
	cfg    Config
	log    *slog.Logger
	lock   interface{ Close() error }
	loader mem.Loader
	// learning is held by whoever adds to a snapshot's runs.
	learning sync.Mutex

	mu     sync.Mutex
	vms    map[string]*VM
	closed bool
	// verified are the snapshots that have been read whole once, by name.
	verified map[string]*snapshot.Snapshot
	// memories are those of lazy snapshots that are in use, by name.
	memories map[string]*sharedMemory
	// standbys are the VMMs that wait, by the names of their snapshots.
	standbys map[string]*standby

	// filling are the VMMs that are being started to wait, which stop ends.
	filling sync.WaitGroup
	ctx     context.Context
	stop    context.CancelFunc
}

// Errors that callers act upon.
var (
	// ErrNotFound says, wrapped, that there is no function, snapshot or virtual
	// machine of a name.
	ErrNotFound = errors.New("not found")
	// ErrExists says, wrapped, that there is one already.
	ErrExists = errors.New("exists already")
	// ErrBusy says, wrapped, that another process uses the directory.
	ErrBusy = errors.New("in use by another process")
	// ErrFunction says, wrapped, that a function fails on an input that it was to
	// be recorded at.
	ErrFunction = errors.New("the function fails")
	// ErrClosed says, wrapped, that the Service is closed.
	ErrClosed = errors.New("the service is closed")
)

// Open opens a directory, and removes what processes that have died left of
// virtual machines and unfinished snapshots. The caller closes the Service.
func Open(cfg Config) (*Service, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OpenStore == nil {
		cfg.OpenStore = func(ctx context.Context, url string) (store.Store, error) { return store.Open(ctx, url) }
	}
	s := &Service{
		cfg: cfg, log: cfg.Log, vms: make(map[string]*VM), verified: make(map[string]*snapshot.Snapshot), memories: make(map[string]*sharedMemory),
		standbys: make(map[string]*standby),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.stop()
		return nil, fmt.Errorf("open %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Service) open() (err error) {
	for _, dir := range []string{"", functionsDir, snapshotsDir} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Dir, dir), 0o700); err != nil {
			return err
		}
	}
	lock, err := sys.TryLock(s.cfg.Dir)
	if errors.Is(err, sys.ErrLocked) {
		return ErrBusy
	}
	if err != nil {
		return err
	}
	s.lock = lock
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	// VMMs die with the process that started them.
	if err := os.RemoveAll(filepath.Join(s.cfg.Dir, vmsDir)); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(s.cfg.Dir, vmsDir), 0o700); err != nil {
		return err
	}
	n, err := snapshot.Sweep(filepath.Join(s.cfg.Dir, snapshotsDir))
	if n > 0 {
		s.log.Info("removed unfinished snapshots", "count", n)
	}
	return err
}

// What is in a Service's directory.
const (
	functionsDir = "functions"
	snapshotsDir = "snapshots"
	vmsDir       = "vms"
)

// Close ends all virtual machines and gives the directory back. It is
// idempotent.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	vms := s.vms
	s.vms = make(map[string]*VM)
	standbys := s.standbys
	s.standbys = make(map[string]*standby)
	s.mu.Unlock()
	s.stop()
	var errs []error
	for _, v := range vms {
		errs = append(errs, v.Close())
	}
	for _, b := range standbys {
		errs = append(errs, closeAll(b.ready))
	}
	s.filling.Wait()
	return errors.Join(append(errs, s.lock.Close())...)
}

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// checkName refuses names that are no file names everywhere.
func checkName(what, name string) error {
	if !nameRule.MatchString(name) {
		return function.Errorf(function.InvalidParameter, "%s name %q: use 1 to 64 letters, digits, '-' and '_', a letter or digit first", what, name)
	}
	return nil
}

// Builder makes what machines boot.
func (s *Service) Builder() *guest.Builder { return s.cfg.Builder }

// Version says which VMM runs the machines; snapshots are for that one.
func (s *Service) Version(ctx context.Context) (string, error) { return s.cfg.Driver.Version(ctx) }
