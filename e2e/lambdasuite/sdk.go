package lambdasuite

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
)

// SDK works with a function through the AWS SDK for Go.
func SDK(t *testing.T, s Server) {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	w := &work{
		T: t, server: s, transport: transport,
		name: fmt.Sprintf("sdk-%d", os.Getpid()),
	}
	w.api = w.client(s.AccessKey, s.SecretKey)
	source, err := os.ReadFile(functionFile(t))
	if err != nil {
		t.Fatal(err)
	}
	w.source = string(source)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// On success it is gone already.
		_, _ = w.client(s.AccessKey, s.SecretKey).DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &w.name})
	})
	w.create()
	w.find()
	w.invoke()
	w.stream()
	w.update()
	w.limitConcurrency()
	w.configureEvents()
	w.tag()
	w.askForWhatIsNotThere()
	w.useWrongKeys()
	w.remove()
}

// work is the test under way.
type work struct {
	*testing.T
	server    Server
	transport *http.Transport
	api       *lambda.Client
	name, arn string
	revision  *string
	source    string
}

func (w *work) client(accessKey, secretKey string) *lambda.Client {
	return lambda.New(lambda.Options{
		Region: "eu-north-1", BaseEndpoint: &w.server.Endpoint, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		HTTPClient:  &http.Client{Transport: w.transport},
	})
}

// pack returns the function's package, as the given version of it.
func (w *work) pack(version string) []byte {
	w.Helper()
	text := regexp.MustCompile(`(?m)^VERSION = .*$`).ReplaceAllString(w.source, fmt.Sprintf("VERSION = %q", version))
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	f, err := z.Create("index.py")
	w.must(err)
	_, err = io.WriteString(f, text)
	w.must(err)
	w.must(z.Close())
	return b.Bytes()
}

func (w *work) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *work) equal(what string, got, want any) {
	w.Helper()
	if !reflect.DeepEqual(got, want) {
		w.Errorf("%s is %v, want %v", what, got, want)
	}
}

// refused wants an error of the type of want, with a status.
func refused[E error](w *work, err error, status int) E {
	w.Helper()
	var want E
	if !errors.As(err, &want) {
		w.Fatalf("error is %v, want a %T", err, want)
	}
	w.hasStatus(err, status)
	return want
}

func (w *work) hasStatus(err error, status int) {
	w.Helper()
	var with interface{ HTTPStatusCode() int }
	if !errors.As(err, &with) || with.HTTPStatusCode() != status {
		w.Errorf("error is %v, want status %d", err, status)
	}
}

// refusedAs is refused for errors that the SDK has no type for.
func (w *work) refusedAs(err error, code string, status int) {
	w.Helper()
	var bad smithy.APIError
	if !errors.As(err, &bad) || bad.ErrorCode() != code {
		w.Errorf("error is %v, want %s", err, code)
		return
	}
	w.hasStatus(err, status)
}

func (w *work) create() {
	in := &lambda.CreateFunctionInput{
		FunctionName: &w.name, Runtime: types.RuntimePython311, Handler: aws.String("index.handler"),
		Role: aws.String("arn:aws:iam::000000000000:role/any"), Code: &types.FunctionCode{ZipFile: w.pack("one")},
		Timeout: aws.Int32(20), MemorySize: aws.Int32(128), Environment: &types.Environment{Variables: map[string]string{"GREETING": "hello"}},
		Tags: map[string]string{"team": "a"}, Publish: true,
	}
	made, err := w.api.CreateFunction(w.Context(), in)
	w.must(err)
	w.arn, w.revision = *made.FunctionArn, made.RevisionId
	w.equal("state", made.State, types.StateActive)
	w.equal("version", *made.Version, "$LATEST")
	w.must(lambda.NewFunctionActiveV2Waiter(w.api).Wait(w.Context(), &lambda.GetFunctionInput{FunctionName: &w.name}, time.Minute))
	_, err = w.api.CreateFunction(w.Context(), in)
	refused[*types.ResourceConflictException](w, err, http.StatusConflict)
	in.FunctionName, in.Code = aws.String(w.name+"-bad"), &types.FunctionCode{ZipFile: []byte("no zip file")}
	_, err = w.api.CreateFunction(w.Context(), in)
	refused[*types.InvalidParameterValueException](w, err, http.StatusBadRequest)
}

