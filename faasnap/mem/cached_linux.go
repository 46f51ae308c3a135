package mem

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapCached maps a file without reading it.
func mapCached(f *os.File, size int64) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
}

func unmapCached(mapped []byte) error { return unix.Munmap(mapped) }

// dropCached drops what nobody has mapped from the page cache.
func dropCached(f *os.File) error {
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// mincore sets the lowest bit of vec for each page that is in the page cache.
func mincore(mapped, vec []byte) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_MINCORE,
			uintptr(unsafe.Pointer(unsafe.SliceData(mapped))), uintptr(len(mapped)), uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
		switch errno {
		case 0:
			return nil
		case unix.EAGAIN: // the kernel is short of memory for the moment
		default:
			return errno
		}
	}
}
