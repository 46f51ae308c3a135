package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
)

// Recover removes what an earlier process left behind in the driver's
// directory: it may have been killed at any point of making or removing a
// sandbox. It must not be called once sandboxes have been made.
func (d *Driver) Recover(ctx context.Context) (int, error) {
	if len(d.open(false)) > 0 {
		return 0, errors.New("recover: sandboxes are in use")
	}
	ids, err := d.leftovers()
	if err != nil {
		return 0, fmt.Errorf("recover: %w", err)
	}
	var errs []error
	for _, id := range ids {
		if err := d.removeLeftover(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("recover sandbox %s: %w", id, err))
		}
	}
	// Nobody uses an image any longer.
	if err := errors.Join(removeTree(d.path(mountsName)), os.MkdirAll(d.path(mountsName), 0o711)); err != nil {
		errs = append(errs, fmt.Errorf("recover: %w", err))
	}
	return len(ids), errors.Join(errs...)
}

// leftovers returns the ids of which there is anything.
func (d *Driver) leftovers() ([]string, error) {
	ids, err := d.engine.ids()
	if err != nil {
		return nil, err
	}
	bundles, err := os.ReadDir(d.path(bundlesName))
	if err != nil {
		return nil, err
	}
	for _, b := range bundles {
		ids = append(ids, b.Name())
	}
	ids = append(ids, d.parent.children()...)
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

func (d *Driver) removeLeftover(ctx context.Context, id string) error {
	group := d.parent.h.group(d.parent.path + "/" + id)
	// First the processes: the runtime waits for them.
	if err := group.destroy(ctx); err != nil {
		return err
	}
	if err := d.engine.delete(ctx, id); err != nil {
		d.log.Warn("the runtime cannot delete a leftover container", "container", id, "err", err)
	}
	return errors.Join(group.destroy(ctx), d.engine.forget(id), removeTree(d.path(bundlesName, id)))
}
