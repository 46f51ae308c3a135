//go:build unix

package sandboxtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
)

func (s *suite) answerTests() []test {
	tests := []test{
		{"an event comes back unchanged", s.testEcho},
		{"text of every script comes back unchanged", s.testUnicode},
		{"a payload of the greatest size makes the round trip", s.testGreatestPayload},
		{"a function is told what it needs to know", s.testContext},
		{"a function sees its own environment and not the host's", s.testEnvironment},
		{"an answer in pieces arrives in pieces", s.testStream},
		{"an answer in pieces is put together for who wants it whole", s.testStreamWhole},
		{"an answer in pieces may end with an error", s.testStreamError},
		{"whoever takes the pieces can refuse them", s.testStreamRefused},
		{"an answer that is too long is an error", s.testTooLarge},
	}
	return tests
}

func (s *suite) testEcho(t *testing.T) {
	box := s.create(t, s.function())
	for i := range 20 {
		req := request(t, do{"do": "echo", "data": map[string]int{"n": i}})
		resp := invoke(t, box, req)
		wantAnswer(t, resp, map[string]int{"n": i})
		if resp.Run <= 0 || resp.LogTail != nil {
			t.Errorf("run %v, log tail %q; want some time and no tail", resp.Run, resp.LogTail)
		}
	}
}

func (s *suite) testUnicode(t *testing.T) {
	box := s.create(t, s.function())
	text := "grüße, 日本語, العربية, \U0001F600, \u0000, \u2028 and \"quotes\"\n"
	wantAnswer(t, invoke(t, box, request(t, do{"do": "echo", "data": text})), text)
	req := request(t, do{"do": "print", "text": "größe 日本 \U0001F600"})
	req.LogTail = true
	if resp := invoke(t, box, req); !strings.Contains(string(resp.LogTail), "größe 日本 \U0001F600\n") {
		t.Errorf("log tail %q", resp.LogTail)
	}
}

func (s *suite) testGreatestPayload(t *testing.T) {
	box := s.create(t, s.function())
	text := strings.Repeat("x", function.MaxSyncPayloadBytes-len(`{"data":"","do":"echo"}`))
	req := request(t, do{"do": "echo", "data": text})
	if len(req.Payload) != function.MaxSyncPayloadBytes {
		t.Fatalf("payload has %d bytes", len(req.Payload))
	}
	wantAnswer(t, invoke(t, box, req), text)
	wantEcho(t, box)
}

func (s *suite) testContext(t *testing.T) {
	box := s.create(t, s.function())
	req := request(t, do{"do": "context"})
	req.ClientContext = []byte("{\"custom\":{\n\"who\":\"Zoë \U0001F600\"}}")
	req.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	resp := invoke(t, box, req)
	var got struct {
		ID          string            `json:"id"`
		ARN         string            `json:"arn"`
		Custom      map[string]string `json:"custom"`
		RemainingMS int64             `json:"remainingMS"`
		Trace       string            `json:"trace"`
	}
	if err := json.Unmarshal(resp.Payload, &got); err != nil {
		t.Fatalf("%v: %s", err, resp.Payload)
	}
	if got.ID != req.ID || got.ARN != function.ARN("behave") || got.Custom["who"] != "Zoë \U0001F600" {
		t.Errorf("got %+v", got)
	}
	if want := "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1"; got.Trace != want {
		t.Errorf("trace %q, want %q", got.Trace, want)
	}
	if got.RemainingMS <= 10_000 || got.RemainingMS > 30_000 {
		t.Errorf("remaining time %d ms of 30 s", got.RemainingMS)
	}
}

func (s *suite) testEnvironment(t *testing.T) {
	t.Setenv("VOLLEY_TEST_SECRET", "leaked")
	f := s.function(environment("GREETING", "hello=world"), environment("DEEP", strings.Repeat("d", 3000)))
	resp := invoke(t, s.create(t, f), request(t, do{"do": "environment"}))
	var env []string
	if err := json.Unmarshal(resp.Payload, &env); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"GREETING=hello=world", "DEEP=" + strings.Repeat("d", 3000), "_HANDLER=bootstrap", "AWS_LAMBDA_FUNCTION_NAME=behave",
		"AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256", "TZ=:UTC", "AWS_REGION=" + function.Region,
	} {
		if !slices.Contains(env, want) {
			t.Errorf("the environment lacks %s", want)
		}
	}
	for _, v := range env {
		if strings.Contains(v, "VOLLEY_TEST_SECRET") || strings.HasPrefix(v, "HOME=") {
			t.Errorf("the host's %s is in the environment", v)
		}
	}
}

