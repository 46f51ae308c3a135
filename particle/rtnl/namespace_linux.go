package rtnl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/internal/sys"
)

// self is the network namespace of the thread that opens it.
const self = "/proc/thread-self/ns/net"

// Namespace is an open network namespace. Its methods may be called
// concurrently. An open namespace lives on after Remove, until Close.
type Namespace struct {
	file *os.File
}

// Current returns the namespace of the calling thread. The caller closes it.
func Current() (*Namespace, error) {
	f, err := os.Open(self)
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return &Namespace{f}, nil
}

// Open returns the namespace that is pinned at path. The error is
// fs.ErrNotExist, wrapped, if there is no such file, and ErrNotNamespace,
// wrapped, if it is no namespace: what is left when its maker was killed, or
// when the machine has been restarted. The caller closes it.
func Open(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if !isNamespace(f) {
		f.Close()
		return nil, fmt.Errorf("open network namespace: %s: %w", path, ErrNotNamespace)
	}
	return &Namespace{f}, nil
}

func isNamespace(f *os.File) bool {
	var st unix.Statfs_t
	defer runtime.KeepAlive(f)
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Create makes a namespace and pins it at path, so that it lives until Remove.
// Then it calls inside, if that is not nil, on a thread in the namespace. The
// error is ErrExists, wrapped, if path is a namespace already. After an error
// nothing is left. The caller closes the namespace.
func Create(path string, inside func() error) (*Namespace, error) {
	all, err := CreateAll([]string{path}, func(int) error {
		if inside == nil {
			return nil
		}
		return inside()
	})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// CreateAll is Create for many paths, one after the other, by one thread, which
// is faster than a thread for each. inside is told the index in paths. After an
// error none of them is left.
func CreateAll(paths []string, inside func(i int) error) ([]*Namespace, error) {
	all := make([]*Namespace, 0, len(paths))
	err := onThread(func() error {
		for i, path := range paths {
			ns, err := create(path)
			if err != nil {
				return fmt.Errorf("create network namespace %s: %w", path, err)
			}
			all = append(all, ns)
			if inside != nil {
				if err := inside(i); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		for i, ns := range all {
			ns.Close()
			err = errors.Join(err, Remove(paths[i]))
		}
		return nil, err
	}
	return all, nil
}

// create makes the calling thread's namespace a new one, pinned at path.
func create(path string) (*Namespace, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if errors.Is(err, fs.ErrExist) {
		// A maker that was killed before the mount has left an empty file.
		if f, err = os.Open(path); err == nil && isNamespace(f) {
			f.Close()
			return nil, ErrExists
		}
	}
	if err != nil {
		return nil, err
	}
	f.Close()
	if err := enterNew(); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("pin it: %w", meaning(err)), os.Remove(path))
	}
	ns, err := Current()
	if err != nil {
		return nil, errors.Join(err, Remove(path))
	}
	return ns, nil
}

// enterNew gives the calling thread a new namespace.
func enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return meaning(err)
	}
	return nil
}

// Remove unpins the namespace at path and removes the file. It is no error if
// there is none. The namespace ends when no process and no file is in it; see
// Settle. Links in it that are not virtual go back to the first namespace.
func Remove(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // two may lie on each other
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// PrepareDir makes dir a place for namespaces as `ip netns` does: a mount of
// its own whose mounts other mount namespaces see too.
func PrepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("prepare %s: %w", dir, err)
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount point yet
		if err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("prepare %s: %w", dir, err)
	}
	return nil
}

// FD returns the namespace's file descriptor, which stays ns's.
func (ns *Namespace) FD() int { return int(ns.file.Fd()) }

// Same reports whether ns is the namespace that is now pinned at path.
func (ns *Namespace) Same(path string) bool {
	a, err := ns.file.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// Close closes ns. It does not remove the namespace.
func (ns *Namespace) Close() error { return ns.file.Close() }

// Do calls f on a thread in the namespace. The thread ends with f: f must not
// leave anything to it, and goroutines that f starts are not in the namespace.
func (ns *Namespace) Do(f func() error) error {
	return onThread(func() error {
		defer runtime.KeepAlive(ns)
		if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Dial opens a Conn in the namespace. The caller closes it.
func (ns *Namespace) Dial() (*Conn, error) {
	var c *Conn
	err := ns.Do(func() (err error) {
		c, err = Dial()
		return err
	})
	return c, err
}

// onThread calls f on a thread that ends with it: a thread that has been in
// another namespace is never handed back to the runtime.
func onThread(f func() error) error {
	return sys.OnThread(func() error { return thereAndBack(f) })
}

// thereAndBack calls f and leaves the namespace that f has taken the thread to:
// when a thread that ends has let go of its namespace, nobody can tell.
func thereAndBack(f func() error) (err error) {
	home, err := Current()
	if err != nil {
		return err
	}
	defer func() {
		if backErr := unix.Setns(home.FD(), unix.CLONE_NEWNET); backErr != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", backErr))
		}
		err = errors.Join(err, home.Close())
	}()
	return f()
}
