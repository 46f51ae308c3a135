package testenv

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/volley-run/volley/internal/sys"
)

// The capabilities that tests of confined programs ask for.
const (
	// SeccompNotify is user notification of seccomp, as of Linux 5.19.
	SeccompNotify Capability = "seccompnotify"
	// Landlock is version 6 of it, which knows of abstract unix sockets (Linux
	// 6.12).
	Landlock Capability = "landlock"
)

func probeSeccompNotify() error {
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(actions)), "user_notif") {
		return errors.New("the kernel has no user notification")
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("parse kernel release %q: %w", release, err)
	}
	if major < 5 || major == 5 && minor < 19 {
		return fmt.Errorf("needs Linux 5.19, has %d.%d", major, minor)
	}
	return nil
}

func probeLandlock() error {
	if abi := sys.LandlockABI(); abi < 6 {
		return fmt.Errorf("needs version 6, has %d", abi)
	}
	return nil
}
