//go:build linux

package bpf_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle/bpf"
)

const (
	own4, other4 = "10.66.0.2", "10.66.0.3"
	own6, other6 = "fd66::2", "fd66::3"
)

// TestMain is also the hostile program: this test binary makes its system
// calls without a C library.
func TestMain(m *testing.M) {
	if name := os.Getenv("VOLLEY_ATTEMPT"); name != "" {
		for _, a := range append(attempts(), uringAttempts()...) {
			if a.name == name {
				fmt.Println(a.try())
				os.Exit(0)
			}
		}
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// attempt is one thing that a program may try, and what comes of it. The rows
// are those of docs/network-isolation.md.
type attempt struct {
	name string
	try  func() string
	// v4 is the outcome at an endpoint with an IPv4 address, both at one that
	// has an IPv6 address too.
	v4, both string
}

func attempts() []attempt {
	tcp, udp := unix.SOCK_STREAM, unix.SOCK_DGRAM
	same := func(name string, try func() string, want string) attempt { return attempt{name, try, want, want} }
	return []attempt{
		same("bind TCP to 0.0.0.0", binds(tcp, "0.0.0.0"), own4),
		same("bind UDP to 0.0.0.0", binds(udp, "0.0.0.0"), own4),
		same("bind TCP to 127.0.0.1", binds(tcp, "127.0.0.1"), own4),
		same("bind TCP to its own address", binds(tcp, own4), own4),
		same("bind TCP to another's address", binds(tcp, other4), "EPERM"),
		same("bind UDP to another's address", binds(udp, other4), "EPERM"),
		same("bind UDP to a multicast group", binds(udp, "224.0.0.5"), "EPERM"),
		{"bind UDP to ::", binds(udp, "::"), "::ffff:" + own4, own6},
		same("bind TCP to ::", binds(tcp, "::"), "::ffff:"+own4),
		{"bind TCP to ::1", binds(tcp, "::1"), "::ffff:" + own4, own6},
		{"bind TCP to ::, IPv6 only", bindsOnly6, "EINVAL", own6},
		same("bind TCP to another's address, mapped", binds(tcp, "::ffff:"+other4), "EPERM"),
		same("bind TCP to loopback, mapped", binds(tcp, "::ffff:127.0.0.1"), "::ffff:"+own4),
		same("bind TCP to another's IPv6 address", binds(tcp, other6), "EPERM"),
		same("connect UDP without bind", connects(other4), own4),
		{"connect UDP over IPv6 without bind", connects(other6), "EPERM", own6},
		same("connect UDP to a mapped address", connects("::ffff:"+other4), "::ffff:"+own4),
		same("connect TCP to 127.0.0.1", reaches("127.0.0.1"), own4+" from "+own4),
		{"connect TCP to ::1", reaches("::1"), own4 + " from " + own4, own6 + " from " + own6},
		same("send UDP without bind", sends(other4), own4),
		{"send UDP over IPv6 without bind", sends(other6), "EPERM", own6},
		same("send UDP from another's address by control message", sendsFrom, own4),
		same("listen without bind, be called at another's address", listens, "not reached"),
		same("raw socket", opens(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), "EPERM"),
		same("raw IPv6 socket", opens(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6), "EPERM"),
		same("socket of MPTCP", opens(unix.AF_INET, tcp, unix.IPPROTO_MPTCP), "EPERM"),
		same("socket of ping", opens(unix.AF_INET, udp, unix.IPPROTO_ICMP), "refused"),
		same("Go's net.Listen on all addresses", goListens, "ok"),
		same("listen on ::, be called at IPv4", serves("::", false, own4), own4+" from "+own4),
		{"listen on ::, IPv6 only, be called at IPv4", serves("::", true, own4), "EINVAL", "ECONNREFUSED"},
		{"listen on ::, be called at IPv6", serves("::", false, own6), "EPERM", own6 + " from " + own6},
		{"listen on :: and on its own IPv6 address, be called at IPv6", ownComesFirst, "EPERM", "its own address, then ::"},
		{"listen on ::1, be called at IPv4", serves("::1", false, own4), own4 + " from " + own4, "ECONNREFUSED"},
		{"listen on its own IPv6 address, be called at IPv4", serves(own6, false, own4), "EPERM", "ECONNREFUSED"},
	}
}

func outcome(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func sockaddr(a netip.Addr, port int) (unix.Sockaddr, int) {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}, unix.AF_INET6
}

func addressOf(sa unix.Sockaddr, err error) string {
	if err != nil {
		return outcome(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr).String()
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).String()
	}
	return fmt.Sprintf("%T", sa)
}

// binds returns what a socket is bound to afterwards.
func binds(kind int, address string) func() string {
	return func() string {
		sa, family := sockaddr(netip.MustParseAddr(address), 0)
		fd, err := unix.Socket(family, kind, 0)
		if err == nil {
			err = unix.Bind(fd, sa)
		}
		if err != nil {
			return outcome(err)
		}
		return addressOf(unix.Getsockname(fd))
	}
}

func bindsOnly6() string {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{})
	}
	if err != nil {
		return outcome(err)
	}
	return addressOf(unix.Getsockname(fd))
}