func (w *work) find() {
	found := 0
	for pages := lambda.NewListFunctionsPaginator(w.api, &lambda.ListFunctionsInput{MaxItems: aws.Int32(1)}); pages.HasMorePages(); {
		page, err := pages.NextPage(w.Context())
		w.must(err)
		for _, f := range page.Functions {
			if *f.FunctionName == w.name {
				found++
			}
		}
	}
	w.equal("listed", found, 1)
	got, err := w.api.GetFunction(w.Context(), &lambda.GetFunctionInput{FunctionName: &w.arn, Qualifier: aws.String("$LATEST")})
	w.must(err)
	w.equal("ARN", *got.Configuration.FunctionArn, w.arn+":$LATEST")
	w.equal("tags", got.Tags, map[string]string{"team": "a"})
	req, err := http.NewRequestWithContext(w.Context(), http.MethodGet, *got.Code.Location, nil)
	w.must(err)
	resp, err := w.transport.RoundTrip(req)
	w.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	w.must(err)
	w.equal("downloaded package is the one sent", bytes.Equal(text, w.pack("one")), true)
	_, err = w.api.GetFunctionConfiguration(w.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String(w.name + "-none")})
	refused[*types.ResourceNotFoundException](w, err, http.StatusNotFound)
}

// answer is what the function returns.
type answer struct {
	Version, Function, Request, Greeting string
	Event, Custom                        map[string]any
	Memory                               int
}

func (w *work) call(in *lambda.InvokeInput) (*lambda.InvokeOutput, answer) {
	w.Helper()
	in.FunctionName = &w.name
	out, err := w.api.Invoke(w.Context(), in)
	w.must(err)
	var a answer
	if len(out.Payload) > 0 {
		w.must(json.Unmarshal(out.Payload, &a))
	}
	return out, a
}

func (w *work) invoke() {
	out, a := w.call(&lambda.InvokeInput{
		Payload: []byte(`{"a":"ü"}`), LogType: types.LogTypeTail,
		ClientContext: aws.String(base64.StdEncoding.EncodeToString([]byte(`{"custom":{"k":"v"}}`))),
	})
	w.equal("status", out.StatusCode, int32(http.StatusOK))
	w.equal("function error", out.FunctionError, (*string)(nil))
	w.equal("executed version", *out.ExecutedVersion, "$LATEST")
	w.equal("event", a.Event, map[string]any{"a": "ü"})
	w.equal("client context", a.Custom, map[string]any{"k": "v"})
	w.equal("version, function, greeting", []string{a.Version, a.Function, a.Greeting}, []string{"one", w.name, "hello"})
	log, err := base64.StdEncoding.DecodeString(*out.LogResult)
	w.must(err)
	w.equal("log has what was printed", strings.Contains(string(log), "handling"), true)

	out, _ = w.call(&lambda.InvokeInput{Payload: []byte(`{"fail":"on purpose"}`)})
	w.equal("status", out.StatusCode, int32(http.StatusOK))
	w.equal("function error", aws.ToString(out.FunctionError), "Unhandled")
	out, _ = w.call(&lambda.InvokeInput{InvocationType: types.InvocationTypeEvent, Payload: []byte(`{}`)})
	w.equal("status", out.StatusCode, int32(http.StatusAccepted))
	out, _ = w.call(&lambda.InvokeInput{InvocationType: types.InvocationTypeDryRun})
	w.equal("status", out.StatusCode, int32(http.StatusNoContent))

	_, err = w.api.Invoke(w.Context(), &lambda.InvokeInput{FunctionName: &w.name, Payload: []byte("no JSON")})
	refused[*types.InvalidRequestContentException](w, err, http.StatusBadRequest)
	_, err = w.api.Invoke(w.Context(), &lambda.InvokeInput{FunctionName: &w.name, Payload: []byte(`"` + strings.Repeat("x", 6<<20) + `"`)})
	refused[*types.RequestTooLargeException](w, err, http.StatusRequestEntityTooLarge)
	_, err = w.api.Invoke(w.Context(), &lambda.InvokeInput{FunctionName: &w.name, Qualifier: aws.String("1")})
	refused[*types.ResourceNotFoundException](w, err, http.StatusNotFound)
}

