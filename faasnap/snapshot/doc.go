// Package snapshot keeps snapshots of microVMs on disk: guest memory, the
// loading set, the plan by which both are mapped, and the files of the VMM. A
// snapshot is a directory that exists whole or not at all, and is refused if a
// byte of it is not what was written. docs/formats/snapshot.md describes every
// file.
package snapshot
