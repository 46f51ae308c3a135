package store

import (
	"cmp"
	"crypto/md5" //nolint:gosec // S3 defines its ETag by it
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/johannesboyne/gofakes3"
)

// uploadFile is the file in an upload's folder that says what it is for. The
// parts beside it are named NUMBER-MD5.
const uploadFile = "upload.json"

// uploadStaleAfter is the age at which nobody will complete an upload.
const uploadStaleAfter = 7 * 24 * time.Hour

// upload is the content of uploadFile.
type upload struct {
	Bucket    string            `json:"bucket"`
	Key       string            `json:"key"`
	Initiated time.Time         `json:"initiated"`
	Header    map[string]string `json:"header,omitempty"`
}

// part is an uploaded part.
type part struct {
	number   int
	md5      string
	path     string
	bytes    int64
	modified time.Time
}

func (b *backend) uploads() string { return filepath.Join(b.dir, "uploads") }

// removeStale removes uploads that nobody has added to for a week, and what
// killed processes left in the buckets. What it cannot remove stays.
func (b *backend) removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(b.uploads(), "*"))
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > uploadStaleAfter {
			os.RemoveAll(dir)
		}
	}
	for _, kind := range []string{"buckets", "metadata"} {
		roots, _ := filepath.Glob(filepath.Join(b.dir, kind, "*"))
		for _, root := range roots {
			(&Local{root: root}).removeStale()
		}
	}
}

// CreateMultipartUpload implements gofakes3.MultipartBackend.
func (s *session) CreateMultipartUpload(bucket, key string, header map[string]string) (gofakes3.UploadID, error) {
	if err := CheckKey(key); err != nil {
		return "", s.fail(err)
	}
	text, err := json.Marshal(upload{Bucket: bucket, Key: key, Initiated: time.Now(), Header: keptHeader(header)})
	if err != nil {
		return "", s.fail(err)
	}
	id := rand.Text()
	dir := filepath.Join(s.uploads(), id)
	err = os.MkdirAll(dir, 0o777)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, uploadFile), text, 0o666)
	}
	if err != nil {
		return "", s.fail(errors.Join(classify(err), os.RemoveAll(dir)))
	}
	return gofakes3.UploadID(id), nil
}

// find returns an upload and the folder of its parts.
func (s *session) find(bucket, key string, id gofakes3.UploadID) (upload, string, error) {
	u, dir, err := s.load(string(id))
	if err != nil {
		return upload{}, "", err
	}
	if u.Bucket != bucket || u.Key != key {
		return upload{}, "", gofakes3.ErrNoSuchUpload
	}
	return u, dir, nil
}

func (s *session) load(id string) (upload, string, error) {
	if id == "" || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" { // the letters of rand.Text
		return upload{}, "", gofakes3.ErrNoSuchUpload
	}
	dir := filepath.Join(s.uploads(), id)
	text, err := os.ReadFile(filepath.Join(dir, uploadFile))
	if errors.Is(err, fs.ErrNotExist) {
		return upload{}, "", gofakes3.ErrNoSuchUpload
	}
	var u upload
	if err == nil {
		err = json.Unmarshal(text, &u)
	}
	if err != nil {
		return upload{}, "", s.fail(err)
	}
	return u, dir, nil
}

// UploadPart implements gofakes3.MultipartBackend.
func (s *session) UploadPart(bucket, key string, id gofakes3.UploadID, number int, size int64, input io.Reader) (string, error) {
	_, dir, err := s.find(bucket, key, id)
	if err != nil {
		return "", err
	}
	sum := md5.New()
	temp, n, err := s.objects(bucket).stage(s.ctx, io.TeeReader(input, sum))
	if err != nil {
		return "", s.fail(err)
	}
	if n != size {
		os.Remove(temp)
		return "", gofakes3.ErrIncompleteBody
	}
	etag := hex.EncodeToString(sum.Sum(nil))
	s.commits.Lock()
	defer s.commits.Unlock()
	old, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%05d-*", number)))
	if err == nil {
		err = os.Rename(temp, filepath.Join(dir, fmt.Sprintf("%05d-%s", number, etag)))
	}
	if errors.Is(err, fs.ErrNotExist) {
		os.Remove(temp)
		return "", gofakes3.ErrNoSuchUpload // aborted meanwhile
	}
	if err != nil {
		os.Remove(temp)
		return "", s.fail(classify(err))
	}
	for _, path := range old {
		if !strings.HasSuffix(path, etag) {
			os.Remove(path)
		}
	}
	return `"` + etag + `"`, nil
}

// parts returns the parts in an upload's folder in the order of their numbers.
func parts(dir string) ([]part, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []part
	for _, e := range entries {
		numberText, sum, ok := strings.Cut(e.Name(), "-")
		number, err := strconv.Atoi(numberText)
		if !ok || err != nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		found = append(found, part{number, sum, filepath.Join(dir, e.Name()), info.Size(), info.ModTime()})
	}
	slices.SortFunc(found, func(a, b part) int { return cmp.Compare(a.number, b.number) })
	return found, nil
}

// CompleteMultipartUpload implements gofakes3.MultipartBackend.
func (s *session) CompleteMultipartUpload(bucket, key string, id gofakes3.UploadID, input *gofakes3.CompleteMultipartUploadRequest) (gofakes3.VersionID, string, error) {
	u, dir, err := s.find(bucket, key, id)
	if err != nil {
		return "", "", err
	}
	have, err := parts(dir)
	if err != nil {
		return "", "", s.fail(err)
	}
	chosen, err := choose(have, input.Parts)
	if err != nil {
		return "", "", err
	}
	content := &partsReader{parts: chosen}
	defer content.Close()
	temp, _, err := s.objects(bucket).stage(s.ctx, content)
	if err != nil {
		return "", "", s.fail(err)
	}
	etag := combinedETag(chosen)
	if err := s.commitObject(bucket, key, temp, etag, u.Header, nil); err != nil {
		return "", "", err
	}
	// The object is there; parts that cannot be removed only take space.
	os.RemoveAll(dir)
	return "", `"` + etag + `"`, nil
}

