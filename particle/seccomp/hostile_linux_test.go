package seccomp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sort"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a hostile program tries, by system calls of its own: no C library is
// between it and the kernel.

func name(fd int) string {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return outcome(err)
	}
	return text(sa)
}

func text(sa unix.Sockaddr) string {
	port := func(p int) string {
		if p >= 32768 {
			return "some"
		}
		return fmt.Sprint(p)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr).String() + " " + port(sa.Port)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).String() + " " + port(sa.Port)
	}
	return fmt.Sprintf("%T", sa)
}

func outcome(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func socketOf(a netip.Addr, kind int) (int, error) {
	if a.Is4() {
		return unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	}
	return unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
}

func binds(kind int, address string, port int) func() string {
	return func() string {
		a := netip.MustParseAddr(address)
		fd, err := socketOf(a, kind)
		if err != nil {
			return outcome(err)
		}
		if err := unix.Bind(fd, sockaddr(a.Is6(), a, port)); err != nil {
			return outcome(err)
		}
		return name(fd)
	}
}

func sockets(domain, kind, protocol int) func() string {
	return func() string {
		if _, err := unix.Socket(domain, kind, protocol); err != nil {
			return outcome(err)
		}
		return "made"
	}
}

func connects(kind int, address string) func() string {
	return func() string {
		a := netip.MustParseAddr(address)
		fd, err := socketOf(a, kind)
		if err != nil {
			return outcome(err)
		}
		if err := unix.Connect(fd, sockaddr(a.Is6(), a, 8000)); err != nil {
			return outcome(err)
		}
		return name(fd)
	}
}

// attempts are what the program can be told to try.
func attempts() map[string]func() string {
	const tcp, udp = unix.SOCK_STREAM, unix.SOCK_DGRAM
	return map[string]func() string{
		"bind own":               binds(tcp, "10.88.0.2", 8000),
		"bind another's":         binds(tcp, "10.88.0.3", 8000),
		"bind any":               binds(tcp, "0.0.0.0", 8000),
		"bind any port of any":   binds(tcp, "0.0.0.0", 0),
		"bind loopback":          binds(tcp, "127.0.0.1", 8000),
		"bind ::":                binds(tcp, "::", 8000),
		"bind ::1":               binds(tcp, "::1", 8000),
		"bind another's IPv6":    binds(tcp, "fd88::3", 8000),
		"bind another's, mapped": binds(tcp, "::ffff:10.88.0.3", 8000),
		"bind any, mapped":       binds(tcp, "::ffff:0.0.0.0", 8000),
		"bind UDP another's":     binds(udp, "10.88.0.3", 8000),
		"bind UDP any":           binds(udp, "0.0.0.0", 8000),
		"bind UDP ::":            binds(udp, "::", 8000),
		"bind low port":          binds(tcp, "0.0.0.0", 80),
		"bind twice": func() string {
			fd, _ := unix.Socket(unix.AF_INET, tcp, 0)
			first := unix.Bind(fd, &unix.SockaddrInet4{Port: 8000})
			return fmt.Sprint(first, " ", outcome(unix.Bind(fd, &unix.SockaddrInet4{Port: 8000})))
		},
		"bind in use": func() string {
			first, _ := unix.Socket(unix.AF_INET, tcp, 0)
			if err := unix.Bind(first, &unix.SockaddrInet4{Port: 8000}); err != nil {
				return outcome(err)
			}
			second, _ := unix.Socket(unix.AF_INET, tcp, 0)
			err := unix.Bind(second, &unix.SockaddrInet4{Port: 8000})
			return outcome(err) + ", then " + name(second)
		},
		"listen without bind": func() string {
			fd, _ := unix.Socket(unix.AF_INET, tcp, 0)
			if err := unix.Listen(fd, 1); err != nil {
				return outcome(err)
			}
			return name(fd)
		},
		"listen without bind, IPv6": func() string {
			fd, _ := unix.Socket(unix.AF_INET6, tcp, 0)
			if err := unix.Listen(fd, 1); err != nil {
				return outcome(err)
			}
			return name(fd)
		},
		"connect UDP without bind":         connects(udp, "10.88.0.3"),
		"connect UDP without bind, IPv6":   connects(udp, "fd88::3"),
		"connect UDP without bind, mapped": connects(udp, "::ffff:10.88.0.3"),
		"connect TCP to another's":         connects(tcp, "10.88.0.3"),
		"connect TCP to loopback":          connects(tcp, "127.0.0.1"),
		"send UDP without bind": func() string {
			fd, _ := unix.Socket(unix.AF_INET, udp, 0)
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 8000, Addr: [4]byte{10, 88, 0, 3}}); err != nil {
				return outcome(err)
			}
			return name(fd)
		},
		"sendmsg UDP without bind, IPv6": func() string {
			fd, _ := unix.Socket(unix.AF_INET6, udp, 0)
			to := sockaddr(true, netip.MustParseAddr("fd88::3"), 8000)
			if _, err := unix.SendmsgN(fd, []byte("x"), nil, to, 0); err != nil {
				return outcome(err)
			}
			return name(fd)
		},
		"disconnect and send": func() string {
			fd, _ := unix.Socket(unix.AF_INET, udp, 0)
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 8000, Addr: [4]byte{10, 88, 0, 3}}); err != nil {
				return outcome(err)
			}
			unspecified := make([]byte, 16)
			if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspecified[0])), 16); errno != 0 {
				return outcome(errno)
			}
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 8000, Addr: [4]byte{10, 88, 0, 3}}); err != nil {
				return outcome(err)
			}
			return name(fd)
		},
		"sticky source":       stickySource,
		"raw":                 sockets(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		"raw IPv6":            sockets(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6),
		"packet":              sockets(unix.AF_PACKET, unix.SOCK_RAW, 0x0300),
		"packet by AF_INET":   sockets(unix.AF_INET, unix.SOCK_PACKET, 0x0300),
		"ping":                sockets(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
		"MPTCP":               sockets(unix.AF_INET, unix.SOCK_STREAM, 262),
		"SCTP":                sockets(unix.AF_INET, unix.SOCK_STREAM, 132),
		"vsock":               sockets(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"SMC":                 sockets(43, unix.SOCK_STREAM, 0),
		"unix":                sockets(unix.AF_UNIX, unix.SOCK_STREAM, 0),
		"netlink":             sockets(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE),
		"io_uring":            ioUring,
		"x32":                 func() string { _, _, e := unix.Syscall(0x40000000|unix.SYS_GETPID, 0, 0, 0); return outcome(e) },
		"Go's net package":    goNet,
		"unix sockets work":   unixSockets,
		"swap for a TCP one":  func() string { return swap(unix.SOCK_STREAM) },
		"threads of all call": threads,
	}
}

// stickySource sets a source address for all that an IPv6 socket sends.
func stickySource() string {
	fd, _ := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	info := append(netip.MustParseAddr("fd88::3").AsSlice(), 0, 0, 0, 0)
	return outcome(unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, string(info)))
}

