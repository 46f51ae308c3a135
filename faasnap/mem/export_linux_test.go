package mem

import (
	"errors"

	"golang.org/x/sys/unix"
)

// NewUffd returns a userfaultfd for the mapped memory, as a VMM has one.
func NewUffd(mapped []byte) (int, error) {
	const userModeOnly = 1
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), errors.Join(
		uffd(fd).ioctl(uffdioAPI, &[5]uint64{uffdAPI, uffdFeatureEventRemove}),
		uffd(fd).ioctl(uffdioRegister, &[5]uint64{address(mapped), uint64(len(mapped)), uffdRegisterMissing}))
}

// ParseHostRegions is parseHostRegions.
func ParseHostRegions(text []byte) ([]HostRegion, error) { return parseHostRegions(text) }
