package awshttp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sigv4"
)

var testKey = sigv4.Key{ID: "AKIDTEST", Secret: "a secret"}

func signed(t *testing.T, body string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://h/x", strings.NewReader(body))
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret},
		r, hex.EncodeToString(sum[:]), SigningService, "r", time.Now()); err != nil {
		t.Fatal(err)
	}
	return r
}

func newVerifier() *sigv4.Verifier {
	return sigv4.New(sigv4.Options{Service: SigningService, Keys: sigv4.Static{testKey.ID: testKey.Secret}})
}

// unread fails the test when it is read.
type unread struct{ *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.Error("the body was read")
	return 0, io.EOF
}

func TestABodyIsReadOnlyForThoseWithAKey(t *testing.T) {
	r := signed(t, "body")
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), testKey.ID, "AKIDOTHER", 1))
	r.Body = io.NopCloser(unread{t})
	_, _, err := ReadSigned(httptest.NewRecorder(), r, newVerifier(), 100)
	if e, _ := AsError(err); e.Name != UnrecognizedClient {
		t.Error(err)
	}
}

func TestABodyHasToKeepToItsLimit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		body   string
		limit  int64
		change func(r *http.Request)
		want   string // the error's name; empty: none
	}{
		{"just small enough", "body", 4, nil, ""},
		{"too large", "body!", 4, nil, RequestTooLarge},
		{"nothing", "", 0, nil, ""},
		{"shorter than announced", "body", 10, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("bo")) }, InvalidRequestContent},
		{"broken off", "body", 10, func(r *http.Request) {
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("bo"), failing{}))
		}, InvalidRequestContent},
		// The length is signed, so that one which is not known does not match.
		{"of unknown length", "body", 4, func(r *http.Request) { r.ContentLength = -1 }, InvalidSignature},
		{"of unknown length and too large", "body!", 4, func(r *http.Request) { r.ContentLength = -1 }, RequestTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := signed(t, tc.body)
			if tc.change != nil {
				tc.change(r)
			}
			_, body, err := ReadSigned(httptest.NewRecorder(), r, newVerifier(), tc.limit)
			if tc.want == "" {
				if err != nil || string(body) != tc.body {
					t.Errorf("%q, %v", body, err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if e, ok := AsError(err); !ok || e.Name != tc.want {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestEveryErrorHasANameAndAStatus(t *testing.T) {
	for p := sigv4.Unsigned; p <= sigv4.Mismatch; p++ {
		e, ok := AsError(&sigv4.Error{Problem: p})
		if !ok || e.Status < 400 {
			t.Errorf("problem %d: %+v", p, e)
		}
	}
	for _, code := range []function.ErrorCode{
		function.InvalidParameter, function.InvalidPayload, function.NotFound, function.Conflict, function.PreconditionFailed,
		function.TooManyRequests, function.TooLarge, function.InvalidImage, function.InvalidCode, function.InvokerLost,
		function.Unavailable, function.Internal,
	} {
		e, ok := AsError(function.Errorf(code, "m"))
		if _, mapped := codes[code]; !ok || !mapped || e.Status < 400 || e.Message != "m" {
			t.Errorf("%s: %+v", code, e)
		}
	}
	for name, s := range shapes {
		if e := NewError(name, "m"); e.Status != s.status || s.member == "" {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if e, ok := AsError(function.Errorf("New", "m")); !ok || e.Name != Service || e.Status != http.StatusInternalServerError {
		t.Errorf("a code that is not known: %+v", e)
	}
	if e, ok := AsError(fmt.Errorf("wait: %w", context.Canceled)); !ok || e.Status != statusClientClosed {
		t.Errorf("a client that has gone: %+v", e)
	}
}

func TestThePlatformsFaultsAreLoggedAndNotTold(t *testing.T) {
	var log bytes.Buffer
	w := httptest.NewRecorder()
	id := Begin(w)
	WriteError(w, httptest.NewRequest(http.MethodGet, "/p", nil), slog.New(slog.NewTextHandler(&log, nil)), errors.New("disk of node 7 broke"))
	var body map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusInternalServerError || body["Type"] != "Service" || strings.Contains(body["Message"], "node 7") {
		t.Errorf("%d %v", w.Code, body)
	}
	if !strings.Contains(log.String(), "node 7") || !strings.Contains(log.String(), id) {
		t.Errorf("log: %s", log.String())
	}
}
