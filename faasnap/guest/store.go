package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// The directories of a store.
const (
	// objectsDir has files by the hash of their content.
	objectsDir = "objects"
	// keysDir has, by the hash of what a file was made of, a file with the
	// names of the objects, a line each.
	keysDir = "keys"
	// locksDir has the locks of keys, tmpDir what is being made.
	locksDir, tmpDir = "locks", "tmp"
)

// lockPoll is how often a lock that another process holds is tried again.
const lockPoll = 50 * time.Millisecond

// key collects what something is made of.
type key struct{ h hash.Hash }

func newKey(parts ...string) *key {
	k := &key{sha256.New()}
	k.add(parts...)
	return k
}

func (k *key) add(parts ...string) {
	for _, p := range parts {
		fmt.Fprintf(k.h, "%d:%s", len(p), p) // a hash never fails
	}
}

// file adds the content of a file.
func (k *key) file(path string) error {
	sum, err := hashFile(path)
	if err != nil {
		return err
	}
	k.add(sum)
	return nil
}

func (k *key) String() string { return hex.EncodeToString(k.h.Sum(nil)) }

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// get returns the objects that were made for a key, or has make make them: it
// gets an empty directory and returns the names of the files there that become
// objects, in order. With refresh, it has them made in any case.
func (b *Builder) get(ctx context.Context, k *key, refresh bool, make func(dir string) ([]string, error)) ([]string, error) {
	name := k.String()
	record := filepath.Join(b.Dir, keysDir, name)
	if !refresh {
		// Without the lock: records are complete or not there.
		if objects, err := b.objects(record); err == nil {
			return objects, nil
		}
	}
	lock, err := waitForLock(ctx, filepath.Join(b.Dir, locksDir, name))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if !refresh {
		objects, err := b.objects(record)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return objects, err
		}
	}
	tmp := filepath.Join(b.Dir, tmpDir, name)
	if err := b.clean(tmp); err != nil {
		return nil, err
	}
	for _, dir := range []string{tmp, filepath.Join(b.Dir, objectsDir), filepath.Join(b.Dir, keysDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make room for build: %w", err)
		}
	}
	objects, err := b.make(ctx, tmp, record, make)
	return objects, errors.Join(err, b.clean(tmp))
}

// clean removes a build's directory, also after a build that was killed: then
// file systems may still be mounted in it.
func (b *Builder) clean(dir string) error {
	mounts, err := sys.Mounts()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove build: %w", err)
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("remove build: %w", err)
	}
	for _, m := range slices.Backward(mounts) {
		if strings.HasPrefix(m.Point, absolute+"/") {
			if err := sys.Unmount(m.Point); err != nil {
				return fmt.Errorf("remove build: %w", err)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove build: %w", err)
	}
	return nil
}

func (b *Builder) make(ctx context.Context, tmp, record string, make func(dir string) ([]string, error)) ([]string, error) {
	files, err := make(tmp)
	if err != nil {
		return nil, err
	}
	var objects, names []string
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		path := filepath.Join(tmp, file)
		sum, err := hashFile(path)
		if err != nil {
			return nil, fmt.Errorf("keep %s: %w", file, err)
		}
		name := sum[:32] + "-" + file
		object := filepath.Join(b.Dir, objectsDir, name)
		if err := publish(path, object); err != nil {
			return nil, fmt.Errorf("keep %s: %w", file, err)
		}
		objects, names = append(objects, object), append(names, name)
	}
	list := filepath.Join(tmp, "record")
	if err := os.WriteFile(list, []byte(strings.Join(names, "\n")+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("keep record: %w", err)
	}
	if err := publish(list, record); err != nil {
		return nil, fmt.Errorf("keep record: %w", err)
	}
	return objects, nil
}

// publish moves a file to its place once it is on the disk as a whole.
func publish(from, to string) error {
	f, err := os.OpenFile(from, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o444), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(from, to)
}

// objects reads a record. The error is fs.ErrNotExist if it, or an object in
// it, is not there.
func (b *Builder) objects(record string) ([]string, error) {
	text, err := os.ReadFile(record)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	var objects []string
	for name := range strings.FieldsSeq(string(text)) {
		object := filepath.Join(b.Dir, objectsDir, filepath.Base(name))
		if _, err := os.Stat(object); err != nil {
			return nil, fmt.Errorf("read record: %w", err)
		}
		objects = append(objects, object)
	}
	if len(objects) == 0 {
		return nil, fmt.Errorf("read record %s: %w: it is empty", record, fs.ErrNotExist)
	}
	return objects, nil
}

// waitForLock takes a lock, or gives up when ctx ends.
func waitForLock(ctx context.Context, path string) (io.Closer, error) {
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		lock, err := sys.LockFile(path)
		if err == nil || !errors.Is(err, sys.ErrLocked) {
			return lock, err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another build: %w", context.Cause(ctx))
		}
	}
}
