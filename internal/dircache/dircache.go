// Package dircache keeps directories that are costly to make, such as unpacked
// packages, on disk: each is made once however many ask for it, stays as long
// as somebody uses it, and the least recently used ones go when space runs out.
package dircache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// The files of an entry, in the directory that is named after its key.
const (
	contentName = "content"
	sizeName    = "size"
	// workName holds what is being made or removed. No key can be that.
	workName = ".work"
)

// Cache is a cache of directories. Its methods may be called concurrently.
type Cache struct {
	dir      string // of this boot
	maxBytes int64
	now      func() time.Time
	lock     io.Closer

	mu      sync.Mutex
	entries map[string]*entry
	bytes   int64 // of all entries that are made
	closed  bool
	// busy counts builds and removals under way.
	busy sync.WaitGroup
}

// entry is one directory. Cache.mu guards it.
type entry struct {
	key   string
	bytes int64
	refs  int
	used  time.Time
	// made is closed when the build has ended; err is its error then, and
	// retry that the error was not the directory's fault.
	made  chan struct{}
	err   error
	retry bool
}

// Open opens the cache in dir, which it makes if needed, and removes what a
// killed process left half made. Entries take at most maxBytes together, as
// far as those in use allow. The error wraps sys.ErrLocked when another
// process has the cache open.
//
// Entries outlive the process but not the machine's next start: without the
// cost of flushing every file, only the former leaves them surely whole.
func Open(dir string, maxBytes int64) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	lock, err := sys.LockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c := &Cache{dir: filepath.Join(dir, "boot-"+bootID()), maxBytes: maxBytes, now: time.Now, lock: lock, entries: map[string]*entry{}}
	if err := c.load(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open cache: %w", err), lock.Close())
	}
	return c, nil
}

// bootID names the machine's run from start to stop. Where there is no such
// name it differs with every call.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return strconv.FormatInt(time.Now().UnixNano(), 36)
	}
	return strings.TrimSpace(string(id))
}

// load reads which entries there are, and removes all else.
func (c *Cache) load(parent string) error {
	boots, err := filepath.Glob(filepath.Join(parent, "boot-*"))
	if err != nil {
		return err
	}
	for _, boot := range boots {
		if boot != c.dir {
			err = errors.Join(err, os.RemoveAll(boot))
		}
	}
	work := filepath.Join(c.dir, workName)
	if err := errors.Join(err, os.RemoveAll(work), os.MkdirAll(work, 0o700)); err != nil {
		return err
	}
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name.Name() == workName {
			continue
		}
		sizePath := filepath.Join(c.dir, name.Name(), sizeName)
		text, err := os.ReadFile(sizePath)
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			return fmt.Errorf("read %s: %w", sizePath, err)
		}
		info, err := os.Stat(sizePath)
		if err != nil {
			return err
		}
		e := &entry{key: name.Name(), bytes: size, used: info.ModTime(), made: make(chan struct{})}
		close(e.made)
		c.entries[e.key] = e
		c.bytes += size
	}
	return nil
}

// Build fills the empty directory dir and returns how many bytes it takes.
type Build func(ctx context.Context, dir string) (sizeBytes int64, err error)

// Get returns the directory of that key, which build makes if it is not there.
// Of several that ask for one key at a time, one builds and the others wait; an
// error of the build is everyone's, unless it came of the builder's context
// having ended. A key is a file name that does not begin with a dot. The caller
// releases the Ref.
func (c *Cache) Get(ctx context.Context, key string, build Build) (*Ref, error) {
	if key == "" || key[0] == '.' || filepath.Base(key) != key {
		return nil, fmt.Errorf("look up %q in cache: not a key", key)
	}
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, fmt.Errorf("look up %s in cache: %w", key, os.ErrClosed)
		}
		e, ok := c.entries[key]
		if !ok {
			e = &entry{key: key, made: make(chan struct{})}
			c.entries[key] = e
			c.busy.Add(1)
			c.mu.Unlock()
			return c.build(ctx, e, build)
		}
		select {
		case <-e.made:
			ref := c.refer(e)
			c.mu.Unlock()
			return ref, nil
		default:
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-e.made:
		}
		if e.err != nil && !e.retry {
			return nil, e.err
		}
	}
}

