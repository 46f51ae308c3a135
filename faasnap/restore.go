package faasnap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/sandbox/agent"
)

// RestoreOptions are how a machine is restored.
type RestoreOptions struct {
	StartOptions
	// HugeZeros backs long zero regions by huge pages (FaaSnap, Regions).
	HugeZeros bool
	// Populate makes the VMM put the loading set into its page tables as it
	// arrives (FaaSnap).
	Populate bool
	// Paused leaves the guest stopped until Resume.
	Paused bool
	// noReadAhead is for recording what the guest touches (Full).
	noReadAhead bool
	// faulted is told each page that the guest waits for (recordingFaults).
	faulted func(page int)
}

// source is a snapshot that a machine can be restored from.
type source struct {
	name     string
	dir      string // where its files are
	function *Function
	plan     *pages.Plan
	working  pages.WorkingSet
	// mac is the address of the network device; empty if there was none.
	mac      string
	snapshot *snapshot.Snapshot // nil while it is being recorded
}

// lazy reports whether guest memory is in an object store.
func (s *source) lazy() bool { return s.snapshot != nil && s.snapshot.Remote() != "" }

// path returns where a file of the snapshot is.
func (s *source) path(name string) string { return filepath.Join(s.dir, name) }

// Restore starts a machine from a snapshot. The function in it is ready for an
// invocation. Nothing of a snapshot that is damaged runs: the error wraps
// snapshot.ErrDamaged then, or ErrNotFound. Of a lazy snapshot FaaSnap and
// FaaSnapFaults fetch what the guest touches, when it does; both are
// FaaSnapFaults then. Other modes fetch all of it first, which leaves the
// snapshot a whole one. The caller closes the machine.
func (s *Service) Restore(ctx context.Context, name string, mode Mode, o RestoreOptions) (*VM, error) {
	begin := time.Now()
	src, mode, err := s.sourceFor(ctx, name, mode)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	v, err := s.restore(ctx, src, mode, o, begin)
	if err != nil {
		return nil, fmt.Errorf("restore snapshot %s: %w", name, err)
	}
	return v, nil
}

