package store

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // S3 defines its ETag by it
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/johannesboyne/gofakes3"
)

// backend keeps the buckets of a Server in a directory:
//
//	buckets/BUCKET/KEY    the objects; each bucket is a Local store
//	metadata/BUCKET/KEY   what S3 tells of an object besides its bytes
//	uploads/ID/           the parts of an upload that is not complete
//
// An object without metadata, which somebody put into the directory by hand,
// is served all the same.
type backend struct {
	dir string
	// commits keeps an object and its metadata together.
	commits sync.Mutex
}

// metadata is the file that belongs to an object. It counts only while the
// object has the length and time in it.
type metadata struct {
	ETag       string            `json:"etag"` // without quotes
	SizeBytes  int64             `json:"size_bytes"`
	ModifiedNS int64             `json:"modified_ns"`
	Header     map[string]string `json:"header,omitempty"`
}

// session is the backend as one request sees it. It carries what cannot pass
// through the interfaces of gofakes3: the context in, and details of the
// response out.
type session struct {
	*backend
	ctx context.Context //nolint:containedctx // a session is one request
	// status, if not 0, is the HTTP status in place of a 500.
	status int
	// etag, if not empty, is the ETag that gofakes3 cannot express.
	etag string
	// broken is set when an object could not be read to its end.
	broken bool
}

var (
	_ gofakes3.Backend          = (*session)(nil)
	_ gofakes3.MultipartBackend = (*session)(nil)
)

func (b *backend) objects(bucket string) *Local {
	return &Local{root: filepath.Join(b.dir, "buckets", bucket)}
}

func (b *backend) metadata(bucket string) *Local {
	return &Local{root: filepath.Join(b.dir, "metadata", bucket)}
}

// makeBucket makes a bucket that may be there already.
func (b *backend) makeBucket(name string) error {
	if err := gofakes3.ValidateBucketName(name); err != nil {
		return fmt.Errorf("make bucket %q: %w", name, err)
	}
	if _, err := OpenLocal(b.objects(name).root); err != nil {
		return fmt.Errorf("make bucket %q: %w", name, err)
	}
	if _, err := OpenLocal(b.metadata(name).root); err != nil {
		return fmt.Errorf("make bucket %q: %w", name, err)
	}
	return nil
}

// ListBuckets implements gofakes3.Backend.
func (s *session) ListBuckets() ([]gofakes3.BucketInfo, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "buckets"))
	if err != nil {
		return nil, s.fail(err)
	}
	var buckets []gofakes3.BucketInfo
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || gofakes3.ValidateBucketName(e.Name()) != nil {
			continue
		}
		buckets = append(buckets, gofakes3.BucketInfo{Name: e.Name(), CreationDate: gofakes3.NewContentTime(info.ModTime())})
	}
	return buckets, nil
}

// BucketExists implements gofakes3.Backend.
func (s *session) BucketExists(name string) (bool, error) {
	if gofakes3.ValidateBucketName(name) != nil {
		return false, nil
	}
	info, err := os.Stat(s.objects(name).root)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, s.fail(err)
	}
	return info.IsDir(), nil
}

// CreateBucket implements gofakes3.Backend.
func (s *session) CreateBucket(name string) error {
	exists, err := s.BucketExists(name)
	if err != nil {
		return err
	}
	if exists {
		return gofakes3.ResourceError(gofakes3.ErrBucketAlreadyExists, name)
	}
	if err := s.makeBucket(name); err != nil {
		return s.fail(err)
	}
	return nil
}

// DeleteBucket implements gofakes3.Backend.
func (s *session) DeleteBucket(name string) error {
	s.commits.Lock()
	defer s.commits.Unlock()
	for _, err := range s.objects(name).List(s.ctx, "") {
		if err != nil {
			return s.fail(err)
		}
		return gofakes3.ResourceError(gofakes3.ErrBucketNotEmpty, name)
	}
	return s.removeBucket(name)
}

// ForceDeleteBucket implements gofakes3.Backend.
func (s *session) ForceDeleteBucket(name string) error {
	s.commits.Lock()
	defer s.commits.Unlock()
	return s.removeBucket(name)
}

