package mem

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface (linux/userfaultfd.h), as far as it is needed here.
const (
	uffdioUnreg    = 0x8010aa01
	uffdioWake     = 0x8010aa02
	uffdioCopy     = 0xc028aa03
	uffdioZeroPage = 0xc020aa04

	uffdEventPageFault = 0x12
	uffdEventRemove    = 0x15
	uffdEventUnmap     = 0x16
)

// uffd is a userfaultfd.
type uffd int

func (u uffd) ioctl(request uintptr, arg *[5]uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), request, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// copyTo makes a missing range of addresses present with these contents, and
// wakes who waits for it. It returns how much it did of it, also with an error.
func (u uffd) copyTo(addr uint64, b []byte) (int, error) {
	arg := [5]uint64{addr, address(b), uint64(len(b)), 0, 0}
	err := u.ioctl(uffdioCopy, &arg)
	runtime.KeepAlive(b)
	return max(0, int(int64(arg[4]))), err
}

// zero is copyTo with zeros.
func (u uffd) zero(addr, size uint64) error {
	return u.ioctl(uffdioZeroPage, &[5]uint64{addr, size})
}

// wake wakes who waits for a page in the range. It tries again if it is missing
// still.
func (u uffd) wake(addr, size uint64) error {
	return u.ioctl(uffdioWake, &[5]uint64{addr, size})
}

// unregister leaves missing pages of the range to the kernel.
func (u uffd) unregister(addr, size uint64) error {
	return u.ioctl(uffdioUnreg, &[5]uint64{addr, size})
}

// message is an event: the address of a fault, or the range that was removed.
type message struct {
	event      byte
	start, end uint64
}

// read returns the events that there are, none if there are none now.
func (u uffd) read(buf []byte) ([]message, error) {
	const size = 32
	n, err := unix.Read(int(u), buf[:len(buf)/size*size])
	switch err {
	case nil:
	case unix.EAGAIN, unix.EINTR:
		return nil, nil
	default:
		return nil, err
	}
	var messages []message
	for b := buf[:n]; len(b) >= size; b = b[size:] {
		m := message{event: b[0], start: binary.NativeEndian.Uint64(b[8:]), end: binary.NativeEndian.Uint64(b[16:])}
		if m.event == uffdEventPageFault {
			m.start, m.end = m.end, 0 // the flags come first
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// address returns where b is. It is there as long as it is kept alive.
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
