package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/johannesboyne/gofakes3"

	"github.com/volley-run/volley/internal/sigv4"
)

const (
	defaultBucket = "volley"
	defaultAddr   = "127.0.0.1:0"
	// closeGrace is how long Close lets requests finish.
	closeGrace = 3 * time.Second
	// headerTimeout is how long a client may take to send its header.
	headerTimeout = 30 * time.Second
	// drainBytes is how much of a body is still read after the disk has refused
	// it, so that the client sees why instead of a broken connection.
	drainBytes = 64 << 20
	// postBytes is how long the body of a POST may be: a list of keys or parts.
	postBytes = 8 << 20
)

// ServerConfig is what StartServer needs.
type ServerConfig struct {
	// Dir is where the objects are kept; it is made where needed. One server
	// uses it at a time.
	Dir string
	// Addr is the TCP address to listen on; empty means a free port of
	// 127.0.0.1. The server speaks plain HTTP.
	Addr string
	// AccessKey and SecretKey are what requests have to be signed with. When
	// both are empty, StartServer makes them up.
	AccessKey, SecretKey string
	// Buckets are made at the start where they are not there; none means
	// "volley". Clients can make more.
	Buckets []string
	// ErrorLog receives what goes wrong with connections; nil means nobody.
	ErrorLog *log.Logger
}

// Server is an S3 server with its objects in a directory. Every request needs
// an AWS signature of version 4. There are no versions, ACLs or policies, and
// a key cannot be both an object and the folder of others. Every method may be
// called concurrently.
type Server struct {
	backend              *backend
	verifier             *sigv4.Verifier
	accessKey, secretKey string
	bucket               string
	http                 *http.Server
	listener             net.Listener
	requests             atomic.Uint64
	served               chan struct{} // closed when Serve has returned
	stopWatching         func() bool
	closeOnce            sync.Once
	closeErr             error

	mu     sync.Mutex
	closed bool           // no handler may start
	active sync.WaitGroup // handlers
}

// StartServer starts a server and returns when it takes requests. It runs
// until Close is called or ctx ends; the caller has to call Close in both
// cases to know that it has ended. Errors wrap ErrPermission and ErrNoSpace.
func StartServer(ctx context.Context, c ServerConfig) (*Server, error) {
	if c.Dir == "" {
		return nil, errors.New("start S3 server: the directory is not given")
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		return nil, errors.New("start S3 server: of access key and secret key only one is given")
	}
	if c.AccessKey == "" {
		c.AccessKey, c.SecretKey = "VOLLEY"+rand.Text()[:14], rand.Text()+rand.Text()
	}
	if c.Addr == "" {
		c.Addr = defaultAddr
	}
	if len(c.Buckets) == 0 {
		c.Buckets = []string{defaultBucket}
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start S3 server: %w", err)
	}
	b := &backend{dir: dir}
	for _, bucket := range c.Buckets {
		if err := b.makeBucket(bucket); err != nil {
			return nil, fmt.Errorf("start S3 server: %w", err)
		}
	}
	b.removeStale()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("start S3 server: %w", err)
	}
	if c.ErrorLog == nil {
		c.ErrorLog = log.New(io.Discard, "", 0)
	}
	s := &Server{
		backend:   b,
		verifier:  sigv4.New(sigv4.Options{Service: "s3", Keys: sigv4.Static{c.AccessKey: c.SecretKey}}),
		accessKey: c.AccessKey, secretKey: c.SecretKey,
		bucket:   c.Buckets[0],
		listener: listener,
		served:   make(chan struct{}),
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, ErrorLog: c.ErrorLog}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			c.ErrorLog.Printf("serve S3: %v", err)
		}
	}()
	s.mu.Lock() // ctx may have ended already
	defer s.mu.Unlock()
	s.stopWatching = context.AfterFunc(ctx, func() { s.Close() })
	return s, nil
}

// Endpoint returns the server's HTTP address, such as "http://127.0.0.1:9000".
func (s *Server) Endpoint() string {
	return "http://" + s.listener.Addr().String()
}

// URL returns what Open takes to reach the first of the server's buckets. The
// keys are not part of it: see Credentials.
func (s *Server) URL() string {
	query := url.Values{"endpoint": {s.Endpoint()}, "region": {defaultRegion}}
	return (&url.URL{Scheme: "s3", Host: s.bucket, RawQuery: query.Encode()}).String()
}

// Credentials returns the keys that requests have to be signed with, for
// WithCredentials or a child's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
func (s *Server) Credentials() (accessKey, secretKey string) {
	return s.accessKey, s.secretKey
}

// Close stops the server: it lets requests finish for three seconds, cuts off
// the others and returns when all its goroutines have ended. The objects stay.
// Further calls wait as well and return the same.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		stop := s.stopWatching
		s.mu.Unlock()
		stop()
		ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
		defer cancel()
		err := s.http.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.http.Close()
		}
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.active.Wait()
		<-s.served
		if err != nil {
			s.closeErr = fmt.Errorf("close S3 server: %w", err)
		}
	})
	return s.closeErr
}

// begin reports whether a handler may start; if so, it has to call
// s.active.Done at its end.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.active.Add(1)
	}
	return !s.closed
}

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.active.Done()
	// A browser asks without a signature whether it may ask with one.
	if r.Method != http.MethodOptions {
		if refused := verify(s.verifier, r); refused != nil {
			refused.write(w, r)
			return
		}
	}
	if r.Method == http.MethodPost {
		// The XML in it may end before the body does, and only at its end does the
		// body turn out to be the one that was signed.
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, postBytes))
		if err != nil {
			(&refusal{http.StatusBadRequest, gofakes3.ErrBadDigest, err.Error()}).write(w, r)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(text))
	}
	// net/http closes the body, and wants to know how much of it was read.
	r.Body = io.NopCloser(r.Body)
	one := &session{backend: s.backend, ctx: r.Context()}
	response := &responseWriter{ResponseWriter: w, s: one, body: r.Body}
	gofakes3.New(one,
		gofakes3.WithTimeSkewLimit(0), // the verifier has looked at the time
		gofakes3.WithRequestID(s.requests.Add(1)),
		gofakes3.WithoutVersioning(),
	).Server().ServeHTTP(response, r)
	if one.broken {
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	if !response.begun {
		response.WriteHeader(http.StatusOK)
	}
}

// responseWriter puts into a response what gofakes3 does not know.
type responseWriter struct {
	http.ResponseWriter
	s     *session
	body  io.Reader // of the request
	begun bool
}

// WriteHeader implements http.ResponseWriter.
func (w *responseWriter) WriteHeader(status int) {
	if w.begun {
		return
	}
	w.begun = true
	if status == http.StatusInternalServerError && w.s.status != 0 {
		status = w.s.status
		_, _ = io.CopyN(io.Discard, w.body, drainBytes)
	}
	switch {
	case status >= http.StatusBadRequest:
		w.Header().Del("Content-Length")
		w.Header().Set("Content-Type", "application/xml")
	case w.s.etag != "" && w.Header().Get("Etag") != "":
		w.Header().Set("Etag", w.s.etag)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *responseWriter) Write(p []byte) (int, error) {
	if w.s.broken {
		return 0, errors.New("the object could not be read to its end")
	}
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// write answers a request that is refused before S3 comes into it.
func (refused *refusal) write(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(refused.status)
	if r.Method == http.MethodHead {
		return
	}
	// A client that has gone does not need to be told.
	_, _ = io.WriteString(w, xml.Header)
	_ = xml.NewEncoder(w).Encode(gofakes3.ErrorResponse{Code: refused.code, Message: refused.message})
}
