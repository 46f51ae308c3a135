//go:build unix

package sys

import (
	"net/netip"
	"os"
	"time"
)

// This file is what process 1 of a virtual machine needs of its kernel. All of
// it needs Linux and user id 0; elsewhere it fails with errors.ErrUnsupported.

// MountFlags are options of MountFS.
type MountFlags struct {
	ReadOnly, NoExec, NoSetuid, NoDevices bool
}

// MountFS mounts the file system of a type on target. source and data mean what
// the type says; neither has to be there.
func MountFS(fstype, source, target string, f MountFlags, data string) error {
	return mountFS(fstype, source, target, f, data)
}

// EnterRoot makes the mount point dir the root directory of this process and
// moves the mounts below the old root that are named in keep, such as "/proc",
// to the same places below it.
func EnterRoot(dir string, keep ...string) error { return enterRoot(dir, keep) }

// LoadModule loads the kernel module in f. One that is loaded already is no
// error.
func LoadModule(f *os.File) error { return loadModule(f) }

// LoopbackUp brings the network interface lo up.
func LoopbackUp() error { return loopbackUp() }

// ConnectNetwork brings a network interface up as one end of a wire whose other
// end has the same Ethernet address: all is sent there, and nobody is asked for
// addresses.
func ConnectNetwork(name string) error { return connectNetwork(name) }

// JoinNetwork gives such an interface addresses in the place of those that it has,
// and, if it is not 0, its MTU in bytes. Addresses that are not valid are left out.
func JoinNetwork(name string, mtu int, addresses ...netip.Addr) error {
	return joinNetwork(name, mtu, addresses)
}

// SetHostName sets the host's name.
func SetHostName(name string) error { return setHostName(name) }

// SetClock sets the system's clock.
func SetClock(t time.Time) error { return setClock(t) }

// AddEntropy mixes seed into the kernel's random numbers, credits it in full,
// and has every generator seeded anew from it at once. The kernel that got a
// copy of another one's memory gives different random numbers from then on.
// urandom is what OpenEntropy has returned.
func AddEntropy(urandom *os.File, seed []byte) error { return addEntropy(urandom, seed) }

// OpenEntropy opens the kernel's random numbers for AddEntropy.
func OpenEntropy() (*os.File, error) { return openEntropy() }

// OOMKills returns how many processes the kernel has ended since it started,
// because memory had run out.
func OOMKills() (int, error) { return oomKills() }

// PowerOff switches the machine off, or restarts it where reset is set. It
// returns only if that fails.
func PowerOff(reset bool) error { return powerOff(reset) }

// ListenVsock listens for streams of the host (AF_VSOCK) on a port. The accept
// that it returns waits for the next one.
func ListenVsock(port uint32) (accept func() (*os.File, error), err error) { return listenVsock(port) }
