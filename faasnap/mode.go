package faasnap

import (
	"fmt"
	"slices"
	"strings"
)

// Mode is how a virtual machine for an invocation comes about. Besides FaaSnap
// there are what it is compared with, and each of its steps alone (thesis
// 5.2.1, 5.3, figure 5.9).
type Mode string

// The modes.
const (
	// Boot starts the guest's kernel: a cold start.
	Boot Mode = "boot"
	// Full restores a snapshot whose memory file is mapped as it is, and paged
	// in on demand: what a VMM does by itself.
	Full Mode = "full"
	// Cached is Full with all of the memory file in the page cache beforehand.
	Cached Mode = "cached"
	// REAP handles page faults outside of the VMM, and has copied the pages that
	// a recorded invocation faulted on before the guest runs.
	REAP Mode = "reap"
	// Concurrent is Full with a loader that reads those pages of the memory file
	// in the order of addresses while the guest runs (5.3.2).
	Concurrent Mode = "concurrent"
	// Groups is Concurrent in the order in which the pages were faulted on
	// (5.3.3).
	Groups Mode = "groups"
	// HostRecording is Groups with the pages that became resident in the host's
	// page cache instead (5.3.4).
	HostRecording Mode = "host-recording"
	// Regions is HostRecording with zero pages mapped to anonymous memory, and
	// left out by the loader (5.3.5, 5.3.6).
	Regions Mode = "regions"
	// FaaSnap is Regions with what the loader reads in one file of its own
	// (5.3.7): all of FaaSnap.
	FaaSnap Mode = "faasnap"
	// FaaSnapFaults is FaaSnap for VMMs that cannot map a plan: page faults are
	// handled outside of the VMM, the loading set is copied into the guest while
	// it runs, and zero pages are left to the kernel.
	FaaSnapFaults Mode = "faasnap-uffd"

	// recordingFaults is how faults are recorded: all are handled outside.
	recordingFaults Mode = "recording-faults"
)

// Modes returns all modes, from the slowest to the one that matters.
func Modes() []Mode {
	return []Mode{Boot, Full, Cached, REAP, Concurrent, Groups, HostRecording, Regions, FaaSnap, FaaSnapFaults}
}

// ParseMode returns the mode of a name.
func ParseMode(name string) (Mode, error) {
	if m := Mode(name); slices.Contains(Modes(), m) {
		return m, nil
	}
	var names []string
	for _, m := range Modes() {
		names = append(names, string(m))
	}
	return "", fmt.Errorf("mode %q is unknown: use one of %s", name, strings.Join(names, ", "))
}

// faults reports whether the mode needs pages that were recorded as faults.
func (m Mode) faults() bool { return m == REAP || m == Concurrent || m == Groups }
