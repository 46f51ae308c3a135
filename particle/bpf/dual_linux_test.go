//go:build linux

package bpf_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/particle/bpf"
)

// here is the calling thread's network namespace.
type here struct{ file *os.File }

func (h here) FD() int                 { return int(h.file.Fd()) }
func (h here) Do(f func() error) error { return f() }

// listenTCP returns a TCP socket that listens, and its port. 0 takes any.
func listenTCP(address string, port int, only6 bool) (fd, bound int, err error) {
	sa, family := sockaddr(netip.MustParseAddr(address), port)
	fd, err = unix.Socket(family, unix.SOCK_STREAM, 0)
	if err == nil && only6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		return -1, 0, err
	}
	got, err := unix.Getsockname(fd)
	switch got := got.(type) {
	case *unix.SockaddrInet4:
		bound = got.Port
	case *unix.SockaddrInet6:
		bound = got.Port
	}
	return fd, bound, err
}

// serves listens at an address and calls another one of the endpoint. It
// returns the addresses of both ends, as the server sees them.
func serves(address string, only6 bool, called string) func() string {
	return func() string {
		fd, port, err := listenTCP(address, 0, only6)
		if err != nil {
			return outcome(err)
		}
		return call(fd, called, port)
	}
}

func call(fd int, address string, port int) string {
	c, err := net.Dial("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		return outcome(err)
	}
	defer c.Close()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return outcome(err)
	}
	s, peer, err := unix.Accept(fd)
	if err != nil {
		return outcome(err)
	}
	defer unix.Close(s)
	if _, err := c.Write([]byte("x")); err != nil {
		return outcome(err)
	}
	if n, err := unix.Read(s, make([]byte, 8)); n != 1 || err != nil {
		return fmt.Sprint("read ", n, " ", err)
	}
	unmapped := func(sa unix.Sockaddr, err error) string {
		a, parseErr := netip.ParseAddr(addressOf(sa, err))
		if parseErr != nil {
			return parseErr.Error()
		}
		return a.Unmap().String()
	}
	return unmapped(unix.Getsockname(s)) + " from " + unmapped(peer, nil)
}

// ownComesFirst listens on :: and then at its own IPv6 address, and calls that,
// before and after the second one is closed.
func ownComesFirst() string {
	both, port, err := listenTCP("::", 0, false)
	if err != nil {
		return outcome(err)
	}
	own, _, err := listenTCP(own6, port, false)
	if err != nil {
		return outcome(err)
	}
	want := own6 + " from " + own6
	if got := call(own, own6, port); got != want {
		return got
	}
	unix.Close(own)
	if got := call(both, own6, port); got != want {
		return got
	}
	return "its own address, then ::"
}

func TestProgramsOfAnotherVersionAreReplacedWhileTheyHold(t *testing.T) {
	inRoom(t, func(r *room) {
		r.put("own", own4, own6)
		dirs, err := filepath.Glob(fmt.Sprintf("/sys/fs/bpf/volley-*-h%s-n*", filepath.Base(r.parent)[len("volley-bpf-test-"):]))
		if err != nil || len(dirs) != 1 {
			t.Errorf("sets: %v, %v", dirs, err)
			return
		}
		ids := func() (all []ebpf.ProgramID) {
			for _, name := range []string{"bind4", "ingress", "listen"} {
				l, err := link.LoadPinnedLink(filepath.Join(dirs[0], name), nil)
				if err != nil {
					t.Error(err)
					continue
				}
				info, err := l.Info()
				l.Close()
				if err != nil {
					t.Error(err)
					continue
				}
				all = append(all, info.Program)
			}
			return all
		}
		before := ids()
		// The set becomes one of a version that had neither this program nor
		// this number.
		marker, err := filepath.Glob(filepath.Join(dirs[0], "programs-*"))
		if err != nil || len(marker) != 1 {
			t.Errorf("versions: %v, %v", marker, err)
			return
		}
		for _, err := range []error{
			os.Remove(marker[0]), os.Mkdir(filepath.Join(dirs[0], "programs-1"), 0o700), os.Remove(filepath.Join(dirs[0], "setsockopt")),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		replaced := make(chan error)
		go func() {
			g, err := bpf.Open(r.cfg)
			if err == nil {
				err = g.Close()
			}
			replaced <- err
		}()
		for done := false; !done; {
			select {
			case err := <-replaced:
				if err != nil {
					t.Error(err)
				}
				done = true
			default:
			}
			for attempt, want := range map[string]string{"bind TCP to another's address": "EPERM", "bind TCP to 0.0.0.0": own4} {
				if got := r.run("own", attempt); got != want {
					t.Errorf("%s: %s, want %s", attempt, got, want)
				}
			}
		}
		after := ids()
		for i := range after {
			if after[i] == before[i] {
				t.Errorf("program %d was not replaced", i)
			}
		}
		if now, err := filepath.Glob(filepath.Join(dirs[0], "programs-*")); err != nil || !slices.Equal(now, marker) {
			t.Errorf("versions: %v, %v", now, err)
		}
		if got, want := r.run("own", "listen on ::, be called at IPv6"), own6+" from "+own6; got != want {
			t.Errorf("on ::: %s", got)
		}
		again, err := bpf.Open(r.cfg)
		if err != nil {
			t.Error(err)
			return
		}
		defer again.Close()
		if !slices.Equal(ids(), after) {
			t.Error("programs of the same version were replaced")
		}
	})
}
