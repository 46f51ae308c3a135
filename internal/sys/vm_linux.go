package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MemFile returns an empty file that is in memory only, and has no name that it
// could be opened by.
func MemFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// OpenTap opens a tap device that is there already, in a network namespace, or
// in this thread's if namespace is empty. It needs CAP_NET_ADMIN there.
func OpenTap(namespace, name string) (tap *os.File, err error) {
	open := func() error {
		tap, err = openTap(name)
		return err
	}
	if namespace == "" {
		err = open()
	} else {
		err = OnThread(func() error {
			if err := EnterNetwork(namespace); err != nil {
				return err
			}
			return open()
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return tap, nil
}

// LooseTap makes a tap device of that name in a network namespace of its own, in
// which nothing is connected to it. The namespace is the file that is returned:
// it ends with the tap when that has been closed.
func LooseTap(name string) (namespace *os.File, err error) {
	err = OnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err := AddTap(name); err != nil {
			return errors.Join(err, namespace.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	return namespace, nil
}

// AddTap makes a tap device in the calling thread's network namespace, which stays
// until it is deleted, for whoever opens it. Its packets have the header of
// virtio. The error is EBUSY if there is a device of that name.
func AddTap(name string) error {
	// The kernel would open one that is there.
	tap, err := attachTap(name, unix.IFF_TUN_EXCL)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETPERSIST, 1), tap.Close())
}

func openTap(name string) (*os.File, error) {
	// The kernel would make one that is missing.
	if err := findLink(name); err != nil {
		return nil, err
	}
	return attachTap(name, 0)
}

// attachTap opens the tap device of that name, and makes it if there is none.
func attachTap(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// findLink returns an error if this thread's network namespace has no such
// device.
func findLink(name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
}
