// Package sim runs a workload on a simulated cluster in virtual time: the same
// scheduler, policies and container pools as the live platform
// (sophon.Scheduler, sophon/policy, invoker.Pool), with messages, container
// starts and function runs that only pass time (thesis 4.6.2).
//
// A run is a function of its configuration and workload: equal ones give equal
// results. Runs share nothing, so several may go on at once.
package sim