// streamed is what behave streams.
func streamed() []byte {
	var b []byte
	for i := range 3 {
		b = append(b, bytes.Repeat([]byte{byte('a' + i)}, 1<<20)...)
	}
	return b
}

func (s *suite) testStream(t *testing.T) {
	box := s.create(t, s.function(mode("stream")))
	for range 2 {
		var got []byte
		pieces := 0
		req := request(t, "go")
		req.Stream = func(p []byte) error {
			got = append(got, p...)
			pieces++
			return nil
		}
		resp := invoke(t, box, req)
		if resp.FunctionError != "" || len(resp.Payload) != 0 || resp.ContentType != "text/plain" || resp.Broken {
			t.Errorf("response %+v", resp)
		}
		if !bytes.Equal(got, streamed()) || pieces < 3 {
			t.Errorf("got %d bytes in %d pieces", len(got), pieces)
		}
	}
	// What is not streamed comes as one piece.
	var got []byte
	req := request(t, do{"do": "echo", "data": 1})
	req.Stream = func(p []byte) error { got = append(got, p...); return nil }
	resp := invoke(t, s.create(t, s.function()), req)
	if string(got)+string(resp.Payload) != "1" {
		t.Errorf("got %q and payload %q", got, resp.Payload)
	}
}

func (s *suite) testStreamWhole(t *testing.T) {
	box := s.create(t, s.function(mode("stream")))
	resp := invoke(t, box, request(t, "go"))
	if !bytes.Equal(resp.Payload, streamed()) || resp.FunctionError != "" {
		t.Errorf("got %d bytes, error %q", len(resp.Payload), resp.FunctionError)
	}
}

func (s *suite) testStreamError(t *testing.T) {
	box := s.create(t, s.function(mode("stream")))
	var got []byte
	req := request(t, "fail")
	req.Stream = func(p []byte) error { got = append(got, p...); return nil }
	resp := invoke(t, box, req)
	wantError(t, resp, req, "Extra.Fault", "midway", false)
	if !bytes.Equal(got, streamed()) {
		t.Errorf("got %d bytes before the error", len(got))
	}
}

func (s *suite) testStreamRefused(t *testing.T) {
	box := s.create(t, s.function(mode("stream")))
	gone := errors.New("client gone")
	req := request(t, "go")
	req.Stream = func([]byte) error { return gone }
	resp, err := box.Invoke(t.Context(), req)
	if !errors.Is(err, gone) || !resp.Broken {
		t.Errorf("response %+v, error %v; want the client's error, and the sandbox broken", resp, err)
	}
}

func (s *suite) testTooLarge(t *testing.T) {
	const want = "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
	// A runtime that goes on after the refusal keeps its sandbox.
	box := s.create(t, s.function(mode("too-large")))
	for range 2 {
		req := request(t, "go")
		resp := invoke(t, box, req)
		wantError(t, resp, req, "Function.ResponseSizeTooLarge", want, false)
	}
	// The library for Go ends its process.
	box = s.create(t, s.function())
	req := request(t, do{"do": "large", "bytes": 7 << 20})
	wantError(t, invoke(t, box, req), req, "Function.ResponseSizeTooLarge", want, true)
}

func (s *suite) logTests() []test {
	return []test{
		{"lines arrive in order with their request", s.testLogLines},
		{"the tail holds the last 4 KiB", s.testLogTail},
		{"long lines are cut", s.testLongLine},
		{"a flood is bounded and counted", s.testFlood},
		{"the platform reports as AWS does", s.testReport},
	}
}

