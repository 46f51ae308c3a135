package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/internal/testenv"
)

func TestServerRefusesWhoeverHasNotTheKey(t *testing.T) {
	srv := startServer(t, t.TempDir())
	accessKey, secretKey := srv.Credentials()
	for name, keys := range map[string][2]string{
		"a wrong secret key": {accessKey, secretKey + "x"},
		"a wrong access key": {accessKey + "x", secretKey},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.Context(), srv.URL(), WithCredentials(keys[0], keys[1]), WithHTTPClient(httpClient(t)))
			if err != nil {
				t.Fatal(err)
			}
			_, putErr := s.Put(t.Context(), "key", strings.NewReader("x"))
			_, getErr := s.Get(t.Context(), "key", 0, -1)
			_, statErr := s.Stat(t.Context(), "key")
			for _, err := range []error{putErr, getErr, statErr, s.Delete(t.Context(), "key")} {
				if !errors.Is(err, ErrPermission) {
					t.Errorf("%v; want ErrPermission", err)
				}
			}
			for _, err := range s.List(t.Context(), "") {
				if !errors.Is(err, ErrPermission) {
					t.Errorf("list: %v; want ErrPermission", err)
				}
			}
			address, err := s.(Presigner).PresignGet(t.Context(), "key", time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if status, _ := fetch(t, address, ""); status != http.StatusForbidden {
				t.Errorf("presigned: %d", status)
			}
		})
	}
	for _, path := range []string{"/", "/volley", "/volley/key"} {
		if status, _ := fetch(t, srv.Endpoint()+path, ""); status != http.StatusForbidden {
			t.Errorf("unsigned %s: %d", path, status)
		}
	}
}

func TestServerRefusesOldSignatures(t *testing.T) {
	srv := startServer(t, t.TempDir())
	s := openServer(t, srv, "p")
	put(t, s, "key", "x")
	address, err := s.(Presigner).PresignGet(t.Context(), "key", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	accessKey, secretKey := srv.Credentials()
	for _, c := range []struct {
		name string
		by   time.Duration
		want bool
	}{
		{"at once", 0, true},
		{"after the address has expired", 2 * time.Minute, false},
		{"long before it was signed", -time.Hour, false},
	} {
		v := sigv4.New(sigv4.Options{
			Service: "s3", Keys: sigv4.Static{accessKey: secretKey},
			Now: func() time.Time { return time.Now().Add(c.by) },
		})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if refused := verify(v, req); (refused == nil) != c.want {
			t.Errorf("%s: %+v", c.name, refused)
		}
	}
}

// tamper changes the body of a request after it has been signed.
type tamper struct{ http.RoundTripper }

func (tr tamper) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	body[0] ^= 1
	r.Body = io.NopCloser(bytes.NewReader(body))
	return tr.RoundTripper.RoundTrip(r)
}

func TestServerRefusesABodyThatWasNotSigned(t *testing.T) {
	srv := startServer(t, t.TempDir())
	client := httpClient(t)
	client.Transport = tamper{client.Transport}
	s, err := Open(t.Context(), srv.URL(), WithCredentials(srv.Credentials()), WithHTTPClient(client))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "key", strings.NewReader("content")); err == nil {
		t.Error("a changed body is accepted")
	}
	wantAbsent(t, openServer(t, srv, "p"), "key")
}

