// Package seccomp keeps a program to its own network addresses where eBPF
// cannot: system calls about sockets are made for it by a supervisor (thesis
// 3.2.2).
//
// The program gets a filter (seccomp user notification) by which socket(2) of
// the internet families, bind(2) and connect(2) wait for the supervisor, a
// goroutine of the process that started it. The supervisor makes each socket
// itself, bound to the endpoint's address with no port yet, and hands it over:
// there is never a socket without an address, so that listening, connecting
// and sending without bind(2) need no care. bind(2) it does on a duplicate of
// the program's socket, with an address of its own choice: nothing that the
// program changes meanwhile has an effect on it.
//
// What the program meets:
//
//   - bind to 0.0.0.0, or a loopback address, is to the endpoint's address, to
//     :: or ::1 to its IPv6 address, or to its IPv4 address as an IPv4-mapped
//     one where it has no IPv6. A listener on :: of an endpoint with both takes
//     IPv6 only. Any other address is EPERM.
//   - connect to such an address is to the endpoint's own. Datagrams that are
//     sent there without connect are not redirected.
//   - raw and packet sockets and io_uring are EPERM; protocols other than TCP
//     and UDP are EPROTONOSUPPORT, so that Go's net package falls back from
//     MPTCP; families other than unix and netlink are EAFNOSUPPORT.
//   - programs of another architecture (i386, say) are killed at their first
//     system call, and the x32 calls are ENOSYS.
//   - IPV6_PKTINFO cannot be set. IP_PKTINFO in the control message of a single
//     datagram cannot be seen by a filter: a program that means to can send,
//     not receive, with the address of another endpoint of its own job.
//   - A program with several threads that swaps, at the right moment, a socket
//     of another family for an internet one can bind the latter as it likes.
//     With Landlock (Linux 6.7) that is prevented for TCP; UDP stays open to it.
//
// So this is a fallback: it keeps honest programs, and most others, to their
// addresses. Package bpf closes the last two gaps. A filter cannot be taken
// off and descendants inherit it. A program that outlives its supervisor gets
// ENOSYS for the calls above.
//
// It needs Linux 5.19 on amd64 or arm64, and no privileges unless the program
// runs in another network namespace (CAP_SYS_ADMIN) or as another user
// (CAP_SYS_PTRACE).
package seccomp
