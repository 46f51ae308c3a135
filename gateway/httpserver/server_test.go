package httpserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, c Config) *Server {
	t.Helper()
	c.Addr = "127.0.0.1:0"
	s, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func client(t *testing.T, config *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func says(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
}

func TestCloseLetsRequestsEnd(t *testing.T) {
	begun := make(chan struct{})
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-Closing(r.Context()).Done()
		fmt.Fprint(w, "ended well")
	})})
	answer := make(chan string, 1)
	c := client(t, nil)
	go func() {
		resp, err := c.Get(s.URL())
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		answer <- string(text)
	}()
	<-begun
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := <-answer; got != "ended well" {
		t.Error(got)
	}
	if s.Err() != nil {
		t.Error(s.Err())
	}
	if _, err := c.Get(s.URL()); err == nil {
		t.Error("it still answers")
	}
}

func TestCloseCutsOffWhatTakesTooLongAndWaitsForIt(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := start(t, Config{Grace: time.Millisecond, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(ended)
	})})
	c := client(t, nil)
	failed := make(chan error, 1)
	go func() {
		resp, err := c.Get(s.URL())
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-begun
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("Close has not waited for the handler")
	}
	if err := <-failed; err == nil {
		t.Error("the request was answered")
	}
}

// certificate writes a self-signed certificate and returns the files and what
// trusts it.
func certificate(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return certFile, keyFile, roots
}

func TestAServerSpeaksTLSWithACertificate(t *testing.T) {
	certFile, keyFile, roots := certificate(t)
	s := start(t, Config{Handler: says("hello"), CertFile: certFile, KeyFile: keyFile})
	if status, text := get(t, client(t, &tls.Config{RootCAs: roots}), s.URL()); status != http.StatusOK || text != "hello" || !strings.HasPrefix(s.URL(), "https://") {
		t.Errorf("%s: %d %s", s.URL(), status, text)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	certFile, keyFile, _ := certificate(t)
	for name, c := range map[string]Config{
		"a certificate without a key": {CertFile: certFile},
		"a key without a certificate": {KeyFile: keyFile},
		"no certificate":              {CertFile: keyFile, KeyFile: keyFile},
		"a bad address":               {Addr: "nowhere"},
	} {
		if s, err := Start(t.Context(), c); err == nil {
			s.Close()
			t.Errorf("%s is accepted", name)
		}
	}
}

// cluster is a Leadership that a test sets.
type cluster struct {
	id, advertise string
	self          bool
}

func (c *cluster) Leader() (id, advertise string, self bool) { return c.id, c.advertise, c.self }

func forward(t *testing.T, l Leadership, next http.Handler) http.Handler {
	t.Helper()
	h, closeIdle := ToLeader(l, next, slog.New(slog.DiscardHandler))
	t.Cleanup(closeIdle)
	return h
}

func TestRequestsGoToTheLeader(t *testing.T) {
	seen := make(chan *http.Request, 1)
	leader := start(t, Config{Handler: forward(t, &cluster{"a", "", true}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		seen <- r
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, "the leader got %s", text)
	}))})
	for _, advertise := range []string{leader.URL(), strings.TrimPrefix(leader.URL(), "http://")} {
		standby := start(t, Config{Handler: forward(t, &cluster{"a", advertise, false}, says("not I"))})
		req, err := http.NewRequest(http.MethodPost, standby.URL()+"/a%2Fb/c?d=%24", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "lambda.example"
		req.Header.Set("Authorization", "signature")
		resp, err := client(t, nil).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusAccepted || string(text) != "the leader got body" {
			t.Errorf("%d %s %v", resp.StatusCode, text, err)
		}
		r := <-seen
		if r.Host != "lambda.example" || r.URL.EscapedPath() != "/a%2Fb/c" || r.URL.RawQuery != "d=%24" || r.Header.Get("Authorization") != "signature" {
			t.Errorf("the leader got host %s, address %s, header %v", r.Host, r.URL, r.Header)
		}
	}
}

func TestWithoutALeaderRequestsAreToTryAgain(t *testing.T) {
	gone := start(t, Config{Handler: says("")})
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*cluster{
		"no leader":                       {},
		"a leader without an address":     {"a", "", false},
		"a leader with a strange address": {"a", "http://%zz", false},
		"a leader that has gone":          {"a", gone.URL(), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			forward(t, c, says("not I")).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("X-Amzn-Errortype") != "ServiceException" || w.Header().Get("Retry-After") == "" {
				t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
			}
		})
	}
}

func TestTwoThatTakeEachOtherForTheLeaderDoNotGoInCircles(t *testing.T) {
	one, two := &cluster{id: "two"}, &cluster{id: "one"}
	first := start(t, Config{Handler: forward(t, one, says("not I"))})
	second := start(t, Config{Handler: forward(t, two, says("not I"))})
	one.advertise, two.advertise = second.URL(), first.URL()
	if status, text := get(t, client(t, nil), first.URL()); status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", status, text)
	}
}

func TestClosingNeverEndsElsewhere(t *testing.T) {
	if err := Closing(t.Context()).Err(); err != nil || errors.Is(Closing(context.Background()).Err(), context.Canceled) {
		t.Error(err)
	}
}
