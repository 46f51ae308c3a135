// Package e2e holds tests of the volley program as users have it: they build
// it, run it on real video, and look at what it leaves with FFmpeg. There is no
// code here but tests.
package e2e
