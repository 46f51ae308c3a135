package seccomp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supervisor makes the sockets of the programs under one filter. Its methods
// may be called concurrently.
type Supervisor struct {
	endpoint Endpoint
	listener int
	// wake is a pipe whose reading end becomes readable when Close was called.
	wake [2]int
	once sync.Once
	done chan struct{} // closed when nothing of it runs any more
	err  error         // why it ended; to be read after done

	// unprivilegedPort is the lowest port that needs no privilege.
	unprivilegedPort int
	connecting       sync.WaitGroup
	ctx              context.Context
	cancel           context.CancelFunc
}

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	tid   uint32
	flags uint32
	call  int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// handOver is struct seccomp_notif_addfd.
type handOver struct {
	id       uint64
	flags    uint32
	source   uint32
	target   uint32
	newFlags uint32
}

const continueCall = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE

// Done is closed once the supervisor has ended and nothing of it is left: when
// the last process under the filter has ended, or after Close.
func (s *Supervisor) Done() <-chan struct{} { return s.done }

// Wait waits until the supervisor has ended, and returns why if that was not
// because of the end of the last process, or Close.
func (s *Supervisor) Wait() error {
	<-s.done
	return s.err
}

// Close ends the supervisor, which may be done again. What still runs under
// the filter gets ENOSYS when it makes, binds or connects a socket.
func (s *Supervisor) Close() error {
	s.once.Do(func() {
		s.cancel()
		// The pipe has room; serve closes it only after this, in release.
		_, _ = unix.Write(s.wake[1], []byte{0})
	})
	return s.Wait()
}

// serve answers until the end. It runs on a thread in the network namespace in
// which the sockets are to be.
func (s *Supervisor) serve() error {
	s.unprivilegedPort = unprivilegedPort()
	for {
		poll := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}, {Fd: int32(s.wake[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("wait for system calls: %w", err)
		}
		if poll[1].Revents != 0 {
			return nil
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return nil // hung up: nobody is under the filter any more
		}
		var n notification // the kernel wants it empty
		err := s.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			continue // the caller was killed meanwhile
		case err != nil:
			return fmt.Errorf("receive system call: %w", err)
		}
		s.handle(&n)
	}
}

// release waits for what serve started, and closes everything.
func (s *Supervisor) release(err error) {
	s.cancel()
	// Under the same Once as Close, so that neither writes to what is closed.
	s.once.Do(func() {})
	_ = unix.Close(s.listener)
	s.connecting.Wait()
	for _, fd := range s.wake {
		_ = unix.Close(fd)
	}
	s.err = err
	close(s.done)
}

func (s *Supervisor) ioctl(request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// reply ends a call. It fails only if the caller has gone.
func (s *Supervisor) reply(n *notification, errno unix.Errno) {
	a := answer{id: n.id, errno: -int32(errno)}
	_ = s.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
}

// proceed lets the kernel do the call as if there were no filter.
func (s *Supervisor) proceed(n *notification) {
	a := answer{id: n.id, flags: continueCall}
	_ = s.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
}

// valid says whether the caller still waits: only then is what was read under
// the caller's number the caller's.
func (s *Supervisor) valid(n *notification) bool {
	id := n.id
	return s.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

func (s *Supervisor) handle(n *notification) {
	var err error
	switch n.call {
	case unix.SYS_SOCKET:
		err = s.socket(n)
	case unix.SYS_BIND:
		err = s.bind(n)
	case unix.SYS_CONNECT:
		err = s.connect(n)
	default:
		err = unix.ENOSYS
	}
	switch {
	case errors.Is(err, errAnswered):
	case errors.Is(err, errProceed):
		s.proceed(n)
	default:
		s.reply(n, errnoOf(err))
	}
}

// What handlers return beside nil and errors of the caller's call. They are
// constant.
var (
	errAnswered = errors.New("answered already")
	errProceed  = errors.New("let the kernel do it")
)

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EPERM
}

// socket makes a socket with the endpoint's address and puts it among the
// caller's descriptors.
func (s *Supervisor) socket(n *notification) error {
	domain, kind, protocol := int(int32(n.args[0])), int(int32(n.args[1])), int(int32(n.args[2]))
	six := domain == unix.AF_INET6
	if !s.endpoint.own(six).IsValid() {
		return unix.EAFNOSUPPORT
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := giveAddress(fd, six, s.endpoint); err != nil {
		return err
	}
	h := handOver{id: n.id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, source: uint32(fd)}
	if kind&unix.SOCK_CLOEXEC != 0 {
		h.newFlags = unix.O_CLOEXEC
	}
	// The number of the new descriptor is the answer to the call.
	if err := s.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&h)); err != nil {
		return err
	}
	return errAnswered
}

// bind binds the caller's socket to what is decided.
func (s *Supervisor) bind(n *notification) error {
	t, err := s.target(n)
	if err != nil {
		return err
	}
	defer t.close()
	switch {
	case !t.internet:
		return errProceed
	case t.unspecified && t.address.IsUnspecified():
		// bind(2) of IPv4 takes that for AF_INET.
	case t.unspecified, !t.parsed:
		return unix.EAFNOSUPPORT
	}
	a, v := s.endpoint.forBind(t.six, t.address)
	if v == refused {
		return unix.EPERM
	}
	if t.port != 0 && t.port < s.unprivilegedPort && !mayBindLow(int(n.tid)) {
		return unix.EACCES
	}
	return bindTo(t.fd, t.six, a, t.port, s.endpoint)
}

// connect redirects what is meant for this host, and lets the kernel do all
// else: the socket has its address, whatever the caller makes of the other's.
func (s *Supervisor) connect(n *notification) error {
	t, err := s.target(n)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			t.close()
		}
	}()
	if !t.internet || !t.parsed || t.unspecified {
		return errProceed
	}
	a, v := s.endpoint.forConnect(t.six, t.address)
	if v == refused {
		return unix.ENETUNREACH
	}
	if t.six && a.Is4In6() && s.endpoint.Address.IsValid() {
		if err := giveMapped(t.fd, s.endpoint.Address); err != nil {
			return err
		}
	}
	if v == asItIs {
		return errProceed
	}
	keep = true
	call, fd, to := *n, t.fd, sockaddr(t.six, a, t.port)
	s.connecting.Go(func() {
		defer t.close()
		// A listener whose queue is full makes it wait; the end of the
		// supervisor does not wait for that.
		stop := context.AfterFunc(s.ctx, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) })
		defer stop()
		s.reply(&call, errnoOf(unix.Connect(fd, to)))
	})
	return errAnswered
}

// unprivilegedPort reads it for the thread's network namespace.
func unprivilegedPort() int {
	const usual = 1024
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return usual
	}
	if port, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		return port
	}
	return usual
}

// mayBindLow says whether the thread has CAP_NET_BIND_SERVICE.
func mayBindLow(tid int) bool {
	caps, err := strconv.ParseUint(statusField(tid, "CapEff"), 16, 64)
	return err == nil && caps&(1<<unix.CAP_NET_BIND_SERVICE) != 0
}

// statusField returns a field of /proc/<tid>/status, or "".
func statusField(tid int, name string) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
