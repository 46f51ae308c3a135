package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/volley-run/volley/internal/sigv4"
)

const (
	defaultRegion = "us-east-1"
	// partBytes is the size of a part of a stream of unknown length. With the
	// 10,000 parts that S3 allows, a stream can have 78 GiB.
	partBytes = 8 << 20
	// uploadConcurrency is how many parts of one object are on their way at a
	// time; each holds partBytes of memory.
	uploadConcurrency = 3
	// abortTimeout bounds the clean-up after an upload that failed.
	abortTimeout = 10 * time.Second
)

// S3 is a Store in a bucket of S3 or of a server that speaks its protocol.
type S3 struct {
	client   *s3.Client
	uploader *manager.Uploader //nolint:staticcheck // its successor is not at version 1 yet
	bucket   string
	prefix   string // empty, or ends in a slash
	address  string
}

// openS3 returns the store that an s3:// address names.
func openS3(ctx context.Context, u *url.URL, o options) (*S3, error) {
	if u.User != nil {
		return nil, errors.New("open store: an s3 address holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
	}
	if u.Host == "" {
		return nil, errors.New("open store: the s3 address has no bucket: write s3://bucket/prefix")
	}
	if u.Fragment != "" {
		return nil, fmt.Errorf("open store: %s: an s3 address has no fragment (write %%23 for #)", u)
	}
	prefix := strings.Trim(u.Path, "/")
	if prefix != "" {
		if err := CheckKey(prefix); err != nil {
			return nil, fmt.Errorf("open store: prefix: %w", err)
		}
		prefix += "/"
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("open store: parse the parameters of the s3 address: %w", err)
	}
	for name := range query {
		if !slices.Contains([]string{"endpoint", "region"}, name) {
			return nil, fmt.Errorf("open store: unknown parameter %q of an s3 address: there are endpoint and region", name)
		}
	}
	endpoint := query.Get("endpoint")
	if err := checkEndpoint(endpoint); err != nil {
		return nil, err
	}
	client, err := newS3Client(ctx, endpoint, query.Get("region"), o)
	if err != nil {
		return nil, err
	}
	return &S3{
		client: client,
		uploader: manager.NewUploader(client, func(m *manager.Uploader) { //nolint:staticcheck // its successor is not at version 1 yet
			m.PartSize = partBytes
			m.Concurrency = uploadConcurrency
		}),
		bucket:  u.Host,
		prefix:  prefix,
		address: s3Address(u.Host, prefix, client.Options()),
	}, nil
}

func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("open store: the endpoint of an s3 address is not an http or https URL, such as http://127.0.0.1:9000")
	}
	if u.User != nil {
		return errors.New("open store: the endpoint of an s3 address holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
	}
	return nil
}

func newS3Client(ctx context.Context, endpoint, region string, o options) (*s3.Client, error) {
	var load []func(*config.LoadOptions) error
	if region != "" {
		load = append(load, config.WithRegion(region))
	}
	if o.accessKey != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.accessKey, o.secretKey, "")))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("open store: load AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
	}
	return s3.NewFromConfig(cfg, func(so *s3.Options) {
		if o.httpClient != nil {
			// Not in the configuration, which would want to change it.
			so.HTTPClient = o.httpClient
		}
		if endpoint != "" {
			so.BaseEndpoint = &endpoint
		}
		if so.BaseEndpoint != nil {
			so.UsePathStyle = true
			// Not every server knows the newer checksums.
			so.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			so.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
	}), nil
}

func s3Address(bucket, prefix string, o s3.Options) string {
	query := url.Values{"region": {o.Region}}
	if o.BaseEndpoint != nil {
		query.Set("endpoint", *o.BaseEndpoint)
	}
	u := url.URL{Scheme: "s3", Host: bucket, RawQuery: query.Encode()}
	if prefix != "" {
		u.Path = "/" + strings.TrimSuffix(prefix, "/")
	}
	return u.String()
}

// Put implements Store. What is longer than 8 MiB goes up in parts; a Put
// holds less than 64 MiB of memory.
func (s *S3) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := CheckKey(key); err != nil {
		return 0, err
	}
	source := &sourceReader{ctx: ctx, r: r}
	var head bytes.Buffer
	n, err := io.CopyN(&head, source, partBytes)
	if source.err != nil {
		return 0, fmt.Errorf("put %q: read: %w", key, source.err)
	}
	if errors.Is(err, io.EOF) {
		return n, s.putObject(ctx, key, bytes.NewReader(head.Bytes()))
	}
	rest := &countingReader{r: source}
	err = s.upload(ctx, key, io.MultiReader(&head, rest))
	if source.err != nil {
		return 0, fmt.Errorf("put %q: read: %w", key, source.err)
	}
	if err != nil {
		return 0, err
	}
	return n + rest.n, nil
}

// PutFile implements Store. Only a regular file can be taken over.
func (s *S3) PutFile(ctx context.Context, key, path string) (int64, error) {
	if err := CheckKey(key); err != nil {
		return 0, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("put %q: %s is not a regular file", key, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	defer f.Close()
	if info.Size() <= partBytes {
		err = s.putObject(ctx, key, f)
	} else {
		err = s.upload(ctx, key, f)
	}
	if err != nil {
		return 0, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("put %q: remove the original: %w", key, err)
	}
	return info.Size(), nil
}

func (s *S3) putObject(ctx context.Context, key string, body io.ReadSeeker) error {
	_, err := s.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &s.bucket, Key: s.key(key), Body: body})
	if err != nil {
		return fmt.Errorf("put %q: %w", key, classifyS3(err))
	}
	return nil
}

