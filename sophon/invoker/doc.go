// Package invoker runs the containers of one node: it takes the controller's
// messages, keeps containers warm, makes room, runs invocations in them, and
// reports every change back (thesis 4.5).
//
// Pool is the decision half: plain single-threaded code without I/O, clock or
// goroutines, which the simulator runs in virtual time. Invoker is the live
// half, over any bus and any sandbox driver. Stub is a driver whose sandboxes
// only pretend (thesis 4.6.2); Model says how long they pretend to take, in
// real and in virtual time alike.
package invoker
