package faasnap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/remote"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/store"
)

// openStore opens what a user or a lazy snapshot names.
func (s *Service) openStore(ctx context.Context, url string) (store.Store, error) {
	st, err := s.cfg.OpenStore(ctx, url)
	if err != nil {
		return nil, function.Errorf(function.InvalidParameter, "%v", err)
	}
	return st, nil
}

// Push copies a snapshot into the object store of an address, as store.Open
// takes it; see remote.Push. Memory that is elsewhere is fetched first. progress
// is told each step. The error wraps ErrNotFound, snapshot.ErrDamaged or
// remote.ErrStore.
func (s *Service) Push(ctx context.Context, name, url string, progress func(step string)) (*snapshot.Snapshot, error) {
	snap, err := s.push(ctx, name, url, progress)
	if err != nil {
		return nil, fmt.Errorf("push snapshot %s: %w", name, err)
	}
	return snap, nil
}

func (s *Service) push(ctx context.Context, name, url string, progress func(step string)) (*snapshot.Snapshot, error) {
	to, err := s.openStore(ctx, url)
	if err != nil {
		return nil, err
	}
	progress("read")
	snap, err := s.wholeSnapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	n, err := remote.Push(ctx, to, snap, func(file string) { progress("send " + file) })
	if err == nil {
		s.log.Info("pushed snapshot", "name", name, "to", to.URL(), "bytes", n)
	}
	return snap, err
}

// PullOptions are how a snapshot is copied from an object store.
type PullOptions struct {
	// Lazy leaves guest memory there, until a machine wants parts of it.
	Lazy bool
	// Replace allows a snapshot of that name to be there.
	Replace bool
	// Progress is told each step. May be nil.
	Progress func(step string)
}

// Pull copies a snapshot that Push has made, and its function if there is none of
// its name. What the function's machines boot has to be there. The error wraps
// ErrExists, ErrNotFound, snapshot.ErrDamaged, snapshot.ErrVersion or
// remote.ErrStore; there is no new snapshot then.
func (s *Service) Pull(ctx context.Context, url, name string, o PullOptions) (*snapshot.Snapshot, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	snap, err := s.pull(ctx, url, name, o)
	if errors.Is(err, remote.ErrNone) {
		err = fmt.Errorf("%w: %w", err, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pull snapshot %s: %w", name, err)
	}
	return snap, nil
}

func (s *Service) pull(ctx context.Context, url, name string, o PullOptions) (*snapshot.Snapshot, error) {
	from, err := s.openStore(ctx, url)
	if err != nil {
		return nil, err
	}
	return s.draft(name, o.Replace, func(d *snapshot.Draft) (*snapshot.Snapshot, error) {
		n, err := remote.Pull(ctx, from, d, o.Lazy, func(file string) { o.Progress("fetch " + file) })
		if err != nil {
			return nil, err
		}
		s.log.Info("pulled snapshot", "name", name, "from", from.URL(), "bytes", n)
		f, err := readFunction(d.Path(functionFile))
		if err != nil {
			return nil, err
		}
		for _, path := range f.Image.Drives() {
			if _, err := os.Stat(path); err != nil {
				return nil, fmt.Errorf("its function %s runs on a file that is not here: %w: %w: build the function first, of the same code and with the same packages", f.Name, ErrNotFound, err)
			}
		}
		if gone, err := s.gone(f.Name, name); err != nil {
			return nil, err
		} else if gone {
			if err := s.AddFunction(f); err != nil {
				return nil, err
			}
		}
		return d.Publish(ctx)
	})
}

// readFunction reads the function of a snapshot.
func readFunction(path string) (*Function, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read function: %w", err)
	}
	f := &Function{}
	if err := json.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("read function: %w", err)
	}
	return f, nil
}

// sharedMemory is the memory of a lazy snapshot for all machines that use it.
type sharedMemory struct {
	*remote.Memory
	service *Service
	name    string
	id      string // the snapshot's: another may have taken its place
	users   int    // guarded by Service.mu
}

