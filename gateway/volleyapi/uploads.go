package volleyapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/internal/sigv4"
)

// UploadBucket is the name under which the Lambda API's S3Bucket finds what was
// uploaded; the S3Key is what the upload was answered with.
const UploadBucket = "volley-uploads"

const (
	// uploadAge is how long an upload is kept.
	uploadAge = time.Hour
	// uploadTimeout is how long one may take: a large image over a slow line.
	uploadTimeout = 30 * time.Minute
)

// uploadKey is the form of a key; it is constant.
var uploadKey = regexp.MustCompile(`^[A-Z2-7]{26}$`)

// Uploads takes packages that are too large for the body of a call of the
// Lambda API, image archives above all, and keeps them for an hour. It may be
// used concurrently.
type Uploads struct {
	dir      string
	maxBytes int64
}

// OpenUploads returns an Uploads that keeps files in dir, which it makes and
// which nobody else uses. An upload has at most maxBytes.
func OpenUploads(dir string, maxBytes int64) (*Uploads, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for uploads: %w", err)
	}
	u := &Uploads{dir: dir, maxBytes: maxBytes}
	return u, u.sweep(time.Now())
}

// sweep removes old files, and what an earlier process did not finish.
func (u *Uploads) sweep(now time.Time) error {
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return fmt.Errorf("list uploads: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list uploads: %w", err)
		}
		if now.Sub(info.ModTime()) < uploadAge {
			continue
		}
		if err := os.Remove(filepath.Join(u.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an old upload: %w", err)
		}
	}
	return nil
}

// Open opens an upload; the caller closes it. One that is not there is a
// *function.Error with NotFound.
func (u *Uploads) Open(_ context.Context, key string) (io.ReadCloser, error) {
	if !uploadKey.MatchString(key) {
		return nil, function.Errorf(function.NotFound, "there is no upload %q", key)
	}
	f, err := os.Open(filepath.Join(u.dir, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, function.Errorf(function.NotFound, "there is no upload %q; they are kept for %s", key, uploadAge)
	}
	return f, err
}

// serve takes an upload: POST with the bytes as the body. They are not covered
// by the signature, which must say so; the answer holds the key.
func (u *Uploads) serve(w http.ResponseWriter, r *http.Request, v *sigv4.Verifier) error {
	claim, err := v.Claim(r)
	if err != nil {
		return err
	}
	if claim.Payload != sigv4.UnsignedPayload {
		return awshttp.NewError(awshttp.InvalidRequestContent, "an upload must be signed with "+sigv4.UnsignedPayload+" for the hash of its body")
	}
	if err := claim.Check(r); err != nil {
		return err
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(uploadTimeout)); err != nil {
		return function.Errorf(function.Internal, "extend the time for an upload: %v", err)
	}
	if err := u.sweep(time.Now()); err != nil {
		return function.Errorf(function.Internal, "%v", err)
	}
	key := rand.Text()
	size, err := u.keep(filepath.Join(u.dir, key), http.MaxBytesReader(w, r.Body, u.maxBytes))
	if err != nil {
		return err
	}
	return awshttp.WriteJSON(w, http.StatusCreated, struct {
		Bucket    string `json:"bucket"`
		Key       string `json:"key"`
		SizeBytes int64  `json:"sizeBytes"`
	}{UploadBucket, key, size})
}

// keep stores an upload under its name once it is whole.
func (u *Uploads) keep(path string, from io.Reader) (sizeBytes int64, err error) {
	f, err := os.CreateTemp(u.dir, "part-")
	if err != nil {
		return 0, function.Errorf(function.Internal, "keep upload: %v", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error tells
		}
	}()
	sizeBytes, err = io.Copy(f, from)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, awshttp.NewError(awshttp.InvalidRequestContent, "the upload could not be read or kept: "+err.Error())
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return 0, function.Errorf(function.Internal, "keep upload: %v", err)
	}
	return sizeBytes, nil
}
