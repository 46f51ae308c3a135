package sigv4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"pgregory.net/rapid"
)

var testKey = Key{ID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}

// when is the time of all signatures of these tests.
var when = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newVerifier(service string) *Verifier {
	return New(Options{Service: service, Keys: Static{testKey.ID: testKey.Secret}, Now: func() time.Time { return when }})
}

// request returns a request as a server gets it, signed by the AWS SDK.
func request(t testing.TB, method, target, body, service string, change func(*http.Request)) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, "http://localhost:9001"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(r)
	}
	hash := hashOf(body)
	if service == serviceS3 {
		r.Header.Set("X-Amz-Content-Sha256", hash)
	}
	err = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == serviceS3 }).SignHTTP(
		t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret}, r, hash, service, "eu-north-1", when)
	if err != nil {
		t.Fatal(err)
	}
	return received(t, r, body)
}

// received sends a request over the wire format.
func received(t testing.TB, r *http.Request, body string) *http.Request {
	t.Helper()
	r.Body = io.NopCloser(strings.NewReader(body))
	var wire bytes.Buffer
	if err := r.Write(&wire); err != nil {
		t.Fatal(err)
	}
	return read(t, wire.Bytes())
}

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

func verify(v *Verifier, r *http.Request, body string) error {
	c, err := v.Claim(r)
	if err != nil {
		return err
	}
	return c.CheckBody(r, []byte(body))
}

func problemOf(err error) Problem {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Problem
	}
	return 0
}

