package lambda

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// streamPlatform is a fakePlatform whose streams are up to the test.
type streamPlatform struct {
	*fakePlatform
	stream func(ctx context.Context, onStart func(string), onPiece func([]byte) error) (function.Result, error)
}

func (p *streamPlatform) InvokeStream(ctx context.Context, _ function.Invocation, onStart func(string), onPiece func([]byte) error) (function.Result, error) {
	return p.stream(ctx, onStart, onPiece)
}

const streamPath = "/2021-11-15/functions/f/response-streaming-invocations"

// event is one message of an event stream.
type event struct{ kind, payload string }

func readEvents(t *testing.T, from io.Reader) []event {
	t.Helper()
	var events []event
	for decoder := eventstream.NewDecoder(); ; {
		m, err := decoder.Decode(from, nil)
		if errors.Is(err, io.EOF) {
			return events
		}
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, event{m.Headers.Get(":event-type").String(), string(m.Payload)})
	}
}

func TestAStreamIsSentInEvents(t *testing.T) {
	large := strings.Repeat("x", maxChunkBytes+1)
	for _, tc := range []struct {
		name   string
		stream func(ctx context.Context, onStart func(string), onPiece func([]byte) error) (function.Result, error)
		want   []event
	}{
		{"pieces", func(_ context.Context, onStart func(string), onPiece func([]byte) error) (function.Result, error) {
			onStart("text/html")
			return function.Result{}, errors.Join(onPiece([]byte("a")), onPiece(nil), onPiece([]byte("b")))
		}, []event{{"PayloadChunk", "a"}, {"PayloadChunk", "b"}, {"InvokeComplete", "{}"}}},
		{"a large piece", func(_ context.Context, _ func(string), onPiece func([]byte) error) (function.Result, error) {
			return function.Result{}, onPiece([]byte(large))
		}, []event{{"PayloadChunk", large[1:]}, {"PayloadChunk", "x"}, {"InvokeComplete", "{}"}}},
		{"a function that does not stream", func(context.Context, func(string), func([]byte) error) (function.Result, error) {
			return function.Result{Payload: []byte("1")}, nil
		}, []event{{"PayloadChunk", "1"}, {"InvokeComplete", "{}"}}},
		{"a failure at once", func(context.Context, func(string), func([]byte) error) (function.Result, error) {
			return function.Result{FunctionError: "Unhandled", Payload: []byte(`{"errorType":"E"}`)}, nil
		}, []event{{"InvokeComplete", `{"ErrorCode":"Unhandled","ErrorDetails":"{\"errorType\":\"E\"}"}`}}},
		{"a failure of the platform on the way", func(_ context.Context, _ func(string), onPiece func([]byte) error) (function.Result, error) {
			return function.Result{}, errors.Join(onPiece([]byte("a")), function.Errorf(function.InvokerLost, "gone"))
		}, []event{{"PayloadChunk", "a"}, {"InvokeComplete", `{"ErrorCode":"ServiceException","ErrorDetails":"gone"}`}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h := newHandler(&streamPlatform{newFakePlatform(), tc.stream}, nil)
			h.ServeHTTP(w, signed(t, http.MethodPost, streamPath, "{}", nil))
			if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/vnd.amazon.eventstream" {
				t.Fatalf("%d %v", w.Code, w.Header())
			}
			got := readEvents(t, w.Body)
			if len(got) != len(tc.want) {
				t.Fatalf("%d events, want %d", len(got), len(tc.want))
			}
			for i := range got {
				if got[i] != tc.want[i] {
					t.Errorf("event %d: %.80v, want %.80v", i, got[i], tc.want[i])
				}
			}
		})
	}
}

