package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. Arguments are 64 bits wide, of which the
// calls here look at the lower 32 only.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

const x32Bit = 0x40000000

// architecture returns what the kernel calls this program's architecture.
func architecture() (uint32, error) {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, nil
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, nil
	}
	return 0, fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOARCH)
}

// The assembler: classic BPF has forward jumps only, by at most 255, so that a
// condition is a jump over its body. Every body ends in a verdict.

type code []unix.SockFilter

func load(offset uint32) code {
	return code{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}}
}

func argument(i int) code {
	offset := uint32(offsetArgs + 8*i)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		offset += 4
	}
	return load(offset)
}

func and(mask uint32) code { return code{{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}} }

func verdictOf(action uint32) code { return code{{Code: unix.BPF_RET | unix.BPF_K, K: action}} }

func fail(errno unix.Errno) code { return verdictOf(unix.SECCOMP_RET_ERRNO | uint32(errno)) }

func branch(op uint16, k uint32, body ...code) code {
	all := join(body...)
	return append(code{{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jf: uint8(len(all))}}, all...)
}

func equal(k uint32, body ...code) code   { return branch(unix.BPF_JEQ, k, body...) }
func atLeast(k uint32, body ...code) code { return branch(unix.BPF_JGE, k, body...) }

func join(parts ...code) code {
	var all code
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// filter returns the program, as doc.go describes it.
func filter() (code, error) {
	arch, err := architecture()
	if err != nil {
		return nil, err
	}
	allow, ask := verdictOf(unix.SECCOMP_RET_ALLOW), verdictOf(unix.SECCOMP_RET_USER_NOTIF)
	const mptcp = 262
	// With an address shorter than this the kernel refuses internet sockets.
	withAddress := join(argument(2), atLeast(unix.SizeofSockaddrInet4, ask), allow)
	internet := func(kind uint32, protocol uint32) code {
		return equal(kind, argument(2), equal(0, ask), equal(protocol, ask), equal(mptcp, fail(unix.EPROTONOSUPPORT)), fail(unix.EPROTONOSUPPORT))
	}
	anyInternet := join(argument(1), and(0xf), internet(unix.SOCK_STREAM, unix.IPPROTO_TCP), internet(unix.SOCK_DGRAM, unix.IPPROTO_UDP), fail(unix.EPERM))
	p := join(
		load(offsetArch),
		code{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arch, Jt: 1}},
		verdictOf(unix.SECCOMP_RET_KILL_PROCESS),
		load(offsetNumber),
	)
	if arch == unix.AUDIT_ARCH_X86_64 {
		p = join(p, atLeast(x32Bit, fail(unix.ENOSYS)))
	}
	return join(p,
		equal(unix.SYS_IO_URING_SETUP, fail(unix.EPERM)),
		equal(unix.SYS_BIND, withAddress),
		equal(unix.SYS_CONNECT, withAddress),
		equal(unix.SYS_SETSOCKOPT,
			argument(1), equal(unix.IPPROTO_IPV6, argument(2), equal(unix.IPV6_PKTINFO, fail(unix.EPERM)), equal(unix.IPV6_2292PKTOPTIONS, fail(unix.EPERM)), allow),
			allow),
		equal(unix.SYS_SOCKET,
			argument(0),
			equal(unix.AF_UNIX, allow),
			equal(unix.AF_NETLINK, allow),
			equal(unix.AF_INET, anyInternet),
			equal(unix.AF_INET6, anyInternet),
			equal(unix.AF_PACKET, fail(unix.EPERM)),
			fail(unix.EAFNOSUPPORT)),
		allow,
	), nil
}

// install puts the calling thread, and what it starts, under the filter, and
// returns the descriptor by which the supervisor hears of its calls.
func install() (int, error) {
	program, err := filter()
	if err != nil {
		return -1, err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&prog)))
	switch errno {
	case 0:
		return int(fd), nil
	case unix.EINVAL, unix.ENOSYS:
		return -1, fmt.Errorf("install filter: %w: needs Linux 5.19: %w", errors.ErrUnsupported, errno)
	case unix.EBUSY:
		return -1, fmt.Errorf("install filter: this process is supervised already: %w", errno)
	}
	return -1, fmt.Errorf("install filter: %w", errno)
}
