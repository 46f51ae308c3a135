// Package bpf holds programs to the addresses of their endpoint by eBPF programs
// on control groups, whatever the programs are linked with (thesis 3.2.2, where
// it is left to LD_PRELOAD and seccomp).
//
// One set of programs is attached to a parent group, and one map says which
// addresses each group below it has. What a program binds to the unspecified
// address or to loopback is bound to its own address; what it connects or sends
// comes from there; other addresses are refused. What runs in a group that the
// map does not know gets no sockets at all.
//
// The programs are assembled here (asm.go), so that nothing but Go is needed to
// build them. They are pinned in the BPF file system and outlive the process.
// The package needs Linux 5.8, CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_ADMIN, and
// Linux 5.15 for servers on :: to serve IPv4 and IPv6.
package bpf
