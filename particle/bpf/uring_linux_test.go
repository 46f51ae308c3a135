//go:build linux

package bpf_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/internal/testenv"
)

// What linux/io_uring.h has and x/sys has not.
const (
	uringConnect, uringSocket, uringBind = 16, 45, 56 // Bind since Linux 6.11
	uringSendmsg                         = 9
	uringAsync                           = 1 << 4 // let a thread of the kernel do it
	uringGetEvents                       = 1
	uringEntries                         = 0x10000000 // where to map the entries
)

// uring submits one request at a time.
type uring struct {
	fd             int
	ring, entries  []byte
	submit, finish [40]byte // the offsets in the ring
}

func newURing() (*uring, error) {
	var params [120]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return nil, errno
	}
	u := &uring{fd: int(fd)}
	copy(u.submit[:], params[40:])
	copy(u.finish[:], params[80:])
	const page = 4096 // has both rings, as they have so few entries
	var err error
	if u.ring, err = unix.Mmap(u.fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	u.entries, err = unix.Mmap(u.fd, uringEntries, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return u, err
}

// at returns a word of the ring, by the place of its offset.
func (u *uring) at(offsets *[40]byte, place int) *uint32 {
	return (*uint32)(unsafe.Pointer(&u.ring[binary.NativeEndian.Uint32(offsets[place:])]))
}

// do returns the result of one request. address may be nil.
func (u *uring) do(opcode, flags byte, fd int, offset uint64, address unsafe.Pointer, length uint32) (int, error) {
	e := u.entries[:64]
	clear(e)
	e[0], e[1] = opcode, flags
	binary.NativeEndian.PutUint32(e[4:], uint32(fd))
	binary.NativeEndian.PutUint64(e[8:], offset)
	binary.NativeEndian.PutUint64(e[16:], uint64(uintptr(address)))
	binary.NativeEndian.PutUint32(e[24:], length)
	*u.at(&u.submit, 24) = 0 // the array's only place names the only entry
	atomic.AddUint32(u.at(&u.submit, 4), 1)
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), 1, 1, uringGetEvents, 0, 0)
		if errno == 0 || errno != unix.EINTR {
			break
		}
	}
	runtime.KeepAlive(address)
	head := atomic.LoadUint32(u.at(&u.finish, 0))
	if head == atomic.LoadUint32(u.at(&u.finish, 4)) {
		return 0, errors.New("no result")
	}
	results := binary.NativeEndian.Uint32(u.finish[20:])
	mask := *u.at(&u.finish, 8)
	result := int32(binary.NativeEndian.Uint32(u.ring[results+16*(head&mask)+8:]))
	atomic.AddUint32(u.at(&u.finish, 0), 1)
	if result < 0 {
		return 0, syscall.Errno(-result)
	}
	return int(result), nil
}

// uringOpens returns what becomes of a socket that io_uring makes.
func uringOpens(flags byte, kind, protocol int) func() string {
	return func() string {
		u, err := newURing()
		if err == nil {
			_, err = u.do(uringSocket, flags, unix.AF_INET, uint64(kind), nil, uint32(protocol))
		}
		if err != nil {
			return outcome(err)
		}
		return "open"
	}
}

// uringCalls has io_uring bind or connect a socket that io_uring has made, and
// returns what that is bound to.
func uringCalls(opcode, flags byte, kind int, address string, port uint16) func() string {
	return func() string {
		u, err := newURing()
		if err != nil {
			return outcome(err)
		}
		fd, err := u.do(uringSocket, flags, unix.AF_INET, uint64(kind), nil, 0)
		if err == nil {
			sa := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: netip.MustParseAddr(address).As4()}
			binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], port)
			_, err = u.do(opcode, flags, fd, unix.SizeofSockaddrInet4, unsafe.Pointer(sa), 0)
		}
		if err != nil {
			return outcome(err)
		}
		return addressOf(unix.Getsockname(fd))
	}
}

// uringSends has io_uring send a datagram from another's address.
func uringSends(flags byte) func() string {
	return func() string {
		u, err := newURing()
		if err != nil {
			return outcome(err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err == nil {
			payload := []byte("x")
			control := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: netip.MustParseAddr(other4).As4()})
			sa := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: netip.MustParseAddr(other4).As4()}
			binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], sinkPort)
			vector := unix.Iovec{Base: &payload[0], Len: 1}
			message := &unix.Msghdr{
				Name: (*byte)(unsafe.Pointer(sa)), Namelen: unix.SizeofSockaddrInet4, Iov: &vector, Iovlen: 1,
				Control: &control[0], Controllen: uint64(len(control)),
			}
			_, err = u.do(uringSendmsg, flags, fd, 0, unsafe.Pointer(message), 1)
		}
		if err != nil {
			return outcome(err)
		}
		return "sent"
	}
}

// uringAttempts are tried at once and by a thread of the kernel.
func uringAttempts() (all []attempt) {
	tcp, udp := unix.SOCK_STREAM, unix.SOCK_DGRAM
	for by, flags := range map[string]byte{"io_uring": 0, "a thread of io_uring": uringAsync} {
		for what, a := range map[string]struct {
			try  func() string
			want string
		}{
			"bind TCP to 0.0.0.0":                                {uringCalls(uringBind, flags, tcp, "0.0.0.0", 0), own4},
			"bind TCP to another's address":                      {uringCalls(uringBind, flags, tcp, other4, 0), "EPERM"},
			"bind UDP to another's address":                      {uringCalls(uringBind, flags, udp, other4, 0), "EPERM"},
			"connect UDP without bind":                           {uringCalls(uringConnect, flags, udp, other4, 9), own4},
			"send UDP from another's address by control message": {uringSends(flags), own4},
			"raw socket":      {uringOpens(flags, unix.SOCK_RAW, unix.IPPROTO_ICMP), "EPERM"},
			"socket of MPTCP": {uringOpens(flags, tcp, unix.IPPROTO_MPTCP), "EPERM"},
		} {
			all = append(all, attempt{what + ", by " + by, a.try, a.want, a.want})
		}
	}
	return all
}

func TestAHostileProgramKeepsToItsAddressByIOURing(t *testing.T) {
	testenv.Need(t, testenv.IOURing)
	inRoom(t, func(r *room) {
		r.put("own", own4)
		for _, a := range uringAttempts() {
			r.try(a, a.v4)
		}
		// What no entry knows gets no socket this way either.
		if got := r.run("unknown", "bind TCP to 0.0.0.0, by io_uring"); got != "EPERM" {
			t.Errorf("in a group that no entry knows: %s", got)
		}
	})
}
