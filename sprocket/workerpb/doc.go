// Package workerpb is the generated code of worker.proto, the protocol between
// coordinator and workers. `make generate` makes it anew.
package workerpb
