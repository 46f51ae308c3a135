package snapshot

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// Snapshot is a snapshot that Open found in order. It holds no files open, and
// may be used concurrently.
type Snapshot struct {
	dir     string
	meta    Meta
	plan    *pages.Plan
	working pages.WorkingSet
	remote  string                 // see Remote
	opened  map[string]fs.FileInfo // each file when it was opened
}

// Open reads a snapshot's metadata, plan and working set, checks them, and
// checks that all files are there in their sizes, and no others. It does not
// read guest memory: Verify does. A lazy snapshot has none; see Remote. The error is a *DamageError (ErrDamaged),
// ErrVersion, or ErrNone if there is no snapshot.
func Open(dir string) (*Snapshot, error) {
	b, err := os.ReadFile(filepath.Join(dir, MetaFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(filepath.Join(dir, MemoryFile)); statErr == nil {
			return nil, &DamageError{Dir: dir, File: MetaFile, Offset: -1, Chunk: -1, Problem: "missing"}
		}
		return nil, fmt.Errorf("open snapshot %s: %w: it has no %s", dir, ErrNone, MetaFile)
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	s := &Snapshot{dir: dir, plan: new(pages.Plan), opened: map[string]fs.FileInfo{}}
	if s.meta, err = decodeMeta(b); errors.Is(err, errVersion) {
		return nil, fmt.Errorf("open snapshot %s: %w: %w; use the version of Volley that wrote it, or take it again", dir, ErrVersion, err)
	} else if err != nil {
		return nil, s.damage(MetaFile, -1, "cannot be read", err)
	}
	if err := s.readRemote(); err != nil {
		return nil, err
	}
	if err := s.checkFiles(); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		into interface{ UnmarshalBinary([]byte) error }
	}{{PlanFile, s.plan}, {WorkingFile, &s.working}} {
		if err := s.VerifyFile(context.Background(), f.name); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil {
			return nil, s.damage(f.name, -1, "cannot be read", err)
		}
		if err := f.into.UnmarshalBinary(b); err != nil {
			return nil, s.damage(f.name, -1, "cannot be read", err)
		}
	}
	n := int(s.meta.MemoryBytes / pages.Size)
	if s.plan.Pages != n || int64(s.plan.LoadingPages)*pages.Size != s.meta.file(LoadingFile).SizeBytes {
		return nil, s.damage(PlanFile, -1, "is for other files than these", nil)
	}
	if s.working.Pages != n {
		return nil, s.damage(WorkingFile, -1, "is for another size of memory", nil)
	}
	return s, nil
}

// checkFiles compares the directory with the list of files.
func (s *Snapshot) checkFiles() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("open snapshot: %w", err)
	}
	for _, e := range entries {
		if e.Name() != MetaFile && !isRemoteFile(e.Name()) && s.meta.file(e.Name()) == nil {
			return s.damage(e.Name(), -1, "does not belong to it", nil)
		}
	}
	for _, f := range s.local() {
		info, err := os.Lstat(filepath.Join(s.dir, f.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return s.damage(f.Name, -1, "missing", nil)
		case err != nil:
			return s.damage(f.Name, -1, "cannot be read", err)
		case !info.Mode().IsRegular():
			return s.damage(f.Name, -1, "not a file", nil)
		case info.Size() != f.SizeBytes:
			return s.damage(f.Name, -1, fmt.Sprintf("%d bytes: want %d", info.Size(), f.SizeBytes), nil)
		}
		s.opened[f.Name] = info
	}
	return nil
}

// damage returns a DamageError for a chunk of a file, or for all of it.
func (s *Snapshot) damage(file string, chunk int, problem string, err error) error {
	e := &DamageError{Dir: s.dir, File: file, Chunk: chunk, Offset: -1, Problem: problem, Err: err}
	if chunk >= 0 {
		e.Offset = int64(chunk) * ChunkSize
	}
	return e
}

// Dir returns where the snapshot is.
func (s *Snapshot) Dir() string { return s.dir }

// Meta returns the metadata. It must not be changed.
func (s *Snapshot) Meta() Meta { return s.meta }

// Plan returns how guest memory is to be mapped. It must not be changed.
func (s *Snapshot) Plan() *pages.Plan { return s.plan }

// Working returns the recorded working set. It must not be changed.
func (s *Snapshot) Working() pages.WorkingSet { return s.working }

// Path returns where a file of the snapshot is.
func (s *Snapshot) Path(name string) string { return filepath.Join(s.dir, name) }