func (s *S3) upload(ctx context.Context, key string, body io.Reader) error {
	_, err := s.uploader.Upload(ctx, &s3.PutObjectInput{Bucket: &s.bucket, Key: s.key(key), Body: body}) //nolint:staticcheck // its successor is not at version 1 yet
	if err == nil {
		return nil
	}
	var failure manager.MultiUploadFailure
	if ctx.Err() != nil && errors.As(err, &failure) && failure.UploadID() != "" {
		// The uploader aborts what fails, but it does so under ctx.
		abortCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		id := failure.UploadID()
		_, abortErr := s.client.AbortMultipartUpload(abortCtx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: s.key(key), UploadId: &id})
		if abortErr != nil {
			err = errors.Join(err, fmt.Errorf("abort the upload: %w", abortErr))
		}
	}
	return fmt.Errorf("put %q: %w", key, classifyS3(err))
}

// Get implements Store. A range that reaches past the end is cut there; one
// that starts at or past the end is empty.
func (s *S3) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: s.key(key)}
	switch {
	case offset < 0:
		return nil, fmt.Errorf("get %q: negative offset %d", key, offset)
	case length == 0:
		// HTTP has no empty range.
		if _, err := s.Stat(ctx, key); err != nil {
			return nil, err
		}
		return http.NoBody, nil
	case length > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, lastByte(offset, length)))
	case offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := s.client.GetObject(ctx, in)
	if httpStatus(err) == http.StatusRequestedRangeNotSatisfiable {
		return http.NoBody, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %q: %w", key, classifyS3(err))
	}
	return out.Body, nil
}

// lastByte is the offset of the last byte of a range, however long it is.
func lastByte(offset, length int64) int64 {
	const most = 1<<63 - 1
	if offset > most-length {
		return most
	}
	return offset + length - 1
}

// Stat implements Store.
func (s *S3) Stat(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: s.key(key)})
	if err != nil {
		return Info{}, fmt.Errorf("stat %q: %w", key, classifyS3(err))
	}
	return Info{
		Key:       key,
		SizeBytes: aws.ToInt64(out.ContentLength),
		Modified:  aws.ToTime(out.LastModified),
		ETag:      strings.Trim(aws.ToString(out.ETag), `"`),
	}, nil
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key)})
	if err == nil || apiCode(err) == "NoSuchKey" {
		return nil
	}
	return fmt.Errorf("delete %q: %w", key, classifyS3(err))
}

// List implements Store. It asks for 1000 objects at a time, leaves out those
// whose keys CheckKey refuses, and stops after an error.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: s.key(prefix)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(Info{}, fmt.Errorf("list %q: %w", prefix, classifyS3(err)))
				return
			}
			for _, o := range page.Contents {
				key, ok := strings.CutPrefix(aws.ToString(o.Key), s.prefix)
				if !ok || CheckKey(key) != nil {
					continue
				}
				info := Info{
					Key:       key,
					SizeBytes: aws.ToInt64(o.Size),
					Modified:  aws.ToTime(o.LastModified),
					ETag:      strings.Trim(aws.ToString(o.ETag), `"`),
				}
				if !yield(info, nil) {
					return
				}
			}
		}
	}
}

// URL implements Store.
func (s *S3) URL() string { return s.address }

// PresignGet implements Presigner. ttl is at most seven days. It does not look
// whether the object is there.
func (s *S3) PresignGet(ctx context.Context, key string, ttl time.Duration) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	if ttl < time.Second || ttl > sigv4.MaxExpires {
		return "", fmt.Errorf("presign %q: a time of %v is not between 1s and %v", key, ttl, sigv4.MaxExpires)
	}
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: s.key(key)}
	out, err := s3.NewPresignClient(s.client).PresignGetObject(ctx, in, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", fmt.Errorf("presign %q: %w", key, classifyS3(err))
	}
	return out.URL, nil
}

// key returns the key in the bucket.
func (s *S3) key(key string) *string {
	return aws.String(s.prefix + key)
}

// classifyS3 wraps err with the sentinel that callers decide on, if there is
// one.
func classifyS3(err error) error {
	code, status := apiCode(err), httpStatus(err)
	switch {
	case status == http.StatusInsufficientStorage, noSpaceCode(code):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case status == http.StatusForbidden, status == http.StatusUnauthorized, code == "AccessDenied":
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case code == "NoSuchUpload":
		return err // somebody has aborted this upload: that says nothing about the object
	case status == http.StatusNotFound, code == "NoSuchKey", code == "NoSuchBucket", code == "NotFound":
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// noSpaceCode reports whether an error code is one of those with which servers
// say that they are full; S3 itself never is.
func noSpaceCode(code string) bool {
	for _, part := range []string{"StorageFull", "InsufficientStorage", "QuotaExceeded", "NoSpace"} {
		if strings.Contains(code, part) {
			return true
		}
	}
	return false
}

// apiCode returns the S3 error code in err, or nothing.
func apiCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// httpStatus returns the status of the response in err, or 0.
func httpStatus(err error) int {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// countingReader counts the bytes read through it.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
