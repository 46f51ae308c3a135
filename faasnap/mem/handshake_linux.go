package mem

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/faasnap/pages"
)

// HostRegion is where a piece of guest memory is in a VMM's address space, as
// Firecracker says it to a page-fault handler (mem_backend of type Uffd).
type HostRegion struct {
	// Address is the first address.
	Address uint64 `json:"base_host_virt_addr"`
	// Size is in bytes.
	Size uint64 `json:"size"`
	// Offset is where in guest memory it begins, in bytes.
	Offset uint64 `json:"offset"`
	// PageSize is in bytes; versions of Firecracker before 1.11 call it
	// page_size_kib, and those before 1.8 do not say it.
	PageSize    uint64 `json:"page_size,omitempty"`
	PageSizeOld uint64 `json:"page_size_kib,omitempty"`
}

const (
	maxHandshake   = 64 << 10
	maxHostRegions = 64
	maxUffds       = maxHostRegions
)

// Guest is a VMM that has handed over the page faults of its guest's memory.
type Guest struct {
	regions []HostRegion // in the order of guest memory
	fds     []uffd       // all that came
	of      []int        // which of fds a region has
	pidfd   int
	pid     int
	stats   stats
}

type stats struct {
	faults, copied, zeroed, ahead atomic.Int64
}

// Handshake takes over the page faults of a VMM that has connected to a unix
// socket, and sends one message: a JSON array of HostRegions and, as ancillary
// data, a userfaultfd for all of them or one for each. The VMM is the process
// that has connected. The caller ends what it returns with Close, when the VMM
// has ended; the connection is the caller's.
func Handshake(conn *net.UnixConn) (*Guest, error) {
	g := &Guest{pidfd: -1}
	err := g.receive(conn)
	if err == nil {
		err = g.identify(conn)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over page faults: %w", err), g.Close())
	}
	return g, nil
}

// receive reads the message. What descriptors came with it is in g even after an
// error.
func (g *Guest) receive(conn *net.UnixConn) error {
	var text []byte
	buf, oob := make([]byte, maxHandshake), make([]byte, unix.CmsgSpace(4*maxUffds))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf[len(text):], oob)
		if oobn > 0 {
			if err := g.takeDescriptors(oob[:oobn]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return fmt.Errorf("more than %d descriptors", maxUffds)
		}
		if n == 0 {
			return fmt.Errorf("message of %d bytes: %w", len(text), io.ErrUnexpectedEOF)
		}
		text = buf[:len(text)+n]
		if json.Valid(text) {
			break
		}
		if len(text) == len(buf) {
			return fmt.Errorf("message of %d bytes and more", len(text))
		}
	}
	var err error
	if g.regions, err = parseHostRegions(text); err != nil {
		return err
	}
	switch len(g.fds) {
	case 1:
		g.of = make([]int, len(g.regions))
	case len(g.regions):
		for i := range g.regions {
			g.of = append(g.of, i)
		}
	default:
		return fmt.Errorf("%d descriptors for %d regions: want one, or one for each", len(g.fds), len(g.regions))
	}
	for _, fd := range g.fds {
		if err := unix.SetNonblock(int(fd), true); err != nil {
			return err
		}
	}
	order := make([]int, len(g.regions))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return int(int64(g.regions[a].Offset) - int64(g.regions[b].Offset)) })
	regions, of := g.regions, g.of
	g.regions, g.of = make([]HostRegion, len(order)), make([]int, len(order))
	for i, j := range order {
		g.regions[i], g.of[i] = regions[j], of[j]
	}
	return nil
}

func (g *Guest) takeDescriptors(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			g.fds = append(g.fds, uffd(fd))
		}
	}
	return nil
}

// parseHostRegions reads the message and refuses regions that are no memory that
// can be restored.
func parseHostRegions(text []byte) ([]HostRegion, error) {
	var regions []HostRegion
	if err := json.Unmarshal(text, &regions); err != nil {
		return nil, fmt.Errorf("parse regions: %w", err)
	}
	if len(regions) == 0 || len(regions) > maxHostRegions {
		return nil, fmt.Errorf("%d regions: want 1 to %d", len(regions), maxHostRegions)
	}
	const limit = uint64(pages.MaxPages) * pages.Size
	for i, r := range regions {
		size := max(r.PageSize, r.PageSizeOld)
		switch {
		case size != 0 && size != pages.Size:
			return nil, fmt.Errorf("region %d: pages of %d bytes: want %d", i, size, pages.Size)
		case r.Size == 0 || r.Size > limit || r.Offset > limit-r.Size || r.Address > 1<<63-r.Size:
			return nil, fmt.Errorf("region %d: %d bytes at %#x, offset %d: out of range", i, r.Size, r.Address, r.Offset)
		case (r.Size|r.Offset|r.Address)%pages.Size != 0:
			return nil, fmt.Errorf("region %d: %d bytes at %#x, offset %d: not pages", i, r.Size, r.Address, r.Offset)
		}
		for _, o := range regions[:i] {
			if r.Address < o.Address+o.Size && o.Address < r.Address+r.Size || r.Offset < o.Offset+o.Size && o.Offset < r.Offset+r.Size {
				return nil, fmt.Errorf("region %d: overlaps another", i)
			}
		}
	}
	return regions, nil
}

// identify finds out who is at the other end.
func (g *Guest) identify(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		peer, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if optErr != nil {
		return fmt.Errorf("identify the VMM: %w", optErr)
	}
	g.pid = int(peer.Pid)
	if g.pidfd, err = unix.PidfdOpen(g.pid, 0); err != nil {
		g.pidfd = -1
		return fmt.Errorf("identify the VMM, process %d: %w", g.pid, err)
	}
	return nil
}

// PID returns the VMM's process.
func (g *Guest) PID() int { return g.pid }

// Close gives back the descriptors. Only when the VMM has ended is that safe:
// where nobody else has the userfaultfd, pages that are still missing become
// zero. It may be called again, but not during Serve.
func (g *Guest) Close() error {
	var errs []error
	for _, fd := range g.fds {
		errs = append(errs, unix.Close(int(fd)))
	}
	g.fds = nil
	if g.pidfd >= 0 {
		errs = append(errs, unix.Close(g.pidfd))
		g.pidfd = -1
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close page faults: %w", err)
	}
	return nil
}
