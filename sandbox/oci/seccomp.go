package oci

import (
	"runtime"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// seccompProfile returns the filter of system calls for sandboxes that share
// the host's kernel: what is not listed fails with EPERM. A table of what
// programs need is safer than one of what is dangerous, since kernels grow.
//
// Left out are, among others: mounts and changes of root, modules, kexec and
// reboot, bpf, perf_event_open, userfaultfd, io_uring, keyrings, ptrace and
// access to other processes' memory, clocks, quotas, swap, handles of files,
// and everything that makes or enters a namespace.
func seccompProfile() *specs.LinuxSeccomp {
	eperm, enosys := uint(syscall.EPERM), uint(syscall.ENOSYS)
	return &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &eperm,
		Architectures:   architectures(runtime.GOARCH),
		Syscalls: []specs.LinuxSyscall{
			{Names: allowedCalls, Action: specs.ActAllow},
			// Its flags are in memory, out of a filter's sight: the C library
			// falls back to clone.
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
			{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: namespaceFlags, ValueTwo: 0, Op: specs.OpMaskedEqual},
			}},
			// Unix sockets, IPv4 and IPv6, and the routing information that C
			// libraries read. Others, such as AF_VSOCK, reach the host.
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: equal(0, syscall.AF_UNIX)},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: equal(0, syscall.AF_INET)},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: equal(0, syscall.AF_INET6)},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: equal(0, afNetlink)},
			{Names: []string{"personality"}, Action: specs.ActAllow, Args: equal(0, 0)},
			{Names: []string{"personality"}, Action: specs.ActAllow, Args: equal(0, personalityNoRandomize)},
			{Names: []string{"personality"}, Action: specs.ActAllow, Args: equal(0, personalityQuery)},
		},
	}
}

// architectures returns whose system calls are filtered; those of others end
// the program. Only the machine's own are let through: functions are not built
// for 32 bits, and for runc each further one makes every start milliseconds
// longer, since it compiles the filter anew.
func architectures(goarch string) []specs.Arch {
	switch goarch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64}
	}
	return nil // the runtime takes the machine's own
}

const (
	// namespaceFlags are the flags of clone(2) that make namespaces: mount,
	// cgroup, UTS, IPC, user, PID and network.
	namespaceFlags = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
	afNetlink      = 16
	// The arguments of personality(2).
	personalityNoRandomize = 0x0040000
	personalityQuery       = 0xffffffff
)

func equal(index uint, value uint64) []specs.LinuxSeccompArg {
	return []specs.LinuxSeccompArg{{Index: index, Value: value, Op: specs.OpEqualTo}}
}

// allowedCalls are the system calls that functions, language runtimes and
// volley-init may use whatever the arguments. Names that an architecture or a
// kernel does not know have no effect. The table is constant.
var allowedCalls = []string{
	// Files.
	"access", "faccessat", "faccessat2", "chdir", "fchdir", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown",
	"fchownat", "lchown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3", "fadvise64", "fallocate",
	"fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "newfstatat", "fstatfs",
	"fsync", "ftruncate", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "lgetxattr", "lremovexattr",
	"lsetxattr", "removexattr", "setxattr", "listxattr", "llistxattr", "inotify_add_watch", "inotify_init", "inotify_init1",
	"inotify_rm_watch", "ioctl", "link", "linkat", "lseek", "lstat", "mkdir", "mkdirat", "mknod", "mknodat", "open", "openat",
	"openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink",
	"readlinkat", "readv", "rename", "renameat", "renameat2", "rmdir", "sendfile", "splice", "stat", "statfs", "statx",
	"symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlink", "unlinkat", "utime",
	"utimensat", "utimes", "vmsplice", "write", "writev", "memfd_create", "pipe", "pipe2", "cachestat",
	// Waiting.
	"epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "poll",
	"ppoll", "pselect6", "select", "signalfd", "signalfd4", "timerfd_create", "timerfd_gettime", "timerfd_settime",
	"io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit",
	// Memory.
	"brk", "madvise", "map_shadow_stack", "membarrier", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mremap",
	"mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "remap_file_pages",
	"get_mempolicy",
	// Processes, threads and their users.
	"alarm", "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "vfork", "get_robust_list",
	"getcpu", "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
	"getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "getuid", "kill", "pause", "pidfd_open",
	"pidfd_send_signal", "prctl", "prlimit64", "rseq", "set_robust_list", "set_tid_address", "setfsgid", "setfsuid", "setgid",
	"setgroups", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsid", "setuid",
	"seccomp", "tgkill", "tkill", "times", "wait4", "waitid", "landlock_create_ruleset", "landlock_add_rule",
	"landlock_restrict_self", "ioprio_get", "ioprio_set",
	// Signals.
	"rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
	"rt_tgsigqueueinfo", "sigaltstack", "restart_syscall",
	// Scheduling.
	"sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
	"sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
	"sched_setscheduler", "sched_yield", "futex", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue",
	// Time and the machine. None of them sets anything.
	"clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "setitimer", "gettimeofday", "nanosleep", "time",
	"timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "getrandom", "sysinfo", "uname",
	// Sockets; those that are made are restricted above.
	"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmmsg",
	"recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketpair",
	// System V and POSIX communication, in a namespace of the sandbox's own.
	"mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv",
	"msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget",
}
