package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Conn is a routing netlink socket. It stays in the namespace in which it was
// opened, whatever thread uses it, and keeps that namespace alive. Its methods
// may be called concurrently.
type Conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

const (
	// maxWrite is below the default of a socket's send buffer (212,992), and
	// small enough for a context to be looked at now and then.
	maxWrite = 64 << 10
	// receiveBuffer has room for the errors of a whole write, each of which
	// takes some hundred bytes.
	receiveBuffer = 4 << 20
	// maxReplies is how many answers of some kilobytes fit in as well.
	maxReplies = 256
	headerSize = 16
)

// Dial opens a Conn in the calling thread's namespace. The caller closes it.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// What an old kernel refuses only makes errors terser.
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Conn{fd: fd}, nil
}

// Close closes the socket. It may be repeated.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	if err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// Do sends b's requests, in order, as few writes as can be, and returns nil if
// the kernel has carried out all, or else a *RequestError for the first that it
// refused. Those after it in the same write of up to 64 KiB have been tried
// nevertheless. b can be sent again. ctx is looked at between writes.
func (c *Conn) Do(ctx context.Context, b *Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for first := 0; first < len(b.requests); {
		if err := ctx.Err(); err != nil {
			return err
		}
		start := b.requests[first].start
		next, end, replies := first, start, 0
		for next < len(b.requests) {
			stop := b.stop(next)
			if b.requests[next].replies {
				replies++
			}
			if next > first && (stop-start > maxWrite || replies > maxReplies) {
				break
			}
			c.seq++
			binary.NativeEndian.PutUint32(b.buf[b.requests[next].start+8:], c.seq)
			next, end = next+1, stop
		}
		// The last answers in any case, the others only to refuse.
		flags := b.buf[b.requests[next-1].start+6:]
		binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
		if err := c.send(b.buf[start:end]); err != nil {
			return fmt.Errorf("%s %v: %w", b.requests[first].op, b.requests[first].subject, err)
		}
		if err := c.acknowledge(b.requests[first:next], c.seq); err != nil {
			return err
		}
		first = next
	}
	return nil
}

// stop returns where request i ends.
func (b *Batch) stop(i int) int {
	if i+1 < len(b.requests) {
		return b.requests[i+1].start
	}
	return len(b.buf)
}

func (c *Conn) send(msg []byte) error {
	for {
		err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return fmt.Errorf("write to netlink socket: %w", err)
			}
			return nil
		}
	}
}

// acknowledge reads answers until that to last, the sequence number of the last
// of requests, and returns the first error.
func (c *Conn) acknowledge(requests []request, last uint32) error {
	var first error
	for {
		messages, err := c.receive()
		if err != nil {
			return err
		}
		for m := range messages {
			i := int(int32(m.seq-last)) + len(requests) - 1
			if m.typ != unix.NLMSG_ERROR || i < 0 || i >= len(requests) {
				continue // late answers to something that was given up
			}
			errno, detail := m.failure()
			if errno != 0 && first == nil {
				if err := requests[i].fail(errno, detail); !requests[i].lenient || !errors.Is(err, ErrNotFound) {
					first = err
				}
			}
			if m.seq == last {
				return first
			}
		}
	}
}

type message struct {
	typ, flags uint16
	seq        uint32
	body       []byte
}

// failure reads the body of NLMSG_ERROR.
func (m message) failure() (errno unix.Errno, detail string) {
	if len(m.body) < 4+headerSize {
		return unix.EBADMSG, ""
	}
	errno = unix.Errno(-int32(binary.NativeEndian.Uint32(m.body)))
	rest := m.body[4+headerSize:]
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return errno, ""
	}
	if m.flags&unix.NLM_F_CAPPED == 0 {
		request := int(binary.NativeEndian.Uint32(m.body[4:])) - headerSize
		rest = rest[min(len(rest), max(0, (request+3)&^3)):]
	}
	for typ, value := range attributes(rest) {
		if typ == unix.NLMSGERR_ATTR_MSG {
			detail = cString(value)
		}
	}
	return errno, detail
}

// receive reads one datagram. The kernel has answered by the time that the
// request's write returns, so there is nothing to wait for.
func (c *Conn) receive() (func(yield func(message) bool), error) {
	if c.buf == nil {
		c.buf = make([]byte, 64<<10)
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("read from netlink socket: %w", err)
		case n > len(c.buf):
			return nil, fmt.Errorf("read from netlink socket: a message of %d bytes", n)
		}
		return messages(c.buf[:n]), nil
	}
}

func messages(buf []byte) func(yield func(message) bool) {
	return func(yield func(message) bool) {
		for len(buf) >= headerSize {
			size := int(binary.NativeEndian.Uint32(buf))
			if size < headerSize || size > len(buf) {
				return
			}
			m := message{
				typ:   binary.NativeEndian.Uint16(buf[4:]),
				flags: binary.NativeEndian.Uint16(buf[6:]),
				seq:   binary.NativeEndian.Uint32(buf[8:]),
				body:  buf[headerSize:size],
			}
			buf = buf[min(len(buf), (size+3)&^3):]
			if !yield(m) {
				return
			}
		}
	}
}

func attributes(buf []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(buf) >= 4 {
			size := int(binary.NativeEndian.Uint16(buf))
			if size < 4 || size > len(buf) {
				return
			}
			typ := binary.NativeEndian.Uint16(buf[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			value := buf[4:size]
			buf = buf[min(len(buf), (size+3)&^3):]
			if !yield(typ, value) {
				return
			}
		}
	}
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// errInterrupted says that what was listed has changed meanwhile.
var errInterrupted = errors.New("changed while it was listed")

// list sends one request, all of whose answers go to each. A list during which
// something changed is read again, after calling reset.
func (c *Conn) list(b *Batch, reset func(), each func(message)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	const attempts = 100
	err := errInterrupted
	for range attempts {
		reset()
		if err = c.listOnce(b, each); !errors.Is(err, errInterrupted) {
			break
		}
		runtime.Gosched()
	}
	return err
}

func (c *Conn) listOnce(b *Batch, each func(message)) error {
	c.seq++
	binary.NativeEndian.PutUint32(b.buf[8:], c.seq)
	many := binary.NativeEndian.Uint16(b.buf[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	if err := c.send(b.buf); err != nil {
		return fmt.Errorf("%s: %w", b.requests[0].op, err)
	}
	interrupted := false
	for {
		messages, err := c.receive()
		if err != nil {
			return fmt.Errorf("%s: %w", b.requests[0].op, err)
		}
		for m := range messages {
			if m.seq != c.seq {
				continue
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_DONE:
				if interrupted {
					return fmt.Errorf("%s: %w", b.requests[0].op, errInterrupted)
				}
				return nil
			case unix.NLMSG_ERROR:
				errno, detail := m.failure()
				if errno == 0 {
					return nil
				}
				return b.requests[0].fail(errno, detail)
			}
			each(m)
			if !many {
				return nil
			}
		}
	}
}
