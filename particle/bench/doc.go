// Package bench measures Particle on one machine (thesis 3.1 and 3.4): how long
// each design takes to connect endpoints to an overlay and to take them away,
// how long processes take to start on it, how fast data goes over it, and how
// the time grows with the number of nodes. Nodes are network namespaces on one
// bridge. It measures; how often, in what order and what to make of it is the
// caller's.
//
// It needs what package particle needs. Whatever it makes it removes, also when
// its context ends meanwhile.
package bench
