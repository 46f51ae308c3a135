// Package pages decides where each page of a restored guest comes from. Given
// which pages of a snapshot are not zero and in which order a recorded
// invocation made pages resident, it plans the mappings of guest memory: zero
// pages are anonymous memory, the loading set is a compact file that a loader
// reads in order, and the rest is the memory file (thesis 5.3.3 to 5.3.8).
//
// The package is pure: no I/O, no system calls, no state. Everything is counted
// in pages of [Size] bytes, whatever the page size of the host.
package pages
