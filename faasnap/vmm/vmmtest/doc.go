// Package vmmtest is the conformance suite of VMM drivers: what every vmm.Driver
// has to do, whatever VMM it drives. It needs Linux.
package vmmtest
