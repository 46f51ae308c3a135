package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// AddTap makes a tap device in the calling thread's namespace, which stays until
// it is deleted, for whoever opens it: a virtual machine monitor. Its packets
// have the header of virtio. The error is ErrExists, wrapped, if there is a link
// of that name.
func AddTap(name string) error {
	if err := addTap(name); err != nil {
		return fmt.Errorf("add tap %s: %w", name, err)
	}
	return nil
}

func addTap(name string) (err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return meaning(err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	// Exclusively: the kernel would open one that is there.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return ErrExists
		}
		return meaning(err)
	}
	return meaning(unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}
