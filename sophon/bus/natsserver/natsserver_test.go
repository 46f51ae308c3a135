package natsserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sophon/bus/natsserver"
)

// envStoreDir has the test binary be a server that keeps what it is sent in
// the directory that it names, until it is killed.
const envStoreDir = "VOLLEY_TEST_NATS_STORE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envStoreDir); dir != "" {
		if err := storeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func start(t testing.TB, cfg natsserver.Config) *natsserver.Server {
	t.Helper()
	if cfg.StoreDir == "" {
		cfg.StoreDir = t.TempDir()
	}
	s, err := natsserver.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestAServerListensOnLoopbackOnly(t *testing.T) {
	s := start(t, natsserver.Config{})
	if !strings.HasPrefix(s.ClientURL(), "nats://127.0.0.1:") || s.Port() == 0 {
		t.Fatalf("listens at %s, port %d", s.ClientURL(), s.Port())
	}
	nc := connect(t, s.ClientURL())
	if nc.MaxPayload() < 8<<20 {
		t.Errorf("messages of at most %d bytes", nc.MaxPayload())
	}
	if _, err := nc.JetStream(); err != nil {
		t.Errorf("JetStream: %v", err)
	}
}

func TestAServerThatAsksNobodyIsNotReachableFromOutside(t *testing.T) {
	for _, host := range []string{"0.0.0.0", "::", "192.0.2.1", "example.org"} {
		if _, err := natsserver.Start(natsserver.Config{Host: host, StoreDir: t.TempDir()}); !errors.Is(err, natsserver.ErrUnprotected) {
			t.Errorf("host %s: %v", host, err)
		}
	}
	for _, cfg := range []natsserver.Config{
		{Host: "0.0.0.0", Token: natsserver.NewToken()},
		{Host: "0.0.0.0", Users: []natsserver.User{{Name: "me", Password: "secret"}}},
		{Host: "localhost"},
		{Host: "0.0.0.0", InProcessOnly: true},
	} {
		start(t, cfg)
	}
}

func TestAServerRefusesWhatItCannotMakeSenseOf(t *testing.T) {
	for name, cfg := range map[string]natsserver.Config{
		"no directory":    {},
		"two credentials": {StoreDir: t.TempDir(), Token: "x", Users: []natsserver.User{{Name: "me"}}},
		"not a directory": {StoreDir: filepath.Join(os.DevNull, "x")},
		"no such address": {StoreDir: t.TempDir(), Host: "192.0.2.1", Token: "x"},
	} {
		s, err := natsserver.Start(cfg)
		if err == nil {
			s.Shutdown()
			t.Errorf("%s: started", name)
		} else if !strings.HasPrefix(err.Error(), "start NATS server: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAPortInUseIsToldAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	began := time.Now()
	_, err = natsserver.Start(natsserver.Config{Port: port, StoreDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), strconv.Itoa(port)) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("started on a port in use: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("told after %s", took)
	}
}

func TestClientsProveWhoTheyAre(t *testing.T) {
	token := natsserver.NewToken()
	if other := natsserver.NewToken(); other == token || len(token) < 32 {
		t.Fatalf("tokens %q and %q", token, other)
	}
	withToken := start(t, natsserver.Config{Token: token})
	withUsers := start(t, natsserver.Config{Users: []natsserver.User{{Name: "me", Password: "secret"}}})
	for _, c := range []struct {
		server *natsserver.Server
		option nats.Option
		ok     bool
	}{
		{withToken, nats.Token(token), true},
		{withToken, nats.Token("wrong"), false},
		{withToken, nats.Name("nobody"), false},
		{withUsers, nats.UserInfo("me", "secret"), true},
		{withUsers, nats.UserInfo("me", "wrong"), false},
		{withUsers, nats.Name("nobody"), false},
	} {
		nc, err := nats.Connect(c.server.ClientURL(), c.option)
		if err == nil {
			nc.Close()
		}
		if (err == nil) != c.ok || err != nil && !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("expected %t: %v", c.ok, err)
		}
	}
	connect(t, "", nats.InProcessServer(withToken), nats.Token(token))
	if nc, err := nats.Connect("", nats.InProcessServer(withToken)); err == nil {
		nc.Close()
		t.Error("connected in process without the token")
	}
}

func TestAServerInProcessOnlyDoesNotListen(t *testing.T) {
	s := start(t, natsserver.Config{InProcessOnly: true})
	if s.ClientURL() != "" || s.Port() != 0 {
		t.Errorf("listens at %q, port %d", s.ClientURL(), s.Port())
	}
	nc := connect(t, "", nats.InProcessServer(s))
	if err := nc.Flush(); err != nil {
		t.Error(err)
	}
}

func TestShutdownIsIdempotentAndEndsConnections(t *testing.T) {
	s := start(t, natsserver.Config{})
	closed := make(chan struct{})
	connect(t, s.ClientURL(), nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	var wait sync.WaitGroup
	for range 3 {
		wait.Go(s.Shutdown)
	}
	wait.Wait()
	<-closed
	if _, err := s.InProcessConn(); err == nil {
		t.Error("connected to a server that is shut down")
	}
}

func TestTheServersLogGoesToSlog(t *testing.T) {
	var text testenv.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	start(t, natsserver.Config{Log: log}).Shutdown()
	if have := text.String(); !strings.Contains(have, "source=nats-server") || strings.Contains(have, "level=WARN") || strings.Contains(have, "level=ERROR") {
		t.Errorf("logged:\n%s", have)
	}
}

// storeUntilKilled is the other process of the test below. It prints the
// number of each message once the server has accepted it.
func storeUntilKilled(dir string) error {
	s, err := natsserver.Start(natsserver.Config{InProcessOnly: true, StoreDir: dir})
	if err != nil {
		return err
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "kept", Subjects: []string{"kept"}}); err != nil {
		return err
	}
	for i := 1; ; i++ {
		if _, err := js.Publish(ctx, "kept", []byte(strconv.Itoa(i))); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

func TestWhatIsAcceptedSurvivesAKilledProcess(t *testing.T) {
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envStoreDir+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if accepted, err = strconv.Atoi(lines.Text()); err != nil {
			t.Error(err)
		}
		if accepted == 500 {
			if err := child.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	_ = child.Wait() // was killed
	if accepted < 500 {
		t.Fatalf("the process ended after %d messages", accepted)
	}

	nc := connect(t, "", nats.InProcessServer(start(t, natsserver.Config{InProcessOnly: true, StoreDir: dir})))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if have := stream.CachedInfo().State.Msgs; have < uint64(accepted) {
		t.Errorf("%d of %d accepted messages are there", have, accepted)
	}
	last, err := stream.GetMsg(t.Context(), uint64(accepted))
	if err != nil || string(last.Data) != strconv.Itoa(accepted) {
		t.Errorf("message %d: %v", accepted, err)
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		s, err := natsserver.Start(natsserver.Config{StoreDir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Shutdown()
		b.StartTimer()
	}
}