// build makes an entry that is in the table already.
func (c *Cache) build(ctx context.Context, e *entry, build Build) (*Ref, error) {
	defer c.busy.Done()
	size, err := c.make(ctx, e.key, build)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(e.made)
	if err != nil {
		e.err, e.retry = err, ctx.Err() != nil
		delete(c.entries, e.key)
		return nil, err
	}
	e.bytes = size
	c.bytes += size
	ref := c.refer(e)
	c.evict()
	return ref, nil
}

// make makes an entry's directory.
func (c *Cache) make(ctx context.Context, key string, build Build) (size int64, err error) {
	work, err := os.MkdirTemp(filepath.Join(c.dir, workName), "make-")
	if err != nil {
		return 0, fmt.Errorf("make cache entry: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(work))
		}
	}()
	content := filepath.Join(work, contentName)
	if err := os.Mkdir(content, 0o755); err != nil {
		return 0, fmt.Errorf("make cache entry: %w", err)
	}
	size, err = build(ctx, content)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(work, sizeName), strconv.AppendInt(nil, size, 10), 0o600); err != nil {
		return 0, fmt.Errorf("make cache entry: %w", err)
	}
	if err := os.Rename(work, filepath.Join(c.dir, key)); err != nil {
		return 0, fmt.Errorf("make cache entry: %w", err)
	}
	return size, nil
}

// refer makes a Ref. The caller holds mu.
func (c *Cache) refer(e *entry) *Ref {
	e.refs++
	e.used = c.now()
	return &Ref{dir: filepath.Join(c.dir, e.key, contentName), release: sync.OnceFunc(func() { c.release(e) })}
}

func (c *Cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	e.used = c.now()
	// The next process learns from it; nothing depends on it.
	_ = os.Chtimes(filepath.Join(c.dir, e.key, sizeName), e.used, e.used)
	c.evict()
}

// evict removes the least recently used entries that nobody uses until the
// rest fits. The caller holds mu.
func (c *Cache) evict() {
	if c.bytes <= c.maxBytes {
		return
	}
	var idle []*entry
	for _, e := range c.entries {
		if e.refs == 0 && isClosed(e.made) {
			idle = append(idle, e)
		}
	}
	slices.SortFunc(idle, func(a, b *entry) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.key, b.key))
	})
	for _, e := range idle {
		if c.bytes <= c.maxBytes {
			return
		}
		// What cannot be moved away stays in the table: the next eviction
		// tries again.
		work, err := os.MkdirTemp(filepath.Join(c.dir, workName), "remove-")
		if err != nil {
			return
		}
		if err := os.Rename(filepath.Join(c.dir, e.key), filepath.Join(work, "entry")); err != nil {
			_ = os.Remove(work)
			continue
		}
		delete(c.entries, e.key)
		c.bytes -= e.bytes
		// What cannot be removed now goes when the cache is opened again.
		c.busy.Go(func() { _ = os.RemoveAll(work) })
	}
}

func isClosed(made <-chan struct{}) bool {
	select {
	case <-made:
		return true
	default:
		return false
	}
}

// Bytes returns how many bytes the entries take together.
func (c *Cache) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Close waits for the builds under way and closes the cache. The entries stay
// on disk; those still in use must not be used any longer. It is idempotent.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.busy.Wait()
	return c.lock.Close()
}

// Ref is the use of an entry. Its methods may be called concurrently.
type Ref struct {
	dir     string
	release func()
}

// Dir returns the entry's directory, which nobody may change.
func (r *Ref) Dir() string { return r.dir }

// Release ends the use. It is idempotent.
func (r *Ref) Release() { r.release() }
