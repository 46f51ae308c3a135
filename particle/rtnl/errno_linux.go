package rtnl

import (
	"errors"

	"golang.org/x/sys/unix"
)

// kernelError is an errno that reads like, and is, an error of this package.
type kernelError struct {
	sentinel error
	errno    unix.Errno
}

func (e kernelError) Error() string   { return e.sentinel.Error() + " (" + e.errno.Error() + ")" }
func (e kernelError) Unwrap() []error { return []error{e.sentinel, e.errno} }

// classify gives an errno its meaning.
func classify(errno unix.Errno) error {
	switch errno {
	case unix.EEXIST:
		return kernelError{ErrExists, errno}
	case unix.ENODEV, unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL, unix.ENXIO:
		return kernelError{ErrNotFound, errno}
	case unix.EXFULL:
		return kernelError{ErrBridgeFull, errno}
	case unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ENOSYS:
		return kernelError{ErrUnsupported, errno}
	case unix.EPERM, unix.EACCES:
		return kernelError{ErrNotPermitted, errno}
	}
	return errno
}

// meaning is classify for the error of a system call.
func meaning(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return classify(errno)
	}
	return err
}
