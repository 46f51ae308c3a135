package testenv

import "os"

// Userfaultfd is userfaultfd(2), as of Linux 5.11, which can be had without
// privileges for faults of user space.
const Userfaultfd Capability = "userfaultfd"

func probeUserfaultfd() error {
	_, err := os.Stat("/proc/sys/vm/unprivileged_userfaultfd")
	return err
}
