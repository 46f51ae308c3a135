package microvm

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/snapshot"
)

const (
	// tidyEvery is how often it is looked for snapshots that are not worth their
	// room any longer.
	tidyEvery = 10 * time.Minute
	// retryAfter is how long after a failure a snapshot is tried again; it
	// doubles each time, up to maxRetry.
	retryAfter, maxRetry = time.Minute, time.Hour
	// maxUnrestored is how often in a row a snapshot may fail to be restored,
	// for reasons that need not be its own.
	maxUnrestored = 2
	// forgetPerDay is how often a function without a snapshot has to be invoked
	// for its rate to be remembered.
	forgetPerDay = 0.01
)

// invoked is called after each invocation of a sandbox. If it went well, its
// event may be what a snapshot is recorded with.
func (d *Driver) invoked(b *box, event []byte, well bool) {
	now, r := time.Now(), b.revision
	r.mu.Lock()
	r.rate.note(now, d.cfg.Policy.HalfLife)
	choice := d.cfg.Policy.Choose(r.load(now, d.cfg.Policy))
	if r.networked {
		choice.Snapshot = min(choice.Snapshot, Plain)
	}
	wanted := well && !r.retired && !r.recording && choice.Snapshot > r.kind && !now.Before(r.retry)
	if wanted && d.begin() == nil {
		r.recording = true
	} else {
		wanted = false
	}
	r.mu.Unlock()
	if !wanted {
		return
	}
	go func() {
		defer d.work.Done()
		d.record(r, choice, event)
	}()
}

// record makes a revision's snapshot, when others are done.
func (d *Driver) record(r *revision, choice Choice, event []byte) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.recording = false
	}()
	select {
	case d.recorder <- struct{}{}:
		defer func() { <-d.recorder }()
	case <-d.ctx.Done():
		return
	}
	begin := time.Now()
	snap, err := d.take(r, choice.Snapshot, event)
	if err != nil {
		if d.ctx.Err() == nil {
			d.log.Warn("cannot take a snapshot", "function", r.function, "err", err)
			r.failed()
		}
		return
	}
	bytes := snap.DiskBytes()
	r.mu.Lock()
	r.kind, r.bytes, r.failures, r.unrestored = choice.Snapshot, bytes, 0, 0
	retired := r.retired
	r.mu.Unlock()
	if retired {
		d.removeSnapshot(r)
		return
	}
	d.log.Info("took a snapshot", "function", r.function, "kind", choice.Snapshot, "bytes", bytes,
		"took", time.Since(begin).Round(time.Millisecond), "keepWarm", choice.KeepWarm)
	d.tidy()
	if r.snapshot() == None {
		// There was no room for it: others are worth more, or it is too large.
		r.failed()
	}
}

// failed puts the next attempt off.
func (r *revision) failed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retry = time.Now().Add(min(retryAfter<<min(r.failures, 10), maxRetry))
	r.failures++
}

// take takes a snapshot in a machine of its own.
func (d *Driver) take(r *revision, kind Kind, event []byte) (*snapshot.Snapshot, error) {
	r.mu.Lock()
	f := r.built
	r.mu.Unlock()
	o := faasnap.RecordOptions{
		StartOptions: d.startOptions(&f.Function), Name: r.name, Inputs: [][]byte{event}, Plain: kind == Plain, Replace: true,
	}
	if r.networked {
		place, namespace, err := nowhere()
		if err != nil {
			return nil, err
		}
		defer namespace.Close()
		o.Join(place)
		// What the event makes the function send would be sent again.
		o.Initialised = true
	}
	return d.cfg.Service.Record(d.ctx, f, o)
}

// tidyRegularly removes what is not worth its room any longer.
func (d *Driver) tidyRegularly() {
	d.tidy()
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			d.tidy()
		case <-d.ctx.Done():
			return
		}
	}
}

// tidy removes snapshots that are not worth their room, or for which there is
// none, forgets functions that are hardly invoked, and has VMMs wait for those that
// are invoked most.
func (d *Driver) tidy() {
	now, p := time.Now(), d.cfg.Policy
	var kept []Kept
	byName := make(map[string]*revision)
	d.mu.Lock()
	for name, r := range d.revisions {
		r.mu.Lock()
		load := r.load(now, p)
		switch {
		case r.kind != None:
			kept = append(kept, Kept{Name: name, Kind: r.kind, Load: load, Worthless: r.retired})
			byName[name] = r
		case load.PerDay < forgetPerDay && !load.New && !r.recording:
			delete(d.revisions, name)
		}
		r.mu.Unlock()
	}
	d.mu.Unlock()
	for _, name := range p.Evict(kept, 0) {
		r := byName[name]
		d.log.Info("a snapshot is not worth its room any longer", "function", r.function)
		d.removeSnapshot(r)
		kept = slices.DeleteFunc(kept, func(k Kept) bool { return k.Name == name })
	}
	d.standBy(p.Standby(kept))
}

// standBy has a VMM wait for restores of each of those snapshots, and of no other.
func (d *Driver) standBy(names []string) {
	counts := make(map[string]int)
	for name := range d.cfg.Service.Standbys() {
		counts[name] = 0
	}
	for _, name := range names {
		counts[name] = 1
	}
	for name, count := range counts {
		if err := d.cfg.Service.Standby(d.ctx, name, count); err != nil && !errors.Is(err, faasnap.ErrNotFound) && d.ctx.Err() == nil {
			d.log.Warn("no VMM waits for a snapshot", "snapshot", name, "err", err)
		}
	}
}

// unrestorable acts on a failure to restore a snapshot.
func (d *Driver) unrestorable(ctx context.Context, r *revision, err error) {
	switch {
	case errors.Is(err, faasnap.ErrNotFound) || ctx.Err() != nil:
		return // one takes its place just now
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, snapshot.ErrVersion):
	default:
		r.mu.Lock()
		r.unrestored++
		often := r.unrestored >= maxUnrestored
		r.mu.Unlock()
		if !often {
			d.log.Warn("a snapshot cannot be restored; booting instead", "function", r.function, "err", err)
			return
		}
	}
	d.log.Warn("a snapshot cannot be restored, and is removed", "function", r.function, "err", err)
	d.removeSnapshot(r)
}