func TestRequestsSignedByTheAWSSDKAreAccepted(t *testing.T) {
	for _, service := range []string{"lambda", "s3"} {
		for _, tc := range []struct{ name, method, target, body string }{
			{"no body", "GET", "/2015-03-31/functions/", ""},
			{"a body", "POST", "/2015-03-31/functions/f/invocations", `{"a":1}`},
			{"an escaped path", "GET", "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af", ""},
			{"a dollar in the path", "GET", "/2015-03-31/functions/f/aliases/$LATEST", ""},
			{"an escaped dollar in the path", "GET", "/2015-03-31/functions/f/aliases/%24LATEST", ""},
			{"a space and a slash in the path", "GET", "/a%20b%2Fc/d", ""},
			{"a query", "GET", "/x?Qualifier=%24LATEST&MaxItems=5&Marker=a%20b%2Fc", ""},
			{"a query without a value", "GET", "/x?List", ""},
			{"names that are prefixes of each other", "GET", "/x?a-b=1&a=2&a=1&ab=3", ""},
		} {
			t.Run(service+" "+tc.name, func(t *testing.T) {
				path, _, _ := strings.Cut(tc.target, "?")
				if service == serviceS3 && (strings.Contains(path, "%2F") || strings.Contains(path, "/$")) {
					return // S3's clients escape their paths otherwise
				}
				r := request(t, tc.method, tc.target, tc.body, service, nil)
				if err := verify(newVerifier(service), r, tc.body); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestAnyChangeOfASignedRequestIsRefused(t *testing.T) {
	const body = `{"a":1}`
	signed := func() *http.Request {
		return request(t, http.MethodPost, "/2015-03-31/functions/f/invocations?Qualifier=%24LATEST", body, "lambda", func(r *http.Request) {
			r.Header.Set("X-Amz-Invocation-Type", "Event")
		})
	}
	if err := verify(newVerifier("lambda"), signed(), body); err != nil {
		t.Fatal(err)
	}
	auth := func(from, to string) func(*http.Request) {
		return func(r *http.Request) {
			old := r.Header.Get("Authorization")
			if !strings.Contains(old, from) {
				t.Fatalf("no %q in %q", from, old)
			}
			r.Header.Set("Authorization", strings.Replace(old, from, to, 1))
		}
	}
	for _, tc := range []struct {
		name   string
		want   Problem
		change func(r *http.Request)
	}{
		{"the method", Mismatch, func(r *http.Request) { r.Method = http.MethodPut }},
		{"the path", Mismatch, func(r *http.Request) { r.URL.Path += "x" }},
		{"the query", Mismatch, func(r *http.Request) { r.URL.RawQuery = "Qualifier=1" }},
		{"a query that is none", BadQuery, func(r *http.Request) { r.URL.RawQuery += "&a=%zz" }},
		{"the host", Mismatch, func(r *http.Request) { r.Host = "elsewhere" }},
		{"a signed header", Mismatch, func(r *http.Request) { r.Header.Set("X-Amz-Invocation-Type", "DryRun") }},
		{"a signed header left out", Mismatch, func(r *http.Request) { r.Header.Del("X-Amz-Invocation-Type") }},
		{"a header that is not signed", HeaderNotSigned, func(r *http.Request) { r.Header.Set("X-Amz-Log-Type", "Tail") }},
		{"a body declared unsigned", HeaderNotSigned, func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", UnsignedPayload) }},
		{"no signature", Unsigned, func(r *http.Request) { r.Header.Del("Authorization") }},
		{"basic authentication", MalformedHeader, func(r *http.Request) { r.SetBasicAuth("a", "b") }},
		{"an algorithm that is not known", MalformedHeader, auth("HMAC-SHA256", "ECDSA-P256-SHA256")},
		{"the signature", Mismatch, auth("Signature=", "Signature=0")},
		{"an empty signature", Mismatch, func(r *http.Request) {
			head, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", head+"Signature=")
		}},
		{"the access key", UnknownKey, auth("AKIDEXAMPLE", "AKIDEXAMPLF")},
		{"no access key", MalformedHeader, auth("AKIDEXAMPLE", "")},
		{"the region", Mismatch, auth("eu-north-1", "eu-north-2")},
		{"the service", WrongScope, auth("/lambda/", "/s3/")},
		{"the scope's end", MalformedHeader, auth("aws4_request", "aws4_reques")},
		{"the scope's date", MalformedHeader, auth("/20260102/", "/20260103/")},
		{"the host not signed", HeaderNotSigned, auth(";host;", ";hosts;")},
		{"no date", MalformedHeader, func(r *http.Request) { r.Header.Del("X-Amz-Date") }},
		{"a date that is none", MalformedHeader, func(r *http.Request) { r.Header.Set("X-Amz-Date", "20260102T0304") }},
		{"the date", Mismatch, func(r *http.Request) { r.Header.Set("X-Amz-Date", "20260102T030406Z") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := signed()
			tc.change(r)
			if err := verify(newVerifier("lambda"), r, body); problemOf(err) != tc.want {
				t.Errorf("%v (%d), want problem %d", err, problemOf(err), tc.want)
			}
		})
	}
	t.Run("the body", func(t *testing.T) {
		if err := verify(newVerifier("lambda"), signed(), body+" "); problemOf(err) != Mismatch {
			t.Error(err)
		}
	})
	t.Run("a secret that is wrong", func(t *testing.T) {
		v := New(Options{Service: "lambda", Keys: Static{testKey.ID: testKey.Secret + "x"}, Now: func() time.Time { return when }})
		if err := verify(v, signed(), body); problemOf(err) != Mismatch {
			t.Error(err)
		}
	})
	t.Run("another region where one is configured", func(t *testing.T) {
		v := New(Options{Service: "lambda", Region: "us-east-1", Keys: Static{testKey.ID: testKey.Secret}, Now: func() time.Time { return when }})
		if err := verify(v, signed(), body); problemOf(err) != WrongScope {
			t.Error(err)
		}
	})
}

func TestABodyIsCheckedAgainstTheDeclaredHash(t *testing.T) {
	for _, tc := range []struct {
		name, declared, body string
		want                 Problem
	}{
		{"the right hash", hashOf("body"), "body", 0},
		{"another body", hashOf("body"), "bodY", BodyMismatch},
		{"an unsigned body", UnsignedPayload, "anything", 0},
		{"an encoding of S3", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "body", BadPayloadHash},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequest(http.MethodPost, "http://h/x", strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Amz-Content-Sha256", tc.declared)
			if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret},
				r, tc.declared, "lambda", "r", when); err != nil {
				t.Fatal(err)
			}
			if err := verify(newVerifier("lambda"), received(t, r, tc.body), tc.body); problemOf(err) != tc.want {
				t.Errorf("%v, want problem %d", err, tc.want)
			}
		})
	}
}

func TestTheClockMayBeOffByAQuarterOfAnHour(t *testing.T) {
	for _, tc := range []struct {
		off  time.Duration
		want Problem
	}{
		{0, 0}, {15 * time.Minute, 0}, {-15 * time.Minute, 0},
		{15*time.Minute + time.Second, Skewed}, {-15*time.Minute - time.Second, Skewed}, {24 * time.Hour, Skewed},
	} {
		v := New(Options{Service: "lambda", Keys: Static{testKey.ID: testKey.Secret}, Now: func() time.Time { return when.Add(tc.off) }})
		if err := verify(v, request(t, "GET", "/", "", "lambda", nil), ""); problemOf(err) != tc.want {
			t.Errorf("off by %v: %v, want problem %d", tc.off, err, tc.want)
		}
	}
}

func TestPresignedAddressesWorkUntilTheyExpire(t *testing.T) {
	for _, service := range []string{"lambda", "s3"} {
		t.Run(service, func(t *testing.T) {
			address, err := PresignGet("http://h:1/a%20b/c?x=y+z", testKey, Scope{service, "r", when}, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			for _, tc := range []struct {
				name   string
				after  time.Duration
				change func(string) string
				want   Problem
			}{
				{"at once", 0, nil, 0},
				{"after its time", time.Minute + time.Second, nil, Expired},
				{"before its time", -time.Hour, nil, Skewed},
				{"with more time", 2 * time.Minute, func(a string) string { return strings.Replace(a, "Expires=60", "Expires=600", 1) }, Mismatch},
				{"with endless time", 0, func(a string) string { return strings.Replace(a, "Expires=60", "Expires=9999999", 1) }, MalformedQuery},
				{"for another object", 0, func(a string) string { return strings.Replace(a, "/c?", "/d?", 1) }, Mismatch},
			} {
				a := address
				if tc.change != nil {
					a = tc.change(a)
				}
				v := New(Options{Service: service, Keys: Static{testKey.ID: testKey.Secret}, Now: func() time.Time { return when.Add(tc.after) }})
				if err := verify(v, httptest.NewRequest(http.MethodGet, a, nil), ""); problemOf(err) != tc.want {
					t.Errorf("%s: %v, want problem %d", tc.name, err, tc.want)
				}
			}
		})
	}
	for name, expires := range map[string]time.Duration{"no time": 0, "too much time": 8 * 24 * time.Hour} {
		if _, err := PresignGet("http://h/", testKey, Scope{"lambda", "r", when}, expires); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := PresignGet("/relative", testKey, Scope{"lambda", "r", when}, time.Minute); err == nil {
		t.Error("an address without a host is accepted")
	}
}

func TestAddressesPresignedByTheAWSSDKAreAccepted(t *testing.T) {
	r, err := http.NewRequest(http.MethodGet, "http://h/a/b?X-Amz-Expires=60", nil)
	if err != nil {
		t.Fatal(err)
	}
	address, _, err := v4.NewSigner().PresignHTTP(t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret},
		r, EmptySHA256, "lambda", "r", when)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(newVerifier("lambda"), httptest.NewRequest(http.MethodGet, address, nil), ""); err != nil {
		t.Error(err)
	}
}

func TestADerivedKeyIsForgottenWithItsSecret(t *testing.T) {
	keys := Static{testKey.ID: testKey.Secret}
	v := New(Options{Service: "lambda", Keys: keys, Now: func() time.Time { return when }})
	r := request(t, "GET", "/", "", "lambda", nil)
	if err := verify(v, r, ""); err != nil {
		t.Fatal(err)
	}
	keys[testKey.ID] = "another"
	if err := verify(v, r, ""); problemOf(err) != Mismatch {
		t.Errorf("after a change of the secret: %v", err)
	}
	for i := range 3 * maxDerived {
		v.derived.get(&Claim{AccessKey: testKey.ID, date: "20260102", region: fmt.Sprint(i)}, "secret")
	}
	if n := len(v.derived.keys); n > maxDerived {
		t.Errorf("%d derived keys are remembered", n)
	}
}

func TestPrintingAKeyDoesNotShowItsSecret(t *testing.T) {
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, testKey); strings.Contains(text, testKey.Secret) {
			t.Errorf("%s shows the secret", format)
		}
	}
	if strings.Contains(testKey.LogValue().String(), testKey.Secret) {
		t.Error("LogValue shows the secret")
	}
}

// TestTheSDKAndTheVerifierAgree signs random requests.
func TestTheSDKAndTheVerifierAgree(t *testing.T) {
	v := newVerifier("lambda")
	rapid.Check(t, func(rt *rapid.T) {
		segment := rapid.StringMatching(`[a-zA-Z0-9 :$~!*'()_.+,;=@-]{1,12}`)
		u := url.URL{Scheme: "http", Host: "h:1"}
		for range rapid.IntRange(1, 4).Draw(rt, "segments") {
			u.Path += "/x" + segment.Draw(rt, "segment")
		}
		query := url.Values{}
		for range rapid.IntRange(0, 4).Draw(rt, "parameters") {
			query.Add(segment.Draw(rt, "name"), rapid.StringN(0, 8, 32).Draw(rt, "value"))
		}
		u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
		body := rapid.String().Draw(rt, "body")
		r, err := http.NewRequest(http.MethodPost, u.String(), strings.NewReader(body))
		if err != nil {
			rt.Fatal(err)
		}
		r.Header.Set("X-Amz-Meta-Note", rapid.StringMatching(`[a-z]{1,4}( {1,3}[a-z]{1,4}){0,3}`).Draw(rt, "header"))
		if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret},
			r, hashOf(body), "lambda", "r", when); err != nil {
			rt.Fatal(err)
		}
		if err := verify(v, received(t, r, body), body); err != nil {
			rt.Fatalf("%s: %v", r.URL, err)
		}
	})
}

