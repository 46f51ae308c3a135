// Package compare sets scheduling policies against each other as thesis 4.6
// does: every policy gets the same workloads, from several windows of a trace
// and several seeds, on the same simulated cluster, and the results are told as
// tables, JSON lines and figures, with their spread and their ratios to a
// baseline in the same run.
package compare
