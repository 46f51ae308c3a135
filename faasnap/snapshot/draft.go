package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/internal/sys"
)

// draftMark is in the names of drafts and not in those of snapshots.
const draftMark = ".draft-"

// Draft is a snapshot being made: a directory beside the snapshot's. Nobody sees
// a snapshot before Commit, not even after a crash. It is not for concurrent
// use.
type Draft struct {
	dir, final string
	lock       io.Closer // nil once the draft has ended
	// replaces says that there may be a snapshot, whose place this one takes.
	replaces bool
	// linked are the files of other snapshots, by name.
	linked map[string]link
}

// link is a file that a draft has of another snapshot.
type link struct {
	of    *Snapshot
	entry File
}

// Begin makes a draft of the snapshot dir, which must not exist; the directory
// that it will be in must. End it with Commit and Abort.
func Begin(dir string) (*Draft, error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = &fs.PathError{Op: "make", Path: dir, Err: fs.ErrExist}
		}
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	return begin(dir)
}

// BeginReplacement is Begin for a snapshot that may exist. It stays as it is
// until Commit, which exchanges the two at once; see sys.Exchange.
func BeginReplacement(dir string) (*Draft, error) {
	d, err := begin(dir)
	if err == nil {
		d.replaces = true
	}
	return d, err
}

func begin(dir string) (*Draft, error) {
	dir = filepath.Clean(dir)
	parent, base := filepath.Split(dir)
	if strings.Contains(base, draftMark) {
		return nil, fmt.Errorf("begin snapshot: %s has the name of a draft", dir)
	}
	for {
		tmp, err := os.MkdirTemp(filepath.Clean(parent), "."+base+draftMark)
		if err != nil {
			return nil, fmt.Errorf("begin snapshot: %w", err)
		}
		// By the lock of the directory Sweep knows that the draft has an owner. If
		// Sweep was there first, it has removed it.
		lock, err := sys.WaitForLock(tmp)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("begin snapshot: %w", err), os.RemoveAll(tmp))
		}
		d := &Draft{dir: tmp, final: dir, lock: lock, linked: map[string]link{}}
		if _, err := os.Lstat(tmp); err == nil {
			return d, nil
		}
		if err := d.Abort(); err != nil {
			return nil, fmt.Errorf("begin snapshot: %w", err)
		}
	}
}

// Path returns where a file of the snapshot is to be written before Commit:
// MemoryFile, and whatever files the VMM needs for itself.
func (d *Draft) Path(name string) string { return filepath.Join(d.dir, name) }

// Link makes a file of another snapshot one of this one too, in place of writing
// it: MemoryFile or any of its Files. Its checksums are taken over, so it is not
// read. The error is a *DamageError if it is another than when that snapshot was
// opened.
func (d *Draft) Link(from *Snapshot, name string) error {
	if err := os.Link(from.Path(name), d.Path(name)); err != nil {
		return fmt.Errorf("link snapshot file: %w", err)
	}
	if err := from.same(name, d.Path(name)); err != nil {
		return err
	}
	d.linked[name] = link{of: from, entry: *from.meta.file(name)}
	return nil
}

// Abort removes the draft. It does nothing after Commit has succeeded, or when
// called again.
func (d *Draft) Abort() error {
	if d.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(d.dir), d.lock.Close())
	d.lock = nil
	if err != nil {
		return fmt.Errorf("abort snapshot: %w", err)
	}
	return nil
}

// Contents are what a snapshot has besides the files that were written into its
// draft.
type Contents struct {
	// MemoryBytes is the size of guest memory.
	MemoryBytes int64
	// Working is the recorded working set; without groups if there is none.
	Working pages.WorkingSet
	// Options are the planner's.
	Options pages.Options
	// Labels go into the metadata.
	Labels map[string]string
}

