package rtnl

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SetSysctl sets a parameter below /proc/sys/net, such as
// "ipv4/ip_forward", in the calling thread's namespace.
func SetSysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", name)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set %s: %w", path, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}
