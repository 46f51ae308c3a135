// Package particle gives the functions of one job their own addresses on an
// isolated overlay network, all at once and however many they are (thesis
// chapter 3).
//
// A Spec declares one network on one node. A Network makes it so with Apply,
// which may be repeated, and removes it with Close, which may be repeated too
// and also takes away what an interrupted Apply left. What exists is written
// down in the Node's state directory before it is made, so that another
// process finds it again, and GC removes what a dead one left half done.
//
// The package needs Linux 5.8, CAP_NET_ADMIN and CAP_SYS_ADMIN. Only a Spec,
// which is data, exists on other systems.
package particle
