package faasnap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/volley-run/volley/faasnap/snapshot"
)

// Inspect returns a snapshot without reading its guest memory, which may be
// damaged: enough to tell what it is. The error is as that of Snapshot.
func (s *Service) Inspect(name string) (*snapshot.Snapshot, error) {
	if err := checkName("snapshot", name); err != nil {
		return nil, err
	}
	snap, err := snapshot.Open(s.snapshotPath(name))
	if errors.Is(err, snapshot.ErrNone) {
		return nil, fmt.Errorf("snapshot %s: %w", name, ErrNotFound)
	}
	return snap, err
}

// FunctionOf returns the name of the function that a snapshot is of.
func FunctionOf(s *snapshot.Snapshot) string { return s.Meta().Labels[labelFunction] }

// VMMOf returns which VMM a snapshot is for, as Service.Version has it.
func VMMOf(s *snapshot.Snapshot) string { return s.Meta().Labels[labelVMM] }

// MACOf returns the address of the network device of a snapshot's machine; empty
// if it had none.
func MACOf(s *snapshot.Snapshot) string { return s.Meta().Labels[labelMAC] }

// HasFaults reports whether a snapshot has what the modes REAP, Concurrent and
// Groups need.
func HasFaults(s *snapshot.Snapshot) bool { return slices.Contains(s.Files(), faultsFile) }

// Garbage is a snapshot that nothing can use.
type Garbage struct {
	// Name is the snapshot's; empty is that of snapshots that were never
	// completed.
	Name string
	// Reason is why it is of no use.
	Reason string
}

// Collect removes snapshots whose function is gone or that are damaged, for
// which it reads them all, and what is left of unfinished ones. It returns what
// that is; with dryRun nothing is removed. Snapshots of other versions of
// Volley or of the VMM are left alone.
func (s *Service) Collect(ctx context.Context, dryRun bool) ([]Garbage, error) {
	names, err := s.Snapshots()
	if err != nil {
		return nil, err
	}
	var found []Garbage
	for _, name := range names {
		reason, err := s.useless(ctx, name)
		if err != nil {
			return found, fmt.Errorf("collect garbage: %w", err)
		}
		if reason == "" {
			continue
		}
		if !dryRun {
			if err := s.RemoveSnapshot(name); err != nil && !errors.Is(err, ErrNotFound) {
				return found, fmt.Errorf("collect garbage: %w", err)
			}
		}
		found = append(found, Garbage{Name: name, Reason: reason})
	}
	if dryRun {
		return found, nil
	}
	n, err := snapshot.Sweep(filepath.Join(s.cfg.Dir, snapshotsDir))
	if err != nil {
		return found, fmt.Errorf("collect garbage: %w", err)
	}
	if n > 0 {
		found = append(found, Garbage{Reason: fmt.Sprintf("%d unfinished", n)})
	}
	return found, nil
}

// useless returns why nothing can use a snapshot, or nothing.
func (s *Service) useless(ctx context.Context, name string) (string, error) {
	snap, err := s.Inspect(name)
	if err == nil {
		if gone, goneErr := s.gone(FunctionOf(snap), name); gone || goneErr != nil {
			return fmt.Sprintf("function %s is gone", FunctionOf(snap)), goneErr
		}
		err = snap.Verify(ctx)
	}
	switch _, system := errors.AsType[syscall.Errno](err); {
	case err == nil, errors.Is(err, ErrNotFound), errors.Is(err, snapshot.ErrVersion):
		return "", nil
	case errors.Is(err, snapshot.ErrDamaged) && !system: // what cannot be read now may be in order
		return err.Error(), nil
	}
	return "", err
}

// gone reports whether there is no function of any of the names: that of a
// snapshot's function, and the snapshot's own, since AddFunctionAs keeps
// functions under other names.
func (s *Service) gone(names ...string) (bool, error) {
	for _, name := range names {
		if _, err := s.Function(name); err == nil || !errors.Is(err, ErrNotFound) {
			return false, err
		}
	}
	return true, nil
}