// connects returns the source of a datagram socket after connect.
func connects(address string) func() string {
	return func() string {
		sa, family := sockaddr(netip.MustParseAddr(address), 9)
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Connect(fd, sa)
		}
		if err != nil {
			return outcome(err)
		}
		return addressOf(unix.Getsockname(fd))
	}
}

// reaches listens on all addresses and connects to one.
func reaches(address string) func() string {
	return func() string {
		network := "tcp4"
		if strings.Contains(address, ":") {
			network = "tcp"
		}
		l, err := net.Listen(network, ":0")
		if err != nil {
			return outcome(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", net.JoinHostPort(address, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)))
		if err != nil {
			return outcome(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			return outcome(err)
		}
		defer s.Close()
		return s.LocalAddr().(*net.TCPAddr).IP.String() + " from " + s.RemoteAddr().(*net.TCPAddr).IP.String()
	}
}

// sends returns where a datagram comes from, as its receiver sees it: this
// program is told by the one that started it where that listens.
func sends(address string) func() string {
	return func() string {
		sa, family := sockaddr(netip.MustParseAddr(address), sinkPort)
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Sendto(fd, []byte("x"), 0, sa)
		}
		if err != nil {
			return outcome(err)
		}
		return "sent"
	}
}

func sendsFrom() string {
	sa, _ := sockaddr(netip.MustParseAddr(other4), sinkPort)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.Connect(fd, sa)
	}
	if err == nil {
		err = unix.Sendmsg(fd, []byte("x"), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: netip.MustParseAddr(other4).As4()}), nil, 0)
	}
	if err != nil {
		return outcome(err)
	}
	return "sent"
}

// listens has a socket bound by listen, to all addresses, and has the other
// endpoint's address called at its port. The caller is of no endpoint, so that
// only this side can refuse.
func listens() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return outcome(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return outcome(err)
	}
	fmt.Println(sa.(*unix.SockaddrInet4).Port)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: 0, Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(p, -1); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if p[0].Revents != 0 {
		return "reached"
	}
	return "not reached"
}

func opens(family, kind, protocol int) func() string {
	return func() string {
		fd, err := unix.Socket(family, kind, protocol)
		if err != nil {
			if protocol == unix.IPPROTO_ICMP && kind == unix.SOCK_DGRAM {
				return "refused" // by the kernel's own rule, or by ours
			}
			return outcome(err)
		}
		unix.Close(fd)
		return "open"
	}
}

func goListens() string {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return outcome(err)
	}
	l.Close()
	return "ok"
}

const sinkPort = 9999

// room is a network namespace with a local route for all endpoints, and a tree
// of control groups under a Guard.
type room struct {
	t      *testing.T
	cfg    bpf.Config
	parent string
	guard  *bpf.Guard
}

