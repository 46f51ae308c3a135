package memtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// Map returns that many bytes of private memory, all zero. It stays mapped until
// the process ends.
func Map(sizeBytes int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, sizeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map memory: %w", err)
	}
	return b, nil
}

// MapFile maps that many bytes of a file privately, as Map does.
func MapFile(path string, sizeBytes int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, sizeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return b, nil
}

// Discard gives back whole pages of private memory: those that Map has mapped
// are zero from then on.
func Discard(b []byte) error {
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give back memory: %w", err)
	}
	return nil
}

// HandOver hands the page faults of memory over to who listens on a unix socket.
// Parts are what it consists of, in any order; each has a userfaultfd of its
// own. The descriptors stay open until the process ends, as a VMM keeps them.
func HandOver(socket string, memory []byte, parts ...[]byte) error {
	if len(parts) == 0 {
		parts = [][]byte{memory}
	}
	var regions []mem.HostRegion
	var fds []int
	for _, part := range parts {
		fd, err := newUffd(part)
		if err != nil {
			return fmt.Errorf("hand over page faults: %w", err)
		}
		fds = append(fds, fd)
		regions = append(regions, mem.HostRegion{
			Address: address(part), Size: uint64(len(part)), Offset: address(part) - address(memory), PageSize: pages.Size,
		})
	}
	text, err := json.Marshal(regions)
	if err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("hand over page faults: %w", err)
	}
	defer conn.Close()
	if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(fds...), nil); err != nil {
		return fmt.Errorf("hand over page faults: %w", err)
	}
	return nil
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// The kernel's interface (linux/userfaultfd.h), as far as a VMM needs it.
const (
	userModeOnly       = 1
	uffdAPI            = 0xaa
	uffdioAPI          = 0xc018aa3f
	uffdioRegister     = 0xc020aa00
	featureEventRemove = 1 << 3
	registerMissing    = 1
)

func newUffd(mapped []byte) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly, 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("make a userfaultfd: %w", errno)
	}
	if err := errors.Join(
		ioctl(fd, uffdioAPI, &[4]uint64{uffdAPI, featureEventRemove}),
		ioctl(fd, uffdioRegister, &[4]uint64{address(mapped), uint64(len(mapped)), registerMissing})); err != nil {
		return -1, errors.Join(fmt.Errorf("register memory: %w", err), unix.Close(int(fd)))
	}
	return int(fd), nil
}

func ioctl(fd, request uintptr, arg *[4]uint64) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}