func ioUring() string {
	params := make([]byte, 120)
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	return outcome(errno)
}

// goNet is what an honest program does: it knows no address but localhost.
func goNet() string {
	l, err := net.Listen("tcp4", ":8000")
	if err != nil {
		return err.Error()
	}
	served := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err.Error()
			return
		}
		defer c.Close()
		served <- c.RemoteAddr().(*net.TCPAddr).IP.String()
	}()
	c, err := net.DialTimeout("tcp", "127.0.0.1:8000", 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	return l.Addr().String() + " from " + <-served
}

func unixSockets() string {
	dir, err := os.MkdirTemp("", "volley-seccomp-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	path := dir + "/a-name-that-is-longer-than-an-internet-address"
	l, err := net.Listen("unix", path)
	if err != nil {
		return err.Error()
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint("connected ", c.Close())
}

// swap puts an internet socket in the place of a unix one again and again,
// while another thread binds.
func swap(kind int) string {
	stop := time.Now().Add(2 * time.Second)
	other, _ := unix.Socket(unix.AF_UNIX, kind, 0)
	const place = 100
	found := make(chan struct{})
	go func() {
		address := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 0x401f, Addr: [4]byte{10, 88, 0, 3}}
		for time.Now().Before(stop) {
			_, _, errno := unix.Syscall(unix.SYS_BIND, place, uintptr(unsafe.Pointer(&address)), 16)
			if errno == 0 {
				close(found)
				return
			}
		}
	}()
	inet, err := unix.Socket(unix.AF_INET, kind, 0)
	if err != nil {
		return outcome(err)
	}
	for time.Now().Before(stop) {
		_ = unix.Dup3(other, place, 0)
		_ = unix.Dup3(inet, place, 0)
		select {
		case <-found:
			return name(inet)
		default:
		}
	}
	return "never bound"
}

// threads makes sockets on many threads at the same time.
func threads() string {
	const n = 50
	all := make(chan string, n)
	for range n {
		go func() { all <- binds(unix.SOCK_STREAM, "0.0.0.0", 0)() }()
	}
	seen := map[string]bool{}
	for range n {
		seen[<-all] = true
	}
	var list []string
	for s := range seen {
		list = append(list, s)
	}
	sort.Strings(list)
	return fmt.Sprint(list)
}
