// Package bench measures how soon functions in microVMs answer when their
// machines are restored from snapshots (thesis 5.2 and 5.5): it has the
// functions of table 5.2, makes their inputs, records their snapshots, and runs
// single invocations and bursts with cold caches. It measures; how often, in
// what order and what to make of it is the caller's.
//
// The functions are small Python programs (functions/), and what they need comes
// from Debian. The thesis keeps inputs in Redis, outside of the guest; here they
// come with the event, made by the host from a seed.
package bench
