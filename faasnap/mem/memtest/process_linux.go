package memtest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Read reads the memory of another process. Pages that are missing are faulted
// in as if the process read them.
func Read(pid int, address uint64, b []byte) error {
	for len(b) > 0 {
		local := []unix.Iovec{{Base: &b[0]}}
		local[0].SetLen(len(b))
		n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(b)}}, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read memory of process %d at %#x: %w", pid, address, errors.Join(err, os.ErrInvalid))
		}
		address += uint64(n)
		b = b[n:]
	}
	return nil
}
