//go:build unix

package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked means that another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// WaitForLock takes the lock that the file or directory at path stands for, and
// waits for it. It is held as LockFile's is, and is another one than that of a
// file below path.
func WaitForLock(path string) (io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return lockOpen(f, 0)
}

// TryLock is WaitForLock without waiting: if somebody else holds the lock the
// error wraps ErrLocked.
func TryLock(path string) (io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return lockOpen(f, syscall.LOCK_NB)
}

// LockFile takes the lock that the file at path stands for, making the file and
// its directory if needed. The lock is held until the returned closer is
// closed or this process ends. It does not wait: if another process holds the
// lock the error wraps ErrLocked.
func LockFile(path string) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return lockOpen(f, syscall.LOCK_NB)
}

// lockOpen takes the lock that an open file stands for, and closes the file if
// it does not get it. With LOCK_NB it does not wait.
func lockOpen(f *os.File, flags int) (io.Closer, error) {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|flags)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
}
