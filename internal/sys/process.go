// Package sys holds the few operating system calls that the rest of Volley
// needs and that differ between systems.
package sys

import "os/exec"

// DieWithParent arranges, where the system can (Linux), that the process which
// cmd will start is killed when this one dies, however it dies. It pins the
// calling goroutine to its thread, because the system watches the thread: call
// the returned function after cmd has ended, on the same goroutine.
func DieWithParent(cmd *exec.Cmd) (release func()) { return dieWithParent(cmd) }

// NewGroup makes the process that cmd will start the leader of a group of its
// own, out of reach of the terminal's Ctrl-C.
func NewGroup(cmd *exec.Cmd) { newGroup(cmd) }

// KillGroup kills every process of the group that leader leads. A group that is
// gone is no error.
func KillGroup(leader int) error { return killGroup(leader) }