func TestAStreamThatNeverBeganIsAnOrdinaryError(t *testing.T) {
	w := httptest.NewRecorder()
	p := &streamPlatform{newFakePlatform(), func(context.Context, func(string), func([]byte) error) (function.Result, error) {
		return function.Result{}, function.Errorf(function.NotFound, "no such function")
	}}
	newHandler(p, nil).ServeHTTP(w, signed(t, http.MethodPost, streamPath, "{}", nil))
	if w.Code != http.StatusNotFound || w.Header().Get("X-Amzn-Errortype") != awshttp.ResourceNotFound {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestPiecesArriveWhileTheFunctionRuns(t *testing.T) {
	read := make(chan struct{})
	p := &streamPlatform{newFakePlatform(), func(ctx context.Context, _ func(string), onPiece func([]byte) error) (function.Result, error) {
		if err := onPiece([]byte("first")); err != nil {
			return function.Result{}, err
		}
		select {
		case <-read:
		case <-ctx.Done():
		case <-time.After(20 * time.Second):
			return function.Result{}, errors.New("the first piece did not arrive")
		}
		return function.Result{}, onPiece([]byte("second"))
	}}
	s := serve(t, newHandler(p, nil))
	r := signed(t, http.MethodPost, streamPath, "{}", nil)
	resp := send(t, s.Endpoint, r)
	defer resp.Body.Close()
	m, err := eventstream.NewDecoder().Decode(resp.Body, nil)
	if err != nil || string(m.Payload) != "first" {
		t.Fatalf("%q, %v", m.Payload, err)
	}
	close(read)
	if got := readEvents(t, resp.Body); len(got) != 2 || got[0].payload != "second" {
		t.Errorf("then %v", got)
	}
}

func TestAClientThatGoesAwayEndsTheInvocation(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	p := &streamPlatform{newFakePlatform(), func(ctx context.Context, onStart func(string), _ func([]byte) error) (function.Result, error) {
		onStart("")
		close(begun)
		select {
		case <-ctx.Done():
			ended <- nil
		case <-time.After(20 * time.Second):
			ended <- errors.New("the context did not end")
		}
		return function.Result{}, ctx.Err()
	}}
	s := serve(t, newHandler(p, nil))
	resp := send(t, s.Endpoint, signed(t, http.MethodPost, streamPath, "{}", nil))
	<-begun
	resp.Body.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// send sends a request that was signed for another address: the signature
// covers the Host header, which stays.
func send(t *testing.T, endpoint string, r *http.Request) *http.Response {
	t.Helper()
	out := r.Clone(t.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", strings.TrimPrefix(endpoint, "http://")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	out.Body = io.NopCloser(bytes.NewReader(body))
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := transport.RoundTrip(out)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// quietWriter is a ResponseWriter that keeps nothing.
type quietWriter struct{ header http.Header }

func (w *quietWriter) Header() http.Header         { return w.header }
func (w *quietWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *quietWriter) WriteHeader(int)             {}

func BenchmarkInvoke(b *testing.B) {
	p := newFakePlatform()
	p.functions["echo"] = function.Function{Name: "echo"}
	idle := &idlePlatform{p}
	h := newHandler(idle, nil)
	payload, err := json.Marshal(map[string]string{"text": strings.Repeat("x", 200)})
	if err != nil {
		b.Fatal(err)
	}
	r := signed(b, http.MethodPost, "/2015-03-31/functions/echo/invocations", string(payload), map[string]string{
		"X-Amz-Invocation-Type": "RequestResponse", "Amz-Sdk-Invocation-Id": "6a9f0b1c-63d0-4d5b-a0b5-6a0a3e2b5f0e",
	})
	b.ReportAllocs()
	body := bytes.NewReader(payload)
	w := &quietWriter{http.Header{}}
	for b.Loop() {
		body.Reset(payload)
		r.Body = io.NopCloser(body)
		clear(w.header)
		h.ServeHTTP(w, r)
		if w.header.Get("X-Amzn-Errortype") != "" {
			b.Fatal(w.header)
		}
	}
}

// idlePlatform answers at once.
type idlePlatform struct{ *fakePlatform }

func (p *idlePlatform) Invoke(_ context.Context, inv function.Invocation) (function.Result, error) {
	return function.Result{ID: inv.ID, Payload: inv.Payload, Container: "c-1234"}, nil
}