// Commit completes the snapshot from the memory file in the draft, whose zero
// pages become holes, and makes it appear under its name, on disk with all of
// its files. After an error there is no snapshot, and the draft is there still
// for Abort.
func (d *Draft) Commit(ctx context.Context, c Contents) (*Snapshot, error) {
	if d.lock == nil {
		return nil, fmt.Errorf("commit snapshot %s: %w", d.final, os.ErrClosed)
	}
	err := d.commit(ctx, c)
	if err == nil {
		err = d.finish(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("commit snapshot %s: %w", d.final, err)
	}
	return Open(d.final)
}

// finish makes the snapshot appear when its files are complete, which ends the
// draft.
func (d *Draft) finish(ctx context.Context) error {
	if d.lock == nil {
		return os.ErrClosed
	}
	if err := syncDir(d.dir); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.publish(); err != nil {
		return err
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

func (d *Draft) commit(ctx context.Context, c Contents) error {
	if err := d.derive(c); err != nil {
		return err
	}
	m := Meta{
		Created:     time.Now().UTC().Truncate(time.Second),
		MemoryBytes: c.MemoryBytes,
		PageBytes:   pages.Size,
		ChunkBytes:  ChunkSize,
		Labels:      c.Labels,
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // does not fail
	m.ID = hex.EncodeToString(id)

	entries, err := os.ReadDir(d.dir) // in the order of names
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == MetaFile || isRemoteFile(e.Name()) {
			return fmt.Errorf("%s: not a file that a snapshot can have", d.Path(e.Name()))
		}
		if l, ok := d.linked[e.Name()]; ok {
			m.Files = append(m.Files, l.entry)
			continue
		}
		f, err := d.seal(ctx, e.Name())
		if err != nil {
			return fmt.Errorf("%s: %w", d.Path(e.Name()), err)
		}
		m.Files = append(m.Files, f)
	}
	meta, err := encodeMeta(m)
	if err != nil {
		return err
	}
	return writeFile(d.Path(MetaFile), meta)
}

// publish makes the snapshot appear under its name, and removes the one whose
// place it takes. If this is cut short, Sweep does.
func (d *Draft) publish() error {
	replaced := false
	if d.replaces {
		switch err := sys.Exchange(d.dir, d.final); {
		case err == nil:
			replaced = true
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	if !replaced {
		if err := os.Rename(d.dir, d.final); err != nil {
			return err
		}
	}
	if err := syncDir(filepath.Dir(d.final)); err != nil {
		if replaced {
			return errors.Join(err, sys.Exchange(d.final, d.dir))
		}
		return errors.Join(err, os.Rename(d.final, d.dir))
	}
	if replaced {
		_ = os.RemoveAll(d.dir) // what cannot be removed is swept
	}
	return nil
}

// Remove removes a snapshot: at once for whoever looks, also if the process
// dies meanwhile; what is left of it then, Sweep removes. It is no error if there
// is none.
func Remove(dir string) error {
	dir = filepath.Clean(dir)
	aside := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+draftMark+rand.Text())
	err := os.Rename(dir, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.RemoveAll(aside)
	}
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	return nil
}

// derive makes what follows from the memory file.
func (d *Draft) derive(c Contents) (err error) {
	flags := os.O_RDWR
	if _, ok := d.linked[MemoryFile]; ok {
		flags = os.O_RDONLY
	}
	memory, err := os.OpenFile(d.Path(MemoryFile), flags, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	info, err := memory.Stat()
	if err != nil {
		return err
	}
	if info.Size() != c.MemoryBytes {
		return fmt.Errorf("%s: %d bytes: want %d", memory.Name(), info.Size(), c.MemoryBytes)
	}
	nonZero, err := d.sparse(memory, c.MemoryBytes)
	if err != nil {
		return err
	}
	if c.Working.Pages == 0 {
		c.Working.Pages = nonZero.Pages()
	}
	plan, err := pages.Make(nonZero, c.Working, c.Options)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content interface{ MarshalBinary() ([]byte, error) }
	}{{PlanFile, plan}, {WorkingFile, c.Working}} {
		b, err := f.content.MarshalBinary()
		if err != nil {
			return err
		}
		if err := writeFile(d.Path(f.name), b); err != nil {
			return err
		}
	}
	loading, err := os.Create(d.Path(LoadingFile))
	if err != nil {
		return err
	}
	return errors.Join(mem.Gather(loading, plan, memory), loading.Close())
}

// sparse makes holes of the zero pages of memory, and returns the others. A file
// that is linked has its holes, and its plan knows of zero pages where there can
// be none.
func (d *Draft) sparse(memory *os.File, sizeBytes int64) (pages.Set, error) {
	if l, ok := d.linked[MemoryFile]; ok {
		data, err := mem.Data(memory, sizeBytes)
		if err != nil {
			return pages.Set{}, err
		}
		full := pages.NewSet(l.of.plan.Pages)
		for _, r := range data {
			full.AddRange(r)
		}
		return full.Intersect(l.of.plan.Stored()), nil
	}
	nonZero, err := mem.Scan(memory, sizeBytes)
	if err != nil {
		return pages.Set{}, err
	}
	return nonZero, mem.MakeSparse(memory, nonZero)
}

// seal brings a file to disk, makes it read-only, and returns its entry.
func (d *Draft) seal(ctx context.Context, name string) (entry File, err error) {
	f, err := os.Open(d.Path(name))
	if err != nil {
		return File{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	entry = File{Name: name, SizeBytes: info.Size(), Sums: Sums{}}
	err = eachSum(ctx, f, info.Size(), func(_ int, sum uint32) bool {
		entry.Sums = append(entry.Sums, sum)
		return true
	})
	if err != nil {
		return File{}, err
	}
	if err := f.Chmod(0o444); err != nil {
		return File{}, err
	}
	return entry, f.Sync()
}

// writeFile makes a read-only file, on disk.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sweep removes the drafts in a directory whose processes have ended without
// Commit or Abort, and returns how many those were. It leaves alone those that
// are being written, and snapshots.
func Sweep(parent string) (int, error) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return 0, fmt.Errorf("sweep drafts: %w", err)
	}
	n := 0
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), ".") || !strings.Contains(e.Name(), draftMark) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		lock, err := sys.TryLock(dir)
		if errors.Is(err, sys.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			continue // somebody writes it, or has just committed it
		}
		if err == nil {
			err = errors.Join(os.RemoveAll(dir), lock.Close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep drafts: %w", err))
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}
