// Package awshttp is what the gateway's APIs have in common because they speak
// as AWS's do: signed requests, request ids, and errors by AWS's names.
package awshttp

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sigv4"
)

// RequestIDHeader is the header of every response that names the request.
const RequestIDHeader = "X-Amzn-Requestid"

// SigningService is the name of the service that requests are signed for.
const SigningService = "lambda"

// drainBytes is how much is read of a body that is too large.
const drainBytes = 16 << 20

// Begin makes up the id of a request, a UUID, and puts it into the response.
func Begin(w http.ResponseWriter) (requestID string) {
	requestID = uuid.NewString()
	w.Header()[RequestIDHeader] = []string{requestID}
	return requestID
}

// ReadSigned reads the body of r, of at most limit bytes, and returns it if
// the request is signed with a key that v knows. Who has no key is turned away
// before the body is read. Errors are for WriteError.
func ReadSigned(w http.ResponseWriter, r *http.Request, v *sigv4.Verifier, limit int64) (*sigv4.Claim, []byte, error) {
	claim, err := v.Claim(r)
	if err != nil {
		return nil, nil, err
	}
	body, err := readBody(w, r, limit)
	if err != nil {
		return nil, nil, err
	}
	if err := claim.CheckBody(r, body); err != nil {
		return nil, nil, err
	}
	return claim, body, nil
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	size := r.ContentLength
	switch {
	case size == 0:
		return nil, nil
	case size > limit:
		// Many clients read the answer only when they have sent all. What is
		// far too large is cut off.
		_, _ = io.CopyN(io.Discard, r.Body, drainBytes)
		w.Header().Set("Connection", "close")
		return nil, &http.MaxBytesError{Limit: limit}
	case size < 0:
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		return body, readError(err)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r.Body, body)
	return body, readError(err)
}

// readError tells what is the client's fault from what is not.
func readError(err error) error {
	if err == nil {
		return nil
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge
	}
	return NewError(InvalidRequestContent, "the body of the request could not be read to its end")
}

// Decode reads a request's body as JSON into to. An empty body is taken for an
// empty object.
func Decode(body []byte, to any) error {
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, to); err != nil {
		return NewError(InvalidRequestContent, "Could not parse request body into json: "+err.Error())
	}
	return nil
}

// WriteJSON answers a request with a value.
func WriteJSON(w http.ResponseWriter, status int, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return function.Errorf(function.Internal, "encode response: %v", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that has gone does not need to be told
	return nil
}
