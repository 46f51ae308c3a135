package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
)

// AgentPort is the name of the virtio-serial port that the agent in the guest
// opens.
const AgentPort = "org.volley.agent"

// launch collects what QEMU is started with.
type launch struct {
	args, env []string
	// files are inherited, from descriptor 3 on. Those in own are closed here
	// once QEMU runs, or has not been started.
	files, own []*os.File
}

// inherit makes QEMU inherit a file, and returns its number there.
func (l *launch) inherit(f *os.File) int {
	l.files = append(l.files, f)
	return 2 + len(l.files)
}

// open opens a file for QEMU to inherit.
func (l *launch) open(path string, flags int) (int, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return 0, err
	}
	l.own = append(l.own, f)
	return l.inherit(f), nil
}

// set makes a descriptor known under a path that QEMU opens files by.
func (l *launch) set(fd int) string {
	l.arg("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd))
	return fmt.Sprintf("/dev/fdset/%d", fd)
}

func (l *launch) arg(args ...string) { l.args = append(l.args, args...) }

func (l *launch) setting(name string, value int) {
	l.env = append(l.env, "VOLLEY_SHIM_"+name+"="+strconv.Itoa(value))
}

func (l *launch) close() {
	for _, f := range l.own {
		_ = f.Close()
	}
	l.own = nil
}

// socket makes a pair of sockets, of which QEMU inherits one.
func (l *launch) socket(name string) (here *net.UnixConn, there int, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("make a socket: %w", err)
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	local, remote := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	l.own = append(l.own, remote)
	defer local.Close()
	conn, err := net.FileConn(local)
	if err != nil {
		return nil, 0, fmt.Errorf("make a socket: %w", err)
	}
	return conn.(*net.UnixConn), l.inherit(remote), nil
}

// checkMachine refuses what QEMU would refuse less clearly.
func checkMachine(m vmm.Machine) error {
	if m.MemoryBytes <= 0 || m.MemoryBytes%(2<<20) != 0 {
		return fmt.Errorf("guest memory of %d bytes: want a multiple of 2 MiB", m.MemoryBytes)
	}
	if m.CPUs < 1 {
		return fmt.Errorf("%d CPUs: want at least one", m.CPUs)
	}
	return nil
}

// machine adds the hardware, which has to be the same at boot and restore.
func (l *launch) machine(accel string, m vmm.Machine, shared bool) error {
	// What a function does not need costs time at every start.
	typ := "q35,sata=off,smbus=off,usb=off,vmport=off,hpet=off"
	cpu, bus := "max", "pci"
	if accel == KVM {
		typ, cpu, bus = "microvm,pcie=on,rtc=on,pit=on,pic=on", "host", "pci"
	}
	share := "off"
	if shared {
		share = "on"
	}
	l.arg("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", accel,
		"-machine", typ+",memory-backend=ram",
		"-cpu", cpu,
		"-smp", strconv.Itoa(m.CPUs),
		"-m", strconv.FormatInt(m.MemoryBytes>>20, 10)+"M",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=%s,merge=off", m.MemoryBytes, memoryPath, share),
		"-device", "virtio-serial-"+bus+",max_ports=2",
		"-device", "virtserialport,chardev=agent,name="+AgentPort,
		// A guest that was paused when it was saved shall run when it is restored.
		"-global", "migration.store-global-state=off",
	)
	for i, drive := range m.Drives {
		flags, readOnly := os.O_RDWR, "off"
		if drive.ReadOnly {
			flags, readOnly = os.O_RDONLY, "on"
		}
		fd, err := l.open(drive.Path, flags)
		if err != nil {
			return fmt.Errorf("open drive %d: %w", i+1, err)
		}
		l.arg("-blockdev", fmt.Sprintf("driver=file,node-name=file%d,filename=%s,read-only=%s,locking=off", i, l.set(fd), readOnly),
			"-blockdev", fmt.Sprintf("driver=raw,node-name=drive%d,file=file%d,read-only=%s", i, i, readOnly),
			"-device", fmt.Sprintf("virtio-blk-%s,drive=drive%d", bus, i))
	}
	if m.Network != nil {
		tap, err := sys.OpenTap(m.Network.Namespace, m.Network.Tap)
		if err != nil {
			return err
		}
		l.own = append(l.own, tap)
		l.arg("-netdev", fmt.Sprintf("tap,id=net,fd=%d", l.inherit(tap)),
			"-device", fmt.Sprintf("virtio-net-%s,netdev=net,mac=%s,romfile=", bus, m.Network.MAC))
	}
	return nil
}

// command returns what starts QEMU. A guest that has broken out of QEMU's devices
// is an unprivileged user without privileged system calls.
func (d *Driver) command(l *launch) *exec.Cmd {
	l.arg("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	cmd := exec.Command(d.cfg.Binary, l.args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}, l.env...)
	cmd.ExtraFiles = l.files
	sys.NewGroup(cmd)
	cmd.SysProcAttr.Credential = d.credential(d.accel)
	return cmd
}

// credential is whom QEMU is to run as; nil is this process's user.
func (d *Driver) credential(accel string) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(d.cfg.UID), Gid: uint32(d.cfg.GID)}
	if info, err := os.Stat(d.kvm); err == nil && accel == KVM {
		// The device is its group's, as distributions have it.
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Gid != 0 {
			c.Groups = []uint32{st.Gid}
		}
	}
	return c
}

// shim makes QEMU load the library that maps guest memory.
func (l *launch) shim(path string) error {
	if path == "" {
		return errors.New("the library that maps guest memory is not built")
	}
	fd, err := l.open(path, os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open the library that maps guest memory: %w", err)
	}
	// By its number, since QEMU's user may not reach its directory.
	l.env = append(l.env, "LD_PRELOAD=/proc/self/fd/"+strconv.Itoa(fd))
	return nil
}

// emulated returns what the guest's kernel is told if its processor is emulated:
// that what it does against speculation is of no use in translated code, where
// it only makes more to be translated.
func emulated(accel string) string {
	if accel == TCG {
		return "mitigations=off"
	}
	return ""
}

// commandLine joins what the guest's kernel is told.
func commandLine(parts ...string) string { return strings.TrimSpace(strings.Join(parts, " ")) }