// memory returns the memory of a lazy snapshot. The caller closes it.
func (s *Service) memory(ctx context.Context, name string, snap *snapshot.Snapshot) (*sharedMemory, error) {
	from, err := s.openStore(ctx, snap.Remote())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, id := s.memories[name], snap.Meta().ID
	if m == nil || m.id != id {
		memory, err := remote.Open(snap, from)
		if err != nil {
			return nil, err
		}
		m = &sharedMemory{Memory: memory, service: s, name: name, id: id}
		s.memories[name] = m
	}
	m.users++
	return m, nil
}

// Close gives it up; the last one closes it.
func (m *sharedMemory) Close() error {
	m.service.mu.Lock()
	m.users--
	last := m.users == 0
	if last && m.service.memories[m.name] == m {
		delete(m.service.memories, m.name)
	}
	m.service.mu.Unlock()
	if !last {
		return nil
	}
	return m.Memory.Close()
}

// wholeSnapshot is Snapshot with all of guest memory: what a lazy one lacks is
// fetched.
func (s *Service) wholeSnapshot(ctx context.Context, name string) (*snapshot.Snapshot, error) {
	snap, err := s.Snapshot(ctx, name)
	if err != nil || snap.Remote() == "" {
		return snap, err
	}
	m, err := s.memory(ctx, name, snap)
	if err != nil {
		return nil, err
	}
	_, err = m.Complete(ctx)
	if err := errors.Join(err, m.Close()); err != nil {
		return nil, fmt.Errorf("fetch memory of snapshot %s: %w", name, err)
	}
	s.forget(name)
	return s.Snapshot(ctx, name)
}

// wholeSource is source with all of guest memory.
func (s *Service) wholeSource(ctx context.Context, name string) (*source, error) {
	if _, err := s.wholeSnapshot(ctx, name); err != nil {
		return nil, err
	}
	return s.source(ctx, name)
}

// sourceFor returns a snapshot for a restore in a mode, and the mode in which
// that is done: FaaSnap gets pages that are in a store as FaaSnapFaults does, all
// others want the memory file.
func (s *Service) sourceFor(ctx context.Context, name string, mode Mode) (*source, Mode, error) {
	if mode != FaaSnap && mode != FaaSnapFaults {
		src, err := s.wholeSource(ctx, name)
		return src, mode, err
	}
	src, err := s.source(ctx, name)
	if err == nil && src.snapshot.Remote() != "" {
		mode = FaaSnapFaults
	}
	return src, mode, err
}

// fetchFrom has a handler of page faults serve guest memory from the store of a
// lazy snapshot.
func (v *VM) fetchFrom(l *loads, src *source, files *mem.GuestFiles) error {
	m, err := v.service.memory(l.ctx, src.name, src.snapshot)
	if err != nil {
		return err
	}
	l.own = append(l.own, m)
	files.Memory = m
	files.Fetch = func(ctx context.Context, offset, length int64) error {
		l.fetching.Add(1)
		defer l.fetching.Add(-1)
		n, err := m.Fetch(ctx, offset, length)
		l.fetched.Add(n)
		return err
	}
	return nil
}

// Verify reads all that is on disk of a snapshot and compares it with its
// checksums. Of one whose memory is in a store it looks whether the store has it,
// but does not read it. It returns how many bytes have been compared. The error
// wraps ErrNotFound, snapshot.ErrDamaged, snapshot.ErrVersion or remote.ErrStore.
func (s *Service) Verify(ctx context.Context, name string) (int64, error) {
	snap, err := s.Inspect(name)
	if err != nil {
		return 0, err
	}
	if err := snap.Verify(ctx); err != nil {
		return 0, err
	}
	total := int64(0)
	for _, f := range snap.Meta().Files {
		if f.Name != snapshot.MemoryFile || snap.Remote() == "" {
			total += f.SizeBytes
		}
	}
	if snap.Remote() == "" {
		return total, nil
	}
	m, err := s.memory(ctx, name, snap)
	if err != nil {
		return total, err
	}
	n, err := m.Verify(ctx)
	if err := errors.Join(err, m.Close()); err != nil {
		return total, fmt.Errorf("verify snapshot %s: %w", name, err)
	}
	return total + n, nil
}
