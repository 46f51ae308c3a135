//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// readRequest reads one request with its body.
func readRequest(text string) (*request, string, error) {
	r := newReader(iotest.HalfReader(strings.NewReader(text)))
	r.continueWith = func() error { return nil }
	q, err := r.next()
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(r)
	return q, string(body), err
}

func TestRequestsAreRead(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for name, tc := range map[string]struct {
		text, method, path, body string
		check                    func(*request) bool
	}{
		"without a body": {"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "/a", "",
			func(q *request) bool { return !q.closing && !q.chunked }},
		"with a length": {"POST /a HTTP/1.1\r\ncontent-LENGTH: 5\r\nContent-Type: text/plain \r\n\r\nhello", "POST", "/a", "hello",
			func(q *request) bool { return string(q.contentType) == "text/plain" }},
		"in chunks": {"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\nA\r\n 123456789\r\n0\r\n\r\n", "POST", "/a", "hello 123456789",
			func(q *request) bool { return q.chunked && len(q.errorType) == 0 }},
		"with trailers": {"POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nLambda-Runtime-Function-Error-Type: T\r\nlambda-runtime-function-error-body: " + long + "\r\n\r\n",
			"POST", "/a", "", func(q *request) bool { return string(q.errorType) == "T" && string(q.errorBody) == long }},
		"with line feeds only":  {"POST /a HTTP/1.1\nContent-Length: 1\n\nx", "POST", "/a", "x", func(*request) bool { return true }},
		"with a long header":    {"GET /a HTTP/1.1\r\nX: " + long + "\r\nConnection: Close\r\n\r\n", "GET", "/a", "", func(q *request) bool { return q.closing }},
		"of the older protocol": {"GET /a HTTP/1.0\r\n\r\n", "GET", "/a", "", func(q *request) bool { return q.closing }},
		"of the older protocol, kept open": {"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET", "/a", "",
			func(q *request) bool { return !q.closing }},
	} {
		t.Run(name, func(t *testing.T) {
			q, body, err := readRequest(tc.text)
			if err != nil {
				t.Fatal(err)
			}
			if string(q.method) != tc.method || string(q.path) != tc.path || body != tc.body || !tc.check(q) {
				t.Errorf("request %+v, body %q", q, body)
			}
		})
	}
}

func TestRequestsThatAreNoneAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"an empty line":                   "\r\n",
		"bytes":                           "\x16\x03\x01\r\n\r\n",
		"a path without a slash":          "GET a HTTP/1.1\r\n\r\n",
		"another protocol":                "GET /a HTTP/2\r\n\r\n",
		"a header without a colon":        "GET /a HTTP/1.1\r\nHost\r\n\r\n",
		"a header with a space":           "GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
		"a negative length":               "POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
		"a length with a sign":            "POST /a HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
		"two lengths":                     "POST /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"a length and chunks":             "POST /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunks in the older protocol":    "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another encoding":                "POST /a HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
		"a chunk without a size":          "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
		"a chunk that is too large":       "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"a chunk longer than it says":     "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
		"headers without end":             "GET /a HTTP/1.1\r\nX: " + strings.Repeat("x", maxHeaders) + "\r\n\r\n",
		"a request line that is too long": "GET /" + strings.Repeat("x", maxRequestLine) + " HTTP/1.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if q, body, err := readRequest(text); !errors.Is(err, errMalformed) {
				t.Errorf("request %+v, body %q, error %v", q, body, err)
			}
		})
	}
}

func TestARequestThatBreaksOffIsToldFromAConnectionThatEnds(t *testing.T) {
	const text = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
	for n := range len(text) {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, _, err := readRequest(text[:n]); !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v, want %v", n, err, want)
		}
	}
}

// FuzzRequest compares with net/http: what both take they must understand
// alike, or one could be made to see requests that the other does not.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{
		"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
		"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n5\r\nhello\r\n0\r\nLambda-Runtime-Function-Error-Type: x\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		q, body, err := readRequest(string(in))
		if err != nil {
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		defer theirs.Body.Close()
		theirBody, err := io.ReadAll(theirs.Body)
		if err != nil {
			return
		}
		if string(q.method) != theirs.Method || string(q.path) != theirs.RequestURI || body != string(theirBody) {
			t.Errorf("%s %s with %q, but net/http reads %s %s with %q", q.method, q.path, body, theirs.Method, theirs.RequestURI, theirBody)
		}
	})
}
