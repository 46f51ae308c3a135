//go:build linux

package particle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/volley-run/volley/internal/sys"
)

// Pool hands out the endpoints of one network on one node (thesis 3.2.1, IP
// pooling). Who has which endpoint is kept in the node's state directory: it
// outlives the process, and processes may share a pool. Methods may be called
// concurrently.
//
// The directory holds two symbolic links for each assignment, as a link is
// made whole or not at all, and only once: owners/<hash of the owner> names
// the index, and <index> names the owner.
type Pool struct {
	dir      string
	size     int
	endpoint func(i int) Endpoint
	// next is where this process looks first for a free endpoint.
	next atomic.Int64
}

func newPool(dir string, size int, endpoint func(i int) Endpoint) *Pool {
	return &Pool{dir: dir, size: size, endpoint: endpoint}
}

// maxOwner is how long an owner's name may be, in bytes.
const maxOwner = 255

// Acquire gives an endpoint to owner, whatever identifies it: a container's
// id, say. An owner that has one already gets the same again. It returns
// ErrNoEndpointLeft, wrapped, when all are taken.
func (p *Pool) Acquire(ctx context.Context, owner string) (Endpoint, error) {
	ep, err := p.acquire(ctx, owner, -1)
	if err != nil {
		return Endpoint{}, fmt.Errorf("acquire endpoint: %w", err)
	}
	return ep, nil
}

// AcquireIndex gives endpoint i to owner, as Acquire does. It returns
// ErrEndpointTaken, wrapped, if it is another's or if owner has another one,
// and ErrNotFound, wrapped, if there are not so many.
func (p *Pool) AcquireIndex(ctx context.Context, owner string, i int) (Endpoint, error) {
	if i < 0 || i >= p.size {
		return Endpoint{}, fmt.Errorf("acquire endpoint %d: %w: there are %d", i, ErrNotFound, p.size)
	}
	ep, err := p.acquire(ctx, owner, i)
	if err != nil {
		return Endpoint{}, fmt.Errorf("acquire endpoint %d: %w", i, err)
	}
	return ep, nil
}

// acquire gives endpoint want to owner, or any if that is negative.
func (p *Pool) acquire(ctx context.Context, owner string, want int) (Endpoint, error) {
	if owner == "" || len(owner) > maxOwner {
		return Endpoint{}, fmt.Errorf("an owner's name has 1 to %d bytes, not %d", maxOwner, len(owner))
	}
	lock, err := p.lock(ctx)
	if err != nil {
		return Endpoint{}, err
	}
	defer lock.Close()
	i, err := p.indexOf(owner)
	if err != nil {
		return Endpoint{}, err
	}
	if i >= 0 {
		// A process that died between the two links is helped to the second.
		if err := os.Symlink(owner, p.file(i)); err != nil && !errors.Is(err, fs.ErrExist) {
			return Endpoint{}, err
		}
		if has, err := os.Readlink(p.file(i)); err == nil && has == owner {
			if want >= 0 && i != want {
				return Endpoint{}, fmt.Errorf("%w: %s has endpoint %d", ErrEndpointTaken, owner, i)
			}
			return p.endpoint(i), nil
		}
		if err := os.Remove(p.ownerFile(owner)); err != nil {
			return Endpoint{}, err
		}
	}
	first, tries, none := int(p.next.Load()), p.size, ErrNoEndpointLeft
	if want >= 0 {
		first, tries, none = want, 1, ErrEndpointTaken
	}
	for n := range tries {
		i := (first + n) % p.size
		if _, err := os.Readlink(p.file(i)); err == nil {
			continue
		}
		if err := os.Symlink(strconv.Itoa(i), p.ownerFile(owner)); err != nil {
			return Endpoint{}, err
		}
		if err := os.Symlink(owner, p.file(i)); err != nil {
			return Endpoint{}, err
		}
		p.next.Store(int64(i + 1))
		return p.endpoint(i), nil
	}
	return Endpoint{}, fmt.Errorf("%w (of %d)", none, p.size)
}

// Release takes the endpoint back that owner has. It is no error if it has none.
func (p *Pool) Release(ctx context.Context, owner string) error {
	if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := p.lock(ctx)
	if err != nil {
		return fmt.Errorf("release endpoint: %w", err)
	}
	defer lock.Close()
	i, err := p.indexOf(owner)
	if err != nil {
		return fmt.Errorf("release endpoint: %w", err)
	}
	if i < 0 {
		return nil
	}
	if has, err := os.Readlink(p.file(i)); err == nil && has == owner {
		if err := os.Remove(p.file(i)); err != nil {
			return fmt.Errorf("release endpoint: %w", err)
		}
		// What was used last is used again last, so that late packets of its
		// last user do not reach the next.
		p.next.CompareAndSwap(int64(p.size), 0)
	}
	if err := os.Remove(p.ownerFile(owner)); err != nil {
		return fmt.Errorf("release endpoint: %w", err)
	}
	return nil
}

// Owners returns who has an endpoint.
func (p *Pool) Owners() (map[string]Endpoint, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]Endpoint{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list endpoints in use: %w", err)
	}
	owners := make(map[string]Endpoint, len(entries))
	for _, e := range entries {
		i, err := strconv.Atoi(e.Name())
		if err != nil || i < 0 || i >= p.size {
			continue // the directory of owners
		}
		owner, err := os.Readlink(filepath.Join(p.dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // just released
		}
		if err != nil {
			return nil, fmt.Errorf("list endpoints in use: %w", err)
		}
		owners[owner] = p.endpoint(i)
	}
	return owners, nil
}

// indexOf returns the index that owner's link names, or -1 if there is none
// that could be.
func (p *Pool) indexOf(owner string) (int, error) {
	text, err := os.Readlink(p.ownerFile(owner))
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	i, err := strconv.Atoi(text)
	if err != nil || i < 0 || i >= p.size {
		return -1, os.Remove(p.ownerFile(owner)) // of a larger network of that name
	}
	return i, nil
}

func (p *Pool) file(i int) string { return filepath.Join(p.dir, strconv.Itoa(i)) }

func (p *Pool) ownerFile(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return filepath.Join(p.dir, "owners", hex.EncodeToString(sum[:16]))
}

// lock waits for the pool's lock, which the kernel frees if its holder dies.
func (p *Pool) lock(ctx context.Context) (io.Closer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(p.dir, "owners"), 0o700); err != nil {
		return nil, err
	}
	// It is held for some microseconds, so there is no need to watch ctx.
	return sys.WaitForLock(p.dir)
}
