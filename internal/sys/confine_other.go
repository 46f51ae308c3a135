//go:build !linux

package sys

import (
	"errors"
	"fmt"
)

// errThread is why none of this file works.
var errThread = fmt.Errorf("confine thread: %w on this system", errors.ErrUnsupported)

func isMainThread() bool            { return false }
func enterNetwork(string) error     { return errThread }
func protectControlGroups() error   { return errThread }
func noNewPrivileges() error        { return errThread }
func dropNetworkPrivileges() error  { return errThread }
func setThreadUser(int, int) error  { return errThread }
func landlockABI() int              { return 0 }
func restrictThread(Landlock) error { return errThread }
func inForeground() bool            { return false }