// local returns the files that have to be here: all but the memory of a lazy
// snapshot.
func (s *Snapshot) local() []File {
	if s.remote == "" {
		return s.meta.Files
	}
	return slices.DeleteFunc(slices.Clone(s.meta.Files), func(f File) bool { return f.Name == MemoryFile })
}

// Verify reads every file, but not the holes of guest memory nor what a lazy
// snapshot has of it, and compares it with its checksums. The error is a
// *DamageError for the first difference, or that of ctx.
func (s *Snapshot) Verify(ctx context.Context) error {
	for _, f := range s.local() {
		if err := s.VerifyFile(ctx, f.Name); err != nil {
			return err
		}
	}
	return nil
}

// VerifyFile is Verify for one file. There must be such a file.
func (s *Snapshot) VerifyFile(ctx context.Context, name string) (err error) {
	entry := s.meta.file(name)
	if entry == nil {
		return fmt.Errorf("verify snapshot %s: it has no file %s", s.dir, name)
	}
	f, err := os.Open(s.Path(name))
	if err != nil {
		return s.damage(name, -1, "cannot be read", err)
	}
	defer f.Close()
	var damage error
	last := 0
	err = eachSum(ctx, f, entry.SizeBytes, func(chunk int, sum uint32) bool {
		last = chunk + 1
		damage = s.compare(entry, chunk, sum)
		return damage == nil
	})
	if ctxErr := ctx.Err(); err != nil && ctxErr != nil {
		return fmt.Errorf("verify snapshot %s: %w", s.dir, ctxErr)
	}
	if err != nil {
		return s.damage(name, last, "cannot be read", err)
	}
	return damage
}

func (s *Snapshot) compare(f *File, chunk int, sum uint32) error {
	if f.Sums[chunk] == sum {
		return nil
	}
	return s.damage(f.Name, chunk, fmt.Sprintf("checksum %08x: want %08x: changed since it was written, or of another snapshot", sum, f.Sums[chunk]), nil)
}

// Unchanged returns a *DamageError if a file is another than when the snapshot
// was opened, or has been written to since: by its identity, size and time of
// change, without reading it. After Open and Verify it is enough before each
// restore.
func (s *Snapshot) Unchanged() error {
	for _, f := range s.local() {
		if err := s.same(f.Name, s.Path(f.Name)); err != nil {
			return err
		}
	}
	return nil
}

// same returns a *DamageError unless path is the file of that name, as it was
// when the snapshot was opened.
func (s *Snapshot) same(name, path string) error {
	info, err := os.Lstat(path)
	switch was := s.opened[name]; {
	case err != nil:
		return s.damage(name, -1, "cannot be read", err)
	case !os.SameFile(info, was) || info.Size() != was.Size() || !info.ModTime().Equal(was.ModTime()):
		return s.damage(name, -1, "changed since it was verified", nil)
	}
	return nil
}

// Loading returns the loading set for a Loader, which checks it while it reads.
// The caller opens and closes the file, at LoadingFile's path.
func (s *Snapshot) Loading(f *os.File) mem.LoadFile {
	entry := s.meta.file(LoadingFile)
	return mem.LoadFile{
		Name: s.Path(LoadingFile),
		File: f,
		Size: entry.SizeBytes,
		Check: func(offset int64, chunk []byte) error {
			return s.compare(entry, int(offset/ChunkSize), crc32.Checksum(chunk, castagnoli))
		},
	}
}

// Files returns the names of the VMM's own files, in order.
func (s *Snapshot) Files() []string {
	var names []string
	for _, f := range s.meta.Files {
		if !slices.Contains([]string{MemoryFile, LoadingFile, PlanFile, WorkingFile}, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// DiskBytes returns how much room the snapshot takes on disk: guest memory is
// sparse.
func (s *Snapshot) DiskBytes() int64 {
	var total int64
	for _, f := range s.meta.Files {
		total += s.FileDiskBytes(f.Name)
	}
	return total
}

// DiskPath returns where that is which is on disk of a file of the snapshot. Of
// the memory of a lazy snapshot it is what has been fetched, and is not there
// before anything has.
func (s *Snapshot) DiskPath(name string) string {
	if name == MemoryFile && s.remote != "" {
		name = PartFile
	}
	return s.Path(name)
}

// FileDiskBytes returns how much room a file of the snapshot takes on disk
// (DiskPath), or 0 if it is not there.
func (s *Snapshot) FileDiskBytes(name string) int64 {
	info, err := os.Stat(s.DiskPath(name))
	if err != nil {
		return 0
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Blocks * 512
	}
	return info.Size()
}
