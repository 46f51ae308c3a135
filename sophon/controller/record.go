package controller

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
)

// Status is how an asynchronous invocation ended.
type Status string

// The statuses of a Record.
const (
	Succeeded Status = "Succeeded"
	Failed    Status = "Failed"
)

// Condition says why it ended so, in AWS's words.
type Condition string

// The conditions of a Record.
const (
	Success          Condition = "Success"
	RetriesExhausted Condition = "RetriesExhausted"
	EventAgeExceeded Condition = "EventAgeExceeded"
)

// Record is the outcome of an asynchronous invocation. There is one for each
// that was accepted, and it never changes.
type Record struct {
	RequestID string    `json:"requestId"`
	Function  string    `json:"function"`
	Status    Status    `json:"status"`
	Condition Condition `json:"condition"`
	// Attempts is how often the function ran to its end.
	Attempts int       `json:"attempts"`
	Received time.Time `json:"received"`
	Ended    time.Time `json:"ended"`
	// FunctionError is set where the function failed, Error where the platform
	// did; Payload is the last attempt's response.
	FunctionError string          `json:"functionError,omitempty"`
	Error         *function.Error `json:"error,omitempty"`
	Payload       []byte          `json:"payload,omitempty"`
	// Truncated tells that the payload was too large to keep.
	Truncated bool          `json:"truncated,omitempty"`
	Invoker   string        `json:"invoker,omitempty"`
	Container string        `json:"container,omitempty"`
	Cold      bool          `json:"cold,omitempty"`
	Run       time.Duration `json:"run,omitempty"`
}

// DeadLetter is an asynchronous invocation that failed for good, with all that
// is needed to invoke it again.
type DeadLetter struct {
	Record     Record              `json:"record"`
	Invocation function.Invocation `json:"invocation"`
}

// outcome returns a request's record, or nil if there is none.
func (a *async) outcome(ctx context.Context, id string) (*Record, error) {
	e, err := a.records.Get(ctx, id)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Record returns the outcome of an asynchronous invocation, or NotFound while
// there is none.
func (c *Controller) Record(ctx context.Context, requestID string) (Record, error) {
	if err := c.awaitOpen(ctx); err != nil {
		return Record{}, err
	}
	ctx, cancel := onBus(ctx)
	defer cancel()
	r, err := c.async.outcome(ctx, requestID)
	if err != nil {
		return Record{}, busError("read record "+requestID, err)
	}
	if r == nil {
		return Record{}, function.Errorf(function.NotFound, "there is no outcome of request %s: it is not known, not over yet, or too long ago", requestID)
	}
	return *r, nil
}

// Records returns the outcomes that are kept, by request id: at most limit of
// those after marker. next is the marker for the rest, empty at the end.
func (c *Controller) Records(ctx context.Context, marker string, limit int) (records []Record, next string, err error) {
	if err := c.awaitOpen(ctx); err != nil {
		return nil, "", err
	}
	return page(ctx, c, c.async.records, marker, limit, func(r Record) string { return r.RequestID })
}

// DeadLetters returns the asynchronous invocations that failed for good, paged
// as by Records.
func (c *Controller) DeadLetters(ctx context.Context, marker string, limit int) (letters []DeadLetter, next string, err error) {
	if err := c.awaitOpen(ctx); err != nil {
		return nil, "", err
	}
	return page(ctx, c, c.async.dead, marker, limit, func(d DeadLetter) string { return d.Record.RequestID })
}

// DeleteDeadLetter removes a dead letter; one that is not there is no error.
func (c *Controller) DeleteDeadLetter(ctx context.Context, requestID string) error {
	if err := c.awaitOpen(ctx); err != nil {
		return err
	}
	if err := c.async.dead.Delete(ctx, requestID); err != nil {
		return busError("delete dead letter "+requestID, err)
	}
	return nil
}

// page reads values of a bucket in the order of their keys.
func page[T any](ctx context.Context, c *Controller, kv bus.KV, marker string, limit int, id func(T) string) (out []T, next string, err error) {
	keys, err := kv.Keys(ctx)
	if err != nil {
		return nil, "", busError("list records", err)
	}
	for _, key := range keys {
		if key <= marker || strings.HasPrefix(key, attemptsKey("")) {
			continue
		}
		if limit > 0 && len(out) == limit {
			return out, id(out[limit-1]), nil
		}
		e, err := kv.Get(ctx, key)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, "", busError("read record "+key, err)
		}
		var v T
		if err := json.Unmarshal(e.Value, &v); err != nil {
			c.log.Error("a record cannot be read", "request", key, "error", err)
			continue
		}
		out = append(out, v)
	}
	return out, "", nil
}

// destinationRecord is what the destination of an asynchronous invocation gets
// as its event, as AWS Lambda writes it.
type destinationRecord struct {
	Version         string               `json:"version"`
	Timestamp       string               `json:"timestamp"`
	RequestContext  destinationRequest   `json:"requestContext"`
	RequestPayload  json.RawMessage      `json:"requestPayload"`
	ResponseContext *destinationResponse `json:"responseContext,omitempty"`
	ResponsePayload json.RawMessage      `json:"responsePayload,omitempty"`
}

type destinationRequest struct {
	RequestID              string    `json:"requestId"`
	FunctionARN            string    `json:"functionArn"`
	Condition              Condition `json:"condition"`
	ApproximateInvokeCount int       `json:"approximateInvokeCount"`
}

type destinationResponse struct {
	StatusCode      int    `json:"statusCode"`
	ExecutedVersion string `json:"executedVersion"`
	FunctionError   string `json:"functionError,omitempty"`
}

func (r *Record) destination(q *queued) destinationRecord {
	d := destinationRecord{
		Version: "1.0", Timestamp: r.Ended.UTC().Format("2006-01-02T15:04:05.000Z"),
		RequestContext: destinationRequest{
			RequestID: r.RequestID, FunctionARN: function.ARN(r.Function) + ":" + function.LatestVersion,
			Condition: r.Condition, ApproximateInvokeCount: r.Attempts,
		},
		RequestPayload: rawJSON(q.Payload),
	}
	if r.Condition != EventAgeExceeded && r.Error == nil {
		d.ResponseContext = &destinationResponse{StatusCode: 200, ExecutedVersion: function.LatestVersion, FunctionError: r.FunctionError}
		d.ResponsePayload = rawJSON(r.Payload)
	}
	return d
}

// rawJSON embeds a payload as it is, or as a string where it is not JSON.
func rawJSON(p []byte) json.RawMessage {
	if len(p) == 0 {
		return json.RawMessage("null")
	}
	if json.Valid(p) {
		return p
	}
	s, err := json.Marshal(string(p))
	if err != nil {
		return json.RawMessage("null")
	}
	return s
}
