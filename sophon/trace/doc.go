// Package trace reads traces of serverless invocations in the format of the
// Azure Functions data set of 2019 (Shahrad et al., USENIX ATC 2020) and makes
// workloads of them as thesis 4.2 does: a window of some minutes, sampled to a
// rate by choosing invocations rather than functions, and shaped.
//
// A Trace is not changed after it was read and may be used concurrently.
// Everything random is drawn from seeds.
package trace
