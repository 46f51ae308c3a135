package lambda

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/internal/sigv4"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = sigv4.Key{ID: "AKIDTEST", Secret: "a secret"}

// newHandler returns a handler on a platform, and what it has logged.
func newHandler(p Platform, change func(*Config)) *Handler {
	keys := sigv4.Static{testKey.ID: testKey.Secret}
	c := Config{
		Platform: p, Keys: keys, Log: slog.New(slog.DiscardHandler),
		Verifier: sigv4.New(sigv4.Options{Service: awshttp.SigningService, Keys: keys}),
	}
	if change != nil {
		change(&c)
	}
	return New(c)
}

// signed returns a request that is signed with testKey.
func signed(t testing.TB, method, target, body string, header map[string]string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(method, "http://localhost:9400"+target, strings.NewReader(body))
	for name, value := range header {
		r.Header.Set(name, value)
	}
	sum := sha256.Sum256([]byte(body))
	err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: testKey.ID, SecretAccessKey: testKey.Secret},
		r, hex.EncodeToString(sum[:]), "lambda", "us-east-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func zipOf(t testing.TB, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// withFunction returns a platform with the function f.
func withFunction(t testing.TB) *fakePlatform {
	t.Helper()
	p := newFakePlatform()
	h := newHandler(p, nil)
	body := createBody(t, "f", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, signed(t, http.MethodPost, "/2015-03-31/functions", body, nil))
	if w.Code != http.StatusCreated {
		t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	return p
}

// createBody is the body of CreateFunction with some members replaced.
func createBody(t testing.TB, name string, change map[string]any) string {
	t.Helper()
	in := map[string]any{
		"FunctionName": name, "Runtime": "python3.11", "Handler": "index.handler", "Role": "any",
		"Code": map[string]any{"ZipFile": zipOf(t, "index.py", "x")},
	}
	for member, value := range change {
		in[member] = value
		if value == nil {
			delete(in, member)
		}
	}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestInvokeTellsThePlatformAllThatTheRequestSays(t *testing.T) {
	p := withFunction(t)
	w := httptest.NewRecorder()
	newHandler(p, nil).ServeHTTP(w, signed(t, http.MethodPost, "/2015-03-31/functions/f/invocations?Qualifier=%24LATEST", ` {"a": 1}`, map[string]string{
		"X-Amz-Log-Type": "Tail", "X-Amz-Client-Context": base64.StdEncoding.EncodeToString([]byte(`{"custom":1}`)),
		"X-Amzn-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
	}))
	if w.Code != http.StatusOK || w.Body.String() != ` {"a": 1}` {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	inv := p.invoked[0]
	if inv.Function != "f" || !inv.LogTail || string(inv.ClientContext) != `{"custom":1}` || inv.Attempt != 1 || inv.Type != function.RequestResponse ||
		inv.TraceParent != "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01" || time.Since(inv.Received) > time.Minute {
		t.Errorf("invocation: %+v", inv)
	}
	for name, want := range map[string]string{
		"X-Amz-Executed-Version": "$LATEST", "X-Amz-Function-Error": "", "Content-Type": "application/json",
		"X-Amzn-Requestid": inv.ID, "X-Amz-Log-Result": base64.StdEncoding.EncodeToString([]byte("a line\n")),
		"Server-Timing": `queue;dur=0.000, start;dur=0.000, run;dur=1.000, container;desc="c"`,
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// refusal is a request and the error that answers it.
type refusal struct {
	name           string
	method, target string
	body           string
	header         map[string]string
	status         int
	error          string
	says           string // part of the message
}

func checkRefusals(t *testing.T, h http.Handler, refusals []refusal) {
	t.Helper()
	for _, tc := range refusals {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, signed(t, tc.method, tc.target, tc.body, tc.header))
			if w.Code != tc.status || w.Header().Get("X-Amzn-Errortype") != tc.error {
				t.Fatalf("%d %s, want %d %s: %s", w.Code, w.Header().Get("X-Amzn-Errortype"), tc.status, tc.error, w.Body)
			}
			var body struct{ Type, Message string }
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Type == "" || !strings.Contains(body.Message, tc.says) {
				t.Errorf("body %s, want a message with %q (%v)", w.Body, tc.says, err)
			}
			if w.Header().Get("X-Amzn-Requestid") == "" {
				t.Error("the answer has no request id")
			}
		})
	}
}

func TestABadInvocationIsRefused(t *testing.T) {
	const invoke = "/2015-03-31/functions/f/invocations"
	post := func(name, target, body string, header map[string]string, status int, error, says string) refusal {
		return refusal{name, http.MethodPost, target, body, header, status, error, says}
	}
	long := strings.Repeat("eA==", 1000)
	checkRefusals(t, newHandler(withFunction(t), nil), []refusal{
		post("no JSON", invoke, "{", nil, 400, awshttp.InvalidRequestContent, "json"),
		post("no function", "/2015-03-31/functions/g/invocations", "{}", nil, 404, awshttp.ResourceNotFound, "function:g"),
		post("another version", invoke+"?Qualifier=3", "{}", nil, 404, awshttp.ResourceNotFound, "f:3"),
		post("two qualifiers", "/2015-03-31/functions/f:$LATEST/invocations?Qualifier=x", "{}", nil, 400, awshttp.InvalidParameterValue, "qualifier"),
		post("another account", "/2015-03-31/functions/111111111111:function:f/invocations", "{}", nil, 404, awshttp.ResourceNotFound, ""),
		post("a bad name", "/2015-03-31/functions/f!/invocations", "{}", nil, 400, awshttp.InvalidParameterValue, "FunctionName"),
		post("a bad type", invoke, "{}", map[string]string{"X-Amz-Invocation-Type": "event"}, 400, awshttp.InvalidParameterValue, "InvocationType"),
		post("a bad log type", invoke, "{}", map[string]string{"X-Amz-Log-Type": "All"}, 400, awshttp.InvalidParameterValue, "LogType"),
		post("a client context that is no base64", invoke, "{}", map[string]string{"X-Amz-Client-Context": "{}"}, 400, awshttp.InvalidRequestContent, "Base64"),
		post("a client context that is no JSON", invoke, "{}", map[string]string{"X-Amz-Client-Context": "eA=="}, 400, awshttp.InvalidRequestContent, "JSON"),
		post("a long client context", invoke, "{}", map[string]string{"X-Amz-Client-Context": long}, 400, awshttp.InvalidRequestContent, "3583"),
		post("an Event that is too large", invoke, `"`+strings.Repeat("x", 1<<20)+`"`, map[string]string{"X-Amz-Invocation-Type": "Event"}, 413, awshttp.RequestTooLarge, "1048578 byte"),
		post("a payload that is too large", invoke, `"`+strings.Repeat("x", 6<<20)+`"`, nil, 413, awshttp.RequestTooLarge, "6291456"),
		post("a dry run of no function", "/2015-03-31/functions/g/invocations", "", map[string]string{"X-Amz-Invocation-Type": "DryRun"}, 404, awshttp.ResourceNotFound, ""),
		post("a streamed Event", "/2021-11-15/functions/f/response-streaming-invocations", "{}", map[string]string{"X-Amz-Invocation-Type": "Event"}, 400, awshttp.InvalidParameterValue, "Event"),
		post("a path that is none", "/2015-03-31/functions/f/invocation", "", nil, 404, awshttp.UnknownOperation, ""),
		post("layers", "/2018-10-31/layers/l/versions", "{}", nil, 404, awshttp.UnknownOperation, ""),
	})
}

func TestABadConfigurationIsRefusedByAWSsNames(t *testing.T) {
	p := withFunction(t)
	create := func(name, member string, value any, says string) refusal {
		return refusal{name, http.MethodPost, "/2015-03-31/functions", createBody(t, "g", map[string]any{member: value}), nil,
			400, awshttp.InvalidParameterValue, says}
	}
	checkRefusals(t, newHandler(p, nil), []refusal{
		create("no name", "FunctionName", nil, "FunctionName"),
		create("a bad name", "FunctionName", "a b", "FunctionName"),
		create("too little memory", "MemorySize", 1, "MemorySize: 1 is out of range"),
		create("no memory", "MemorySize", 0, "MemorySize"),
		create("too long a timeout", "Timeout", 901, "Timeout"),
		create("no time", "Timeout", 0, "Timeout"),
		create("no room in /tmp", "EphemeralStorage", map[string]int{"Size": 1}, "EphemeralStorage"),
		create("an unknown runtime", "Runtime", "cobol", "Runtime"),
		create("no handler", "Handler", nil, "Handler"),
		create("a package type that is none", "PackageType", "Tar", "PackageType"),
		create("another processor", "Architectures", []string{"mips"}, "Architectures"),
		create("a reserved variable", "Environment", map[string]any{"Variables": map[string]string{"AWS_REGION": "x"}}, "Environment"),
		create("layers", "Layers", []string{"arn"}, "Layers"),
		create("a VPC", "VpcConfig", map[string]any{"SubnetIds": []string{"s"}}, "VpcConfig"),
		create("a file system", "FileSystemConfigs", []map[string]string{{"Arn": "a"}}, "FileSystemConfigs"),
		create("a dead-letter queue", "DeadLetterConfig", map[string]string{"TargetArn": "a"}, "OnFailure"),
		create("an encryption key", "KMSKeyArn", "a", "KMSKeyArn"),
		create("signed code", "CodeSigningConfigArn", "a", "CodeSigningConfigArn"),
		create("no code", "Code", map[string]any{}, "Code"),
		create("two codes", "Code", map[string]any{"ZipFile": []byte("x"), "S3Bucket": "b", "S3Key": "k"}, "Code"),
		create("no zip file", "Code", map[string]any{"ZipFile": []byte("x")}, "zip"),
		create("a bucket without a store", "Code", map[string]any{"S3Bucket": "b", "S3Key": "k"}, "ZipFile"),
		create("a network that is none", "Tags", map[string]string{function.NetworkTag: "moon"}, "Tags"),
		{"no JSON", http.MethodPost, "/2015-03-31/functions", "x", nil, 400, awshttp.InvalidRequestContent, "json"},
		{"no base64", http.MethodPost, "/2015-03-31/functions", `{"Code":{"ZipFile":"?"}}`, nil, 400, awshttp.InvalidRequestContent, "json"},
		{"a name that is taken", http.MethodPost, "/2015-03-31/functions", createBody(t, "f", nil), nil, 409, awshttp.ResourceConflict, "f"},
		{"a negative reservation", http.MethodPut, "/2017-10-31/functions/f/concurrency", `{"ReservedConcurrentExecutions":-1}`, nil, 400, awshttp.InvalidParameterValue, "ReservedConcurrentExecutions"},
		{"no reservation", http.MethodPut, "/2017-10-31/functions/f/concurrency", `{}`, nil, 400, awshttp.InvalidParameterValue, "ReservedConcurrentExecutions"},
		{"provisioned without a qualifier", http.MethodPut, "/2019-09-30/functions/f/provisioned-concurrency", `{"ProvisionedConcurrentExecutions":1}`, nil, 400, awshttp.InvalidParameterValue, "Qualifier"},
		{"nothing provisioned", http.MethodGet, "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=$LATEST", "", nil, 404, awshttp.ProvisionedNotFound, ""},
		{"provisioned for no function", http.MethodGet, "/2019-09-30/functions/g/provisioned-concurrency?Qualifier=$LATEST", "", nil, 404, awshttp.ResourceNotFound, ""},
		{"too many retries", http.MethodPut, "/2019-09-25/functions/f/event-invoke-config", `{"MaximumRetryAttempts":3}`, nil, 400, awshttp.InvalidParameterValue, "MaximumRetryAttempts"},
		{"no age", http.MethodPut, "/2019-09-25/functions/f/event-invoke-config", `{"MaximumEventAgeInSeconds":0}`, nil, 400, awshttp.InvalidParameterValue, "MaximumEventAgeInSeconds"},
		{"a queue as destination", http.MethodPut, "/2019-09-25/functions/f/event-invoke-config", `{"DestinationConfig":{"OnFailure":{"Destination":"arn:aws:sqs:us-east-1:000000000000:q"}}}`, nil, 400, awshttp.InvalidParameterValue, "OnFailure"},
		{"an update of nothing", http.MethodPost, "/2019-09-25/functions/f/event-invoke-config", `{}`, nil, 404, awshttp.ResourceNotFound, ""},
		{"a page that is too long", http.MethodGet, "/2015-03-31/functions?MaxItems=x", "", nil, 400, awshttp.InvalidParameterValue, "MaxItems"},
		{"an old revision", http.MethodPut, "/2015-03-31/functions/f/configuration", `{"RevisionId":"x"}`, nil, 412, awshttp.PreconditionFailed, ""},
		{"a deletion of a version", http.MethodDelete, "/2015-03-31/functions/f?Qualifier=$LATEST", "", nil, 400, awshttp.InvalidParameterValue, "LATEST"},
		{"no tags", http.MethodPost, "/2017-03-31/tags/" + function.ARN("f"), `{}`, nil, 400, awshttp.InvalidParameterValue, "Tags"},
		{"no tag keys", http.MethodDelete, "/2017-03-31/tags/" + function.ARN("f"), "", nil, 400, awshttp.InvalidParameterValue, "TagKeys"},
	})
	if len(p.functions) != 1 {
		t.Errorf("a refused function was made: %v", p.functions)
	}
}

func TestPlatformErrorsHaveAWSsNames(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		name   string
	}{
		{function.Errorf(function.InvalidParameter, "m"), 400, awshttp.InvalidParameterValue},
		{function.Errorf(function.InvalidPayload, "m"), 400, awshttp.InvalidRequestContent},
		{function.Errorf(function.NotFound, "m"), 404, awshttp.ResourceNotFound},
		{function.Errorf(function.Conflict, "m"), 409, awshttp.ResourceConflict},
		{function.Errorf(function.PreconditionFailed, "m"), 412, awshttp.PreconditionFailed},
		{&function.Error{Code: function.TooManyRequests, Reason: "R", Message: "m"}, 429, awshttp.TooManyRequests},
		{function.Errorf(function.TooLarge, "m"), 413, awshttp.RequestTooLarge},
		{function.Errorf(function.InvalidImage, "m"), 400, awshttp.InvalidParameterValue},
		{function.Errorf(function.InvalidCode, "m"), 502, awshttp.InvalidZipFile},
		{function.Errorf(function.InvokerLost, "m"), 500, awshttp.Service},
		{function.Errorf(function.Unavailable, "m"), 503, awshttp.Service},
		{function.Errorf(function.Internal, "m"), 500, awshttp.Service},
		{fmt.Errorf("wrapped: %w", function.Errorf(function.Conflict, "m")), 409, awshttp.ResourceConflict},
		{errors.New("a secret of the house"), 500, awshttp.Service},
	} {
		t.Run(tc.err.Error(), func(t *testing.T) {
			p := withFunction(t)
			p.run = func(context.Context, function.Function, []byte, function.Invocation) (function.Result, error) {
				return function.Result{}, tc.err
			}
			w := httptest.NewRecorder()
			newHandler(p, nil).ServeHTTP(w, signed(t, http.MethodPost, "/2015-03-31/functions/f/invocations", "{}", nil))
			if w.Code != tc.status || w.Header().Get("X-Amzn-Errortype") != tc.name {
				t.Errorf("%d %s, want %d %s", w.Code, w.Header().Get("X-Amzn-Errortype"), tc.status, tc.name)
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("it tells what it should not: %s", w.Body)
			}
			retry := w.Header().Get("Retry-After")
			if (tc.status == 429 || tc.status == 503) != (retry != "") {
				t.Errorf("Retry-After is %q", retry)
			}
			if tc.status == 429 && !strings.Contains(w.Body.String(), `"Reason":"R"`) {
				t.Errorf("no reason: %s", w.Body)
			}
		})
	}
}

func TestRequestsWithoutAValidSignatureAreRefused(t *testing.T) {
	h := newHandler(withFunction(t), nil)
	for _, tc := range []struct {
		name   string
		change func(r *http.Request)
		want   string
	}{
		{"not signed", func(r *http.Request) { r.Header.Del("Authorization") }, awshttp.MissingAuthentication},
		{"a strange signature", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, awshttp.IncompleteSignature},
		{"an unknown key", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), testKey.ID, "AKIDOTHER", 1))
		}, awshttp.UnrecognizedClient},
		{"a wrong signature", func(r *http.Request) { r.Header.Set("Authorization", r.Header.Get("Authorization")+"0") }, awshttp.InvalidSignature},
		{"another body", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"a":2}`)) }, awshttp.InvalidSignature},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, target := range []string{"/2015-03-31/functions/f/invocations", "/2015-03-31/functions", "/nowhere"} {
				r := signed(t, http.MethodPost, target, `{"a":1}`, nil)
				tc.change(r)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != http.StatusForbidden || w.Header().Get("X-Amzn-Errortype") != tc.want {
					t.Errorf("%s: %d %s, want 403 %s", target, w.Code, w.Header().Get("X-Amzn-Errortype"), tc.want)
				}
			}
		})
	}
	t.Run("an expired date", func(t *testing.T) {
		keys := sigv4.Static{testKey.ID: testKey.Secret}
		h := newHandler(newFakePlatform(), func(c *Config) {
			c.Verifier = sigv4.New(sigv4.Options{Service: "lambda", Keys: keys, Now: func() time.Time { return time.Now().Add(time.Hour) }})
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, signed(t, http.MethodGet, "/2015-03-31/functions", "", nil))
		if w.Code != http.StatusForbidden || w.Header().Get("X-Amzn-Errortype") != awshttp.InvalidSignature || !strings.Contains(w.Body.String(), "Signature expired") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// uploadsOf serves one object.
type uploadsOf map[string][]byte

func (u uploadsOf) Open(_ context.Context, bucket, key string) (io.ReadCloser, error) {
	text, ok := u[bucket+"/"+key]
	if !ok {
		return nil, function.Errorf(function.NotFound, "no such object")
	}
	return io.NopCloser(bytes.NewReader(text)), nil
}

func TestCodeCanComeFromABucketOrARegistry(t *testing.T) {
	p := newFakePlatform()
	h := newHandler(p, func(c *Config) {
		c.Uploads = uploadsOf{"b/code.zip": zipOf(t, "index.py", "from a bucket"), "b/image.tar": []byte("a tar")}
	})
	for _, tc := range []struct {
		name   string
		change map[string]any
		status int
	}{
		{"zip", map[string]any{"Code": map[string]any{"S3Bucket": "b", "S3Key": "code.zip"}}, 201},
		{"nothing", map[string]any{"Code": map[string]any{"S3Bucket": "b", "S3Key": "other.zip"}}, 400},
		{"half", map[string]any{"Code": map[string]any{"S3Bucket": "b"}}, 400},
		{"versioned", map[string]any{"Code": map[string]any{"S3Bucket": "b", "S3Key": "code.zip", "S3ObjectVersion": "1"}}, 400},
		{"image", map[string]any{"Code": map[string]any{"ImageUri": "r/i:1"}, "Runtime": nil, "Handler": nil, "ImageConfig": map[string]any{"Command": []string{"x"}}}, 201},
		{"tar", map[string]any{"PackageType": "Image", "Code": map[string]any{"S3Bucket": "b", "S3Key": "image.tar"}, "Runtime": nil, "Handler": nil}, 201},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, signed(t, http.MethodPost, "/2015-03-31/functions", createBody(t, tc.name, tc.change), nil))
		if w.Code != tc.status {
			t.Errorf("%s: %d %s", tc.name, w.Code, w.Body)
		}
	}
	if got := p.functions["image"]; got.PackageType != function.Image || got.Code.ImageRef != "r/i:1" || got.ImageConfig.Command[0] != "x" {
		t.Errorf("image: %+v", got)
	}
	if string(p.code["tar"]) != "a tar" || p.functions["tar"].PackageType != function.Image {
		t.Errorf("tar: %q %+v", p.code["tar"], p.functions["tar"])
	}
}

func TestTheNetworkTagChangesTheNetwork(t *testing.T) {
	p := withFunction(t)
	h := newHandler(p, nil)
	do := func(method, target, body string, changes bool, want function.Network) {
		t.Helper()
		before := p.functions["f"].Revision
		w := httptest.NewRecorder()
		h.ServeHTTP(w, signed(t, method, target, body, nil))
		f := p.functions["f"]
		if w.Code != http.StatusNoContent || f.Network != want {
			t.Errorf("%d %s: network %s, want %s", w.Code, w.Body, f.Network, want)
		}
		if changes != (before != f.Revision) {
			t.Errorf("%s %s: revision %s, then %s", method, body, before, f.Revision)
		}
	}
	tags := "/2017-03-31/tags/" + function.ARN("f")
	do(http.MethodPost, tags, `{"Tags":{"a":"b"}}`, false, function.NetworkNone)
	do(http.MethodPost, tags, `{"Tags":{"volley:network":"host"}}`, true, function.NetworkHost)
	do(http.MethodDelete, tags+"?tagKeys=a", "", false, function.NetworkHost)
	do(http.MethodDelete, tags+"?tagKeys=volley%3Anetwork", "", true, function.NetworkNone)
}

func TestListFunctionsGivesPages(t *testing.T) {
	p := newFakePlatform()
	h := newHandler(p, nil)
	for i := range 120 {
		p.functions[fmt.Sprintf("f%03d", i)] = function.Function{Name: fmt.Sprintf("f%03d", i)}
	}
	for _, tc := range []struct {
		items string
		pages int
	}{{"", 3}, {"&MaxItems=50", 3}, {"&MaxItems=10000", 3}, {"&MaxItems=7", 18}} {
		marker, names, pages := "", []string{}, 0
		for {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, signed(t, http.MethodGet, "/2015-03-31/functions/?Marker="+marker+tc.items, "", nil))
			var page struct {
				Functions  []struct{ FunctionName string }
				NextMarker string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
				t.Fatal(err)
			}
			for _, f := range page.Functions {
				names = append(names, f.FunctionName)
			}
			pages++
			if marker = page.NextMarker; marker == "" {
				break
			}
		}
		if len(names) != 120 || pages != tc.pages {
			t.Errorf("%q: %d names on %d pages, want %d", tc.items, len(names), pages, tc.pages)
		}
	}
}
