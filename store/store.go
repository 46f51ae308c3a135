// Package store keeps a job's files as objects under keys: in a local
// directory, in any S3 bucket, or in an embedded S3 server.
package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// Errors that callers decide on. They are wrapped with the key and the cause.
var (
	// ErrNotFound: there is no such object (or bucket).
	ErrNotFound = errors.New("object not found")
	// ErrNoSpace: the disk or the quota is full. Retrying does not help.
	ErrNoSpace = errors.New("no space left")
	// ErrPermission: the store refuses these credentials or this user.
	ErrPermission = errors.New("permission denied")
)

// Info describes an object.
type Info struct {
	Key       string
	SizeBytes int64
	// Modified is when the object was last written.
	Modified time.Time
	// ETag changes when the content does; empty where the store has none.
	ETag string
}

// Store is a set of objects. Keys are slash-separated relative paths without
// empty, "." or ".." elements. Every method may be called concurrently.
type Store interface {
	// Put stores what r gives under key, replacing what was there: a reader
	// sees the old object, none, or the whole new one, never a part. It returns
	// the number of bytes.
	Put(ctx context.Context, key string, r io.Reader) (int64, error)
	// PutFile stores the file at path and takes it over: a local store moves
	// it, others upload and remove it. On error the file is left.
	PutFile(ctx context.Context, key, path string) (int64, error)
	// Get reads length bytes from offset, or to the end when length is
	// negative. The caller closes the reader.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	Stat(ctx context.Context, key string) (Info, error)
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// List gives the objects whose keys start with prefix, in the order of
	// their keys.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	// URL is what Open takes to reach the same objects. It holds no secret.
	URL() string
}

// LocalPather is a Store whose objects are files of this machine.
type LocalPather interface {
	// LocalPath is where the object under key is, or would be. Files there may
	// be read while the object exists, and must not be changed.
	LocalPath(key string) string
}

// Presigner is a Store that can hand out temporary HTTP addresses.
type Presigner interface {
	// PresignGet returns an address that reads key by HTTP GET, with range
	// requests, until ttl has passed. It is a secret for that time.
	PresignGet(ctx context.Context, key string, ttl time.Duration) (string, error)
}
