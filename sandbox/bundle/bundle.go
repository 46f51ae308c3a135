// Package bundle handles a function's code as a zip file: it packs directories,
// and fetches, verifies, unpacks and caches packages for the sandboxes.
package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/dircache"
	"github.com/volley-run/volley/sandbox"
)

// Limits bounds what a package may hold. A zero field stands for its default.
type Limits struct {
	// PackageBytes bounds the zip file: 250 MiB by default.
	PackageBytes int64
	// UnpackedBytes bounds all files together once unpacked: 250 MiB by
	// default, as AWS Lambda has it.
	UnpackedBytes int64
	// Entries bounds the number of files, directories and links, those that
	// are only implied by the names of others included: 100,000 by default.
	Entries int
}

func (l Limits) withDefaults() Limits {
	if l.PackageBytes == 0 {
		l.PackageBytes = 250 << 20
	}
	if l.UnpackedBytes == 0 {
		l.UnpackedBytes = 250 << 20
	}
	if l.Entries == 0 {
		l.Entries = 100_000
	}
	return l
}

// Objects is where packages come from.
type Objects interface {
	// Get opens the object of that key for reading. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
}

// Config says how a Cache works.
type Config struct {
	// Dir is the cache's directory, which Open makes if needed.
	Dir     string
	Objects Objects
	// MaxBytes bounds the unpacked packages that are kept though no sandbox
	// uses them: 4 GiB if 0.
	MaxBytes int64
	Limits   Limits
}

// Cache keeps unpacked packages, one for each digest. Its methods may be called
// concurrently.
type Cache struct {
	objects Objects
	limits  Limits
	// downloads holds zip files while they are unpacked.
	downloads string
	dirs      *dircache.Cache
}

var _ sandbox.Unpacker = (*Cache)(nil)

// Open opens a cache. The error wraps sys.ErrLocked when another process uses
// its directory. The caller closes it.
func Open(cfg Config) (*Cache, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 4 << 30
	}
	dirs, err := dircache.Open(cfg.Dir, cfg.MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("open packages: %w", err)
	}
	c := &Cache{objects: cfg.Objects, limits: cfg.Limits.withDefaults(), downloads: filepath.Join(cfg.Dir, "downloads"), dirs: dirs}
	if err := errors.Join(os.RemoveAll(c.downloads), os.Mkdir(c.downloads, 0o700)); err != nil {
		return nil, errors.Join(fmt.Errorf("open packages: %w", err), dirs.Close())
	}
	return c, nil
}

// Close waits for the downloads under way and closes the cache. What is
// unpacked stays on disk for the next process. It is idempotent.
func (c *Cache) Close() error { return c.dirs.Close() }

// Unpack gives the directory of a function's unpacked package, fetching it if
// need be. Every file in it can be read by every user, keeps its time of
// change and whether it can be executed, and must not be changed. A package
// that is damaged, too large or malicious gives a *function.Error of code
// InvalidCode that names the entry at fault.
func (c *Cache) Unpack(ctx context.Context, f *function.Function) (sandbox.Package, error) {
	if digest, err := hex.DecodeString(f.Code.SHA256); err != nil || len(digest) != sha256.Size {
		return sandbox.Package{}, function.Errorf(function.InvalidCode, "the package's digest %q is no SHA-256 in hex", f.Code.SHA256)
	}
	ref, err := c.dirs.Get(ctx, f.Code.SHA256, func(ctx context.Context, dir string) (int64, error) {
		size, err := c.fetch(ctx, f.Code, dir)
		if err != nil {
			return 0, fmt.Errorf("unpack code of %s: %w", f.Name, err)
		}
		return size, nil
	})
	if err != nil {
		return sandbox.Package{}, err
	}
	return sandbox.Package{Dir: ref.Dir(), Release: ref.Release}, nil
}

// fetch downloads a package, verifies it and unpacks it into dir.
func (c *Cache) fetch(ctx context.Context, code function.Code, dir string) (size int64, err error) {
	body, err := c.objects.Get(ctx, code.Object)
	if err != nil {
		return 0, fmt.Errorf("get package %s: %w", code.Object, err)
	}
	defer body.Close()
	file, err := os.CreateTemp(c.downloads, "")
	if err != nil {
		return 0, fmt.Errorf("download package: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, hash), io.LimitReader(body, c.limits.PackageBytes+1))
	if err != nil {
		return 0, fmt.Errorf("download package %s: %w", code.Object, err)
	}
	if n > c.limits.PackageBytes {
		return 0, function.Errorf(function.InvalidCode, "the package is larger than %d bytes", c.limits.PackageBytes)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != code.SHA256 {
		return 0, function.Errorf(function.InvalidCode, "the package is damaged: its SHA-256 is %s, not %s", got, code.SHA256)
	}
	return Extract(ctx, file, n, dir, c.limits)
}
