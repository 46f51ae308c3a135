package testenv

import (
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"
)

// FRRPrograms are the paths of the programs of FRRouting, a routing suite that
// speaks BGP EVPN, and the user that its daemons become.
type FRRPrograms struct {
	Zebra, BGPD, Vtysh string
	User               *user.User
}

// FRR returns the programs of FRRouting. It ends the test, as Need does, where
// the host has none.
func FRR(t testing.TB) FRRPrograms {
	t.Helper()
	var p FRRPrograms
	var errs []error
	for name, path := range map[string]*string{"zebra": &p.Zebra, "bgpd": &p.BGPD, "vtysh": &p.Vtysh} {
		var err error
		// Distributions keep daemons out of PATH.
		for _, dir := range []string{"", "/usr/lib/frr", "/usr/libexec/frr", "/usr/sbin"} {
			if *path, err = exec.LookPath(filepath.Join(dir, name)); err == nil {
				break
			}
		}
		errs = append(errs, err)
	}
	var err error
	p.User, err = user.Lookup("frr")
	if err := errors.Join(append(errs, err)...); err != nil {
		lacks(t, fmt.Errorf("FRRouting, of the package frr: %w", err))
	}
	return p
}