// inRoom calls f on a thread in a fresh network namespace.
func inRoom(t *testing.T, f func(r *room)) {
	t.Helper()
	testenv.Need(t, testenv.CgroupBPF)
	parent, err := os.MkdirTemp(testenv.Cgroup2(t), "volley-bpf-test-")
	if err != nil {
		t.Fatal(err)
	}
	r := &room{t: t, parent: parent, cfg: bpf.Config{Cgroup: parent, Depth: 2}}
	t.Cleanup(func() {
		if err := bpf.Remove(r.cfg); err != nil {
			t.Error(err)
		}
		for _, dir := range []string{"net/own", "net/other", "net/unknown", "net", ""} {
			if err := os.Remove(filepath.Join(parent, dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	for _, name := range []string{"own", "other", "unknown"} {
		if err := os.MkdirAll(filepath.Join(parent, "net", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if r.guard, err = bpf.Open(r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.guard.Close() })
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never back: the thread ends with the namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		for _, args := range []string{
			"link set lo up", "route add local 10.66.0.0/16 dev lo", "-6 route add local fd66::/64 dev lo",
		} {
			if err == nil {
				var text []byte
				if text, err = exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
					err = fmt.Errorf("ip %s: %w: %s", args, err, text)
				}
			}
		}
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0)
		}
		var ns *os.File
		if err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		if err == nil {
			defer ns.Close()
			err = r.guard.Serve("room", here{ns})
		}
		if err == nil {
			f(r)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func (r *room) put(group string, addresses ...string) {
	r.t.Helper()
	id, err := bpf.CgroupID(filepath.Join(r.parent, "net", group))
	if err != nil {
		r.t.Error(err)
		return
	}
	e := bpf.Entry{CgroupID: id}
	for _, text := range addresses {
		if a := netip.MustParseAddr(text); a.Is4() {
			e.Address = a
		} else {
			e.Address6 = a
		}
	}
	if err := r.guard.Put([]bpf.Entry{e}); err != nil {
		r.t.Error(err)
	}
}

// command is this binary as a program in a group, without rights.
func (r *room) command(group, attempt string) (*exec.Cmd, *os.File) {
	r.t.Helper()
	dir, err := os.Open(filepath.Join(r.parent, "net", group))
	if err != nil {
		r.t.Error(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "VOLLEY_ATTEMPT="+attempt)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	return cmd, dir
}

func (r *room) run(group, attempt string) string {
	r.t.Helper()
	cmd, dir := r.command(group, attempt)
	defer dir.Close()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestAHostileProgramKeepsToItsAddress(t *testing.T) {
	for name, addresses := range map[string][]string{"IPv4": {own4}, "IPv4 and IPv6": {own4, own6}} {
		t.Run(name, func(t *testing.T) {
			inRoom(t, func(r *room) {
				r.put("own", addresses...)
				for _, a := range attempts() {
					want := a.v4
					if len(addresses) == 2 {
						want = a.both
					}
					r.try(a, want)
				}
			})
		})
	}
}

// try checks what comes of an attempt.
func (r *room) try(a attempt, want string) {
	r.t.Helper()
	got := ""
	switch {
	case strings.HasPrefix(a.name, "send UDP") && want != "EPERM":
		got = r.source(a.name)
	case strings.HasPrefix(a.name, "listen without bind"):
		got = r.call(a.name)
	default:
		got = r.run("own", a.name)
	}
	if got != want {
		r.t.Errorf("%s: %s, want %s", a.name, got, want)
	}
}

// source receives what the program sends, and returns where it came from.
func (r *room) source(attempt string) string {
	address := net.ParseIP(other4)
	if strings.Contains(attempt, "IPv6") {
		address = net.ParseIP(other6)
	}
	sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: address, Port: sinkPort})
	if err != nil {
		return err.Error()
	}
	defer sink.Close()
	if out := r.run("own", attempt); out != "sent" {
		return out
	}
	var b [16]byte
	_, from, err := sink.ReadFromUDP(b[:])
	if err != nil {
		return err.Error()
	}
	return from.IP.String()
}

// call connects to the other endpoint's address at the port that the program
// listens on.
func (r *room) call(attempt string) string {
	cmd, dir := r.command("own", attempt)
	defer dir.Close()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err.Error()
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err.Error()
	}
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	var port int
	if _, err := fmt.Fscan(stdout, &port); err != nil {
		return err.Error()
	}
	// What is dropped is not refused: SYN is repeated, so do not wait long.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 300)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1)
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 300_000})
	}
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	sa, _ := sockaddr(netip.MustParseAddr(other4), port)
	connected := unix.Connect(fd, sa)
	stdin.Close()
	var text string
	if _, err := fmt.Fscanf(stdout, "\n%s", &text); err != nil && connected == nil {
		return err.Error()
	}
	_ = cmd.Wait()
	if connected == nil {
		return "reached"
	}
	return "not reached"
}

func TestAProgramThatNoEntryKnowsGetsNoSocket(t *testing.T) {
	inRoom(t, func(r *room) {
		for _, attempt := range []string{"bind TCP to 0.0.0.0", "connect UDP without bind", "Go's net.Listen on all addresses"} {
			if got := r.run("unknown", attempt); got != "EPERM" {
				t.Errorf("%s: %s", attempt, got)
			}
		}
		r.put("unknown", own4)
		if got := r.run("unknown", "bind TCP to 0.0.0.0"); got != own4 {
			t.Errorf("with an entry: %s", got)
		}
		id, err := bpf.CgroupID(filepath.Join(r.parent, "net", "unknown"))
		if err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := r.guard.Delete([]uint64{id}); err != nil {
				t.Error(err)
			}
		}
		if got := r.run("unknown", "bind TCP to 0.0.0.0"); got != "EPERM" {
			t.Errorf("after its removal: %s", got)
		}
	})
}

func TestASetIsSharedByAllWhoOpenIt(t *testing.T) {
	inRoom(t, func(r *room) {
		again, err := bpf.Open(r.cfg)
		if err != nil {
			t.Error(err)
			return
		}
		defer again.Close()
		r.put("own", own4)
		if err := again.Put([]bpf.Entry{{CgroupID: mustID(t, filepath.Join(r.parent, "net", "other")), Address: netip.MustParseAddr(other4)}}); err != nil {
			t.Error(err)
		}
		for group, want := range map[string]string{"own": own4, "other": other4} {
			if got := r.run(group, "bind TCP to 0.0.0.0"); got != want {
				t.Errorf("%s: %s", group, got)
			}
		}
	})
}

func mustID(t *testing.T, path string) uint64 {
	id, err := bpf.CgroupID(path)
	if err != nil {
		t.Error(err)
	}
	return id
}

func TestRemoveLeavesNothing(t *testing.T) {
	testenv.Need(t, testenv.CgroupBPF)
	inRoom(t, func(r *room) {
		for range 2 {
			if err := bpf.Remove(r.cfg); err != nil {
				t.Error(err)
			}
		}
		// The room's name ends in digits that no other has.
		own := r.parent[strings.LastIndexByte(r.parent, '-')+1:]
		if all := pins(t); slices.ContainsFunc(all, func(name string) bool { return strings.Contains(name, own) }) {
			t.Errorf("there are %v", all)
		}
	})
}

func pins(t *testing.T) []string {
	entries, err := os.ReadDir("/sys/fs/bpf")
	if err != nil {
		t.Error(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
