package sys

import "os"

// MountOverlay mounts, read-only, the union of directories on target: lower
// lists them from the topmost down, as paths seen from dir (short ones, because
// the kernel bounds them to one page together). It needs at least two of them,
// Linux and CAP_SYS_ADMIN; elsewhere it fails with errors.ErrUnsupported. The
// caller unmounts it.
func MountOverlay(dir string, lower []string, target string) error {
	return mountOverlay(dir, lower, target)
}

// Unmount takes away what is mounted on target, at once for whoever looks
// there and in the end when the last user has gone. A target that is no mount
// point, or not there, is no error.
func Unmount(target string) error { return unmount(target) }

// Whiteout makes the entry called name in dir a whiteout: as a lower directory
// of an overlay, dir then hides what the directories below have under that
// name. It needs CAP_MKNOD.
func Whiteout(dir *os.File, name string) error { return whiteout(dir, name) }

// MarkOpaque makes dir, as a lower directory of an overlay, hide all that the
// directories below have in theirs of that name. It needs CAP_SYS_ADMIN.
func MarkOpaque(dir *os.File) error { return markOpaque(dir) }
