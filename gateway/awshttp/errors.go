package awshttp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sigv4"
)

// The names of AWS's errors that the APIs use.
const (
	InvalidParameterValue = "InvalidParameterValueException"
	InvalidRequestContent = "InvalidRequestContentException"
	ResourceNotFound      = "ResourceNotFoundException"
	ResourceConflict      = "ResourceConflictException"
	PreconditionFailed    = "PreconditionFailedException"
	TooManyRequests       = "TooManyRequestsException"
	RequestTooLarge       = "RequestTooLargeException"
	InvalidZipFile        = "InvalidZipFileException"
	UnsupportedMediaType  = "UnsupportedMediaTypeException"
	ProvisionedNotFound   = "ProvisionedConcurrencyConfigNotFoundException"
	Service               = "ServiceException"
	UnknownOperation      = "UnknownOperationException"
	MissingAuthentication = "MissingAuthenticationTokenException"
	IncompleteSignature   = "IncompleteSignatureException"
	UnrecognizedClient    = "UnrecognizedClientException"
	InvalidSignature      = "InvalidSignatureException"
)

const (
	// retryAfter is when clients that were refused for the moment may try again.
	retryAfter = time.Second
	// statusClientClosed is what proxies log for a client that went away.
	statusClientClosed = 499
)

// shape is how an error looks on the wire.
type shape struct {
	status int
	// member is the field of the body that holds the message: AWS spells it
	// one way in some errors and another way in others.
	member string
}

// shapes has all errors by their names. It is constant.
var shapes = map[string]shape{
	InvalidParameterValue: {http.StatusBadRequest, "message"},
	InvalidRequestContent: {http.StatusBadRequest, "message"},
	ResourceNotFound:      {http.StatusNotFound, "Message"},
	ResourceConflict:      {http.StatusConflict, "message"},
	PreconditionFailed:    {http.StatusPreconditionFailed, "message"},
	TooManyRequests:       {http.StatusTooManyRequests, "message"},
	RequestTooLarge:       {http.StatusRequestEntityTooLarge, "message"},
	InvalidZipFile:        {http.StatusBadGateway, "Message"},
	UnsupportedMediaType:  {http.StatusUnsupportedMediaType, "message"},
	ProvisionedNotFound:   {http.StatusNotFound, "message"},
	Service:               {http.StatusInternalServerError, "Message"},
	UnknownOperation:      {http.StatusNotFound, "message"},
	MissingAuthentication: {http.StatusForbidden, "message"},
	IncompleteSignature:   {http.StatusForbidden, "message"},
	UnrecognizedClient:    {http.StatusForbidden, "message"},
	InvalidSignature:      {http.StatusForbidden, "message"},
}

// codes is what AWS calls the platform's errors. It is constant.
var codes = map[function.ErrorCode]string{
	function.InvalidParameter:   InvalidParameterValue,
	function.InvalidPayload:     InvalidRequestContent,
	function.NotFound:           ResourceNotFound,
	function.Conflict:           ResourceConflict,
	function.PreconditionFailed: PreconditionFailed,
	function.TooManyRequests:    TooManyRequests,
	function.TooLarge:           RequestTooLarge,
	function.InvalidImage:       InvalidParameterValue,
	function.InvalidCode:        InvalidZipFile,
	function.InvokerLost:        Service,
	function.Unavailable:        Service,
	function.Internal:           Service,
}

// signatures is what AWS calls the problems of signatures. It is constant.
var signatures = map[sigv4.Problem]string{
	sigv4.Unsigned:        MissingAuthentication,
	sigv4.MalformedHeader: IncompleteSignature,
	sigv4.MalformedQuery:  IncompleteSignature,
	sigv4.BadQuery:        InvalidParameterValue,
	sigv4.WrongScope:      InvalidSignature,
	sigv4.UnknownKey:      UnrecognizedClient,
	sigv4.Skewed:          InvalidSignature,
	sigv4.Expired:         InvalidSignature,
	sigv4.HeaderNotSigned: InvalidSignature,
	sigv4.NoPayloadHash:   InvalidSignature,
	sigv4.BadPayloadHash:  InvalidSignature,
	sigv4.BodyMismatch:    InvalidSignature,
	sigv4.Mismatch:        InvalidSignature,
}

// Error is an error as an AWS client sees it.
type Error struct {
	// Name is AWS's name of the error, such as ResourceNotFound.
	Name string
	// Status is the HTTP status.
	Status  int
	Message string
	// Reason is a word for programs; only TooManyRequests has one.
	Reason string
	// RetryAfter, if not 0, is when to try again.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Name + ": " + e.Message }

// NewError returns the error of that name with the status that belongs to it.
func NewError(name, message string) *Error {
	return &Error{Name: name, Status: shapes[name].status, Message: message}
}

// AsError returns what an AWS client is to see of err: itself if it is an
// *Error, else by the tables above. What is none of the platform's own errors
// is told as a ServiceException without its text; ok is false then, and the
// caller logs it.
func AsError(err error) (e *Error, ok bool) {
	if e, ok := errors.AsType[*Error](err); ok {
		return e, true
	}
	if bad, ok := errors.AsType[*sigv4.Error](err); ok {
		message := bad.Message
		if bad.Problem == sigv4.Skewed {
			message = "Signature expired: " + message // what clients look for to set their clocks
		}
		return NewError(signatures[bad.Problem], message), true
	}
	if bad, ok := errors.AsType[*function.Error](err); ok {
		return ofFunction(bad), true
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return NewError(RequestTooLarge, "the request must be smaller than "+strconv.FormatInt(tooLarge.Limit, 10)+" bytes"), true
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Name: Service, Status: statusClientClosed, Message: "the client has gone"}, true
	}
	return NewError(Service, "the platform failed; its log says how"), false
}

func ofFunction(bad *function.Error) *Error {
	name, known := codes[bad.Code]
	if !known {
		name = Service
	}
	e := NewError(name, bad.Error())
	switch bad.Code {
	case function.TooManyRequests:
		e.Reason, e.RetryAfter = bad.Reason, retryAfter
	case function.Unavailable:
		e.Status, e.RetryAfter = http.StatusServiceUnavailable, retryAfter
	}
	return e
}

// WriteError answers a request with err, and logs it if the platform is at
// fault. Nothing may have been written to w before.
func WriteError(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	e, ok := AsError(err)
	if !ok || e.Status == http.StatusInternalServerError {
		log.Error("request failed", "method", r.Method, "path", r.URL.Path, "request", w.Header().Get(RequestIDHeader), "error", err)
	}
	body := map[string]string{"Type": "User", shapes[e.Name].member: e.Message}
	if e.Status >= http.StatusInternalServerError {
		body["Type"] = "Service"
	}
	if e.Reason != "" {
		body["Reason"] = e.Reason
	}
	text, err := json.Marshal(body)
	if err != nil { // a map of strings always has a JSON form
		text = nil
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("X-Amzn-Errortype", e.Name)
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(e.RetryAfter/time.Second), 10))
	}
	w.WriteHeader(e.Status)
	_, _ = w.Write(text) // a client that has gone does not need to be told
}
