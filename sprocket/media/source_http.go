package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	fetchTries = 3
	// fetchTimeout bounds one try to read at most 4 MiB.
	fetchTimeout = 60 * time.Second
	firstBackoff = 100 * time.Millisecond
)

// httpOrigin is a web address whose server serves byte ranges.
type httpOrigin struct {
	client *http.Client
	url    *url.URL
	name   string
	// size and etag are those of the first answer: a later one that differs is
	// of another file.
	size int64
	etag string
}

func openHTTP(ctx context.Context, u *url.URL) (*Source, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	o := &httpOrigin{
		client: &http.Client{Transport: transport},
		url:    u,
		name:   publicName(u.String()),
	}
	head, modified, err := o.open(ctx)
	if err != nil {
		o.close()
		return nil, err
	}
	s := &Source{name: o.name, size: o.size, origin: o, cache: newBlockCache()}
	s.identity = fmt.Sprintf("%d bytes", o.size)
	if o.etag != "" {
		s.identity += ", ETag " + o.etag
	} else if modified != "" {
		s.identity += ", " + modified
	}
	s.read.Add(int64(len(head)))
	s.cache.split(0, head)
	return s, nil
}

// open asks for the first block, learns the size from the answer and returns
// the block and when the server says the input was modified.
func (o *httpOrigin) open(ctx context.Context) (head []byte, modified string, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		resp, err := o.get(ctx, 0, blockBytes)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusPartialContent && resp.ContentLength == 0 {
			return emptyInput(o.name)
		}
		_, size, err := o.checkRange(resp, 0)
		if err != nil {
			return err
		}
		o.size, o.etag, modified = size, resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
		head = make([]byte, min(size, blockBytes))
		return o.fill(resp, head)
	})
	return head, modified, err
}

func (o *httpOrigin) fetch(ctx context.Context, p []byte, off int64) error {
	return retry(ctx, func(ctx context.Context) error {
		resp, err := o.get(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		etag, size, err := o.checkRange(resp, off)
		if err != nil {
			return err
		}
		if size != o.size || etag != o.etag {
			return &InputError{Input: o.name, Kind: Corrupt, Err: errors.New("changed while it was read"),
				Remedy: "wait until it is complete, and start again"}
		}
		return o.fill(resp, p)
	})
}

// get asks for length bytes from off. The caller closes the answer's body. It
// has status 200 or 206.
func (o *httpOrigin) get(ctx context.Context, off, length int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url.String(), nil)
	if err != nil {
		return nil, &InputError{Input: o.name, Kind: Unsupported, Err: errors.New("not a valid address"),
			Remedy: "check its spelling"}
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, o.unreachable(err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return resp, nil
	}
	resp.Body.Close()
	return nil, o.statusError(resp)
}

func (o *httpOrigin) fill(resp *http.Response, p []byte) error {
	if _, err := io.ReadFull(resp.Body, p); err != nil {
		return o.unreachable(fmt.Errorf("the answer broke off: %w", err))
	}
	return nil
}

// checkRange makes sure that resp starts at off and returns the input's ETag
// and size.
func (o *httpOrigin) checkRange(resp *http.Response, off int64) (etag string, size int64, err error) {
	var start int64 = -1
	if resp.StatusCode == http.StatusPartialContent {
		start, size = parseContentRange(resp.Header.Get("Content-Range"))
	}
	if start != off || size < 0 {
		return "", 0, &InputError{Input: o.name, Kind: Unsupported,
			Err:    errors.New("the server does not serve byte ranges, so single chunks cannot be read"),
			Remedy: "download it first (curl -LO) and give the file"}
	}
	return resp.Header.Get("ETag"), size, nil
}

// parseContentRange reads "bytes 0-99/1234"; start and size are -1 where they
// are missing.
func parseContentRange(s string) (start, size int64) {
	start, size = -1, -1
	s, found := strings.CutPrefix(s, "bytes ")
	if !found {
		return start, size
	}
	span, total, _ := strings.Cut(s, "/")
	first, _, _ := strings.Cut(span, "-")
	if n, err := strconv.ParseInt(first, 10, 64); err == nil {
		start = n
	}
	if n, err := strconv.ParseInt(total, 10, 64); err == nil {
		size = n
	}
	return start, size
}

func (o *httpOrigin) statusError(resp *http.Response) error {
	e := &InputError{Input: o.name, Err: fmt.Errorf("the server answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))}
	switch code := resp.StatusCode; {
	case code == http.StatusRequestedRangeNotSatisfiable:
		if _, size := parseContentRange(resp.Header.Get("Content-Range")); size == 0 {
			return emptyInput(o.name)
		}
		e.Kind, e.Remedy = Corrupt, "the file became shorter while it was read: start again"
	case code == http.StatusNotFound || code == http.StatusGone:
		e.Kind, e.Remedy = NotFound, "check the address"
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		e.Kind, e.Remedy = Permission, "check the credentials in the address, or whether it has expired"
	case code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout:
		return &retryableError{e.with(Unreachable, "try again later, or download it first")}
	default:
		e.Kind, e.Remedy = Unreachable, "open it in a browser to see what the server says"
	}
	return e
}

func (e *InputError) with(kind Kind, remedy string) *InputError {
	e.Kind, e.Remedy = kind, remedy
	return e
}

// unreachable wraps a failure of the connection. The text of a *url.Error has
// the whole address in it, secrets too, so only its cause is kept.
func (o *httpOrigin) unreachable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	e := &InputError{Input: o.name, Kind: Unreachable, Err: err}
	return &retryableError{e.with(Unreachable, "check the address and the network")}
}

func (o *httpOrigin) address(context.Context) (string, error) { return o.url.String(), nil }

func (o *httpOrigin) close() error {
	o.client.CloseIdleConnections()
	return nil
}

// retryableError marks a failure that may pass. It does not leave this file.
type retryableError struct{ err *InputError }

func (e *retryableError) Error() string { return e.err.Error() }

// retry calls try until it succeeds, fails for good, or failed fetchTries
// times, with growing pauses. Each try has fetchTimeout.
func retry(ctx context.Context, try func(context.Context) error) error {
	pause := firstBackoff
	for n := 1; ; n++ {
		tryCtx, cancel := context.WithTimeout(ctx, fetchTimeout)
		err := try(tryCtx)
		cancel()
		var again *retryableError
		if !errors.As(err, &again) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("read %s: %w", again.err.Input, ctx.Err())
		}
		if n == fetchTries {
			again.err.Err = fmt.Errorf("%w (%d tries)", again.err.Err, n)
			return again.err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("read %s: %w", again.err.Input, ctx.Err())
		}
		pause *= 3
	}
}