func (s *session) removeBucket(name string) error {
	exists, err := s.BucketExists(name)
	if err != nil {
		return err
	}
	if !exists {
		return gofakes3.BucketNotFound(name)
	}
	if err := errors.Join(os.RemoveAll(s.objects(name).root), os.RemoveAll(s.metadata(name).root)); err != nil {
		return s.fail(err)
	}
	return nil
}

// ListBucket implements gofakes3.Backend.
func (s *session) ListBucket(bucket string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	if prefix == nil {
		prefix = &gofakes3.Prefix{}
	}
	limit := page.MaxKeys
	if limit <= 0 {
		limit = gofakes3.DefaultMaxBucketKeys
	}
	list := gofakes3.NewObjectList()
	w := walk{ctx: s.ctx, root: s.objects(bucket).root, prefix: prefix.Prefix}
	if page.HasMarker {
		w.after = page.Marker
		if prefix.HasDelimiter && strings.HasSuffix(page.Marker, prefix.Delimiter) {
			w.after = pastPrefix(page.Marker)
		}
	}
	var failed error
	last := ""
	w.yield = func(info Info, err error) bool {
		if err != nil {
			failed = err
			return false
		}
		if int64(len(list.Contents)+len(list.CommonPrefixes)) == limit {
			list.IsTruncated, list.NextMarker = true, last
			return false
		}
		if common, ok := commonPrefix(info.Key, prefix); ok {
			list.AddPrefix(common)
			last, w.after = common, pastPrefix(common)
			return true
		}
		list.Add(&gofakes3.Content{
			Key:          info.Key,
			LastModified: gofakes3.NewContentTime(info.Modified),
			ETag:         `"` + s.describe(bucket, info).ETag + `"`,
			Size:         info.SizeBytes,
		})
		last = info.Key
		return true
	}
	w.run()
	if failed != nil {
		return nil, s.fail(failed)
	}
	return list, nil
}

// commonPrefix returns key up to the first delimiter after the prefix.
func commonPrefix(key string, prefix *gofakes3.Prefix) (string, bool) {
	if !prefix.HasDelimiter {
		return "", false
	}
	i := strings.Index(key[len(prefix.Prefix):], prefix.Delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(prefix.Prefix)+i+len(prefix.Delimiter)], true
}

// pastPrefix returns a string that sorts after every key that starts with
// prefix: keys are UTF-8, which has no byte 0xff.
func pastPrefix(prefix string) string { return prefix + "\xff" }

// GetObject implements gofakes3.Backend.
func (s *session) GetObject(bucket, key string, ranged *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	f, info, err := s.objects(bucket).open(s.ctx, key)
	if err != nil {
		return nil, s.failRead(key, err)
	}
	object := s.object(bucket, info)
	object.Range, err = clampRange(ranged, info.SizeBytes).Range(info.SizeBytes)
	if err != nil {
		f.Close()
		return nil, err
	}
	length := info.SizeBytes
	if object.Range != nil {
		length = object.Range.Length
		if _, err := f.Seek(object.Range.Start, io.SeekStart); err != nil {
			f.Close()
			return nil, s.fail(err)
		}
	}
	object.Contents = &objectReader{s: s, f: f, left: length}
	return object, nil
}

// clampRange cuts a range at the object's size. gofakes3 does so too, but its
// sum overflows, and it refuses the last n bytes of an object that has fewer.
func clampRange(r *gofakes3.ObjectRangeRequest, size int64) *gofakes3.ObjectRangeRequest {
	if r == nil {
		return nil
	}
	clamped := *r
	switch {
	case r.FromEnd:
		clamped.End = min(r.End, size)
	case r.Start < size:
		clamped.End = min(r.End, size-1)
	}
	return &clamped
}

// HeadObject implements gofakes3.Backend.
func (s *session) HeadObject(bucket, key string) (*gofakes3.Object, error) {
	info, err := s.objects(bucket).Stat(s.ctx, key)
	if err != nil {
		return nil, s.failRead(key, err)
	}
	return s.object(bucket, info), nil
}

