package snapshot

import (
	"errors"
	"fmt"
	"path/filepath"
)

var (
	// ErrDamaged is that a file of a snapshot is not what was written: missing,
	// cut short, changed, or of another snapshot. Trying again does not help. It
	// is in the chain of a *DamageError.
	ErrDamaged = errors.New("snapshot is damaged")
	// ErrVersion is that a snapshot has been written by a version of Volley with
	// another format.
	ErrVersion = errors.New("snapshot of another version")
	// ErrNone is that a directory is not a snapshot, or there is none.
	ErrNone = errors.New("not a snapshot")
)

// DamageError says where a snapshot is damaged.
type DamageError struct {
	// Dir is the snapshot, and File the file in it.
	Dir, File string
	// Offset is where the damage is, in bytes, and Chunk the group of ChunkSize
	// bytes; both are -1 if it is the whole file.
	Offset int64
	Chunk  int
	// Problem is what is wrong.
	Problem string
	// Err is the error of the system, if there was one.
	Err error
}

// Error says what is wrong where, and what to do about it.
func (e *DamageError) Error() string {
	where := filepath.Join(e.Dir, e.File)
	if e.Chunk >= 0 {
		where += fmt.Sprintf(": page group %d, at byte %d", e.Chunk, e.Offset)
	}
	problem := e.Problem
	if e.Err != nil {
		problem += ": " + e.Err.Error()
	}
	return fmt.Sprintf("snapshot is damaged: %s: %s; remove the snapshot and take it again, or restore the file from a copy", where, problem)
}

// Unwrap returns ErrDamaged and Err.
func (e *DamageError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrDamaged}
	}
	return []error{ErrDamaged, e.Err}
}
