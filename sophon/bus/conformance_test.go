package bus_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/bus/bustest"
	"github.com/volley-run/volley/sophon/bus/natsserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryKeepsThePromisesOfABus(t *testing.T) {
	t.Parallel()
	bustest.Run(t, func(testing.TB) bustest.Server { return &memoryServer{bus.NewMemory()} })
}

func TestNATSKeepsThePromisesOfABus(t *testing.T) {
	t.Parallel()
	bustest.Run(t, func(t testing.TB) bustest.Server { return startNATS(t, natsserver.Config{}) })
}

func TestNATSInProcessKeepsThePromisesOfABus(t *testing.T) {
	t.Parallel()
	bustest.Run(t, func(t testing.TB) bustest.Server {
		return startNATS(t, natsserver.Config{InProcessOnly: true, Token: natsserver.NewToken()})
	})
}

// memoryServer runs the suite on a MemoryServer.
type memoryServer struct{ *bus.MemoryServer }

func (s *memoryServer) Connect(t testing.TB) bus.Bus { return closing(t, s.MemoryServer.Connect()) }
func (s *memoryServer) Stop(testing.TB)              { s.Cut() }
func (s *memoryServer) Start(testing.TB)             { s.Restore() }

func closing(t testing.TB, b bus.Bus) bus.Bus {
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close bus: %v", err)
		}
	})
	return b
}

// natsServer runs the suite on an embedded NATS server.
type natsServer struct {
	config natsserver.Config
	url    string

	mu      sync.Mutex
	running *natsserver.Server
}

func startNATS(t testing.TB, cfg natsserver.Config) *natsServer {
	t.Helper()
	cfg.StoreDir = t.TempDir()
	s := &natsServer{config: cfg}
	t.Cleanup(func() { s.server().Shutdown() })
	s.Start(t)
	return s
}

func (s *natsServer) server() *natsserver.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *natsServer) Start(t testing.TB) {
	t.Helper()
	running, err := natsserver.Start(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.url, s.config.Port = running, running.ClientURL(), running.Port()
}

func (s *natsServer) Stop(testing.TB) { s.server().Shutdown() }

// InProcessConn connects to the server that runs now.
func (s *natsServer) InProcessConn() (net.Conn, error) { return s.server().InProcessConn() }

// client is how to connect.
func (s *natsServer) client() bus.NATSConfig {
	cfg := bus.NATSConfig{URLs: []string{s.url}, Token: s.config.Token}
	if s.config.InProcessOnly {
		cfg.URLs, cfg.InProcess = nil, s
	}
	return cfg
}

func (s *natsServer) Connect(t testing.TB) bus.Bus {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := bus.ConnectNATS(ctx, s.client())
	if err != nil {
		t.Fatal(err)
	}
	return closing(t, b)
}
