// Package natsserver runs a NATS server with JetStream inside this process, so
// that a platform on one machine needs no other.
package natsserver

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// DefaultHost is where a server listens unless told otherwise.
	DefaultHost = "127.0.0.1"
	// DefaultPort is the port of NATS.
	DefaultPort = 4222
	// DefaultMaxPayloadBytes carries messages of 8 MiB and their headers.
	DefaultMaxPayloadBytes = 8<<20 + 64<<10

	// maxPendingBytes is what may wait for one client before the server gives
	// it up as too slow.
	maxPendingBytes = 512 << 20
	startTimeout    = 30 * time.Second
	// readyInterval is how often it is asked whether the server has given up.
	readyInterval = 100 * time.Millisecond
	tokenBytes    = 24
)

// ErrUnprotected is returned for a server that others could reach, but that
// asks nobody who they are.
var ErrUnprotected = errors.New("listening beyond this machine needs a token, users or client certificates")

// User may connect with a name and password.
type User struct {
	Name, Password string
}

// Config is how a server is started.
type Config struct {
	// Host is the address to listen on; DefaultHost if empty. One that is not
	// a loopback address needs Token, Users, or TLS with client certificates.
	Host string
	// Port is the TCP port; 0 lets the system choose one.
	Port int
	// InProcessOnly has the server not listen at all; only InProcessConn
	// connects then.
	InProcessOnly bool
	// StoreDir is the directory of what must survive a restart. It is made if
	// needed, and belongs to this server alone while it runs.
	StoreDir string
	// MaxPayloadBytes bounds a message with its headers;
	// DefaultMaxPayloadBytes if 0.
	MaxPayloadBytes int
	// Token is asked of every client, those in this process included, if not
	// empty. See NewToken.
	Token string
	// Users, if any, are who may connect. They cannot be combined with Token.
	Users []User
	// TLS is the server's certificate, and what it asks of clients; nil for
	// connections in the clear.
	TLS *tls.Config
	// SyncInterval is how often what was written is forced to disk, 2 minutes
	// if 0. What is accepted survives a kill of the process in any case;
	// this is about the machine losing power.
	SyncInterval time.Duration
	// SyncAlways forces every write to disk before it is acknowledged.
	SyncAlways bool
	// Log gets what the server has to say; nil for silence.
	Log *slog.Logger
}

// Server is a running server. Its methods may be called concurrently.
type Server struct {
	nats *server.Server
}

// NewToken returns a random token for Config.Token.
func NewToken() string {
	b := make([]byte, tokenBytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Start starts a server and returns when it serves. It installs no signal
// handler; the caller calls Shutdown. An error that wraps ErrUnprotected is
// about the configuration.
func Start(cfg Config) (*Server, error) {
	opts, err := cfg.options()
	if err != nil {
		return nil, fmt.Errorf("start NATS server: %w", err)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("start NATS server: %w", err)
	}
	log := newLogger(cfg.Log)
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	running := &Server{s}
	if err := running.ready(log, opts); err != nil {
		running.Shutdown()
		return nil, fmt.Errorf("start NATS server: %w", err)
	}
	return running, nil
}

func (c Config) options() (*server.Options, error) {
	if c.StoreDir == "" {
		return nil, errors.New("no StoreDir is given")
	}
	if c.Token != "" && len(c.Users) > 0 {
		return nil, errors.New("both Token and Users are given")
	}
	if c.Host == "" {
		c.Host = DefaultHost
	}
	if c.MaxPayloadBytes == 0 {
		c.MaxPayloadBytes = DefaultMaxPayloadBytes
	}
	asksClients := c.Token != "" || len(c.Users) > 0 ||
		c.TLS != nil && c.TLS.ClientAuth == tls.RequireAndVerifyClientCert
	if !c.InProcessOnly && !asksClients && !isLoopback(c.Host) {
		return nil, fmt.Errorf("host %s: %w", c.Host, ErrUnprotected)
	}
	opts := &server.Options{
		Host:                   c.Host,
		Port:                   c.Port,
		DontListen:             c.InProcessOnly,
		NoSigs:                 true,
		NoLog:                  true,
		DisableJetStreamBanner: true,
		MaxPayload:             int32(c.MaxPayloadBytes),
		MaxPending:             maxPendingBytes,
		Authorization:          c.Token,
		JetStream:              true,
		StoreDir:               c.StoreDir,
		SyncInterval:           c.SyncInterval,
		SyncAlways:             c.SyncAlways,
	}
	if c.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	for _, u := range c.Users {
		opts.Users = append(opts.Users, &server.User{Username: u.Name, Password: u.Password})
	}
	if c.TLS != nil {
		opts.TLS = true
		opts.TLSConfig = c.TLS
		opts.TLSVerify = c.TLS.ClientAuth == tls.RequireAndVerifyClientCert
		opts.TLSTimeout = 5
	}
	return opts, nil
}

// isLoopback tells whether only this machine reaches a host.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// ready waits until the server serves.
func (s *Server) ready(log *logger, opts *server.Options) error {
	serves := false
	for end := time.Now().Add(startTimeout); !serves && time.Now().Before(end); {
		serves = s.nats.ReadyForConnections(readyInterval)
		if err := log.failure(); err != nil {
			return err
		}
	}
	switch {
	case !serves:
		return fmt.Errorf("does not serve on %s after %s", net.JoinHostPort(opts.Host, strconv.Itoa(opts.Port)), startTimeout)
	case !s.nats.JetStreamEnabled():
		return fmt.Errorf("JetStream does not start in %s", opts.StoreDir)
	}
	return nil
}

// ClientURL is the URL that clients on other machines or in other processes
// connect to, without credentials. It is empty if the server does not listen.
func (s *Server) ClientURL() string {
	addr := s.nats.Addr()
	if addr == nil {
		return ""
	}
	u, err := url.Parse(s.nats.ClientURL())
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + addr.String()
}

// Port is the TCP port that the server listens on; 0 if it does not listen.
func (s *Server) Port() int {
	if addr, ok := s.nats.Addr().(*net.TCPAddr); ok {
		return addr.Port
	}
	return 0
}

// InProcessConn opens a connection that does not leave the process, for which
// an answer takes a fraction of the time that it takes over TCP. It is for a
// client of NATS, which closes it. The server asks it for Token or Users too,
// but not for TLS.
func (s *Server) InProcessConn() (net.Conn, error) {
	conn, err := s.nats.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("connect to NATS in process: %w", err)
	}
	return newBufferedConn(conn), nil
}

// Shutdown stops the server and returns when it has written all it holds. It
// is idempotent.
func (s *Server) Shutdown() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}
