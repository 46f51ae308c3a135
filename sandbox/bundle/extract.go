package bundle

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/volley-run/volley/function"
)

// maxLinkBytes bounds the target of a symbolic link, as Linux does.
const maxLinkBytes = 4096

// Extract unpacks a zip file of size bytes into dir, which must exist and be
// empty, and returns how many bytes the files take. Nothing is written outside
// dir, and no symbolic link in it leads out. Files and directories are made
// readable for everyone, setuid, setgid and sticky bits are dropped, times are
// kept. What the zip file is to blame for gives a *function.Error of code
// InvalidCode that names the entry. After an error dir holds a part.
func Extract(ctx context.Context, zipped io.ReaderAt, size int64, dir string, limits Limits) (int64, error) {
	archive, err := zip.NewReader(zipped, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return 0, function.Errorf(function.InvalidCode, "the package is no zip file: %v", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("unpack: %w", err)
	}
	defer root.Close()
	x := extraction{root: root, limits: limits.withDefaults(), kinds: map[string]fs.FileMode{}}
	for _, f := range archive.File {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("unpack: %w", err)
		}
		if err := x.entry(f); err != nil {
			return 0, err
		}
	}
	if err := x.finish(); err != nil {
		return 0, err
	}
	return x.bytes, nil
}

// extraction is the state of Extract.
type extraction struct {
	root   *os.Root
	limits Limits
	bytes  int64
	// kinds is the type of every entry so far, by its path.
	kinds map[string]fs.FileMode
	dirs  []dirTime
	links []string
}

// dirTime is a directory whose time of change is set when all is in it.
type dirTime struct {
	name     string
	modified time.Time
}

// refuse makes the error that names an entry.
func refuse(name, format string, args ...any) error {
	return function.Errorf(function.InvalidCode, "the package's entry %q %s", name, fmt.Sprintf(format, args...))
}

func (x *extraction) entry(f *zip.File) error {
	name := strings.TrimSuffix(f.Name, "/")
	switch {
	case strings.ContainsAny(name, "\\\x00"):
		return refuse(f.Name, "has a character in its name that is not allowed")
	case name == "." && strings.HasSuffix(f.Name, "/"):
		return nil
	case !fs.ValidPath(name) || name == ".":
		return refuse(f.Name, "has a name that is not a clean path inside the package")
	}
	kind := f.Mode().Type()
	if strings.HasSuffix(f.Name, "/") {
		kind = fs.ModeDir
	}
	switch was, seen := x.kinds[name]; {
	case seen && (!was.IsDir() || !kind.IsDir()):
		return refuse(f.Name, "occurs twice")
	case seen:
		return x.dirMode(name, f)
	}
	if err := x.parents(f.Name, path.Dir(name)); err != nil {
		return err
	}
	if err := x.count(f.Name, name, kind); err != nil {
		return err
	}
	switch kind {
	case 0:
		return x.file(name, f)
	case fs.ModeDir:
		if err := x.root.Mkdir(name, 0o755); err != nil {
			return made(f.Name, err)
		}
		return x.dirMode(name, f)
	case fs.ModeSymlink:
		return x.link(name, f)
	}
	return refuse(f.Name, "is neither a file, a directory nor a symbolic link")
}

// count registers a new entry.
func (x *extraction) count(entry, name string, kind fs.FileMode) error {
	if len(x.kinds) >= x.limits.Entries {
		return refuse(entry, "is one too many: a package may hold %d", x.limits.Entries)
	}
	x.kinds[name] = kind
	return nil
}

// parents makes the directories above an entry that have none of their own yet.
func (x *extraction) parents(entry, dir string) error {
	if dir == "." {
		return nil
	}
	if kind, seen := x.kinds[dir]; seen {
		if !kind.IsDir() {
			return refuse(entry, "is in %q, which is no directory", dir)
		}
		return nil
	}
	if err := x.parents(entry, path.Dir(dir)); err != nil {
		return err
	}
	if err := x.count(entry, dir, fs.ModeDir); err != nil {
		return err
	}
	return made(entry, x.root.Mkdir(dir, 0o755))
}

// made wraps an error of the file system. A name that it cannot hold is the
// package's fault.
func made(entry string, err error) error {
	if err == nil {
		return nil
	}
	if isNameError(err) {
		return refuse(entry, "has a name that the file system cannot hold")
	}
	return fmt.Errorf("unpack %q: %w", entry, err)
}

func (x *extraction) dirMode(name string, f *zip.File) error {
	x.dirs = append(x.dirs, dirTime{name, f.Modified})
	return made(f.Name, x.root.Chmod(name, f.Mode().Perm()|0o755))
}

func (x *extraction) file(name string, f *zip.File) (err error) {
	content, err := f.Open()
	if err != nil {
		return refuse(f.Name, "cannot be read: %v", err)
	}
	defer content.Close()
	out, err := x.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return made(f.Name, err)
	}
	defer func() { err = errors.Join(err, made(f.Name, out.Close())) }()
	left := x.limits.UnpackedBytes - x.bytes
	// The size in the zip file's directory may lie: what comes counts.
	in := &blamed{Reader: io.LimitReader(content, left+1)}
	n, err := io.Copy(out, in)
	if err != nil {
		if in.err != nil {
			return refuse(f.Name, "is damaged: %v", in.err)
		}
		return made(f.Name, err)
	}
	if n > left {
		return refuse(f.Name, "is too large: all files together may have %d bytes", x.limits.UnpackedBytes)
	}
	x.bytes += n
	// The entry is its creator's to choose, whether it can be read is not:
	// the function runs as another user.
	if err := out.Chmod(f.Mode().Perm() | 0o444); err != nil {
		return made(f.Name, err)
	}
	return made(f.Name, x.root.Chtimes(name, f.Modified, f.Modified))
}

// blamed remembers errors of reading, to tell them from those of writing.
type blamed struct {
	io.Reader
	err error
}

func (b *blamed) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (x *extraction) link(name string, f *zip.File) error {
	content, err := f.Open()
	if err != nil {
		return refuse(f.Name, "cannot be read: %v", err)
	}
	defer content.Close()
	target, err := io.ReadAll(io.LimitReader(content, maxLinkBytes))
	switch {
	case err != nil:
		return refuse(f.Name, "is damaged: %v", err)
	case len(target) == 0 || len(target) == maxLinkBytes || strings.ContainsRune(string(target), 0):
		return refuse(f.Name, "is a symbolic link without a proper target")
	case path.IsAbs(string(target)):
		return refuse(f.Name, "is a symbolic link to %q, outside the package", target)
	}
	x.links = append(x.links, name)
	return made(f.Name, x.root.Symlink(string(target), name))
}

// finish does what has to wait until everything is there.
func (x *extraction) finish() error {
	// Whether a link leads out can depend on other links, so the file system
	// is asked: a root follows links, but not out of itself.
	for _, name := range x.links {
		if _, err := x.root.Stat(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return refuse(name, "is a symbolic link that leads out of the package, or nowhere")
		}
	}
	for _, d := range x.dirs {
		if err := x.root.Chtimes(d.name, d.modified, d.modified); err != nil {
			return made(d.name, err)
		}
	}
	return nil
}
