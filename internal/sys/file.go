package sys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// ReplaceFile makes a file with that content and mode, on disk, in the place of
// one that may be there: whoever looks, and whatever happens meanwhile, there is
// the old one or the new one as a whole.
func ReplaceFile(path string, content []byte, perm fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error tells
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Exchange exchanges what two paths of one file system name: at once, but where
// neither the system nor the file system can there is a moment without b. The
// error is fs.ErrNotExist, wrapped, if one of them names nothing.
func Exchange(a, b string) error {
	err := exchange(a, b)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := os.Lstat(a); err != nil {
		return err
	}
	aside := a + ".exchanged"
	if err := os.Rename(b, aside); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(err, os.Rename(aside, b))
	}
	return os.Rename(aside, a)
}