// object returns what S3 tells of an object, without its bytes.
func (s *session) object(bucket string, info Info) *gofakes3.Object {
	m := s.describe(bucket, info)
	s.etag = `"` + m.ETag + `"`
	header := map[string]string{"Last-Modified": info.Modified.UTC().Format(http.TimeFormat)}
	for name, value := range m.Header {
		header[name] = value
	}
	hash, _ := hex.DecodeString(m.ETag) // s.etag is right where this is not
	return &gofakes3.Object{Name: info.Key, Metadata: header, Size: info.SizeBytes, Contents: http.NoBody, Hash: hash}
}

// describe returns the metadata of an object, made up where there is none.
func (b *backend) describe(bucket string, info Info) metadata {
	var m metadata
	text, err := os.ReadFile(b.metadata(bucket).LocalPath(info.Key))
	if err == nil && json.Unmarshal(text, &m) == nil && m.SizeBytes == info.SizeBytes && m.ModifiedNS == info.Modified.UnixNano() {
		return m
	}
	return metadata{ETag: fmt.Sprintf("%x-%x", info.Modified.UnixNano(), info.SizeBytes)}
}

// PutObject implements gofakes3.Backend.
func (s *session) PutObject(bucket, key string, header map[string]string, input io.Reader, size int64, conditions *gofakes3.PutConditions) (gofakes3.PutObjectResult, error) {
	if err := CheckKey(key); err != nil {
		return gofakes3.PutObjectResult{}, s.fail(err)
	}
	sum := md5.New()
	temp, n, err := s.objects(bucket).stage(s.ctx, io.TeeReader(input, sum))
	if err != nil {
		return gofakes3.PutObjectResult{}, s.fail(err)
	}
	if n != size {
		os.Remove(temp)
		return gofakes3.PutObjectResult{}, gofakes3.ErrIncompleteBody
	}
	err = s.commitObject(bucket, key, temp, hex.EncodeToString(sum.Sum(nil)), header, conditions)
	return gofakes3.PutObjectResult{}, err
}

// commitObject makes the staged file at temp an object, or removes it.
func (s *session) commitObject(bucket, key, temp, etag string, header map[string]string, conditions *gofakes3.PutConditions) error {
	info, err := os.Stat(temp)
	if err != nil {
		return s.fail(err)
	}
	text, err := json.Marshal(metadata{ETag: etag, SizeBytes: info.Size(), ModifiedNS: info.ModTime().UnixNano(), Header: keptHeader(header)})
	if err != nil {
		os.Remove(temp)
		return s.fail(err)
	}
	about, _, err := s.metadata(bucket).stage(s.ctx, bytes.NewReader(text))
	if err != nil {
		os.Remove(temp)
		return s.fail(err)
	}
	s.commits.Lock()
	defer s.commits.Unlock()
	err = s.checkConditions(bucket, key, conditions)
	if err == nil {
		err = s.objects(bucket).commit(temp, key)
	}
	if err != nil {
		os.Remove(temp)
		os.Remove(about)
		return s.fail(err)
	}
	if err := s.metadata(bucket).commit(about, key); err != nil {
		// The object is whole; only its ETag is made up now.
		os.Remove(about)
	}
	return nil
}

// checkConditions returns the error for a Put whose conditions do not hold.
func (s *session) checkConditions(bucket, key string, conditions *gofakes3.PutConditions) error {
	if conditions == nil {
		return nil
	}
	info, err := s.objects(bucket).Stat(s.ctx, key)
	exists := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if conditions.IfNoneMatch != nil && exists {
		return gofakes3.ErrPreconditionFailed
	}
	if conditions.IfMatch != nil {
		if !exists || strings.Trim(*conditions.IfMatch, `"`) != s.describe(bucket, info).ETag {
			return gofakes3.ErrPreconditionFailed
		}
	}
	return nil
}

// keptHeader returns the headers of a Put that come back with the object. The
// others, among them the signature, are nobody else's business.
func keptHeader(header map[string]string) map[string]string {
	kept := map[string]string{}
	for name, value := range header {
		switch {
		case strings.HasPrefix(name, "X-Amz-Meta-"),
			name == "Content-Type", name == "Content-Disposition", name == "Content-Encoding":
			kept[name] = value
		}
	}
	return kept
}

