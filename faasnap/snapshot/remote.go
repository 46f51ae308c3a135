package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// The files of a lazy snapshot, which it has in the place of MemoryFile: guest
// memory is in an object store, and parts of it are here (thesis 5.6.2). They
// are not in the metadata, and beside MemoryFile they mean nothing.
const (
	// RemoteFile says which store that is.
	RemoteFile = "remote"
	// PartFile has the chunks that have been fetched, at their places.
	PartFile = "memory.part"
	// PresentFile has a bit for each chunk, the lowest first, which is set after
	// the chunk has been written. It is a hint: the checksum decides.
	PresentFile = "memory.present"
)

// isRemoteFile reports whether a name is that of one of those files.
func isRemoteFile(name string) bool {
	return slices.Contains([]string{RemoteFile, PartFile, PresentFile}, name)
}

// remote is what RemoteFile holds.
type remote struct {
	URL string `json:"url"`
}

// readRemote finds out where memory is, if it is not here.
func (s *Snapshot) readRemote() error {
	if _, err := os.Lstat(s.Path(MemoryFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil // checkFiles looks at it
	}
	text, err := os.ReadFile(s.Path(RemoteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var r remote
	if err == nil {
		err = decodeStrictly(text, &r)
	}
	if err == nil && r.URL == "" {
		err = errors.New("no url")
	}
	if err != nil {
		return s.damage(RemoteFile, -1, "cannot be read", err)
	}
	s.remote = r.URL
	return nil
}

// Remote returns the address of the store that has guest memory, as store.Open
// takes it, without secrets. It is empty if MemoryFile is here.
func (s *Snapshot) Remote() string { return s.remote }

// CheckMemory returns a *DamageError if b is not what chunk number chunk of
// guest memory was. The last chunk may be shorter than ChunkSize.
func (s *Snapshot) CheckMemory(chunk int, b []byte) error {
	return s.compare(s.meta.file(MemoryFile), chunk, crc32.Checksum(b, castagnoli))
}

// CompleteMemory makes PartFile, which part is, the snapshot's MemoryFile: at
// once for whoever opens the snapshot, and on disk. All chunks have been written,
// and are in order. This Snapshot goes on to be a lazy one; Open returns one that
// is not.
func (s *Snapshot) CompleteMemory(part *os.File) error {
	if err := errors.Join(part.Chmod(0o444), part.Sync()); err != nil {
		return fmt.Errorf("complete memory of snapshot: %w", err)
	}
	own, err := part.Stat()
	if err != nil {
		return fmt.Errorf("complete memory of snapshot: %w", err)
	}
	if there, err := os.Lstat(s.Path(PartFile)); err != nil || !os.SameFile(own, there) {
		return s.damage(PartFile, -1, "another snapshot has taken its place", err)
	}
	if err := os.Rename(s.Path(PartFile), s.Path(MemoryFile)); err != nil {
		return fmt.Errorf("complete memory of snapshot: %w", err)
	}
	for _, name := range []string{PresentFile, RemoteFile} {
		_ = os.Remove(s.Path(name)) // it means nothing any more
	}
	if err := syncDir(s.dir); err != nil {
		return fmt.Errorf("complete memory of snapshot: %w", err)
	}
	return nil
}

// ParseMeta reads the bytes of a MetaFile that is not on this disk. The error
// wraps ErrDamaged or ErrVersion.
func ParseMeta(b []byte) (Meta, error) {
	m, err := decodeMeta(b)
	if errors.Is(err, errVersion) {
		return Meta{}, fmt.Errorf("read metadata: %w: %w", ErrVersion, err)
	}
	if err != nil {
		return Meta{}, fmt.Errorf("read metadata: %w: %w", ErrDamaged, err)
	}
	return m, nil
}

// Adopt makes the draft a copy of a snapshot whose metadata these bytes are,
// and whose files except for MemoryFile have been written into it. It compares
// them with their checksums: the error wraps ErrDamaged or ErrVersion. Memory is
// in the store of that address; after CompleteMemory it is here. Publish makes
// the copy appear.
func (d *Draft) Adopt(ctx context.Context, meta []byte, url string) (*Snapshot, error) {
	s, err := d.adopt(ctx, meta, url)
	if err != nil {
		return nil, fmt.Errorf("copy snapshot to %s: %w", d.final, err)
	}
	return s, nil
}

func (d *Draft) adopt(ctx context.Context, meta []byte, url string) (*Snapshot, error) {
	if d.lock == nil {
		return nil, os.ErrClosed
	}
	text, err := json.Marshal(remote{URL: url})
	if err != nil {
		return nil, err
	}
	if err := writeFile(d.Path(RemoteFile), append(text, '\n')); err != nil {
		return nil, err
	}
	if err := writeFile(d.Path(MetaFile), meta); err != nil {
		return nil, err
	}
	s, err := Open(d.dir)
	if err != nil {
		return nil, err
	}
	for _, f := range s.meta.Files {
		if f.Name == MemoryFile {
			continue
		}
		entry, err := d.seal(ctx, f.Name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		for chunk, sum := range entry.Sums {
			if err := s.compare(&f, chunk, sum); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// Publish makes a copy appear under its name, on disk with all of its files.
// After an error there is none, and the draft is there still for Abort.
func (d *Draft) Publish(ctx context.Context) (*Snapshot, error) {
	err := d.finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("copy snapshot to %s: %w", d.final, err)
	}
	return Open(filepath.Clean(d.final))
}
