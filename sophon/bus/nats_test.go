package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/bus/natsserver"
)

func TestConnectingTellsWhatIsWrong(t *testing.T) {
	small := startNATS(t, natsserver.Config{MaxPayloadBytes: 1 << 20})
	guarded := startNATS(t, natsserver.Config{Token: natsserver.NewToken()})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		config bus.NATSConfig
		want   string
	}{
		"no address":      {t.Context(), bus.NATSConfig{}, "no URL"},
		"nobody there":    {t.Context(), bus.NATSConfig{URLs: []string{"nats://127.0.0.1:1"}}, "nats://127.0.0.1:1"},
		"small messages":  {t.Context(), small.client(), "set \"max_payload: 8454144\""},
		"no token":        {t.Context(), bus.NATSConfig{URLs: []string{guarded.url}}, "Authorization Violation"},
		"context ended":   {ended, small.client(), "context canceled"},
		"no such address": {t.Context(), bus.NATSConfig{URLs: []string{"nats://x:y:z"}}, "connect to NATS"},
	} {
		b, err := bus.ConnectNATS(c.ctx, c.config)
		if err == nil {
			_ = b.Close()
			t.Errorf("%s: connected", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUsersConnectWithTheirPasswords(t *testing.T) {
	s := startNATS(t, natsserver.Config{Users: []natsserver.User{{Name: "me", Password: "secret"}}})
	cfg := s.client()
	cfg.User, cfg.Password = "me", "secret"
	b, err := bus.ConnectNATS(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, b)
}

func TestClientsAndServersProveThemselvesWithCertificates(t *testing.T) {
	certificate, authority := selfSigned(t)
	s := startNATS(t, natsserver.Config{TLS: &tls.Config{
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    authority,
	}})
	if !strings.HasPrefix(s.url, "tls://") {
		t.Errorf("the server's URL is %s", s.url)
	}
	for name, config := range map[string]*tls.Config{
		"a client without a certificate": {RootCAs: authority},
		"a server that is unknown":       {Certificates: []tls.Certificate{certificate}},
	} {
		cfg := s.client()
		cfg.TLS = config
		if b, err := bus.ConnectNATS(t.Context(), cfg); err == nil {
			_ = b.Close()
			t.Errorf("%s: connected", name)
		}
	}
	cfg := s.client()
	cfg.TLS = &tls.Config{RootCAs: authority, Certificates: []tls.Certificate{certificate}}
	b, err := bus.ConnectNATS(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := closing(t, b).Flush(t.Context()); err != nil {
		t.Error(err)
	}
	b, err = bus.ConnectNATS(t.Context(), bus.NATSConfig{InProcess: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := closing(t, b).Flush(t.Context()); err != nil {
		t.Errorf("in process: %v", err)
	}
}

// selfSigned returns a certificate for 127.0.0.1, and what it is verified with.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestALeaseIsTakenOverWhenItsHolderIsGone(t *testing.T) {
	s := startNATS(t, natsserver.Config{})
	holder, heir := s.Connect(t), s.Connect(t)
	opts := bus.KVOptions{TTL: time.Second}
	lease := func(b bus.Bus) bus.KV {
		kv, err := b.KV(t.Context(), "lease", opts)
		if err != nil {
			t.Fatal(err)
		}
		return kv
	}
	if _, err := lease(holder).Create(t.Context(), "leader", []byte("holder")); err != nil {
		t.Fatal(err)
	}
	kv := lease(heir)
	free := make(chan struct{})
	if _, err := kv.Watch(t.Context(), func(e bus.Entry) {
		if e.Deleted {
			close(free)
		}
	}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Create(t.Context(), "leader", []byte("heir")); !errors.Is(err, bus.ErrExists) {
		t.Errorf("took the lease before it was over: %v", err)
	}
	start := time.Now()
	if err := holder.Close(); err != nil {
		t.Error(err)
	}
	<-free
	if _, err := kv.Create(t.Context(), "leader", []byte("heir")); err != nil {
		t.Errorf("take over: %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %s to take over", took)
	}
}
