//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is the other end of a session that has no process.
type host struct {
	s   *session
	api string
	// enc sends to the session, dec reads what it says.
	enc *frame.Encoder
	dec *frame.Decoder
}

func newHost(t *testing.T) *host {
	t.Helper()
	boot := frame.Boot{ARN: "arn:x"}
	boot.SetDefaults()
	fromHost, toSession, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromSession, toHost, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	enc := frame.NewEncoder(toHost)
	logs, err := newLogs(enc, 100, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(boot, enc, logs)
	h := &host{s: s, api: listener.Addr().String(), enc: frame.NewEncoder(toSession), dec: frame.NewDecoder(fromSession)}
	served, listened := make(chan struct{}), make(chan struct{})
	go func() { defer close(served); serve(listener, s) }()
	go func() { defer close(listened); s.listen(frame.NewDecoder(fromHost)) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		s.end(frame.Exit{Reason: frame.ReasonShutdown})
		for _, c := range []io.Closer{listener, toSession, toHost, fromSession} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, o := range logs.outputs {
			_ = errors.Join(o.file.Close(), o.remote.Close())
		}
		<-served
		<-listened
		_ = fromHost.Close()
	})
	return h
}

func (h *host) next(t *testing.T, want frame.Type) []byte {
	t.Helper()
	typ, body, err := h.dec.Next()
	if err != nil || typ != want {
		t.Fatalf("frame %q %q, error %v; want type %q", typ, body, err, want)
	}
	return body
}

func (h *host) call(t *testing.T, method, path, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+h.api+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

const runtimePath = "/2018-06-01/runtime/"

func TestAnEventIsServedWithItsHeaders(t *testing.T) {
	h := newHost(t)
	ev := frame.Event{
		Deadline: 1_700_000_000_123_456, Budget: 60e6, ID: "the-id", TraceID: "Root=1", ClientContext: []byte("{\"a\":\n\"é\"}"), Payload: []byte(`{"x":1}`),
	}
	if err := h.enc.Event(&ev); err != nil {
		t.Fatal(err)
	}
	status, header, body := h.call(t, "GET", runtimePath+"invocation/next", "")
	h.next(t, frame.TypeReady)
	if status != 200 || body != `{"x":1}` {
		t.Fatalf("status %d, body %s", status, body)
	}
	for name, want := range map[string]string{
		"Lambda-Runtime-Aws-Request-Id": "the-id", "Lambda-Runtime-Deadline-Ms": "1700000000123", "Lambda-Runtime-Invoked-Function-Arn": "arn:x",
		"Lambda-Runtime-Trace-Id": "Root=1", "Lambda-Runtime-Client-Context": `{"a": "\u00e9"}`, "Content-Type": "application/json",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	status, _, body = h.call(t, "POST", runtimePath+"invocation/the-id/response", `"done"`)
	if status != 202 || body != `{"status":"OK"}` {
		t.Errorf("status %d, body %s", status, body)
	}
	r, err := frame.ParseReply(h.next(t, frame.TypeResponse))
	if err != nil || string(r.ID) != "the-id" || string(r.Payload) != `"done"` {
		t.Errorf("reply %+v, error %v", r, err)
	}
}

func TestRequestsOutOfPlaceAreRefused(t *testing.T) {
	h := newHost(t)
	for _, tc := range []struct {
		method, path string
		status       int
		kind         string
	}{
		{"POST", runtimePath + "invocation/x/response", 400, "InvalidRequestID"},
		{"POST", runtimePath + "invocation/x/error", 400, "InvalidRequestID"},
		{"POST", runtimePath + "invocation/next", 404, "NotFound"},
		{"GET", runtimePath + "invocation/x/response", 404, "NotFound"},
		{"GET", "/2020-01-01/extension/register", 404, "NotFound"},
		{"GET", "/", 404, "NotFound"},
	} {
		status, _, body := h.call(t, tc.method, tc.path, strings.Repeat("x", 1<<20))
		var got struct{ ErrorType string }
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != tc.status || got.ErrorType != tc.kind {
			t.Errorf("%s %s: status %d, body %s", tc.method, tc.path, status, body)
		}
	}
	if status, _, body := h.call(t, "GET", "/2018-06-01/ping", ""); status != 200 || body != "pong" {
		t.Errorf("ping: status %d, body %s", status, body)
	}
}

func TestAClientMayWaitForLeaveToSend(t *testing.T) {
	h := newHost(t)
	if err := h.enc.Event(&frame.Event{Budget: 60e6, ID: "a"}); err != nil {
		t.Fatal(err)
	}
	h.call(t, "GET", runtimePath+"invocation/next", "")
	h.next(t, frame.TypeReady)
	conn, err := net.Dial("tcp", h.api)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %sinvocation/a/response HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n", runtimePath)
	const leave = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(leave))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != leave {
		t.Fatalf("got %q, error %v", got, err)
	}
	fmt.Fprint(conn, "42")
	rest, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(rest, []byte("HTTP/1.1 202 Accepted\r\n")) {
		t.Errorf("got %q, error %v", rest, err)
	}
	if r, err := frame.ParseReply(h.next(t, frame.TypeResponse)); err != nil || string(r.Payload) != "42" {
		t.Errorf("reply %+v, error %v", r, err)
	}
}

func TestTheFirstReasonToEndCounts(t *testing.T) {
	h := newHost(t)
	if err := h.enc.Event(&frame.Event{Budget: 20_000, ID: "a"}); err != nil {
		t.Fatal(err)
	}
	h.call(t, "GET", runtimePath+"invocation/next", "")
	h.next(t, frame.TypeReady)
	<-h.s.over
	h.s.end(frame.Exit{Reason: frame.ReasonExit})
	if e := <-h.s.ending; e.Reason != frame.ReasonDeadline || e.ID != "a" || e.Unseen {
		t.Errorf("exit %+v", e)
	}
}

func TestLogsAreCutIntoLinesAndBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		writes []string
		lines  []string
		note   string
	}{
		"lines":               {[]string{"a\nb\n", "c"}, []string{"a", "b", "c"}, ""},
		"across reads":        {[]string{"on", "e\r\ntw", "o\n\n"}, []string{"one", "two", ""}, ""},
		"too many lines":      {[]string{strings.Repeat("x\n", 105)}, slices.Repeat([]string{"x"}, 100), "5 lines (5 bytes) of log were dropped: an invocation may log 100 lines and 10000 bytes"},
		"too many bytes":      {[]string{strings.Repeat("y", 9_999) + "\nzz\n\n"}, []string{strings.Repeat("y", 9_999)}, "2 lines (2 bytes) of log were dropped: an invocation may log 100 lines and 10000 bytes"},
		"nothing and the end": {nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			l := &logs{enc: frame.NewEncoder(&b), maxLines: 100, maxBytes: 10_000}
			o := &output{stream: frame.Stdout, closed: true}
			l.outputs = [2]*output{o, {stream: frame.Stderr, closed: true}}
			l.begin("id")
			for _, w := range tc.writes {
				l.split(o, []byte(w))
			}
			l.finish()
			var lines []string
			note := ""
			for dec := frame.NewDecoder(&b); ; {
				_, body, err := dec.Next()
				if err != nil {
					break
				}
				got, err := frame.ParseLog(body)
				if err != nil || got.ID != "id" {
					t.Fatalf("log %+v, error %v", got, err)
				}
				for line, rest, ok := frame.Line(got.Lines); ok; line, rest, ok = frame.Line(rest) {
					if got.Stream == frame.Platform {
						note = string(line)
					} else {
						lines = append(lines, string(line))
					}
				}
			}
			if !slices.Equal(lines, tc.lines) || note != tc.note {
				t.Errorf("lines %q, note %q", lines, note)
			}
		})
	}
}

