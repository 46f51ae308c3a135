// Package mem carries out what package pages plans: it finds the zero pages of
// a memory file, records which pages an invocation makes resident, maps a plan
// over a range of addresses, and reads a loading set into the page cache ahead
// of the guest (thesis chapter 5). For VMMs that cannot be made to map a plan it
// serves the page faults of their guests.
//
// It is where the system calls of FaaSnap are. Mapping and recording need
// Linux, and a host with pages of 4096 bytes; the rest works anywhere, if less
// well.
package mem
