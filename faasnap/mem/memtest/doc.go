// Package memtest is the memory of a VMM, for tests and doubles of VMMs: it maps
// guest memory as Firecracker does, and hands page faults over as mem.Handshake
// takes them. It needs Linux.
//
// Who hands over its page faults must be a process of its own. One that waits
// for itself to serve a page waits for good when the garbage collector stops its
// threads.
package memtest
