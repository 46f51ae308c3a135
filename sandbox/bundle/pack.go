package bundle

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// leftOut reports whether Pack leaves out what has this name.
func leftOut(name string) bool {
	switch name {
	case ".git", "__pycache__", ".DS_Store":
		return true
	}
	return false
}

// Pack writes a zip file of what is in dir to w. The same content gives the
// same bytes: entries are sorted, and their times fixed. Whether a file can be
// executed is kept. Symbolic links are kept as such, and those that lead out
// of dir are refused. Directories called .git and __pycache__ are left out.
// What exceeds limits, as Extract would find it, is refused with an error that
// names the file.
func Pack(w io.Writer, dir string, limits Limits) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	defer root.Close()
	counted := &countingWriter{w: w}
	p := packing{root: root, zip: zip.NewWriter(counted), limits: limits.withDefaults()}
	p.zip.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.DefaultCompression)
	})
	// WalkDir goes in lexical order.
	if err := fs.WalkDir(root.FS(), ".", p.entry); err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	if p.entries == 0 {
		return fmt.Errorf("pack %s: the directory is empty", dir)
	}
	if err := p.zip.Close(); err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	if counted.n > p.limits.PackageBytes {
		return fmt.Errorf("pack %s: the zip file has %d bytes, more than the limit of %d", dir, counted.n, p.limits.PackageBytes)
	}
	return nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// packing is the state of Pack.
type packing struct {
	root    *os.Root
	zip     *zip.Writer
	limits  Limits
	entries int
	bytes   int64
}

// packTime is the time of change of every entry: the earliest that a zip file
// can hold everywhere. It is constant.
var packTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

func (p *packing) entry(name string, d fs.DirEntry, err error) error {
	switch {
	case err != nil:
		return err
	case name == ".":
		return nil
	case leftOut(path.Base(name)) && d.IsDir():
		return fs.SkipDir
	case leftOut(path.Base(name)):
		return nil
	}
	if p.entries++; p.entries > p.limits.Entries {
		return fmt.Errorf("%s is one file too many: a package may hold %d", name, p.limits.Entries)
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	header := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: packTime}
	switch mode := info.Mode(); mode.Type() {
	case fs.ModeDir:
		header.Name += "/"
		header.Method = zip.Store
		header.SetMode(fs.ModeDir | 0o755)
		_, err = p.zip.CreateHeader(header)
	case fs.ModeSymlink:
		header.Method = zip.Store
		header.SetMode(fs.ModeSymlink | 0o777)
		err = p.link(header, name)
	case 0:
		header.SetMode(0o644 | mode&0o111)
		if mode&0o111 != 0 {
			header.SetMode(0o755)
		}
		err = p.file(header, name)
	default:
		err = fmt.Errorf("%s is neither a file, a directory nor a symbolic link", name)
	}
	return err
}

func (p *packing) link(header *zip.FileHeader, name string) error {
	target, err := p.root.Readlink(name)
	if err != nil {
		return err
	}
	if _, err := p.root.Stat(name); filepath.IsAbs(target) || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is a symbolic link to %q, outside the directory: replace it by a copy", name, target)
	}
	out, err := p.zip.CreateHeader(header)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, filepath.ToSlash(target))
	return err
}

func (p *packing) file(header *zip.FileHeader, name string) error {
	in, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := p.zip.CreateHeader(header)
	if err != nil {
		return err
	}
	left := p.limits.UnpackedBytes - p.bytes
	n, err := io.Copy(out, io.LimitReader(in, left+1))
	if err != nil {
		return err
	}
	if n > left {
		return fmt.Errorf("%s is too large: all files together may have %d bytes; put large files into an image or the object store", name, p.limits.UnpackedBytes)
	}
	p.bytes += n
	return nil
}