func TestClientContextFitsAHeader(t *testing.T) {
	const in = "{\"a\":\t\"é\U0001F600\",\r\n\"b\":\"x\"}"
	got := appendHeaderJSON(nil, []byte(in))
	var want, back any
	if err := errors.Join(json.Unmarshal([]byte(in), &want), json.Unmarshal(got, &back)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(want) != fmt.Sprint(back) {
		t.Errorf("%s means something else than %s", got, in)
	}
	for _, c := range got {
		if c < ' ' || c > '~' {
			t.Errorf("%q has the byte %#x", got, c)
		}
	}
}

func TestProgramsAreFoundInTheFunctionsPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"good": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/nowhere", "PATH=/nowhere:" + dir}
	if got, err := lookPath("good", env); err != nil || got != filepath.Join(dir, "good") {
		t.Errorf("lookPath = %q, %v", got, err)
	}
	if got, err := lookPath("/any/path", nil); err != nil || got != "/any/path" {
		t.Errorf("lookPath of a path = %q, %v", got, err)
	}
	for _, env := range [][]string{env, nil} {
		if got, err := lookPath("plain", env); err == nil {
			t.Errorf("lookPath of a file that cannot be run = %q", got)
		}
	}
}

func TestAnErrorWaitsForWhatComesAfterIt(t *testing.T) {
	for name, tc := range map[string]struct {
		after  func(h *host)
		broken bool
	}{
		"the next request": {func(h *host) { go func() { _, _ = h.s.next() }() }, false},
		"nothing":          {func(*host) {}, false},
		"the end":          {func(h *host) { h.s.release(true) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if err := h.enc.Event(&frame.Event{Budget: 60e6, ID: "a"}); err != nil {
				t.Fatal(err)
			}
			h.call(t, "GET", runtimePath+"invocation/next", "")
			h.next(t, frame.TypeReady)
			start := time.Now()
			if status, _, _ := h.call(t, "POST", runtimePath+"invocation/a/error", `{"errorType":"E"}`); status != 202 {
				t.Errorf("status %d", status)
			}
			tc.after(h)
			r, err := frame.ParseReply(h.next(t, frame.TypeError))
			if err != nil || r.Broken != tc.broken || string(r.Kind) != "E" {
				t.Errorf("reply %+v, error %v", r, err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}
