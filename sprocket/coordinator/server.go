package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/volley-run/volley/sprocket/worker"
	"github.com/volley-run/volley/sprocket/workerpb"
)

// server takes workers' connections and turns what they say into events.
type server struct {
	workerpb.UnimplementedCoordinatorServer
	grpc        *grpc.Server
	address     string
	fingerprint string
	events      chan event
	closed      chan struct{}
	closeOnce   sync.Once
	running     sync.WaitGroup

	mu     sync.Mutex
	tokens map[string]string // by worker
}

// event is something that happened to a worker.
type event struct {
	worker string
	// One of these is set.
	attached *session
	report   *workerpb.Report
	detached bool
	exited   *exit
}

// session is a worker's open stream.
type session struct {
	commands chan *workerpb.Command
	done     chan struct{}
}

// listen starts the server on address ("127.0.0.1:0").
func listen(ctx context.Context, address string) (*server, error) {
	cert, fingerprint, err := selfSigned()
	if err != nil {
		return nil, fmt.Errorf("start coordinator: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("start coordinator: %w", err)
	}
	s := &server{
		address: l.Addr().String(), fingerprint: fingerprint,
		events: make(chan event, 256), closed: make(chan struct{}), tokens: map[string]string{},
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})),
		grpc.MaxRecvMsgSize(worker.MaxMessageBytes), grpc.MaxSendMsgSize(worker.MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}))
	workerpb.RegisterCoordinatorServer(s.grpc, s)
	s.running.Go(func() {
		// Serve returns when close stops it; there is nobody to tell otherwise.
		_ = s.grpc.Serve(l)
	})
	return s, nil
}

// close ends all streams and waits for their goroutines.
func (s *server) close() {
	s.closeOnce.Do(func() { close(s.closed) })
	s.grpc.Stop()
	s.running.Wait()
}

// admit makes a token for a worker that is about to be started.
func (s *server) admit(id string) (token string, err error) {
	var raw [32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("make worker token: %w", err)
	}
	token = hex.EncodeToString(raw[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[id] = token
	return token, nil
}

// redeem checks and uses up a worker's token: each connects once.
func (s *server) redeem(id, token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	want, ok := s.tokens[id]
	if !ok || subtle.ConstantTimeCompare([]byte(want), []byte(token)) != 1 {
		return false
	}
	delete(s.tokens, id)
	return true
}

func (s *server) post(e event) bool {
	select {
	case s.events <- e:
		return true
	case <-s.closed:
		return false
	}
}

// Attach implements workerpb.CoordinatorServer.
func (s *server) Attach(stream grpc.BidiStreamingServer[workerpb.Report, workerpb.Command]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return status.Error(codes.InvalidArgument, "the first message must be a hello")
	}
	if !s.redeem(hello.Worker, bearer(stream.Context())) {
		return status.Error(codes.Unauthenticated, "unknown worker, or wrong or used token")
	}
	sess := &session{commands: make(chan *workerpb.Command, 16), done: make(chan struct{})}
	if !s.post(event{worker: hello.Worker, attached: sess}) {
		return status.Error(codes.Unavailable, "the coordinator is closing")
	}
	s.running.Go(func() {
		defer close(sess.done)
		for {
			r, err := stream.Recv()
			if err != nil {
				s.post(event{worker: hello.Worker, detached: true})
				return
			}
			if !s.post(event{worker: hello.Worker, report: r}) {
				return
			}
		}
	})
	for {
		select {
		case cmd := <-sess.commands:
			if err := stream.Send(cmd); err != nil {
				return err
			}
			if cmd.GetExit() != nil {
				<-sess.done // the worker hangs up
				return nil
			}
		case <-sess.done:
			return nil
		case <-s.closed:
			return status.Error(codes.Unavailable, "the coordinator is closing")
		}
	}
}

func bearer(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if token, ok := strings.CutPrefix(v, "Bearer "); ok {
			return token
		}
	}
	return ""
}

// selfSigned makes a certificate for one run; workers know its fingerprint.
func selfSigned() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "volley coordinator"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(sum[:]), nil
}
