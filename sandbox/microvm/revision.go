package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/agent"
)

// guestMarginBytes is what a guest has beside the function's memory. Of 256 MiB,
// 182 are available when Python runs a function: the kernel with its tables,
// volley-init and the interpreter have 74. The rest is for caches of files and
// what the kernel keeps in reserve.
const guestMarginBytes = 128 << 20

// hugePageBytes is what guest memory is a multiple of.
const hugePageBytes = 2 << 20

// guestMemoryBytes is how much memory a function's machines have.
func guestMemoryBytes(f *function.Function) int64 {
	return (int64(f.MemoryMB)<<20 + guestMarginBytes + hugePageBytes - 1) &^ (hugePageBytes - 1)
}

// revision is what the driver knows of a revision of a function.
type revision struct {
	name     string // that the Service has it under
	function string // the function's own name
	modified time.Time
	// networked says that the function is on a job's network.
	networked bool
	// building is had by the one that builds what the function boots.
	building chan struct{}

	mu    sync.Mutex
	built *faasnap.Function // nil until it is built by this driver
	rate  rate
	// kind is of the snapshot that there is, bytes its room on disk.
	kind  Kind
	bytes int64
	// boot and restore are how long the last starts took; 0 is not known.
	boot, restore time.Duration
	// unrestored counts failures to restore since the last that went well.
	unrestored int
	// recording says that a snapshot is being made; after failures no other is
	// before retry.
	recording bool
	failures  int
	retry     time.Time
	// retired says that there is a newer revision: nothing is kept of this.
	retired bool
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

func newRevision(name string, f *function.Function) *revision {
	_, networked := f.Network.Job()
	return &revision{
		name: name, function: f.Name, modified: f.Modified, networked: networked, building: make(chan struct{}, 1), rate: rate{since: time.Now()},
	}
}

// revision returns what is known of a function's revision. What is kept of
// earlier ones is removed.
func (d *Driver) revision(f *function.Function) *revision {
	name := serviceName(f)
	d.mu.Lock()
	r := d.revisions[name]
	var old []*revision
	if r == nil {
		r = newRevision(name, f)
		for _, other := range d.revisions {
			switch {
			case other.function != f.Name:
			case other.modified.After(f.Modified):
				r.retired = true
			case f.Modified.After(other.modified):
				old = append(old, other)
				delete(d.revisions, other.name)
			}
		}
		d.revisions[name] = r
	}
	d.mu.Unlock()
	for _, other := range old {
		d.retire(other)
	}
	return r
}

// retire removes what is kept of a revision, now and later.
func (d *Driver) retire(r *revision) {
	r.mu.Lock()
	r.retired = true
	r.mu.Unlock()
	d.removeSnapshot(r)
	if err := d.cfg.Service.RemoveFunction(r.name); err != nil && !errors.Is(err, faasnap.ErrNotFound) {
		d.log.Warn("what is left of a function cannot be removed", "function", r.function, "err", err)
	}
}

// removeSnapshot removes a revision's snapshot, if there is one.
func (d *Driver) removeSnapshot(r *revision) {
	r.mu.Lock()
	r.kind, r.bytes, r.restore = None, 0, 0
	r.mu.Unlock()
	if err := d.cfg.Service.RemoveSnapshot(r.name); err != nil && !errors.Is(err, faasnap.ErrNotFound) {
		d.log.Warn("a snapshot cannot be removed", "function", r.function, "err", err)
	}
}

// remember learns from what is in the Service which snapshots there are, and
// removes what is not the newest revision's.
func (d *Driver) remember() error {
	functions, err := d.cfg.Service.Functions()
	if err != nil {
		return err
	}
	now := time.Now()
	for _, f := range functions {
		r := newRevision(serviceName(&f.Function), &f.Function)
		snap, err := d.cfg.Service.Inspect(r.name)
		if err != nil {
			d.retire(r)
			continue
		}
		r.kind = Plain
		if len(snap.Working().Groups) > 0 {
			r.kind = FaaSnap
		}
		r.bytes = snap.DiskBytes()
		// How often it was invoked is not known any more: it is as good as new.
		r.rate.note(now, d.cfg.Policy.HalfLife)
		for _, other := range d.revisions {
			switch {
			case other.function != r.function:
			case r.modified.After(other.modified):
				delete(d.revisions, other.name)
				d.retire(other)
			case other.modified.After(r.modified):
				r.retired = true
			}
		}
		if r.retired {
			d.retire(r)
			continue
		}
		d.revisions[r.name] = r
	}
	names, err := d.cfg.Service.Snapshots()
	for _, name := range names {
		if d.revisions[name] == nil {
			d.removeSnapshot(&revision{name: name, function: name})
		}
	}
	return err
}

// built returns the function with what it boots, building that if need be.
func (d *Driver) built(ctx context.Context, r *revision, f *function.Function) (*faasnap.Function, error) {
	select {
	case r.building <- struct{}{}:
		defer func() { <-r.building }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r.mu.Lock()
	built := r.built
	r.mu.Unlock()
	if built != nil && present(built.Image) {
		return built, nil
	}
	built = &faasnap.Function{Function: *f, GuestMemoryBytes: guestMemoryBytes(f)}
	if err := d.build(ctx, built); err != nil {
		return nil, err
	}
	old, err := d.cfg.Service.Function(r.name)
	if err == nil && (old.Image != built.Image || old.GuestMemoryBytes != built.GuestMemoryBytes) {
		// Another volley-init, for one: its snapshot is of another guest.
		d.removeSnapshot(r)
	}
	if err := d.cfg.Service.AddFunctionAs(r.name, built); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.built = built
	return built, nil
}

// present reports whether all files of an image are there: they are in a cache.
func present(i guest.Image) bool {
	for _, path := range append(i.Drives(), i.Kernel, i.Initrd) {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// build fills in what a function boots.
func (d *Driver) build(ctx context.Context, f *faasnap.Function) error {
	if f.PackageType == function.Image {
		if d.cfg.Images == nil {
			return function.Errorf(function.InvalidImage, "images are not enabled here: deploy function %s as a zip file", f.Name)
		}
		img, err := d.cfg.Images.Open(ctx, &f.Function)
		if err != nil {
			return err
		}
		defer img.Release()
		return d.cfg.Service.FillImage(ctx, f, img)
	}
	code, err := d.cfg.Unpacker.Unpack(ctx, &f.Function)
	if err != nil {
		return err
	}
	defer code.Release()
	f.PackageType = function.Zip
	f.Image, err = d.cfg.Service.Builder().Function(ctx, f.Runtime, code.Dir)
	return err
}

// startOptions are how a function's machines are started.
func (d *Driver) startOptions(f *function.Function) faasnap.StartOptions {
	o := faasnap.StartOptions{InitTimeout: d.cfg.InitTimeout, MaxProcesses: d.cfg.MaxProcesses}
	if f.TmpMB > 0 {
		o.CommandLine = agent.TmpParameter + "=" + strconv.Itoa(f.TmpMB)
	}
	return o
}

// snapshot returns which snapshot there is.
func (r *revision) snapshot() Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kind
}

// started notes how long a start took.
func (r *revision) started(kind Kind, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if kind == None {
		r.boot = took
		return
	}
	r.restore, r.unrestored = took, 0
}

// load returns what the policy is told of the revision. r.mu is held.
func (r *revision) load(now time.Time, p Policy) Load {
	l := Load{PerDay: r.rate.perDay(now, p.HalfLife), New: r.rate.isNew(now, p.Trial), SnapshotBytes: r.bytes}
	if r.boot > 0 && r.restore > 0 {
		l.Saving = r.boot - r.restore
	}
	return l
}
