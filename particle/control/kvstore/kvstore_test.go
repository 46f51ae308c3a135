package kvstore_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/control/controltest"
	"github.com/volley-run/volley/particle/control/kvstore"
)

// startNATS starts a server that keeps its data in dir. A port of 0 is any.
func startNATS(t testing.TB, dir string, port int) *server.Server {
	t.Helper()
	if port == 0 {
		port = server.RANDOM_PORT
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("NATS does not start")
	}
	t.Cleanup(func() { stop(s) })
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func open(t testing.TB, url string, ttl time.Duration) *kvstore.Store {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	s, err := kvstore.Open(context.Background(), kvstore.Config{Conn: conn, TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openAll(t testing.TB, nodes int) []particle.ControlPlane {
	s := startNATS(t, t.TempDir(), 0)
	all := make([]particle.ControlPlane, nodes)
	for i := range all {
		all[i] = open(t, s.ClientURL(), 0)
	}
	return all
}

func TestConformance(t *testing.T) {
	controltest.Run(t, openAll, controltest.Options{Members: 50})
}

func TestClaims(t *testing.T) {
	controltest.RunClaims(t, openAll, controltest.Options{})
}

// follow returns what a watch reports, the latest only.
func follow(t *testing.T, c particle.ControlPlane, m particle.Member) <-chan int {
	t.Helper()
	counts := make(chan int, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Watch(ctx, m, func(peers []particle.Peer) { counts <- len(peers) })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return counts
}

func await(t *testing.T, counts <-chan int, want int) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case n := <-counts:
			if n == want {
				return
			}
		case <-late:
			t.Fatalf("never %d peers", want)
		}
	}
}

func TestANodeThatDiedIsForgotten(t *testing.T) {
	nats := startNATS(t, t.TempDir(), 0)
	const ttl = 400 * time.Millisecond
	dying, living := open(t, nats.ClientURL(), ttl), open(t, nats.ClientURL(), ttl)
	for i, s := range []*kvstore.Store{dying, living} {
		if err := s.Announce(t.Context(), controltest.Member("n", 1, i)); err != nil {
			t.Fatal(err)
		}
	}
	counts := follow(t, open(t, nats.ClientURL(), ttl), controltest.Member("n", 1, 2))
	await(t, counts, 2)
	if err := dying.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, counts, 1)
}

func TestARestartOfNATSTearsNothingDown(t *testing.T) {
	dir := t.TempDir()
	first := startNATS(t, dir, 0)
	url := first.ClientURL()
	port := int(first.Addr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port())
	const ttl = 500 * time.Millisecond
	a, b := open(t, url, ttl), open(t, url, ttl)
	if err := a.Announce(t.Context(), controltest.Member("n", 1, 0)); err != nil {
		t.Fatal(err)
	}
	counts := follow(t, b, controltest.Member("n", 1, 1))
	await(t, counts, 1)
	stop(first)
	time.Sleep(2 * ttl) // longer than an announcement lives
	startNATS(t, dir, port)
	if err := open(t, url, ttl).Announce(t.Context(), controltest.Member("n", 1, 2)); err != nil {
		t.Fatal(err)
	}
	for n := range counts {
		if n == 2 {
			break
		}
		if n == 0 {
			t.Fatal("the peers were taken away")
		}
	}
}

func TestTwoNodesOfOneNameAreAConflict(t *testing.T) {
	nats := startNATS(t, t.TempDir(), 0)
	a, b := open(t, nats.ClientURL(), 0), open(t, nats.ClientURL(), 0)
	m, other := controltest.Member("n", 1, 0), controltest.Member("n", 1, 1)
	other.Self.Node = m.Self.Node
	if err := a.Announce(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := b.Announce(t.Context(), other); !errors.Is(err, particle.ErrConflict) {
		t.Errorf("the second node of that name: %v", err)
	}
	if err := b.Announce(t.Context(), m); err != nil {
		t.Errorf("the same node, restarted: %v", err)
	}
}