func (s *suite) testLogLines(t *testing.T) {
	var log collector
	box := s.createLogging(t, s.function(), &log)
	req := request(t, do{"do": "print", "text": "one\ntwo", "count": 2})
	invoke(t, box, req)
	if got := log.of("stdout"); !slices.Equal(got, []string{"one", "two", "one", "two"}) {
		t.Errorf("lines %q", got)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, l := range log.lines {
		if l.Request != req.ID || l.Function != "behave" || l.Container != box.ID() || time.Since(l.Time).Abs() > time.Minute {
			t.Errorf("line %+v", l)
		}
	}
}

func (s *suite) testLogTail(t *testing.T) {
	box := s.create(t, s.function())
	req := request(t, do{"do": "print", "text": strings.Repeat("x", 99), "count": 500})
	req.LogTail = true
	resp := invoke(t, box, req)
	if len(resp.LogTail) != function.MaxLogTailBytes {
		t.Errorf("the tail has %d bytes", len(resp.LogTail))
	}
	if !strings.Contains(string(resp.LogTail), "\nEND RequestId: "+req.ID+"\nREPORT RequestId: "+req.ID+"\t") {
		t.Errorf("the tail does not end with the report: %s", resp.LogTail)
	}
	req = request(t, do{"do": "print", "text": "short"})
	req.LogTail = true
	if got := string(invoke(t, box, req).LogTail); !strings.HasPrefix(got, "START RequestId: "+req.ID+" Version: $LATEST\nshort\nEND ") {
		t.Errorf("the tail of a short log is %q", got)
	}
}

func (s *suite) testLongLine(t *testing.T) {
	var log collector
	box := s.createLogging(t, s.function(), &log)
	invoke(t, box, request(t, do{"do": "print", "text": strings.Repeat("x", 600<<10)}))
	var sizes []int
	for _, line := range log.of("stdout") {
		sizes = append(sizes, len(line))
	}
	if !slices.Equal(sizes, []int{256 << 10, 256 << 10, 88 << 10}) {
		t.Errorf("pieces of %d bytes", sizes)
	}
}

func (s *suite) testFlood(t *testing.T) {
	size := 100 << 20
	if s.opts.Slow {
		size = 20 << 20
	}
	var log collector
	box := s.createLogging(t, s.function(), &log)
	resp := invoke(t, box, request(t, do{"do": "print", "text": strings.Repeat("flood ", 20), "bytes": size}))
	wantAnswer(t, resp, nil)
	lines := log.of("stdout")
	if len(lines) == 0 || len(lines) > 10_000 {
		t.Errorf("%d lines came through", len(lines))
	}
	if got := strings.Join(log.of("platform"), "\n"); !strings.Contains(got, "of log were dropped") {
		t.Errorf("nobody says that lines are missing: %q", got)
	}
	// The next invocation has its own measure.
	invoke(t, box, request(t, do{"do": "print", "text": "after the flood"}))
	if lines := log.of("stdout"); lines[len(lines)-1] != "after the flood" {
		t.Errorf("the last line is %q", lines[len(lines)-1])
	}
}

func (s *suite) testReport(t *testing.T) {
	var log collector
	box := s.createLogging(t, s.function(), &log)
	first, second := request(t, do{"do": "echo"}), request(t, do{"do": "echo"})
	invoke(t, box, first)
	invoke(t, box, second)
	got := log.of("platform")
	if len(got) != 6 {
		t.Fatalf("lines %q", got)
	}
	for i, req := range []sandbox.Request{first, second} {
		if want := "START RequestId: " + req.ID + " Version: $LATEST"; got[3*i] != want {
			t.Errorf("line %q, want %q", got[3*i], want)
		}
		if want := "END RequestId: " + req.ID; got[3*i+1] != want {
			t.Errorf("line %q, want %q", got[3*i+1], want)
		}
		if want := fmt.Sprintf("REPORT RequestId: %s\tDuration: ", req.ID); !strings.HasPrefix(got[3*i+2], want) {
			t.Errorf("line %q, want %q...", got[3*i+2], want)
		}
		if has := strings.Contains(got[3*i+2], "\tInit Duration: "); has != (i == 0) && (i > 0 || !s.opts.Restored) {
			t.Errorf("report %d: %q; the time of the initialisation belongs to the first", i, got[3*i+2])
		}
	}
}
