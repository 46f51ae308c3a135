package faasnap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/function"
)

// MaxStandby bounds how many VMMs wait for restores of one snapshot.
const MaxStandby = 64

// standby are VMMs that wait for restores of a snapshot.
type standby struct {
	// snapshot is what they are of, want how many there shall be.
	snapshot *snapshot.Snapshot
	want     int
	// ready are machines whose guests have not run. starting counts those that
	// are not so far.
	ready    []*VM
	starting int
}

// Standby keeps so many VMMs started for restores of a snapshot by FaaSnap, and
// returns once they are there; 0 ends those that are. Such a VMM has mapped guest
// memory and restored its devices, has loaded nothing, and only waits to let the
// guest run. It takes the memory of its process, and of the guest's only the
// pages that devices share with it.
//
// Restore takes one if there is one, unless its options name what has to be known
// earlier. The next is started once the restored machine has answered for the
// first time or has ended, so that it holds nobody up. VMMs of a snapshot that is
// removed or replaced end. What a lazy snapshot lacks is fetched first.
func (s *Service) Standby(ctx context.Context, name string, count int) error {
	if err := s.setStandby(ctx, name, count); err != nil {
		return fmt.Errorf("keep VMMs for snapshot %s: %w", name, err)
	}
	return nil
}

func (s *Service) setStandby(ctx context.Context, name string, count int) error {
	if count < 0 || count > MaxStandby {
		return function.Errorf(function.InvalidParameter, "%d VMMs: want 0 to %d", count, MaxStandby)
	}
	if count == 0 {
		_, err := s.Inspect(name)
		s.dropStandby(name)
		return err
	}
	src, err := s.wholeSource(ctx, name)
	if err != nil {
		return err
	}
	if src.mac != "" {
		return function.Errorf(function.InvalidParameter, "the machine has a network device, whose tap has to be known before: restore it without a VMM that waits")
	}
	s.mu.Lock()
	old := s.standbys[name]
	var surplus []*VM
	switch {
	case s.closed:
		s.mu.Unlock()
		return ErrClosed
	case old != nil && old.snapshot == src.snapshot:
		old.want = count
		if n := len(old.ready); n > count {
			surplus = slices.Clone(old.ready[count:])
			old.ready = old.ready[:count]
		}
	default:
		if old != nil {
			surplus = old.ready
		}
		s.standbys[name] = &standby{snapshot: src.snapshot, want: count}
	}
	s.mu.Unlock()
	if err := closeAll(surplus); err != nil {
		return err
	}
	return s.fill(ctx, src)
}

// StandbyInfo tells how many VMMs there shall be for a snapshot, and are.
type StandbyInfo struct {
	Count int `json:"count"`
	Ready int `json:"ready"`
}

// Standbys tells of the VMMs that wait, by the names of their snapshots.
func (s *Service) Standbys() map[string]StandbyInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]StandbyInfo, len(s.standbys))
	for name, b := range s.standbys {
		all[name] = StandbyInfo{Count: b.want, Ready: len(b.ready)}
	}
	return all
}

func closeAll(vms []*VM) error {
	var errs []error
	for _, v := range vms {
		errs = append(errs, v.Close())
	}
	return errors.Join(errs...)
}

// fill starts VMMs until there are as many as are wanted.
func (s *Service) fill(ctx context.Context, src *source) error {
	for {
		s.mu.Lock()
		b := s.standbys[src.name]
		if s.closed || b == nil || b.snapshot != src.snapshot || len(b.ready)+b.starting >= b.want {
			s.mu.Unlock()
			return nil
		}
		b.starting++
		s.filling.Add(1)
		s.mu.Unlock()
		v, err := s.startStandby(ctx, src)
		s.mu.Lock()
		b.starting--
		// It may have been decided otherwise meanwhile.
		keep := err == nil && !s.closed && s.standbys[src.name] == b && len(b.ready) < b.want
		if keep {
			b.ready = append(b.ready, v)
		}
		s.mu.Unlock()
		if err == nil && !keep {
			err = v.Close()
		}
		s.filling.Done()
		if err != nil {
			return err
		}
	}
}

// startStandby starts a VMM that waits.
func (s *Service) startStandby(ctx context.Context, src *source) (*VM, error) {
	v, err := s.newVM(src.function, FaaSnap)
	if err != nil {
		return nil, err
	}
	v.snapshot = src.name
	v.vm, err = s.cfg.Driver.Restore(ctx, vmm.Restore{
		Machine: src.function.machine(nil), State: src.path(stateFile), Memory: vmm.Memory{Overlay: src.overlay(RestoreOptions{})},
		Dir: v.dir, Paused: true,
	})
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// waiting returns a machine whose VMM has waited for this restore; nil is none.
// refill, if not nil, is to be called when the restored machine, whichever that
// is, needs the processors less.
func (s *Service) waiting(src *source, mode Mode, o RestoreOptions) (v *VM, refill func()) {
	if mode != FaaSnap || o.Console != nil || o.Network != nil || o.HugeZeros || o.Populate || o.Paused {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.standbys[src.name]
	if b == nil || b.snapshot != src.snapshot {
		return nil, nil
	}
	for v == nil && len(b.ready) > 0 {
		first := b.ready[0]
		b.ready = b.ready[1:]
		select {
		case <-first.vm.Done():
			s.filling.Go(func() { _ = first.Close() }) // it has ended already
		default:
			v = first
			v.created, v.waited = time.Now(), true
		}
	}
	return v, func() { s.refill(src) }
}

// refill starts what has been taken, in the background.
func (s *Service) refill(src *source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.filling.Go(func() {
		if err := s.fill(s.ctx, src); err != nil && s.ctx.Err() == nil {
			s.log.Warn("no VMM waits for a snapshot", "snapshot", src.name, "err", err)
		}
	})
}

// dropStandby ends the VMMs that wait for a snapshot.
func (s *Service) dropStandby(name string) {
	s.mu.Lock()
	b := s.standbys[name]
	delete(s.standbys, name)
	s.mu.Unlock()
	if b != nil {
		if err := closeAll(b.ready); err != nil {
			s.log.Warn("what a VMM had cannot be removed", "snapshot", name, "err", err)
		}
	}
}

// wake lets the guest of a VMM that has waited run.
func (v *VM) wake(ctx context.Context, src *source, begin time.Time) error {
	v.loads = newLoads()
	if err := v.load(v.loads, src, nil); err != nil {
		return err
	}
	v.times.Prepare = time.Since(begin)
	mark := time.Now()
	v.loads.stopOnFailure(v.vm)
	if err := v.vm.Resume(ctx); err != nil {
		return errors.Join(v.loads.failure(), err)
	}
	v.times.VMM = time.Since(mark)
	return nil
}
