package seccomp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// target is the socket and the address that a call is about.
type target struct {
	fd int // a duplicate of the caller's descriptor
	// internet and six say which family the socket is of.
	internet, six bool
	// parsed says that address and port are good: the address was one of the
	// internet families and long enough. Of AF_UNSPEC it is read as IPv4.
	parsed, unspecified bool
	address             netip.Addr
	port                int
}

func (t *target) close() { _ = unix.Close(t.fd) }

// target looks at what the caller passed: the descriptor, and the address in
// its memory, which is read once. The caller of target closes it.
func (s *Supervisor) target(n *notification) (*target, error) {
	length := int32(n.args[2])
	if length < 0 || length > unix.SizeofSockaddrAny+16 { // sockaddr_storage is 128
		return nil, unix.EINVAL
	}
	process, err := openProcess(int(n.tid))
	if err != nil {
		return nil, err
	}
	defer unix.Close(process)
	buf := make([]byte, length)
	if err := readMemory(int(n.tid), uintptr(n.args[1]), buf); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdGetfd(process, int(int32(n.args[0])), 0)
	if err != nil {
		return nil, err
	}
	t := &target{fd: fd}
	if !s.valid(n) {
		t.close()
		return nil, errAnswered
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		t.close()
		return nil, err // ENOTSOCK
	}
	t.internet, t.six = domain == unix.AF_INET || domain == unix.AF_INET6, domain == unix.AF_INET6
	t.parse(buf)
	return t, nil
}

func (t *target) parse(buf []byte) {
	if len(buf) < unix.SizeofSockaddrInet4 {
		return
	}
	family := binary.NativeEndian.Uint16(buf)
	t.port = int(binary.BigEndian.Uint16(buf[2:]))
	switch {
	case family == unix.AF_UNSPEC:
		t.unspecified, t.parsed = true, !t.six
		t.address = netip.AddrFrom4([4]byte(buf[4:8]))
	case family == unix.AF_INET && !t.six:
		t.parsed = true
		t.address = netip.AddrFrom4([4]byte(buf[4:8]))
	case family == unix.AF_INET6 && t.six && len(buf) >= unix.SizeofSockaddrInet6-4: // the scope may be missing
		t.parsed = true
		t.address = netip.AddrFrom16([16]byte(buf[8:24]))
	}
}

// openProcess opens the thread, by which its own descriptors are found, or
// before Linux 6.9 its process.
func openProcess(tid int) (int, error) {
	fd, err := unix.PidfdOpen(tid, unix.PIDFD_THREAD)
	if !errors.Is(err, unix.EINVAL) {
		return fd, err
	}
	pid, err := strconv.Atoi(statusField(tid, "Tgid"))
	if err != nil {
		return -1, unix.ESRCH
	}
	return unix.PidfdOpen(pid, 0)
}

func readMemory(tid int, address uintptr, buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	n, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: address, Len: len(buf)}}, 0)
	if err != nil {
		return err
	}
	if n != len(buf) {
		return unix.EFAULT
	}
	return nil
}

func sockaddr(six bool, a netip.Addr, port int) unix.Sockaddr {
	if six {
		return &unix.SockaddrInet6{Port: port, Addr: mapped(a).As16()}
	}
	return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
}

// bindAddress binds fd to an address and leaves its port open, which a later
// bind may still choose; else the kernel does when a port is needed.
func bindAddress(fd int, six bool, a netip.Addr) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(six, a, 0)); err != nil {
		return err
	}
	// As the program expects to find it: its own bind to port 0 gives a port.
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 0)
}

func giveAddress(fd int, six bool, ep Endpoint) error { return bindAddress(fd, six, ep.own(six)) }

// giveMapped lets an IPv6 socket that has no port yet be used for IPv4. One
// that has a port was bound by the program to what it wanted.
func giveMapped(fd int, a netip.Addr) error {
	port, err := localPort(fd)
	if err != nil || port != 0 {
		return err
	}
	if err := allowMapped(fd); err != nil {
		return err
	}
	return bindAddress(fd, true, mapped(a))
}

// allowMapped undoes that giveAddress's address has made a socket IPv6 only.
// Whether the program had asked for that cannot be told any more.
func allowMapped(fd int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
}

func localPort(fd int) (int, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return name.Port, nil
	case *unix.SockaddrInet6:
		return name.Port, nil
	}
	return 0, unix.EINVAL
}

// bindTo binds a program's socket. One that cannot be bound has the endpoint's
// address still.
func bindTo(fd int, six bool, a netip.Addr, port int, ep Endpoint) error {
	if has, err := localPort(fd); err != nil {
		return err
	} else if has != 0 {
		return unix.EINVAL // bound already, as the kernel says it
	}
	// The kernel takes the address from a socket when its port turns out to be
	// in use, and another thread could use it in that moment: so it is tried
	// with a socket of ours.
	if port != 0 {
		if err := rehearse(fd, six, a, port); err != nil {
			return err
		}
	}
	if six && a.Is4In6() && ep.Address6.IsValid() {
		if err := allowMapped(fd); err != nil {
			return err
		}
	}
	err := unix.Bind(fd, sockaddr(six, a, port))
	if err != nil {
		if again := giveAddress(fd, six, ep); again != nil {
			return again
		}
	}
	return err
}

// rehearse binds a socket like fd and closes it.
func rehearse(fd int, six bool, a netip.Addr, port int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	domain := unix.AF_INET
	if six {
		domain = unix.AF_INET6
	}
	trial, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(trial)
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(trial, unix.SOL_SOCKET, option, value); err != nil {
			return err
		}
	}
	return unix.Bind(trial, sockaddr(six, a, port))
}
