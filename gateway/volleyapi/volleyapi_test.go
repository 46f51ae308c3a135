package volleyapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/gateway/httpserver"
	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/sophon/controller"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = sigv4.Key{ID: "AKIDTEST", Secret: "a secret"}

// fakePlatform is a Platform in memory.
type fakePlatform struct {
	containers []controller.Container
	records    []controller.Record
	err        error // of everything

	mu      sync.Mutex
	lines   []function.LogLine
	more    chan function.LogLine // while somebody follows
	since   time.Time
	removed []string
}

func (p *fakePlatform) Leader() (id, advertise string, self bool) { return "a", "http://a", true }

func (p *fakePlatform) Containers(context.Context) ([]controller.Container, error) {
	return p.containers, p.err
}

func (p *fakePlatform) Nodes(context.Context) ([]controller.Node, error) { return nil, p.err }

func (p *fakePlatform) Functions(context.Context) ([]controller.FunctionStats, error) {
	return []controller.FunctionStats{{Name: "f", Invocations: 3}}, p.err
}

func (p *fakePlatform) Logs(ctx context.Context, name string, since time.Time, follow bool, handle func(function.LogLine) error) error {
	p.mu.Lock()
	p.since = since
	p.mu.Unlock()
	for _, line := range p.lines {
		if name != "" && line.Function != name {
			continue
		}
		if err := handle(line); err != nil {
			return err
		}
	}
	if p.err != nil || !follow {
		return p.err
	}
	for {
		select {
		case line := <-p.more:
			if err := handle(line); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *fakePlatform) Record(_ context.Context, id string) (controller.Record, error) {
	for _, r := range p.records {
		if r.RequestID == id {
			return r, nil
		}
	}
	return controller.Record{}, function.Errorf(function.NotFound, "there is no outcome of request %s", id)
}

func (p *fakePlatform) Records(_ context.Context, marker string, limit int) (records []controller.Record, next string, err error) {
	for _, r := range p.records {
		switch {
		case r.RequestID <= marker:
		case len(records) == limit:
			return records, records[limit-1].RequestID, p.err
		default:
			records = append(records, r)
		}
	}
	return records, "", p.err
}

func (p *fakePlatform) DeadLetters(context.Context, string, int) (letters []controller.DeadLetter, next string, err error) {
	return nil, "", p.err
}

func (p *fakePlatform) DeleteDeadLetter(_ context.Context, id string) error {
	p.removed = append(p.removed, id)
	return p.err
}

func newHandler(p Platform) *Handler {
	return New(Config{
		Platform: p, Log: slog.New(slog.DiscardHandler),
		Verifier: sigv4.New(sigv4.Options{Service: awshttp.SigningService, Keys: sigv4.Static{testKey.ID: testKey.Secret}}),
	})
}

func signed(t *testing.T, method, address string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret},
		r, hex.EncodeToString(sum[:]), "lambda", "us-east-1", time.Now()); err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(t *testing.T, h http.Handler, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := signed(t, method, "http://h/volley/v1/"+path)
	h.ServeHTTP(w, r)
	return w
}

func TestAnswersAreJSON(t *testing.T) {
	p := &fakePlatform{
		containers: []controller.Container{{ID: "c1", Function: "f"}, {ID: "c2", Function: "g"}},
		records:    []controller.Record{{RequestID: "1"}, {RequestID: "2"}, {RequestID: "3"}},
	}
	h := newHandler(p)
	for _, tc := range []struct {
		path, want string // want is a part of the answer
	}{
		{"leader", `{"id":"a","advertise":"http://a","self":true}`},
		{"containers", `"id":"c2"`},
		{"containers?function=f", `"id":"c1"`},
		{"containers?function=h", `{"containers":[]}`},
		{"nodes", `{"nodes":[]}`},
		{"functions", `"invocations":3`},
		{"records?limit=2", `"next":"2"`},
		{"records?limit=2&marker=2", `{"records":[{"requestId":"3"`},
		{"records/2", `{"requestId":"2"`},
		{"deadletters", `{"deadLetters":[]}`},
	} {
		w := ask(t, h, http.MethodGet, tc.path)
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), tc.want) || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d %s, want %s", tc.path, w.Code, w.Body, tc.want)
		}
	}
	if w := ask(t, h, http.MethodDelete, "deadletters/7"); w.Code != http.StatusNoContent || len(p.removed) != 1 || p.removed[0] != "7" {
		t.Errorf("delete: %d, removed %v", w.Code, p.removed)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	h := newHandler(&fakePlatform{})
	for _, tc := range []struct {
		method, path string
		status       int
		name         string
	}{
		{http.MethodGet, "nothing", 404, awshttp.UnknownOperation},
		{http.MethodPost, "containers", 404, awshttp.UnknownOperation},
		{http.MethodGet, "records/none", 404, awshttp.ResourceNotFound},
		{http.MethodGet, "records?limit=0", 400, awshttp.InvalidParameterValue},
		{http.MethodGet, "deadletters?limit=x", 400, awshttp.InvalidParameterValue},
		{http.MethodGet, "logs?since=yesterday", 400, awshttp.InvalidParameterValue},
		{http.MethodGet, "logs?since=-5m", 400, awshttp.InvalidParameterValue},
		{http.MethodGet, "logs?follow=maybe", 400, awshttp.InvalidParameterValue},
		{http.MethodGet, "logs?function=a.b", 400, awshttp.InvalidParameterValue},
	} {
		w := ask(t, h, tc.method, tc.path)
		if w.Code != tc.status || w.Header().Get("X-Amzn-Errortype") != tc.name {
			t.Errorf("%s %s: %d %v, want %d %s", tc.method, tc.path, w.Code, w.Header(), tc.status, tc.name)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://h/volley/v1/nodes", nil))
	if w.Code != http.StatusForbidden || w.Header().Get("X-Amzn-Errortype") != awshttp.MissingAuthentication {
		t.Errorf("unsigned: %d %v", w.Code, w.Header())
	}
}

func TestAPlatformThatDoesNotLeadSaysSo(t *testing.T) {
	h := newHandler(&fakePlatform{err: function.Errorf(function.Unavailable, "this controller does not lead")})
	for _, path := range []string{"containers", "nodes", "functions", "records", "deadletters", "logs"} {
		if w := ask(t, h, http.MethodGet, path); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestLogsAreALineEach(t *testing.T) {
	p := &fakePlatform{lines: []function.LogLine{{Function: "f", Text: "one\ntwo"}, {Function: "g", Text: "three"}}}
	h := newHandler(p)
	now := time.Now()
	h.now = func() time.Time { return now }
	for _, tc := range []struct {
		query string
		want  int
		since time.Time
	}{
		{"", 2, time.Time{}},
		{"?function=g", 1, time.Time{}},
		{"?function=h", 0, time.Time{}},
		{"?since=10m", 2, now.Add(-10 * time.Minute)},
		{"?since=2026-01-02T03:04:05Z", 2, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
	} {
		w := ask(t, h, http.MethodGet, "logs"+tc.query)
		got := strings.Split(strings.TrimSuffix(w.Body.String(), "\n"), "\n")
		if w.Body.Len() == 0 {
			got = nil
		}
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/x-ndjson" || len(got) != tc.want || !p.since.Equal(tc.since) {
			t.Errorf("%q: %d, %d lines since %v: %s", tc.query, w.Code, len(got), p.since, w.Body)
		}
		for _, line := range got {
			if !json.Valid([]byte(line)) {
				t.Errorf("%q is no JSON", line)
			}
		}
	}
}

func TestLogsCanBeFollowedUntilTheServerCloses(t *testing.T) {
	p := &fakePlatform{lines: []function.LogLine{{Function: "f", Text: "old"}}, more: make(chan function.LogLine)}
	s, err := httpserver.Start(t.Context(), httpserver.Config{Addr: "127.0.0.1:0", Handler: newHandler(p), Grace: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(signed(t, http.MethodGet, s.URL()+"/volley/v1/logs?follow=true"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	next := func(want string) {
		t.Helper()
		text, err := lines.ReadString('\n')
		if err != nil || !strings.Contains(text, want) {
			t.Fatalf("%q, %v; want %q", text, err, want)
		}
	}
	next("old")
	p.more <- function.LogLine{Function: "f", Text: "new"}
	next("new")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("then %q, %v", rest, err)
	}
}

func TestALogStreamThatBreaksOffIsNotTakenForTheWhole(t *testing.T) {
	p := &fakePlatform{lines: []function.LogLine{{Function: "f", Text: "one"}}, err: errors.New("the bus is down")}
	srv := httptest.NewServer(newHandler(p))
	defer srv.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(signed(t, http.MethodGet, srv.URL+"/volley/v1/logs"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("all of %q", text)
	}
}
