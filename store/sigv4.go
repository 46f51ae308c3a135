package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/johannesboyne/gofakes3"

	"github.com/volley-run/volley/internal/sigv4"
)

// streamingPayload begins what a request says of a body in aws-chunked
// encoding.
const streamingPayload = "STREAMING-"

// Error codes of S3 that gofakes3 does not name.
const (
	codeAccessDenied      gofakes3.ErrorCode = "AccessDenied"
	codeInvalidAccessKey  gofakes3.ErrorCode = "InvalidAccessKeyId"
	codeSignatureMismatch gofakes3.ErrorCode = "SignatureDoesNotMatch"
	codeMalformedAuth     gofakes3.ErrorCode = "AuthorizationHeaderMalformed"
	codeMalformedQuery    gofakes3.ErrorCode = "AuthorizationQueryParametersError"
)

// refusal is why a request is not served.
type refusal struct {
	status  int
	code    gofakes3.ErrorCode
	message string
}

// refusals is what S3 calls the problems of signatures. It is constant.
var refusals = map[sigv4.Problem]struct {
	status int
	code   gofakes3.ErrorCode
}{
	sigv4.Unsigned:        {http.StatusForbidden, codeAccessDenied},
	sigv4.MalformedHeader: {http.StatusBadRequest, codeMalformedAuth},
	sigv4.MalformedQuery:  {http.StatusBadRequest, codeMalformedQuery},
	sigv4.BadQuery:        {http.StatusBadRequest, gofakes3.ErrInvalidURI},
	sigv4.WrongScope:      {http.StatusBadRequest, codeMalformedAuth},
	sigv4.UnknownKey:      {http.StatusForbidden, codeInvalidAccessKey},
	sigv4.Skewed:          {http.StatusForbidden, gofakes3.ErrRequestTimeTooSkewed},
	sigv4.Expired:         {http.StatusForbidden, codeAccessDenied},
	sigv4.HeaderNotSigned: {http.StatusForbidden, codeAccessDenied},
	sigv4.NoPayloadHash:   {http.StatusBadRequest, gofakes3.ErrInvalidArgument},
	sigv4.BadPayloadHash:  {http.StatusBadRequest, gofakes3.ErrInvalidArgument},
	sigv4.BodyMismatch:    {http.StatusBadRequest, gofakes3.ErrBadDigest},
	sigv4.Mismatch:        {http.StatusForbidden, codeSignatureMismatch},
}

func refuse(err error) *refusal {
	if bad, ok := errors.AsType[*sigv4.Error](err); ok {
		if r, ok := refusals[bad.Problem]; ok {
			return &refusal{r.status, r.code, bad.Message}
		}
	}
	return &refusal{http.StatusForbidden, codeAccessDenied, err.Error()}
}

// verify returns nil if r is signed with a key that v knows. It replaces the
// body of r with one that is checked against the signature while it is read
// (its Read returns the error), and that is no longer in aws-chunked encoding.
func verify(v *sigv4.Verifier, r *http.Request) *refusal {
	c, err := v.Claim(r)
	if err != nil {
		return refuse(err)
	}
	if err := c.Check(r); err != nil {
		return refuse(err)
	}
	return checkedBody(r, c)
}

// checkedBody puts the reader that checks the payload in front of r's body.
func checkedBody(r *http.Request, c *sigv4.Claim) *refusal {
	switch {
	case strings.HasPrefix(c.Payload, streamingPayload):
		return chunkedBody(r, c.Payload, chain{c.Timestamp, c.Scope(), c.Signature, c.Sign})
	case c.Payload == sigv4.UnsignedPayload:
		return nil
	case len(c.Payload) != len(sigv4.EmptySHA256):
		return &refusal{http.StatusBadRequest, gofakes3.ErrInvalidArgument, "x-amz-content-sha256 is neither a hash nor a known word"}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{&hashedReader{r: r.Body, hash: sha256.New(), want: c.Payload}, r.Body}
	return nil
}

// hashedReader ends with an error instead of io.EOF where the hash of what it
// has read is not the one wanted.
type hashedReader struct {
	r    io.Reader
	hash hash.Hash
	want string
}

func (h *hashedReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	if err == io.EOF && !hmac.Equal([]byte(hex.EncodeToString(h.hash.Sum(nil))), []byte(h.want)) {
		return n, gofakes3.ErrorMessage(gofakes3.ErrBadDigest, "the body is not the one that was signed")
	}
	return n, err
}

func hexSHA256(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
