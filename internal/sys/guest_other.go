//go:build unix && !linux

package sys

import (
	"errors"
	"net/netip"
	"os"
	"time"
)

func mountFS(string, string, string, MountFlags, string) error { return errors.ErrUnsupported }

func enterRoot(string, []string) error { return errors.ErrUnsupported }

func loadModule(*os.File) error { return errors.ErrUnsupported }

func loopbackUp() error { return errors.ErrUnsupported }

func connectNetwork(string) error { return errors.ErrUnsupported }

func joinNetwork(string, int, []netip.Addr) error { return errors.ErrUnsupported }

func setHostName(string) error { return errors.ErrUnsupported }

func setClock(time.Time) error { return errors.ErrUnsupported }

func openEntropy() (*os.File, error) { return nil, errors.ErrUnsupported }

func addEntropy(*os.File, []byte) error { return errors.ErrUnsupported }

func oomKills() (int, error) { return 0, errors.ErrUnsupported }

func powerOff(bool) error { return errors.ErrUnsupported }

func listenVsock(uint32) (func() (*os.File, error), error) { return nil, errors.ErrUnsupported }
