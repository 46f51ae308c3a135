package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

func loopbackUp() error { return setLink("lo", unix.SIOCSIFFLAGS, unix.IFF_UP|unix.IFF_RUNNING) }

func connectNetwork(name string) error {
	// IPv6 would make an address of its own, and look for routers.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return fmt.Errorf("connect %s: %w", name, err)
	}
	if err := setLink(name, unix.SIOCSIFFLAGS, unix.IFF_UP|unix.IFF_RUNNING|unix.IFF_NOARP); err != nil {
		return err
	}
	return withRoutes(name, func(r *routes) error {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			// struct rtmsg: the route to everywhere.
			route := []byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
			err := r.request(unix.RTM_NEWROUTE, route, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(r.link.Index)))
			if err != nil && (family == unix.AF_INET || !errors.Is(err, unix.EOPNOTSUPP)) {
				return err
			}
		}
		return nil
	})
}

func joinNetwork(name string, mtu int, addresses []netip.Addr) error {
	if mtu > 0 {
		if err := setLink(name, unix.SIOCSIFMTU, uint32(mtu)); err != nil {
			return err
		}
	}
	return withRoutes(name, func(r *routes) error {
		before, err := r.link.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if !a.IsValid() {
				continue
			}
			if err := r.address(unix.RTM_NEWADDR, a); err != nil {
				return err
			}
		}
		// Not before: without any, the link would lose its routes.
		for _, old := range before {
			prefix, err := netip.ParsePrefix(old.String())
			if err != nil || prefix.Addr().IsLinkLocalUnicast() || slices.Contains(addresses, prefix.Addr()) {
				continue
			}
			if err := r.address(unix.RTM_DELADDR, prefix.Addr()); err != nil {
				return err
			}
		}
		return nil
	})
}

// setLink sets flags or the MTU of an interface.
func setLink(name string, request uint, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	if request == unix.SIOCSIFFLAGS {
		r.SetUint16(uint16(value))
	} else {
		r.SetUint32(value)
	}
	if err := unix.IoctlIfreq(fd, request, r); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	return nil
}

// routes talks to the kernel about addresses and routes of a link (rtnetlink),
// as much as process 1 of a virtual machine needs.
type routes struct {
	fd   int
	link *net.Interface
}

func withRoutes(name string, f func(*routes) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	defer unix.Close(fd)
	link, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	if err := f(&routes{fd, link}); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	return nil
}

// address adds or removes an address.
func (r *routes) address(typ uint16, a netip.Addr) error {
	family, flags := byte(unix.AF_INET), byte(0)
	if a.Is6() {
		family, flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	// struct ifaddrmsg
	fixed := binary.NativeEndian.AppendUint32([]byte{family, byte(a.BitLen()), flags, unix.RT_SCOPE_UNIVERSE}, uint32(r.link.Index))
	return r.request(typ, fixed, unix.IFA_LOCAL, a.AsSlice())
}

// request sends one request with one attribute, and takes the kernel's answer.
func (r *routes) request(typ uint16, fixed []byte, attr uint16, value []byte) error {
	b := make([]byte, unix.SizeofNlMsghdr, 64)
	b = append(b, fixed...)
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, attr)
	b = append(b, value...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	if _, err := unix.Write(r.fd, b); err != nil {
		return err
	}
	answer := make([]byte, 1024)
	n, err := unix.Read(r.fd, answer)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer makes no sense")
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
