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

// Offer is page faults to be handed over.
type Offer struct {
	// Socket is the path of the unix socket that the handler listens on.
	Socket string
	// Memory is the guest's memory, and Parts are what it consists of, in any
	// order; without any it is one.
	Memory []byte
	Parts  [][]byte
	// Split gives each part a userfaultfd of its own; Firecracker has one.
	Split bool
}

// HandOver hands page faults over. The descriptors stay open until the process
// ends, as a VMM keeps them.
func HandOver(o Offer) error {
	if len(o.Parts) == 0 {
		o.Parts = [][]byte{o.Memory}
	}
	var regions []mem.HostRegion
	var fds []int
	for _, part := range o.Parts {
		if len(fds) == 0 || o.Split {
			fd, err := newUffd()
			if err != nil {
				return fmt.Errorf("hand over page faults: %w", err)
			}
			fds = append(fds, fd)
		}
		if err := ioctl(fds[len(fds)-1], uffdioRegister, &[4]uint64{address(part), uint64(len(part)), registerMissing}); err != nil {
			return fmt.Errorf("hand over page faults: register memory: %w", err)
		}
		regions = append(regions, mem.HostRegion{
			Address: address(part), Size: uint64(len(part)), Offset: address(part) - address(o.Memory), PageSize: pages.Size,
		})
	}
	text, err := json.Marshal(regions)
	if err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: o.Socket, Net: "unix"})
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

func newUffd() (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly, 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("make a userfaultfd: %w", errno)
	}
	if err := ioctl(int(fd), uffdioAPI, &[4]uint64{uffdAPI, featureEventRemove}); err != nil {
		return -1, errors.Join(fmt.Errorf("make a userfaultfd: %w", err), unix.Close(int(fd)))
	}
	return int(fd), nil
}

func ioctl(fd int, request uintptr, arg *[4]uint64) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}