func (w *work) stream() {
	read := func(payload string) (string, types.InvokeWithResponseStreamCompleteEvent) {
		w.Helper()
		out, err := w.api.InvokeWithResponseStream(w.Context(), &lambda.InvokeWithResponseStreamInput{
			FunctionName: &w.name, Payload: []byte(payload), LogType: types.LogTypeTail,
		})
		w.must(err)
		w.equal("executed version", aws.ToString(out.ExecutedVersion), "$LATEST")
		stream := out.GetStream()
		defer stream.Close()
		var text strings.Builder
		var end *types.InvokeWithResponseStreamCompleteEvent
		for event := range stream.Events() {
			switch e := event.(type) {
			case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
				text.Write(e.Value.Payload)
			case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
				end = &e.Value
			}
		}
		w.must(stream.Err())
		if end == nil {
			w.Fatal("the stream has no end")
		}
		return text.String(), *end
	}
	text, end := read(`{"s":1}`)
	w.equal("error code", aws.ToString(end.ErrorCode), "")
	var a answer
	w.must(json.Unmarshal([]byte(text), &a))
	w.equal("event", a.Event, map[string]any{"s": 1.0})
	log, err := base64.StdEncoding.DecodeString(aws.ToString(end.LogResult))
	w.must(err)
	w.equal("log has what was printed", strings.Contains(string(log), "handling"), true)

	text, end = read(`{"fail":"on purpose"}`)
	w.equal("what came before the failure", text, "")
	w.equal("error code", aws.ToString(end.ErrorCode), "Unhandled")
	w.equal("error details", strings.Contains(aws.ToString(end.ErrorDetails), "on purpose"), true)
}

func (w *work) update() {
	in := &lambda.UpdateFunctionCodeInput{FunctionName: &w.name, ZipFile: w.pack("two"), RevisionId: aws.String("another")}
	_, err := w.api.UpdateFunctionCode(w.Context(), in)
	refused[*types.PreconditionFailedException](w, err, http.StatusPreconditionFailed)
	in.RevisionId = w.revision
	updated, err := w.api.UpdateFunctionCode(w.Context(), in)
	w.must(err)
	w.must(lambda.NewFunctionUpdatedV2Waiter(w.api).Wait(w.Context(), &lambda.GetFunctionInput{FunctionName: &w.name}, time.Minute))
	w.equal("revision is a new one", *updated.RevisionId != *w.revision, true)
	_, a := w.call(&lambda.InvokeInput{})
	w.equal("version", a.Version, "two")

	changed, err := w.api.UpdateFunctionConfiguration(w.Context(), &lambda.UpdateFunctionConfigurationInput{
		FunctionName: &w.name, MemorySize: aws.Int32(192), Environment: &types.Environment{Variables: map[string]string{"GREETING": "bye"}},
	})
	w.must(err)
	w.equal("memory, timeout", []int32{*changed.MemorySize, *changed.Timeout}, []int32{192, 20})
	_, a = w.call(&lambda.InvokeInput{})
	w.equal("memory in the function", a.Memory, 192)
	w.equal("greeting", a.Greeting, "bye")
	_, err = w.api.UpdateFunctionConfiguration(w.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: &w.name, MemorySize: aws.Int32(1)})
	refused[*types.InvalidParameterValueException](w, err, http.StatusBadRequest)
}

func (w *work) limitConcurrency() {
	_, err := w.api.PutFunctionConcurrency(w.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: &w.name, ReservedConcurrentExecutions: aws.Int32(0)})
	w.must(err)
	_, err = w.api.Invoke(w.Context(), &lambda.InvokeInput{FunctionName: &w.name})
	throttled := refused[*types.TooManyRequestsException](w, err, http.StatusTooManyRequests)
	w.equal("reason", throttled.Reason, types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded)
	_, err = w.api.DeleteFunctionConcurrency(w.Context(), &lambda.DeleteFunctionConcurrencyInput{FunctionName: &w.name})
	w.must(err)

	latest := aws.String("$LATEST")
	_, err = w.api.GetProvisionedConcurrencyConfig(w.Context(), &lambda.GetProvisionedConcurrencyConfigInput{FunctionName: &w.name, Qualifier: latest})
	refused[*types.ProvisionedConcurrencyConfigNotFoundException](w, err, http.StatusNotFound)
	_, err = w.api.PutProvisionedConcurrencyConfig(w.Context(), &lambda.PutProvisionedConcurrencyConfigInput{
		FunctionName: &w.name, Qualifier: latest, ProvisionedConcurrentExecutions: aws.Int32(1),
	})
	w.must(err)
	got, err := w.api.GetProvisionedConcurrencyConfig(w.Context(), &lambda.GetProvisionedConcurrencyConfigInput{FunctionName: &w.name, Qualifier: latest})
	w.must(err)
	w.equal("requested", *got.RequestedProvisionedConcurrentExecutions, int32(1))
	_, err = w.api.DeleteProvisionedConcurrencyConfig(w.Context(), &lambda.DeleteProvisionedConcurrencyConfigInput{FunctionName: &w.name, Qualifier: latest})
	w.must(err)
}

