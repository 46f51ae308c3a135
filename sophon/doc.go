// Package sophon schedules function invocations with the containers in view
// (thesis chapter 4): a Cluster is what is known of invokers and their
// containers, a Policy chooses where an invocation runs, and a Scheduler
// commits the choices, queues what does not fit and takes in what the
// invokers report. All three are plain single-threaded code without I/O, clock
// or goroutines, so that the live controller and the simulator run the same.
package sophon
