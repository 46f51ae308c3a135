package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func mountOverlay(dir string, lower []string, target string) error {
	options := "lowerdir=" + strings.Join(lower, ":")
	if limit := os.Getpagesize() - 1; len(options) > limit {
		return fmt.Errorf("mount overlay on %s: the names of %d layers take %d bytes, the kernel allows %d", target, len(lower), len(options), limit)
	}
	done := make(chan error, 1)
	go func() {
		// The thread gets a working directory of its own, and ends with this
		// goroutine because it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("separate working directory: %w", err)
			return
		}
		if err := unix.Chdir(dir); err != nil {
			done <- fmt.Errorf("enter %s: %w", dir, err)
			return
		}
		done <- unix.Mount("overlay", target, "overlay", unix.MS_RDONLY|unix.MS_NODEV, options)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, err)
	}
	return nil
}

func unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

func whiteout(dir *os.File, name string) error {
	if err := unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make whiteout of %s: %w", name, err)
	}
	runtime.KeepAlive(dir)
	return nil
}

func markOpaque(dir *os.File) error {
	if err := unix.Fsetxattr(int(dir.Fd()), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark %s opaque: %w", dir.Name(), err)
	}
	runtime.KeepAlive(dir)
	return nil
}