func (w *work) configureEvents() {
	_, err := w.api.PutFunctionEventInvokeConfig(w.Context(), &lambda.PutFunctionEventInvokeConfigInput{
		FunctionName: &w.name, MaximumRetryAttempts: aws.Int32(0), MaximumEventAgeInSeconds: aws.Int32(60),
		DestinationConfig: &types.DestinationConfig{OnFailure: &types.OnFailure{Destination: &w.arn}},
	})
	w.must(err)
	got, err := w.api.GetFunctionEventInvokeConfig(w.Context(), &lambda.GetFunctionEventInvokeConfigInput{FunctionName: &w.name})
	w.must(err)
	w.equal("retries, age", []int32{*got.MaximumRetryAttempts, *got.MaximumEventAgeInSeconds}, []int32{0, 60})
	w.equal("destination", aws.ToString(got.DestinationConfig.OnFailure.Destination), w.arn)
	w.equal("modified just now", time.Since(*got.LastModified).Abs() < 5*time.Minute, true)
	_, err = w.api.DeleteFunctionEventInvokeConfig(w.Context(), &lambda.DeleteFunctionEventInvokeConfigInput{FunctionName: &w.name})
	w.must(err)
	_, err = w.api.GetFunctionEventInvokeConfig(w.Context(), &lambda.GetFunctionEventInvokeConfigInput{FunctionName: &w.name})
	refused[*types.ResourceNotFoundException](w, err, http.StatusNotFound)
}

func (w *work) tag() {
	_, err := w.api.TagResource(w.Context(), &lambda.TagResourceInput{Resource: &w.arn, Tags: map[string]string{"team": "b", "a b": "ü"}})
	w.must(err)
	_, err = w.api.UntagResource(w.Context(), &lambda.UntagResourceInput{Resource: &w.arn, TagKeys: []string{"team", "other"}})
	w.must(err)
	got, err := w.api.ListTags(w.Context(), &lambda.ListTagsInput{Resource: &w.arn})
	w.must(err)
	w.equal("tags", got.Tags, map[string]string{"a b": "ü"})
}

func (w *work) askForWhatIsNotThere() {
	versions, err := w.api.ListVersionsByFunction(w.Context(), &lambda.ListVersionsByFunctionInput{FunctionName: &w.name})
	w.must(err)
	w.equal("versions", len(versions.Versions), 1)
	_, err = w.api.PublishVersion(w.Context(), &lambda.PublishVersionInput{FunctionName: &w.name})
	refused[*types.InvalidParameterValueException](w, err, http.StatusBadRequest)
	_, err = w.api.GetPolicy(w.Context(), &lambda.GetPolicyInput{FunctionName: &w.name})
	refused[*types.ResourceNotFoundException](w, err, http.StatusNotFound)
	_, err = w.api.ListLayers(w.Context(), &lambda.ListLayersInput{})
	w.refusedAs(err, "UnknownOperationException", http.StatusNotFound)
}

func (w *work) useWrongKeys() {
	for _, c := range []struct{ accessKey, secretKey, code string }{
		{w.server.AccessKey, "wrong", "InvalidSignatureException"},
		{"AKIAUNKNOWN", "wrong", "UnrecognizedClientException"},
	} {
		_, err := w.client(c.accessKey, c.secretKey).ListFunctions(w.Context(), &lambda.ListFunctionsInput{})
		w.refusedAs(err, c.code, http.StatusForbidden)
		_, err = w.client(c.accessKey, c.secretKey).Invoke(w.Context(), &lambda.InvokeInput{FunctionName: &w.name, Payload: []byte("{}")})
		w.refusedAs(err, c.code, http.StatusForbidden)
	}
}

func (w *work) remove() {
	_, err := w.api.DeleteFunction(w.Context(), &lambda.DeleteFunctionInput{FunctionName: &w.name})
	w.must(err)
	_, err = w.api.GetFunction(w.Context(), &lambda.GetFunctionInput{FunctionName: &w.name})
	refused[*types.ResourceNotFoundException](w, err, http.StatusNotFound)
}
