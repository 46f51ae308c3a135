package testenv

// CC is the C compiler cc, found in PATH.
const CC Capability = "cc"
