// Package rtnl makes network namespaces and what is in them: links,
// addresses, routes, neighbours and forwarding entries.
//
// It exists for speed and for certainty. Many requests go to the kernel in one
// write (Batch), a link is made where it belongs with all its attributes in one
// message, and threads are entered into a namespace only to open a socket there
// and then thrown away. Errors say which request failed, and what cannot be
// told from an errno alone.
//
// It needs Linux, CAP_NET_ADMIN and, for namespaces, CAP_SYS_ADMIN.
package rtnl
