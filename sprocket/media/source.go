// Package media knows containers, codecs, groups of pictures, DASH and HLS: it
// finds out what a video input holds without decoding it, and packs encoded
// chunks so that they can be played.
//
// OpenSource and Probe are the input side: where an input lies, and where its
// frames and key frames are, by the container's index alone where there is one.
package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// Source is an input opened for reading at any place: a file, a web address or
// an object in S3. Reads of remote inputs go through a small cache and are
// retried. All methods may be called concurrently, except Close.
type Source struct {
	name     string
	size     int64
	identity string
	origin   origin
	cache    *blockCache // nil for local files
	ctx      context.Context
	cancel   context.CancelFunc
	read     atomic.Int64
}

// origin is where a Source's bytes come from. Its errors are InputErrors.
type origin interface {
	// fetch fills p with the bytes from off on; the range lies inside the input.
	fetch(ctx context.Context, p []byte, off int64) error
	// address is what FFmpeg opens.
	address(ctx context.Context) (string, error)
	close() error
}

// OpenSource opens an input for reading. uri is a path, or an address:
//
//	file:///films/a.mp4
//	https://host/a.mp4                 the server must serve byte ranges
//	s3://bucket/key?region=eu-west-1   the query goes to store.Open
//
// ctx bounds the opening and every read until Close. The errors are
// *InputError, or ctx's.
func OpenSource(ctx context.Context, uri string) (*Source, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := openSource(ctx, uri)
	if err != nil {
		cancel()
		return nil, err
	}
	s.ctx, s.cancel = ctx, cancel
	if s.size == 0 {
		s.Close()
		return nil, emptyInput(s.name)
	}
	return s, nil
}

func openSource(ctx context.Context, uri string) (*Source, error) {
	scheme, rest, found := strings.Cut(uri, "://")
	if !found || strings.ContainsAny(scheme, "/\\ ") {
		return openFile(uri, uri)
	}
	switch strings.ToLower(scheme) {
	case "file":
		path, err := url.PathUnescape(strings.TrimPrefix(rest, "localhost"))
		if err != nil || !strings.HasPrefix(path, "/") {
			return nil, &InputError{Input: uri, Kind: Unsupported, Err: errors.New("not a valid file address"),
				Remedy: "write file:///absolute/path, or the path alone"}
		}
		return openFile(uri, path)
	case "http", "https", "s3":
	default:
		return nil, &InputError{Input: publicName(uri), Kind: Unsupported,
			Err:    fmt.Errorf("addresses that start with %q cannot be read", scheme+"://"),
			Remedy: "give a file, or an http://, https:// or s3:// address"}
	}
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		return nil, &InputError{Input: publicName(uri), Kind: Unsupported,
			Err: errors.New("not a valid address"), Remedy: "check its spelling"}
	}
	if strings.EqualFold(scheme, "s3") {
		return openObject(ctx, u)
	}
	return openHTTP(ctx, u)
}

// publicName cuts user, password and query string off an address that may not
// even be valid.
func publicName(uri string) string {
	uri, _, _ = strings.Cut(uri, "?")
	uri, _, _ = strings.Cut(uri, "#")
	scheme, rest, found := strings.Cut(uri, "://")
	if !found {
		return uri
	}
	host, path, slash := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(host, '@'); at >= 0 {
		host = host[at+1:]
	}
	if slash {
		path = "/" + path
	}
	return scheme + "://" + host + path
}

func emptyInput(name string) error {
	return &InputError{Input: name, Kind: Empty, Err: errors.New("has no content (0 bytes)"),
		Remedy: "check that it was copied or uploaded completely"}
}

// Size returns the input's length in bytes.
func (s *Source) Size() int64 { return s.size }

// Name returns what to call the input in messages: the path, or the address
// without user, password and query string.
func (s *Source) Name() string { return s.name }

// Identity returns a text that changes when the input's content does: its size
// and its ETag or time of modification, as far as there are any.
func (s *Source) Identity() string { return s.identity }

// BytesRead returns how many bytes were fetched from where the input lies,
// without those that FFmpeg reads by itself.
func (s *Source) BytesRead() int64 { return s.read.Load() }

// FFmpegURL returns what FFmpeg programs open to read the input: "file:" and
// an absolute path, a web address, or a presigned address that is good for
// twelve hours. It may hold secrets: it must not be logged.
func (s *Source) FFmpegURL(ctx context.Context) (string, error) { return s.origin.address(ctx) }

// Close ends all reads and releases the input. It may be called again.
func (s *Source) Close() error {
	s.cancel()
	return s.origin.close()
}

// ReadAt implements io.ReaderAt. The errors are io.EOF, *InputError and those
// of OpenSource's context.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset %d", s.name, off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	var short error
	if rest := s.size - off; int64(len(p)) > rest {
		p, short = p[:rest], io.EOF
	}
	var err error
	if s.cache == nil {
		err = s.fetch(p, off)
	} else {
		err = s.cache.readAt(p, off, s.size, s.fetch)
	}
	if err != nil {
		return 0, err
	}
	return len(p), short
}

func (s *Source) fetch(p []byte, off int64) error {
	if err := s.ctx.Err(); err != nil {
		return fmt.Errorf("read %s: %w", s.name, err)
	}
	if err := s.origin.fetch(s.ctx, p, off); err != nil {
		return err
	}
	s.read.Add(int64(len(p)))
	return nil
}

// fileOrigin is a file of this machine.
type fileOrigin struct {
	file *os.File
	name string
	path string
}

func openFile(name, path string) (*Source, error) {
	// A look before opening: opening a named pipe would wait for a writer.
	st, err := os.Stat(path)
	if err != nil {
		return nil, fileError(name, err)
	}
	if !st.Mode().IsRegular() {
		what := "is not a regular file"
		if st.IsDir() {
			what = "is a directory"
		}
		return nil, &InputError{Input: name, Kind: Unsupported, Err: errors.New(what),
			Remedy: "name one video file"}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fileError(name, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(name, err)
	}
	return &Source{
		name:     name,
		size:     st.Size(),
		identity: fmt.Sprintf("%d bytes, %d ns", st.Size(), st.ModTime().UnixNano()),
		origin:   &fileOrigin{file: f, name: name, path: abs},
	}, nil
}

func (o *fileOrigin) fetch(_ context.Context, p []byte, off int64) error {
	_, err := o.file.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return &InputError{Input: o.name, Kind: Truncated, Err: errors.New("became shorter while it was read"),
			Remedy: "wait until nothing writes to it, and start again"}
	}
	if err != nil {
		return fileError(o.name, err)
	}
	return nil
}

// address puts "file:" in front so that no name is taken for an option or for
// another protocol.
func (o *fileOrigin) address(context.Context) (string, error) { return "file:" + o.path, nil }

func (o *fileOrigin) close() error {
	if err := o.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close input: %w", err)
	}
	return nil
}

func fileError(name string, err error) error {
	e := &InputError{Input: name, Kind: Unreachable, Err: err}
	var pe *os.PathError
	if errors.As(err, &pe) {
		e.Err = pe.Err // the name is said already
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.Kind, e.Remedy, e.Err = NotFound, "check the path", os.ErrNotExist
	case errors.Is(err, os.ErrPermission):
		e.Kind, e.Remedy = Permission, "check the permissions of the file and its directories"
	}
	return e
}
