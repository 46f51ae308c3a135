// Package double is a stand-in for Firecracker where there is no KVM. It is a
// double, not Firecracker: it serves as much of the API as the driver uses, as
// the published description says, but runs no guest. What shows that the driver
// works with it says nothing of how Firecracker itself behaves where that
// differs from its description.
//
// It is strict. What the description does not know, or not at that time, is
// refused. It keeps the promises that matter for snapshots: memory is mapped
// from the file or put behind a userfaultfd, whose pages it touches; a failed
// load ends the process; a snapshot resets the vsock.
//
// The guest is a piece of memory and an agent on port 52, which answers lines:
//
//	echo TEXT    TEXT
//	fill SEED    ok, after writing 1 MiB that depends on the number SEED
//	sum          the SHA-256 of all memory, hexadecimal
//	off          nothing: the guest switches itself off
//	crash        nothing: the VMM fails
//
// On its command line it takes double.agent=none, for an agent that never
// listens, and double.boot=off or crash, for a guest that ends before its agent
// listens.
//
// The double needs Linux. A test's program becomes it by Main, and Install makes
// a file that can be run instead of Firecracker.
package double

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Env is the variable that tells a test's program to be the double:
//
//	func TestMain(m *testing.M) {
//		if os.Getenv(double.Env) != "" {
//			os.Exit(double.Main(os.Args[1:]))
//		}
//		...
const Env = "VOLLEY_FIRECRACKER_DOUBLE"

// Version is what the double says that it is.
const Version = "1.12.0-double"

// Kernel is a file that the double takes for a kernel.
const Kernel = "\x7fELF a kernel for the double"

// Install makes a program in dir that is the double, by running the program that
// calls it, and returns its path.
func Install(dir string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "firecracker")
	quoted := "'" + strings.ReplaceAll(self, "'", `'\''`) + "'"
	script := fmt.Sprintf("#!/bin/sh\n%s=1 exec %s \"$@\"\n", Env, quoted)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		return "", fmt.Errorf("install the double: %w", err)
	}
	return path, nil
}
