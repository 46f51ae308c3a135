package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func faultEvents() ([]*os.File, error) {
	var events []*os.File
	for cpu := range runtime.NumCPU() {
		for _, config := range []uint64{unix.PERF_COUNT_SW_PAGE_FAULTS_MIN, unix.PERF_COUNT_SW_PAGE_FAULTS_MAJ} {
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: config, Sample: 1}
			attr.Size = uint32(unsafe.Sizeof(attr))
			fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err != nil {
				for _, e := range events {
					err = errors.Join(err, e.Close())
				}
				return nil, fmt.Errorf("open event of page faults: %w", err)
			}
			events = append(events, os.NewFile(uintptr(fd), "page faults"))
		}
	}
	return events, nil
}