// DeleteObject implements gofakes3.Backend.
func (s *session) DeleteObject(bucket, key string) (gofakes3.ObjectDeleteResult, error) {
	s.commits.Lock()
	defer s.commits.Unlock()
	if CheckKey(key) != nil {
		return gofakes3.ObjectDeleteResult{}, nil // there is no such object
	}
	err := s.objects(bucket).Delete(s.ctx, key)
	if err == nil {
		err = s.metadata(bucket).Delete(s.ctx, key)
	}
	if err != nil {
		return gofakes3.ObjectDeleteResult{}, s.fail(err)
	}
	return gofakes3.ObjectDeleteResult{}, nil
}

// DeleteMulti implements gofakes3.Backend.
func (s *session) DeleteMulti(bucket string, keys ...string) (gofakes3.MultiDeleteResult, error) {
	var result gofakes3.MultiDeleteResult
	for _, key := range keys {
		if _, err := s.DeleteObject(bucket, key); err != nil {
			failed := gofakes3.ErrorResultFromError(err)
			failed.Key = key
			result.Error = append(result.Error, failed)
			continue
		}
		result.Deleted = append(result.Deleted, gofakes3.ObjectID{Key: key})
	}
	return result, nil
}

// CopyObject implements gofakes3.Backend.
func (s *session) CopyObject(srcBucket, srcKey, dstBucket, dstKey string, header map[string]string) (gofakes3.CopyObjectResult, error) {
	f, info, err := s.objects(srcBucket).open(s.ctx, srcKey)
	if err != nil {
		return gofakes3.CopyObjectResult{}, s.failRead(srcKey, err)
	}
	defer f.Close()
	if _, err := s.PutObject(dstBucket, dstKey, header, f, info.SizeBytes, nil); err != nil {
		return gofakes3.CopyObjectResult{}, err
	}
	object, err := s.HeadObject(dstBucket, dstKey)
	if err != nil {
		return gofakes3.CopyObjectResult{}, err
	}
	result := gofakes3.CopyObjectResult{ETag: s.etag, LastModified: gofakes3.NewContentTime(time.Now())}
	if modified, err := http.ParseTime(object.Metadata["Last-Modified"]); err == nil {
		result.LastModified = gofakes3.NewContentTime(modified)
	}
	return result, nil
}

// objectReader reads an object for a response and notes when that fails, which
// after the header only the end of the connection can tell.
type objectReader struct {
	s    *session
	f    *os.File
	left int64
}

func (o *objectReader) Read(p []byte) (int, error) {
	if o.left == 0 {
		return 0, io.EOF
	}
	n, err := o.f.Read(p[:min(int64(len(p)), o.left)])
	o.left -= int64(n)
	if err == io.EOF && o.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		o.s.broken = true
	}
	return n, err
}

func (o *objectReader) Close() error { return o.f.Close() }

// failRead is fail where a key that cannot be one is an object that is not
// there.
func (s *session) failRead(key string, err error) error {
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrBadKey) {
		return gofakes3.KeyNotFound(key)
	}
	return s.fail(err)
}

// fail turns err into one that gofakes3 answers a client with.
func (s *session) fail(err error) error {
	var code gofakes3.ErrorCode
	var response *gofakes3.ErrorResponse
	switch {
	case errors.As(err, &response):
		return response
	case errors.As(err, &code):
		return code
	case errors.Is(err, ErrNoSpace):
		s.status = http.StatusInsufficientStorage
		return gofakes3.ErrorMessage("InsufficientStorage", "the server's disk is full")
	case errors.Is(err, ErrPermission):
		s.status = http.StatusForbidden
		return gofakes3.ErrorMessage(codeAccessDenied, "the server may not do this in its own directory")
	case errors.Is(err, ErrBadKey):
		return gofakes3.ErrorMessage(gofakes3.ErrInvalidArgument, err.Error())
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTEMPTY):
		return gofakes3.ErrorMessage(gofakes3.ErrInvalidArgument, "this server keeps objects as files: a key cannot be both an object and the folder of others")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return gofakes3.ErrIncompleteBody
	}
	return gofakes3.ErrorMessage(gofakes3.ErrInternal, err.Error())
}
