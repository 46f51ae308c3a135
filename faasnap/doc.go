// Package faasnap runs functions in microVMs, and restores them from snapshots
// at nearly the speed of memory (thesis chapter 5).
//
// A Service keeps functions, snapshots and running virtual machines in a
// directory. Recording a snapshot boots a function, warms it up, writes its
// virtual machine down, and then restores it once for each input to see which
// pages that makes resident. The snapshot's plan comes of that: zero pages are
// anonymous memory, pages that an invocation is likely to want are read ahead
// from one compact file, and the rest is paged in on demand.
//
// The packages below do the parts: pages plans, mem maps and reads, snapshot
// keeps files, vmm starts VMMs, guest makes what they boot.
package faasnap