// choose returns the parts that the client wants, in its order.
func choose(have []part, want []gofakes3.CompletedPart) ([]part, error) {
	if len(want) == 0 {
		return nil, gofakes3.ErrorMessage(gofakes3.ErrMalformedXML, "an upload has at least one part")
	}
	var chosen []part
	for i, w := range want {
		if i > 0 && w.PartNumber <= want[i-1].PartNumber {
			return nil, gofakes3.ErrInvalidPartOrder
		}
		at := slices.IndexFunc(have, func(p part) bool {
			return p.number == w.PartNumber && p.md5 == strings.Trim(w.ETag, `"`)
		})
		if at < 0 {
			return nil, gofakes3.ErrorMessagef(gofakes3.ErrInvalidPart, "part %d has not been uploaded, or has another ETag", w.PartNumber)
		}
		chosen = append(chosen, have[at])
	}
	return chosen, nil
}

// combinedETag is the ETag that S3 gives an object of several parts.
func combinedETag(chosen []part) string {
	all := md5.New()
	for _, p := range chosen {
		sum, _ := hex.DecodeString(p.md5) // UploadPart has written it
		all.Write(sum)
	}
	return fmt.Sprintf("%x-%d", all.Sum(nil), len(chosen))
}

// partsReader reads parts one after the other.
type partsReader struct {
	parts []part
	f     *os.File
}

func (r *partsReader) Read(p []byte) (int, error) {
	for {
		if r.f == nil {
			if len(r.parts) == 0 {
				return 0, io.EOF
			}
			f, err := os.Open(r.parts[0].path)
			if err != nil {
				return 0, err
			}
			r.f, r.parts = f, r.parts[1:]
		}
		n, err := r.f.Read(p)
		if err != io.EOF {
			return n, err
		}
		r.f.Close()
		r.f = nil
		if n > 0 {
			return n, nil
		}
	}
}

// Close closes the part that is being read.
func (r *partsReader) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// AbortMultipartUpload implements gofakes3.MultipartBackend.
func (s *session) AbortMultipartUpload(bucket, key string, id gofakes3.UploadID) error {
	_, dir, err := s.find(bucket, key, id)
	if err != nil {
		return err
	}
	s.commits.Lock()
	defer s.commits.Unlock()
	if err := os.RemoveAll(dir); err != nil {
		return s.fail(classify(err))
	}
	return nil
}

// ListParts implements gofakes3.MultipartBackend.
func (s *session) ListParts(bucket, key string, id gofakes3.UploadID, marker int, limit int64) (*gofakes3.ListMultipartUploadPartsResult, error) {
	_, dir, err := s.find(bucket, key, id)
	if err != nil {
		return nil, err
	}
	have, err := parts(dir)
	if err != nil {
		return nil, s.fail(err)
	}
	result := &gofakes3.ListMultipartUploadPartsResult{Bucket: bucket, Key: key, UploadID: id, PartNumberMarker: marker, MaxParts: limit}
	for _, p := range have {
		if p.number <= marker {
			continue
		}
		if int64(len(result.Parts)) >= limit {
			result.IsTruncated = true
			break
		}
		result.NextPartNumberMarker = p.number
		result.Parts = append(result.Parts, gofakes3.ListMultipartUploadPartItem{
			PartNumber:   p.number,
			LastModified: gofakes3.NewContentTime(p.modified),
			ETag:         `"` + p.md5 + `"`,
			Size:         p.bytes,
		})
	}
	return result, nil
}

// ListMultipartUploads implements gofakes3.MultipartBackend. It gives no
// common prefixes.
func (s *session) ListMultipartUploads(bucket string, marker *gofakes3.UploadListMarker, prefix gofakes3.Prefix, limit int64) (*gofakes3.ListMultipartUploadsResult, error) {
	entries, err := os.ReadDir(s.uploads())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, s.fail(err)
	}
	result := &gofakes3.ListMultipartUploadsResult{Bucket: bucket, Prefix: prefix.Prefix, MaxUploads: limit}
	var items []gofakes3.ListMultipartUploadItem
	for _, e := range entries {
		u, _, err := s.load(e.Name())
		if err != nil || u.Bucket != bucket || !strings.HasPrefix(u.Key, prefix.Prefix) {
			continue // not of this listing, or gone meanwhile
		}
		items = append(items, gofakes3.ListMultipartUploadItem{
			Key:       u.Key,
			UploadID:  gofakes3.UploadID(e.Name()),
			Initiated: gofakes3.NewContentTime(u.Initiated),
		})
	}
	slices.SortFunc(items, func(a, b gofakes3.ListMultipartUploadItem) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(string(a.UploadID), string(b.UploadID)))
	})
	for _, item := range items {
		if marker != nil && !follows(item, marker) {
			continue
		}
		if int64(len(result.Uploads)) >= limit {
			result.IsTruncated = true
			break
		}
		result.NextKeyMarker, result.NextUploadIDMarker = item.Key, item.UploadID
		result.Uploads = append(result.Uploads, item)
	}
	return result, nil
}

// follows reports whether item comes after marker in a listing.
func follows(item gofakes3.ListMultipartUploadItem, marker *gofakes3.UploadListMarker) bool {
	if item.Key == marker.Object {
		return marker.UploadID != "" && item.UploadID > marker.UploadID
	}
	return item.Key > marker.Object
}