func FuzzAuthorizationHeader(f *testing.F) {
	signed := request(f, "POST", "/p", "b", "lambda", nil).Header.Get("Authorization")
	f.Add(signed, "20260102T030405Z", "")
	f.Add(strings.Replace(signed, "Signature=", "Signature=0", 1), "20260102T030405Z", "a=b")
	f.Add("AWS4-HMAC-SHA256 Credential=////, SignedHeaders=;;, Signature==", "", "&&")
	f.Add("", "20260102T030405Z", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=1&X-Amz-Credential=a/b/c/d/e")
	good := request(f, "POST", "/p", "b", "lambda", nil)
	v := newVerifier("lambda")
	f.Fuzz(func(t *testing.T, authorization, date, query string) {
		r := good.Clone(t.Context())
		r.Header.Set("Authorization", authorization)
		r.Header.Set("X-Amz-Date", date)
		r.URL.RawQuery = query
		err := verify(v, r, "b")
		if err != nil && problemOf(err) == 0 {
			t.Errorf("an error of another type: %v", err)
		}
		// Whatever is accepted has the right signature in it.
		want := signed[strings.Index(signed, "Signature="):]
		if err == nil && !strings.Contains(authorization, want) {
			t.Errorf("accepted: %q %q %q", authorization, date, query)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, size := range []int{0, 100, 10_000} {
		body := strings.Repeat("x", size)
		r := request(b, "POST", "/2015-03-31/functions/echo/invocations", body, "lambda", func(r *http.Request) {
			r.Header.Set("X-Amz-Invocation-Type", "RequestResponse")
			r.Header.Set("User-Agent", "aws-sdk-go-v2/1.48.0 ua/2.1 os/linux lang/go#1.26.6 md/GOOS#linux md/GOARCH#amd64 api/lambda#1.114.3")
			r.Header.Set("Amz-Sdk-Invocation-Id", "6a9f0b1c-63d0-4d5b-a0b5-6a0a3e2b5f0e")
			r.Header.Set("Amz-Sdk-Request", "attempt=1; max=3")
		})
		v := newVerifier("lambda")
		text := []byte(body)
		b.Run(fmt.Sprintf("body=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := v.Claim(r)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.CheckBody(r, text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
