package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// options is what the Options of Open set.
type options struct {
	httpClient           *http.Client
	accessKey, secretKey string
}

// Option changes how Open reaches a store.
type Option func(*options)

// WithHTTPClient makes an S3 store use client, which stays the caller's: whoever
// wants no idle connections left behind closes them. Other stores ignore it.
func WithHTTPClient(client *http.Client) Option {
	return func(o *options) { o.httpClient = client }
}

// WithCredentials makes an S3 store sign with these keys instead of the ones
// that the AWS SDK finds. Other stores ignore it.
func WithCredentials(accessKey, secretKey string) Option {
	return func(o *options) { o.accessKey, o.secretKey = accessKey, secretKey }
}

// Open returns the store that address names:
//
//   - "file:///absolute/directory", or the path of a directory, which is made
//     if it is not there;
//   - "s3://bucket/prefix", with "?region=..." and, for a server that is not
//     AWS, "?endpoint=http://host:port". Without them the AWS SDK's usual
//     sources apply (AWS_REGION, AWS_ENDPOINT_URL, profiles). A server that has
//     an endpoint is addressed by path. The bucket has to exist.
//
// Open does not contact an S3 server: a wrong endpoint, bucket or key shows at
// the first use. There is nothing to close. ctx bounds the opening only.
func Open(ctx context.Context, address string, opts ...Option) (Store, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	scheme, _, hasScheme := strings.Cut(address, ":")
	if !hasScheme || !schemePattern.MatchString(scheme) {
		return asStore(OpenLocal(address))
	}
	u, err := url.Parse(address)
	if err != nil {
		// The error of url.Parse repeats the address, which may hold a secret.
		var bad *url.Error
		if errors.As(err, &bad) {
			err = bad.Err
		}
		return nil, fmt.Errorf("open store: parse %s address: %w", scheme, err)
	}
	switch u.Scheme {
	case "file":
		return openFileURL(u)
	case "s3":
		return asStore(openS3(ctx, u, o))
	case "http", "https":
		return nil, fmt.Errorf("open store: %s is not a store by itself: use s3://bucket/prefix?endpoint=%s://%s", u.Redacted(), u.Scheme, u.Host)
	}
	return nil, fmt.Errorf("open store: unknown scheme %q: use a directory, file:///directory or s3://bucket/prefix", u.Scheme)
}

// schemePattern is constant. It wants two characters, so that "C:" is a path.
var schemePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]+$`)

func openFileURL(u *url.URL) (Store, error) {
	switch {
	case u.Host != "" && u.Host != "localhost":
		return nil, fmt.Errorf("open store: %s names the host %q: write file:/// and an absolute path", u.Redacted(), u.Host)
	case u.Opaque != "" || !strings.HasPrefix(u.Path, "/"):
		return nil, fmt.Errorf("open store: %s has no absolute path: write file:///directory", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("open store: %s: a file address has no parameters (write %%3F and %%23 for ? and #)", u.Redacted())
	}
	return asStore(OpenLocal(filepath.FromSlash(u.Path)))
}

// asStore keeps a nil pointer from becoming a Store that is not nil.
func asStore[S Store](s S, err error) (Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}
