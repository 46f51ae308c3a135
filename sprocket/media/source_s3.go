package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/volley-run/volley/store"
)

// presignTTL is long enough for the longest job that reads the input.
const presignTTL = 12 * time.Hour

// bucket is what an S3 input needs of a store.
type bucket interface {
	Stat(ctx context.Context, key string) (store.Info, error)
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	store.Presigner
}

// objectOrigin is an object of a bucket.
type objectOrigin struct {
	bucket bucket
	key    string
	name   string
}

func openObject(ctx context.Context, u *url.URL) (*Source, error) {
	name := publicName(u.String())
	key := strings.TrimPrefix(u.Path, "/")
	if key == "" {
		return nil, &InputError{Input: name, Kind: Unsupported, Err: errors.New("the address names no object"),
			Remedy: "write s3://bucket/key"}
	}
	root := url.URL{Scheme: "s3", Host: u.Host, RawQuery: u.RawQuery}
	st, err := store.Open(ctx, root.String())
	if err != nil {
		return nil, objectError(ctx, name, err)
	}
	b, ok := st.(bucket)
	if !ok {
		return nil, &InputError{Input: name, Kind: Unsupported, Err: errors.New("the store cannot presign addresses"),
			Remedy: "download it first"}
	}
	return openFrom(ctx, b, key, name)
}

// openFrom opens the object under key of b.
func openFrom(ctx context.Context, b bucket, key, name string) (*Source, error) {
	info, err := b.Stat(ctx, key)
	if err != nil {
		return nil, objectError(ctx, name, err)
	}
	identity := fmt.Sprintf("%d bytes, %d ns", info.SizeBytes, info.Modified.UnixNano())
	if info.ETag != "" {
		identity = fmt.Sprintf("%d bytes, ETag %s", info.SizeBytes, info.ETag)
	}
	return &Source{
		name:     name,
		size:     info.SizeBytes,
		identity: identity,
		origin:   &objectOrigin{bucket: b, key: key, name: name},
		cache:    newBlockCache(),
	}, nil
}

func (o *objectOrigin) fetch(ctx context.Context, p []byte, off int64) error {
	return retry(ctx, func(tryCtx context.Context) error {
		body, err := o.bucket.Get(tryCtx, o.key, off, int64(len(p)))
		if err == nil {
			defer body.Close()
			_, err = io.ReadFull(body, p)
		}
		if err == nil {
			return nil
		}
		failure := objectError(ctx, o.name, err)
		if ie, ok := failure.(*InputError); ok && ie.Kind == Unreachable { //nolint:errorlint // made just above
			return &retryableError{ie}
		}
		return failure
	})
}

func (o *objectOrigin) address(ctx context.Context) (string, error) {
	address, err := o.bucket.PresignGet(ctx, o.key, presignTTL)
	if err != nil {
		return "", objectError(ctx, o.name, err)
	}
	return address, nil
}

func (o *objectOrigin) close() error { return nil }

func objectError(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("read %s: %w", name, ctx.Err())
	}
	e := &InputError{Input: name, Err: err}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return e.with(NotFound, "check bucket, key, region and endpoint")
	case errors.Is(err, store.ErrPermission):
		return e.with(Permission, "check the AWS credentials and the bucket's policy")
	}
	return e.with(Unreachable, "check endpoint, region and network")
}