func TestServerKeepsObjectsAndUploadsOverARestart(t *testing.T) {
	dir := t.TempDir()
	first := startServer(t, dir)
	put(t, openServer(t, first, "p"), "key", "x")
	client := openServer(t, first, "p").(*S3).client
	begun, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: aws.String("volley"), Key: aws.String("big"), ContentType: aws.String("video/mp4"),
	})
	if err != nil {
		t.Fatal(err)
	}
	sent, err := client.UploadPart(t.Context(), &s3.UploadPartInput{
		Bucket: aws.String("volley"), Key: aws.String("big"), UploadId: begun.UploadId, PartNumber: aws.Int32(1), Body: strings.NewReader("part"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := startServer(t, dir)
	s := openServer(t, second, "p")
	if got := get(t, s, "key", 0, -1); got != "x" {
		t.Errorf("got %q", got)
	}
	client = s.(*S3).client
	done, err := client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: aws.String("volley"), Key: aws.String("big"), UploadId: begun.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{{PartNumber: aws.Int32(1), ETag: sent.ETag}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	head, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("volley"), Key: aws.String("big")})
	if err != nil {
		t.Fatal(err)
	}
	if aws.ToString(head.ETag) != aws.ToString(done.ETag) || aws.ToString(head.ContentType) != "video/mp4" || aws.ToInt64(head.ContentLength) != 4 {
		t.Errorf("head: %s %s %d; completed as %s", *head.ETag, *head.ContentType, *head.ContentLength, *done.ETag)
	}
}

func TestServerListsFolders(t *testing.T) {
	srv := startServer(t, t.TempDir())
	s := openServer(t, srv, "p").(*S3)
	for _, key := range []string{"a/1", "a/2", "b", "c/1", "c/2/3", "d"} {
		put(t, s, key, "")
	}
	for _, pageSize := range []int32{1, 2, 100} {
		var got []string
		pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{
			Bucket: aws.String("volley"), Prefix: aws.String("p/"), Delimiter: aws.String("/"), MaxKeys: aws.Int32(pageSize),
		})
		for pages.HasMorePages() {
			page, err := pages.NextPage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page.Contents {
				got = append(got, *o.Key)
			}
			for _, p := range page.CommonPrefixes {
				got = append(got, *p.Prefix)
			}
		}
		slices.Sort(got)
		if want := []string{"p/a/", "p/b", "p/c/", "p/d"}; !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v, want %v", pageSize, got, want)
		}
	}
}

func TestServerHonoursConditionsAndKeepsMetadata(t *testing.T) {
	srv := startServer(t, t.TempDir())
	client := openServer(t, srv, "p").(*S3).client
	in := func(body string) *s3.PutObjectInput {
		return &s3.PutObjectInput{
			Bucket: aws.String("volley"), Key: aws.String("key"), Body: strings.NewReader(body),
			ContentType: aws.String("text/plain"), Metadata: map[string]string{"who": "me"},
		}
	}
	fresh := in("1")
	fresh.IfNoneMatch = aws.String("*")
	out, err := client.PutObject(t.Context(), fresh)
	if err != nil {
		t.Fatal(err)
	}
	fresh.Body = strings.NewReader("2")
	if _, err := client.PutObject(t.Context(), fresh); apiCode(err) != "PreconditionFailed" {
		t.Errorf("second put if absent: %v", err)
	}
	same := in("3")
	same.IfMatch = out.ETag
	if _, err := client.PutObject(t.Context(), same); err != nil {
		t.Error(err)
	}
	same.Body = strings.NewReader("4")
	if _, err := client.PutObject(t.Context(), same); apiCode(err) != "PreconditionFailed" {
		t.Errorf("put if unchanged: %v", err)
	}
	_, err = client.CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: aws.String("volley"), Key: aws.String("copy"), CopySource: aws.String("volley/key"),
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("volley"), Key: aws.String("copy")})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	if err != nil || string(body) != "3" || aws.ToString(got.ContentType) != "text/plain" || got.Metadata["who"] != "me" {
		t.Errorf("copy: %q %s %v %v", body, aws.ToString(got.ContentType), got.Metadata, err)
	}
	deleted, err := client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{
		Bucket: aws.String("volley"),
		Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String("key")}, {Key: aws.String("copy")}}},
	})
	if err != nil || len(deleted.Deleted) != 2 {
		t.Errorf("DeleteObjects: %+v, %v", deleted, err)
	}
}

func TestServerWithAFullDiskIsErrNoSpace(t *testing.T) {
	dir := testenv.MountTmpfs(t, 2<<20)
	srv := startServer(t, dir)
	s := openServer(t, srv, "p")
	put(t, s, "kept", "old")
	for _, size := range []int64{4 << 20, 20 << 20} {
		if _, err := s.Put(t.Context(), "kept", io.LimitReader(zeros{}, size)); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%d bytes: %v; want ErrNoSpace", size, err)
		}
	}
	if got := get(t, s, "kept", 0, -1); got != "old" {
		t.Errorf("the old object has %d bytes now", len(got))
	}
	noLeftovers(t, filepath.Join(srv.backend.objects("volley").root, tempDir))
}

func TestServerEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	srv, err := StartServer(ctx, ServerConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for range 2 {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}
	if res, err := httpClient(t).Get(srv.Endpoint()); err == nil {
		res.Body.Close()
		t.Error("the server still answers")
	}
}

func TestServerNeedsASensibleConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]ServerConfig{
		"no directory":         {},
		"a file":               {Dir: file},
		"half a pair of keys":  {Dir: dir, AccessKey: "a"},
		"a bad bucket name":    {Dir: dir, Buckets: []string{"../x"}},
		"a bad listen address": {Dir: dir, Addr: "nowhere"},
	} {
		if srv, err := StartServer(t.Context(), c); err == nil {
			srv.Close()
			t.Errorf("%s is accepted", name)
		}
	}
}

// chunk writes one chunk of a signed aws-chunked body and returns its
// signature.
func chunk(b *strings.Builder, c chain, previous, content string) string {
	signature := c.sign("AWS4-HMAC-SHA256-PAYLOAD\n" + c.timestamp + "\n" + c.scope + "\n" + previous + "\n" + sigv4.EmptySHA256 + "\n" + hexSHA256(content))
	fmt.Fprintf(b, "%x;chunk-signature=%s\r\n%s\r\n", len(content), signature, content)
	return signature
}

func TestChunkedBodies(t *testing.T) {
	c := chain{
		timestamp: "20260102T030405Z", scope: "20260102/r/s3/aws4_request", previous: "seed",
		sign: func(text string) string { return hexSHA256("a secret" + text) },
	}
	var body strings.Builder
	chunk(&body, c, chunk(&body, c, chunk(&body, c, "seed", "hello "), "world"), "")
	whole := body.String()
	const signed, unsigned = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	for _, tc := range []struct {
		name    string
		payload string
		body    string
		want    string // empty: an error
	}{
		{"signed chunks", signed, whole, "hello world"},
		{"a changed chunk", signed, strings.Replace(whole, "world", "w0rld", 1), ""},
		{"a cut body", signed, whole[:len(whole)/2], ""},
		{"no last chunk", signed, whole[:strings.LastIndex(whole, "0;")], ""},
		{"chunks without signatures", signed, "b\r\nhello world\r\n0\r\n\r\n", ""},
		{"unsigned chunks and a trailer", unsigned, "6\r\nhello \r\n5\r\nworld\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n", "hello world"},
		{"less than announced", unsigned, "5\r\nhello\r\n0\r\n\r\n", ""},
		{"more than announced", unsigned, "c\r\nhello world!\r\n0\r\n\r\n", ""},
		{"a size that is none", unsigned, "-5\r\nhello\r\n", ""},
		{"an endless line", unsigned, strings.Repeat("0", 10000), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://h/b/k", strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Amz-Decoded-Content-Length", "11")
			r.Header.Set("Content-Encoding", "aws-chunked")
			if refused := chunkedBody(r, tc.payload, c); refused != nil {
				t.Fatal(refused.message)
			}
			got, err := io.ReadAll(r.Body)
			if (err == nil) != (tc.want != "") || (err == nil && string(got) != tc.want) {
				t.Errorf("%q, %v; want %q", got, err, tc.want)
			}
			if r.ContentLength != 11 || r.Header.Get("Content-Encoding") != "" {
				t.Error("the headers still tell of chunks")
			}
		})
	}
}

func FuzzChunkedBody(f *testing.F) {
	f.Add("5\r\nhello\r\n0\r\n\r\n", int64(5))
	f.Add("5;chunk-signature=00\r\nhello\r\n0\r\nx:y\r\n\r\n", int64(5))
	f.Add("ffffffffffffffff\r\n", int64(1))
	f.Fuzz(func(t *testing.T, body string, size int64) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://h/b/k", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Decoded-Content-Length", fmt.Sprint(size))
		if chunkedBody(r, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", chain{}) != nil {
			return
		}
		got, err := io.ReadAll(r.Body)
		if err == nil && int64(len(got)) != size {
			t.Errorf("%d bytes without an error, want %d", len(got), size)
		}
	})
}

func TestEveryProblemOfASignatureHasAnErrorOfS3(t *testing.T) {
	for p := sigv4.Unsigned; p <= sigv4.Mismatch; p++ {
		if r, ok := refusals[p]; !ok || r.status < 400 || r.code == "" {
			t.Errorf("problem %d: %+v", p, r)
		}
	}
}
