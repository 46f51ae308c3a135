package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
)

// budget is what may still be unpacked of an image. It may be used
// concurrently.
type budget struct {
	limits         Limits
	bytes, entries atomic.Int64
}

func newBudget(limits Limits) *budget {
	b := &budget{limits: limits}
	b.bytes.Store(limits.UnpackedBytes)
	b.entries.Store(limits.Entries)
	return b
}

// The names in a layer that stand for what is absent (OCI image specification,
// "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	// aufsPrefix begins the names of files that only aufs had a use for.
	aufsPrefix = ".wh..wh."
)

// maxLinks bounds how many symbolic links a path may lead through, as Linux
// does.
const maxLinks = 40

// unpack unpacks a layer into the empty directory dir, in the form that
// overlayfs takes as a lower directory, and returns how many bytes its files
// have. What it reads must hash to diffID. Devices and extended attributes are
// left out, as functions could not use them; setuid and setgid bits are
// dropped. Nothing is written outside dir: symbolic links in the layer are
// followed as if dir were the root. What the layer is to blame for gives a
// *function.Error of code InvalidImage.
func unpack(ctx context.Context, layer io.Reader, diffID, dir string, b *budget) (int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	hash := sha256.New()
	// The library decompresses without noticing that we gave up.
	in := io.TeeReader(contextReader{ctx, layer}, hash)
	u := unpacking{root: root, budget: b, archive: tar.NewReader(in)}
	if err := u.run(); err != nil {
		return 0, blame(ctx, err)
	}
	// What comes after the end of the archive is part of the layer all the same.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return 0, blame(ctx, fmt.Errorf("read to the end: %w", err))
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != diffID {
		return 0, function.Errorf(function.InvalidImage, "the layer is damaged: its digest is %s, not %s", got, diffID)
	}
	return u.bytes, nil
}

type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// unpacking is the state of unpack.
type unpacking struct {
	root    *os.Root
	budget  *budget
	archive *tar.Reader
	bytes   int64
	dirs    []*tar.Header // with their real path as the name
}

func (u *unpacking) run() error {
	for {
		header, err := u.archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if u.budget.entries.Add(-1) < 0 {
			return fmt.Errorf("%q is one file too many: an image may hold %d", header.Name, u.budget.limits.Entries)
		}
		if err := u.entry(header); err != nil {
			return fmt.Errorf("entry %q: %w", header.Name, err)
		}
	}
	for _, h := range u.dirs {
		// A later entry may have taken the directory's place.
		if info, err := u.root.Lstat(h.Name); err != nil || !info.IsDir() {
			continue
		}
		if err := u.root.Chtimes(h.Name, modTime(h), modTime(h)); err != nil {
			return err
		}
	}
	return nil
}

// modTime returns an entry's time of change; those that have none get that of
// the epoch.
func modTime(h *tar.Header) time.Time {
	if h.ModTime.IsZero() {
		return time.Unix(0, 0)
	}
	return h.ModTime
}

func (u *unpacking) entry(h *tar.Header) error {
	// The name as seen from the root, whatever it climbs over.
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return u.attributes(".", h)
	}
	parent, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, base)
	}
	target := path.Join(parent, base)
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(target, h)
	case tar.TypeReg:
		return u.file(target, h)
	case tar.TypeSymlink:
		if err := u.clear(target); err != nil {
			return err
		}
		if err := u.root.Symlink(h.Linkname, target); err != nil {
			return err
		}
		return u.root.Lchown(target, h.Uid, h.Gid)
	case tar.TypeLink:
		return u.hardLink(target, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("its type %q is unknown", h.Typeflag)
}

// parent returns the real path of a directory, which is made if need be:
// symbolic links on the way are followed as if the layer were the root.
func (u *unpacking) parent(dir string) (string, error) {
	real, rest, links := ".", strings.Split(dir, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			real = path.Dir(real)
			continue
		}
		next := path.Join(real, part)
		info, err := u.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if u.budget.entries.Add(-1) < 0 {
				return "", fmt.Errorf("the directories above it are too many: an image may hold %d files", u.budget.limits.Entries)
			}
			if err := u.root.Mkdir(next, 0o755); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		case info.Mode().Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return "", errors.New("its path leads through too many symbolic links")
			}
			link, err := u.root.Readlink(next)
			if err != nil {
				return "", err
			}
			if path.IsAbs(link) {
				real = "."
			}
			rest = append(strings.Split(link, "/"), rest...)
			continue
		case !info.IsDir():
			// Also a whiteout of the same layer: what is below comes anew.
			if err := u.root.Remove(next); err != nil {
				return "", err
			}
			if err := u.root.Mkdir(next, 0o755); err != nil {
				return "", err
			}
		}
		real = next
	}
	return real, nil
}

// clear takes away what an entry replaces.
func (u *unpacking) clear(target string) error {
	return u.root.RemoveAll(target)
}

func (u *unpacking) dir(target string, h *tar.Header) error {
	info, err := u.root.Lstat(target)
	if err != nil || !info.IsDir() {
		if err := u.clear(target); err != nil {
			return err
		}
		if err := u.root.Mkdir(target, 0o755); err != nil {
			return err
		}
	}
	named := *h
	named.Name = target
	u.dirs = append(u.dirs, &named)
	return u.attributes(target, h)
}

func (u *unpacking) file(target string, h *tar.Header) (err error) {
	if err := u.clear(target); err != nil {
		return err
	}
	if left := u.budget.bytes.Add(-h.Size); left < 0 {
		return fmt.Errorf("it is too large: the files of an image may have %d bytes together", u.budget.limits.UnpackedBytes)
	}
	u.bytes += h.Size
	out, err := u.root.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, u.archive)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := u.attributes(target, h); err != nil {
		return err
	}
	return u.root.Chtimes(target, modTime(h), modTime(h))
}

// attributes sets owner and mode of a file or directory.
func (u *unpacking) attributes(target string, h *tar.Header) error {
	if err := u.root.Lchown(target, h.Uid, h.Gid); err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	if h.Typeflag == tar.TypeDir && h.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return u.root.Chmod(target, mode)
}

func (u *unpacking) hardLink(target string, h *tar.Header) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
	parent, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	source := path.Join(parent, path.Base(name))
	if source == target {
		return errors.New("it is a link to itself")
	}
	info, err := u.root.Lstat(source)
	if err != nil || info.IsDir() {
		return fmt.Errorf("it is a link to %q, which is no file of the layer", h.Linkname)
	}
	if err := u.clear(target); err != nil {
		return err
	}
	return u.root.Link(source, target)
}

// whiteout makes what hides entries of the layers below.
func (u *unpacking) whiteout(parent, base string) (err error) {
	if base != opaqueName && strings.HasPrefix(base, aufsPrefix) {
		return nil
	}
	dir, err := u.root.Open(parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if base == opaqueName {
		return sys.MarkOpaque(dir)
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return errors.New("it hides nothing")
	}
	// What the layer itself has under that name takes precedence.
	if _, err := u.root.Lstat(path.Join(parent, hidden)); err == nil {
		return nil
	}
	return sys.Whiteout(dir, hidden)
}