func (s *Service) restore(ctx context.Context, src *source, mode Mode, o RestoreOptions, begin time.Time) (*VM, error) {
	v, refill := s.waiting(src, mode, o)
	if v == nil {
		var err error
		if v, err = s.newVM(src.function, mode); err != nil {
			return nil, err
		}
		v.snapshot = src.name
	}
	v.refill = refill
	err := v.restore(ctx, src, o, begin)
	if err == nil {
		err = s.register(v)
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (v *VM) restore(ctx context.Context, src *source, o RestoreOptions, begin time.Time) error {
	var err error
	if v.waited {
		err = v.wake(ctx, src, begin)
	} else {
		err = v.launch(ctx, src, o, begin)
	}
	if err != nil {
		return err
	}
	v.agent, err = agent.Resume(ctx, conn(v.vm), agent.Restore{ID: v.id, Network: o.Addresses}, v.agentOptions(o.StartOptions))
	if err != nil {
		return err
	}
	v.times.Start = time.Since(begin)
	return nil
}

// launch starts a VMM, whose guest runs then.
func (v *VM) launch(ctx context.Context, src *source, o RestoreOptions, begin time.Time) error {
	var err error
	if v.network, err = restoreNetwork(o.Network, src.mac); err != nil {
		return err
	}
	r := vmm.Restore{
		Machine: v.function.machine(v.network), State: src.path(stateFile), Console: o.Console, Dir: v.dir, Paused: o.Paused || v.mode == REAP,
	}
	l, err := v.beginLoads(src, o, &r)
	if err != nil {
		return err
	}
	v.loads = l
	v.times.Prepare = time.Since(begin)
	mark := time.Now()
	starting, end := l.bind(ctx)
	v.vm, err = v.service.cfg.Driver.Restore(starting, r)
	end()
	if err != nil {
		// What was wrong with memory explains more than that the VMM ended.
		if why := l.failure(); why != nil {
			return why
		}
		return err
	}
	l.stopOnFailure(v.vm)
	if v.mode == REAP {
		since := time.Now()
		if err := l.wait(ctx); err != nil {
			return err
		}
		v.times.Prefetch = time.Since(since)
		if !o.Paused {
			if err := v.vm.Resume(ctx); err != nil {
				return err
			}
		}
	}
	v.times.VMM = time.Since(mark)
	return nil
}

// stateFile is the VMM's file in a snapshot, functionFile the function's
// description, faultsFile and reapFile what REAP has recorded.
const (
	stateFile    = "state"
	functionFile = "function"
	faultsFile   = "faults"
	reapFile     = "reap"
)

// beginLoads begins what brings guest memory in, and says in r where the VMM
// finds it.
func (v *VM) beginLoads(src *source, o RestoreOptions, r *vmm.Restore) (*loads, error) {
	l := newLoads()
	memory := src.path(snapshot.MemoryFile)
	fail := func(err error) (*loads, error) {
		l.close()
		return nil, err
	}
	switch v.mode {
	case Full, Cached:
		r.Memory.File, r.Memory.NoReadAhead = memory, o.noReadAhead
		l.done()
	case Concurrent, Groups, HostRecording, Regions:
		if err := v.readRanges(l, src, memory); err != nil {
			return fail(err)
		}
		r.Memory.File = memory
		if v.mode == Regions {
			plan, err := withoutLoading(src.plan)
			if err != nil {
				return fail(err)
			}
			r.Memory = vmm.Memory{Overlay: &vmm.Overlay{Plan: plan, Memory: memory, HugeZeros: o.HugeZeros}}
		}
	case FaaSnap:
		overlay := src.overlay(o)
		var progress *os.File
		if o.Populate {
			read, write, err := os.Pipe()
			if err != nil {
				return fail(fmt.Errorf("make a pipe: %w", err))
			}
			overlay.Progress, progress = read, write
			l.own = append(l.own, read)
		}
		if err := v.load(l, src, progress); err != nil {
			return fail(err)
		}
		r.Memory.Overlay = overlay
	case FaaSnapFaults, REAP, recordingFaults:
		files, loading, err := v.faultFiles(src, o)
		if err == nil && src.lazy() {
			memory, err = "", v.fetchFrom(l, src, &files)
		}
		if err != nil {
			return fail(err)
		}
		socket := filepath.Join(v.dir, "faults")
		if err := v.handle(l, socket, files, memory, loading); err != nil {
			return fail(err)
		}
		r.Memory.Faults = &vmm.Faults{Socket: socket}
	default:
		return fail(fmt.Errorf("mode %s does not restore", v.mode))
	}
	return l, nil
}

// overlay is guest memory as FaaSnap maps it.
func (s *source) overlay(o RestoreOptions) *vmm.Overlay {
	return &vmm.Overlay{Plan: s.plan, Memory: s.path(snapshot.MemoryFile), Loading: s.path(snapshot.LoadingFile), HugeZeros: o.HugeZeros}
}

// withoutLoading returns a plan that takes from the memory file what p takes
// from the loading set.
func withoutLoading(p *pages.Plan) (*pages.Plan, error) {
	return pages.Make(p.Stored(), pages.WorkingSet{Pages: p.Pages}, pages.DefaultOptions())
}

// source returns a snapshot that was found in order: read whole once, and
// unchanged since.
func (s *Service) source(ctx context.Context, name string) (*source, error) {
	snap, err := s.Snapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	if want := snap.Meta().Labels[labelVMM]; want != "" {
		got, err := s.Version(ctx)
		if err != nil {
			return nil, err
		}
		if got != want {
			return nil, fmt.Errorf("snapshot %s is of another virtual machine monitor: %s; this is %s: record it again", name, want, got)
		}
	}
	f, err := readFunction(snap.Path(functionFile))
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	return &source{name: name, dir: snap.Dir(), plan: snap.Plan(), working: snap.Working(), snapshot: snap, function: f, mac: snap.Meta().Labels[labelMAC]}, nil
}

// Snapshot returns a snapshot that is in order. The first call for a name reads
// all of it; later ones look whether its files are the same still.
func (s *Service) Snapshot(ctx context.Context, name string) (*snapshot.Snapshot, error) {
	if err := checkName("snapshot", name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	snap := s.verified[name]
	s.mu.Unlock()
	if snap != nil {
		if err := snap.Unchanged(); err == nil {
			return snap, nil
		}
	}
	snap, err := s.Inspect(name)
	if err == nil {
		err = snap.Verify(ctx)
	}
	if err != nil {
		s.forget(name)
		return nil, err
	}
	s.mu.Lock()
	s.verified[name] = snap
	s.mu.Unlock()
	return snap, nil
}

// forget says that what a name stood for is not there any more.
func (s *Service) forget(name string) {
	s.mu.Lock()
	delete(s.verified, name)
	delete(s.memories, name)
	s.mu.Unlock()
	s.dropStandby(name)
}

func (s *Service) snapshotPath(name string) string {
	return filepath.Join(s.cfg.Dir, snapshotsDir, name)
}

// Snapshots returns the names of all snapshots, in order.
func (s *Service) Snapshots() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, snapshotsDir))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkName("snapshot", e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// RemoveSnapshot removes a snapshot. Machines that were restored from it go on.
func (s *Service) RemoveSnapshot(name string) error {
	if err := checkName("snapshot", name); err != nil {
		return err
	}
	s.forget(name)
	if _, err := os.Stat(s.snapshotPath(name)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("snapshot %s: %w", name, ErrNotFound)
	}
	return snapshot.Remove(s.snapshotPath(name))
}
