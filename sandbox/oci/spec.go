package oci

import (
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/agent"
)

const (
	// cpuPeriod is the time, in microseconds, that the CPU quota is for.
	cpuPeriod = 100_000
	// maxOpenFiles bounds the file descriptors of a process, as on AWS Lambda.
	maxOpenFiles = 1024
	// maxShmMB bounds /dev/shm.
	maxShmMB = 64
)

// quotaMicroseconds returns how long a function of that memory may compute in
// every cpuPeriod.
func quotaMicroseconds(memoryMB int) int64 {
	return int64((&function.Function{MemoryMB: memoryMB}).CPUs()) * cpuPeriod
}

// shares returns a function's weight where CPUs are scarce, in proportion to
// its memory. The kernel takes 2 to 262144.
func shares(memoryMB int) uint64 {
	return uint64(min(max(memoryMB*1024/function.MBPerCPU, 2), 262144))
}

// tmpMB returns the size of /tmp. Its pages count as the function's memory, so
// that more than half of it would only get the function killed.
func tmpMB(f *function.Function) int { return max(min(f.TmpMB, f.MemoryMB/2), 1) }

// containerSpec is what a specification is made of.
type containerSpec struct {
	function *function.Function
	// root is the directory of the root file system, binds what goes on it.
	root  string
	binds []bind
	// cgroup is the path of the control group.
	cgroup string
	// netns is the path of the network namespace to join: a new one if empty.
	netns        string
	boundSwap    bool
	maxProcesses int64
	seccomp      *specs.LinuxSeccomp
}

// spec returns the configuration of a container. It shares tables with others:
// nothing in it may be changed.
func (c containerSpec) spec() *specs.Spec {
	f := c.function
	memory := int64(f.MemoryMB) << 20
	resources := &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: &memory},
		CPU:     &specs.LinuxCPU{Quota: ptr(quotaMicroseconds(f.MemoryMB)), Period: ptr(uint64(cpuPeriod)), Shares: ptr(shares(f.MemoryMB))},
		Pids:    &specs.LinuxPids{Limit: &c.maxProcesses},
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	if c.boundSwap {
		resources.Memory.Swap = &memory // memory and swap together
	}
	// What volley-init needs to become the function's user and to end its
	// processes. The function has none of it, and cannot get it.
	capabilities := []string{"CAP_KILL", "CAP_SETGID", "CAP_SETUID"}
	s := &specs.Spec{
		Version:  "1.0.2", // the least that has all of this: old runtimes refuse newer ones
		Hostname: hostName,
		Root:     &specs.Root{Path: c.root, Readonly: true},
		Process: &specs.Process{
			Args:            []string{initPath},
			Env:             []string{"PATH=" + agent.DefaultPath},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Hard: maxOpenFiles, Soft: maxOpenFiles},
				{Type: "RLIMIT_CORE", Hard: 0, Soft: 0},
			},
		},
		Mounts: c.mounts(),
		Linux: &specs.Linux{
			CgroupsPath: c.cgroup,
			Resources:   resources,
			Seccomp:     c.seccomp,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	if f.Network != function.NetworkHost {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: c.netns})
	}
	return s
}

// maskedPaths are what of /proc tells about the host. The table is constant.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
	"/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
}

// readonlyPaths are what of /proc changes the host. The table is constant.
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

func (c containerSpec) mounts() []specs.Mount {
	tmpfs := func(target string, sizeMB int, options ...string) specs.Mount {
		return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: append(options, fmt.Sprintf("size=%dm", sizeMB))}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", 1, "nosuid", "noexec", "strictatime", "mode=755"),
	}
	for _, b := range c.binds {
		mounts = append(mounts, specs.Mount{Destination: b.target, Type: "bind", Source: b.source, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	return append(mounts,
		tmpfs("/dev/shm", max(min(maxShmMB, c.function.MemoryMB/4), 1), "nosuid", "noexec", "nodev", "mode=1777"),
		tmpfs(agent.TmpDir, tmpMB(c.function), "nosuid", "nodev", "mode=1777"),
	)
}

// hostNetworkBinds are the files that a sandbox on the host's network shares
// with it. files are those that the host has.
func hostNetworkBinds(files map[string]string) []bind {
	var binds []bind
	for _, name := range slices.Sorted(maps.Keys(files)) {
		binds = append(binds, bind{files[name], "/etc/" + name})
	}
	return binds
}

func ptr[T any](v T) *T { return &v }
