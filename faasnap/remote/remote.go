// Package remote keeps snapshots in object stores, and fetches their guest
// memory from there when a guest wants it (thesis 5.6.2).
//
// docs/formats/snapshot.md says what is under which key.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/store"
)

var (
	// ErrStore is that a store has failed: it cannot be reached, refuses, or has
	// not got what it should have.
	ErrStore = errors.New("the object store fails")
	// ErrNone is that there is no snapshot under an address.
	ErrNone = errors.New("there is no snapshot in the object store")
)

// metaBytes bounds the metadata that is read from a store: that of a snapshot of
// 1 TiB has 10 MB.
const metaBytes = 64 << 20

// key returns where a file is. Those of one snapshot are apart from those of
// another that has been under the address before, which guests may still be
// fetched from.
func key(m snapshot.Meta, name string) string { return m.ID + "/" + name }

// Push copies a whole snapshot, which has been verified, into a store. Each page
// that is not zero goes there once: what the loading set has is left out of guest
// memory. The metadata goes last, so that there is a snapshot only when all of it
// is there; one that was there before is replaced by it. progress is told each
// file as it begins. It returns how many bytes were sent. Errors of the store
// wrap ErrStore.
func Push(ctx context.Context, to store.Store, s *snapshot.Snapshot, progress func(file string)) (int64, error) {
	total, err := push(ctx, to, s, progress)
	if err != nil {
		return total, fmt.Errorf("push to %s: %w", to.URL(), err)
	}
	return total, nil
}

func push(ctx context.Context, to store.Store, s *snapshot.Snapshot, progress func(file string)) (total int64, err error) {
	meta, err := os.Open(s.Path(snapshot.MetaFile))
	if err != nil {
		return 0, err
	}
	defer meta.Close()
	for _, entry := range s.Meta().Files {
		progress(entry.Name)
		n, err := pushFile(ctx, to, s, entry)
		total += n
		if err != nil {
			return total, err
		}
	}
	// Files that were exchanged meanwhile are not those that the metadata is of.
	if err := s.Unchanged(); err != nil {
		return total, err
	}
	n, err := to.Put(ctx, snapshot.MetaFile, meta)
	if err != nil {
		return total, storeError(ctx, err)
	}
	return total + n, nil
}

func pushFile(ctx context.Context, to store.Store, s *snapshot.Snapshot, entry snapshot.File) (int64, error) {
	f, err := os.Open(s.Path(entry.Name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var content io.Reader = f
	size := entry.SizeBytes
	if entry.Name == snapshot.MemoryFile {
		content, size = coldPages(f, s.Plan())
	}
	n, err := to.Put(ctx, key(s.Meta(), entry.Name), content)
	if err == nil && n != size {
		err = fmt.Errorf("%s: %d bytes were sent: want %d", entry.Name, n, size)
	}
	if err != nil {
		return n, storeError(ctx, err)
	}
	return n, nil
}

// coldPages returns the pages of a memory file that no other file of the
// snapshot has, in order, and their size in bytes.
func coldPages(memory io.ReaderAt, p *pages.Plan) (io.Reader, int64) {
	var parts []io.Reader
	size := int64(0)
	for _, r := range p.Regions {
		if r.Source == pages.Memory {
			n := int64(r.Len()) * pages.Size
			parts = append(parts, io.NewSectionReader(memory, int64(r.Start)*pages.Size, n))
			size += n
		}
	}
	return io.MultiReader(parts...), size
}

// Pull copies a snapshot from a store into a draft, and compares it with its
// checksums; the caller publishes the draft. If lazy, guest memory stays in the
// store: see Memory. progress is told each file as it begins. It returns how many
// bytes came. Errors wrap ErrNone, ErrStore, snapshot.ErrDamaged or
// snapshot.ErrVersion.
func Pull(ctx context.Context, from store.Store, d *snapshot.Draft, lazy bool, progress func(file string)) (int64, error) {
	total, err := pull(ctx, from, d, lazy, progress)
	if err != nil {
		return total, fmt.Errorf("pull from %s: %w", from.URL(), err)
	}
	return total, nil
}

func pull(ctx context.Context, from store.Store, d *snapshot.Draft, lazy bool, progress func(file string)) (int64, error) {
	text, err := get(ctx, from, snapshot.MetaFile, metaBytes)
	if errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return 0, err
	}
	total := int64(len(text))
	meta, err := snapshot.ParseMeta(text)
	if err != nil {
		return total, err
	}
	for _, entry := range meta.Files {
		if entry.Name == snapshot.MemoryFile {
			continue
		}
		progress(entry.Name)
		n, err := pullFile(ctx, from, key(meta, entry.Name), d.Path(entry.Name), entry.SizeBytes)
		total += n
		if err != nil {
			return total, err
		}
	}
	s, err := d.Adopt(ctx, text, from.URL())
	if err != nil || lazy {
		return total, err
	}
	progress(snapshot.MemoryFile)
	m, err := Open(s, from)
	if err != nil {
		return total, err
	}
	n, err := m.Complete(ctx)
	return total + n, errors.Join(err, m.Close())
}

// get reads an object of at most limit bytes.
func get(ctx context.Context, from store.Store, key string, limit int64) ([]byte, error) {
	r, err := from.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, storeError(ctx, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", key, limit)
	}
	if err != nil {
		return nil, storeError(ctx, err)
	}
	return b, nil
}

// pullFile copies an object into a new file. What is not of that size, or has
// other content, the snapshot's own checks find.
func pullFile(ctx context.Context, from store.Store, key, path string, size int64) (n int64, err error) {
	r, err := from.Get(ctx, key, 0, -1)
	if err != nil {
		return 0, storeError(ctx, err)
	}
	defer r.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err = io.Copy(f, io.LimitReader(r, size+1))
	if err != nil {
		return n, storeError(ctx, fmt.Errorf("%s: %w", key, err))
	}
	return n, nil
}

// storeError marks an error as the store's, unless nobody wants it any more.
func storeError(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", ErrStore, err)
}
