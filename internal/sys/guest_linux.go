package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mountFS(fstype, source, target string, f MountFlags, data string) error {
	var flags uintptr = unix.MS_NOATIME
	for _, o := range []struct {
		set  bool
		flag uintptr
	}{{f.ReadOnly, unix.MS_RDONLY}, {f.NoExec, unix.MS_NOEXEC}, {f.NoSetuid, unix.MS_NOSUID}, {f.NoDevices, unix.MS_NODEV}} {
		if o.set {
			flags |= o.flag
		}
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

func enterRoot(dir string, keep []string) error {
	for _, name := range keep {
		if err := unix.Mount(name, filepath.Join(dir, name), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("enter root %s: move %s: %w", dir, name, err)
		}
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter root %s: %w", dir, err)
	}
	// The first root cannot be pivoted away from; it is mounted over.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("enter root %s: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter root %s: %w", dir, err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root %s: %w", dir, err)
	}
	return nil
}

func loadModule(f *os.File) error {
	err := unix.FinitModule(int(f.Fd()), "", 0)
	runtime.KeepAlive(f)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", f.Name(), err)
	}
	return nil
}

func setHostName(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

func setClock(t time.Time) error {
	at := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &at); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// maxSeedBytes is what one call takes of a seed.
const maxSeedBytes = 512

// poolInfo is the kernel's struct rand_pool_info.
type poolInfo struct {
	bits, bytes int32
	seed        [maxSeedBytes]byte
}

func openEntropy() (*os.File, error) {
	// The runtime's poller has no use for this file.
	fd, err := unix.Open("/dev/urandom", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open random numbers: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/urandom"), nil
}

func addEntropy(urandom *os.File, seed []byte) error {
	if len(seed) == 0 || len(seed) > maxSeedBytes {
		return fmt.Errorf("add entropy: %d bytes, not 1 to %d", len(seed), maxSeedBytes)
	}
	fd := urandom.Fd()
	info := poolInfo{bits: int32(len(seed)) * 8, bytes: int32(len(seed))}
	copy(info.seed[:], seed)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("seed random numbers anew: %w", errno)
	}
	return nil
}

func oomKills() (int, error) {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0, fmt.Errorf("read count of processes killed: %w", err)
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil {
				return 0, fmt.Errorf("read count of processes killed: %w", err)
			}
			return n, nil
		}
	}
	return 0, errors.New("read count of processes killed: /proc/vmstat has no oom_kill")
}

func powerOff(reset bool) error {
	unix.Sync()
	if !reset {
		// Where there is no such thing the kernel halts, which is of no use.
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			return fmt.Errorf("power off: %w", err)
		}
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	return nil
}

func listenVsock(port uint32) (func() (*os.File, error), error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on vsock port %d: %w", port, err), unix.Close(fd))
	}
	if err := unix.Listen(fd, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on vsock port %d: %w", port, err), unix.Close(fd))
	}
	listener := os.NewFile(uintptr(fd), "vsock:"+strconv.FormatUint(uint64(port), 10))
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on vsock port %d: %w", port, err), listener.Close())
	}
	return func() (*os.File, error) {
		for {
			var conn int
			var peer unix.Sockaddr
			var acceptErr error
			err := raw.Read(func(fd uintptr) bool {
				conn, peer, acceptErr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				return !errors.Is(acceptErr, unix.EAGAIN)
			})
			if err = errors.Join(err, acceptErr); err != nil {
				if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
					continue
				}
				return nil, fmt.Errorf("accept from %s: %w", listener.Name(), err)
			}
			// The function in the guest shall not pose as its host.
			if vm, ok := peer.(*unix.SockaddrVM); !ok || vm.CID != unix.VMADDR_CID_HOST {
				if err := unix.Close(conn); err != nil {
					return nil, fmt.Errorf("refuse stream to %s: %w", listener.Name(), err)
				}
				continue
			}
			return os.NewFile(uintptr(conn), "host"), nil
		}
	}, nil
}
