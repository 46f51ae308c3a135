package sys

import "os"

// FaultEvents returns events of the kernel's that happen whenever a page fault is
// done, of any process: two for each CPU, for an eBPF program to be attached to.
// The caller closes them. It needs Linux and root.
func FaultEvents() ([]*os.File, error) { return faultEvents() }
