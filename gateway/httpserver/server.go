// Package httpserver is how the gateway's APIs are served: an HTTP server with
// limits that slow clients cannot get around and long invocations can live
// with, TLS, a shutdown that lets requests end, and a handler that sends
// requests on to the controller that leads.
package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// DefaultAddr is where a Server listens that is not told where.
	DefaultAddr = "127.0.0.1:9400"

	// headerTimeout is how long a client may take to send its header, and
	// readTimeout for all of its request: 70 MB at 250 kB/s.
	headerTimeout = 10 * time.Second
	readTimeout   = 5 * time.Minute
	// writeTimeout is how long a request may take from its header to the end
	// of the response: the longest invocation is 15 min. Handlers that serve
	// endless streams set a deadline of their own.
	writeTimeout = 20 * time.Minute
	idleTimeout  = 5 * time.Minute
	// maxHeaderBytes is AWS's limit for headers with room for a client context.
	maxHeaderBytes = 64 << 10
	// defaultGrace is how long Close lets requests end.
	defaultGrace = 10 * time.Second
)

// Config is what Start needs.
type Config struct {
	// Addr is the TCP address to listen on; empty is DefaultAddr. Port 0 takes a
	// free one.
	Addr string
	// Handler serves the requests.
	Handler http.Handler
	// CertFile and KeyFile, both or neither, are PEM files for TLS. Without
	// them the server speaks plain HTTP.
	CertFile, KeyFile string
	// Grace is how long Close waits for requests; 0 is 10 s.
	Grace time.Duration
	// Log takes what goes wrong with connections; nil is slog.Default().
	Log *slog.Logger
}

// Server serves HTTP until it is closed. Its methods may be called
// concurrently.
type Server struct {
	http     *http.Server
	listener net.Listener
	scheme   string
	grace    time.Duration
	closing  context.Context // ends when Close begins
	close    context.CancelFunc
	served   chan struct{} // closed when Serve has returned
	serveErr error         // of Serve, valid then

	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex
	closed bool           // no handler may start
	active sync.WaitGroup // handlers
}

// closingKey is the key of Server.closing in the contexts of requests.
type closingKey struct{}

// Closing returns a context that ends when the server of a request's context
// begins to close: time for endless responses to end. It never ends if the
// request is not served by a Server.
func Closing(ctx context.Context) context.Context {
	if closing, ok := ctx.Value(closingKey{}).(context.Context); ok {
		return closing
	}
	return context.Background()
}

// Start starts a server and returns when it takes connections. The caller
// closes it.
func Start(ctx context.Context, c Config) (*Server, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("start HTTP server: a certificate and its key belong together: give both files or none")
	}
	if c.Addr == "" {
		c.Addr = DefaultAddr
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{scheme: "http", grace: c.Grace, served: make(chan struct{})}
	s.closing, s.close = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler: s.counted(c.Handler),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), closingKey{}, s.closing)
		},
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("start HTTP server: load certificate: %w", err)
		}
		s.scheme = "https"
		s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	var err error
	if s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", c.Addr); err != nil {
		return nil, fmt.Errorf("start HTTP server: %w", err)
	}
	go s.serve()
	return s, nil
}

func (s *Server) serve() {
	defer close(s.served)
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		s.serveErr = fmt.Errorf("serve HTTP: %w", err)
	}
}

// counted returns a handler that Close waits for.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		s.active.Add(1)
		s.mu.Unlock()
		defer s.active.Done()
		next.ServeHTTP(w, r)
	})
}

// URL returns the server's address, such as "http://127.0.0.1:9400".
func (s *Server) URL() string { return s.scheme + "://" + s.listener.Addr().String() }

// Done is closed when the server does not take connections any longer; if that
// was not asked for, Err tells why.
func (s *Server) Done() <-chan struct{} { return s.served }

// Err returns why the server ended, nil while it runs or after Close.
func (s *Server) Err() error {
	select {
	case <-s.served:
		return s.serveErr
	default:
		return nil
	}
}

// Close stops taking connections, lets requests end for the configured time,
// and then cuts them off. It waits for all that and is idempotent.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.close()
		ctx, cancel := context.WithTimeout(context.Background(), s.grace)
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
			s.closeErr = fmt.Errorf("close HTTP server: %w", err)
		}
	})
	return s.closeErr
}
