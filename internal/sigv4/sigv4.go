// Package sigv4 checks AWS signatures of version 4 on HTTP requests, and signs
// addresses with them.
//
// A Verifier is for one service. It takes signatures in the Authorization
// header and in the query of presigned addresses. Checking is in two steps,
// because the signature covers the body's hash: Claim looks at everything that
// needs no body and turns away most of those who have no key, and Check or
// CheckBody then computes the signature. The services differ in small things,
// as AWS's do: see Options.Service.
package sigv4

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// Algorithm is the name of the signature's algorithm, as requests give it.
	Algorithm = "AWS4-HMAC-SHA256"
	// UnsignedPayload stands where the body's hash would, when it is not signed.
	UnsignedPayload = "UNSIGNED-PAYLOAD"
	// EmptySHA256 is the hash of nothing.
	EmptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	// MaxSkew is how far a client's clock may be off.
	MaxSkew = 15 * time.Minute
	// MaxExpires is how long a presigned address may be valid.
	MaxExpires = 7 * 24 * time.Hour

	timeFormat = "20060102T150405Z"
	dateFormat = "20060102"
	terminator = "aws4_request"
	serviceS3  = "s3"
)

// KeySource finds the secret that belongs to an access key. It may be called
// concurrently.
type KeySource interface {
	// Secret returns the secret key; ok is false if there is no such access key.
	Secret(accessKey string) (secret string, ok bool)
}

// Static is a KeySource that does not change: secrets by access key.
type Static map[string]string

// Secret implements KeySource.
func (s Static) Secret(accessKey string) (string, bool) {
	secret, ok := s[accessKey]
	return secret, ok
}

// Options say what a Verifier accepts.
type Options struct {
	// Service is the name that signatures must be made for, such as "lambda".
	// With "s3" paths are escaped once, not twice, the header
	// X-Amz-Content-Sha256 must be there, and the body of a presigned request
	// is not signed unless it says so.
	Service string
	// Region, if not empty, is the only region that signatures may be made for.
	Region string
	// Keys has the keys.
	Keys KeySource
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Verifier checks signatures. It may be used concurrently.
type Verifier struct {
	service, region string
	s3              bool
	keys            KeySource
	now             func() time.Time
	derived         derivedKeys
	buffers         sync.Pool // of *[]byte
}

// New returns a Verifier.
func New(o Options) *Verifier {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Verifier{
		service: o.Service, region: o.Region, s3: o.Service == serviceS3, keys: o.Keys, now: o.Now,
		buffers: sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }},
	}
}

// Claim is what a request says about its signature, before that is checked.
type Claim struct {
	// AccessKey is the key that the request claims to be signed with; it is known.
	AccessKey string
	// Timestamp is when the request was signed, as the signature has it; Time
	// is the same.
	Timestamp string
	Time      time.Time
	// Expires is how long a presigned address is valid; 0 for a signature in
	// the header.
	Expires time.Duration
	// Payload is what the request says of its body: a SHA-256 in hex,
	// UnsignedPayload, another word ("STREAMING-..."), or nothing.
	Payload string
	// Signature is the signature in hex.
	Signature string

	date, region, service string
	signedHeaders         string // "host;x-amz-date"
	query                 url.Values
	verifier              *Verifier
	key                   []byte // derived
}

// Scope is the part of the signature that says where and when it is valid:
// "date/region/service/aws4_request".
func (c *Claim) Scope() string {
	return c.date + "/" + c.region + "/" + c.service + "/" + terminator
}

// Claim finds the signature of r, and checks all of it that needs neither the
// body nor the secret: that the key is known, that the time is right, and that
// the headers which matter are signed. An error is an *Error. The claim is not
// to be believed before Check or CheckBody has returned nil.
func (v *Verifier) Claim(r *http.Request) (*Claim, error) {
	c := &Claim{verifier: v}
	if err := c.parse(r); err != nil {
		return nil, err
	}
	if c.service != v.service {
		return nil, problem(WrongScope, "the credential is for the service %q; this is %q", clip(c.service), v.service)
	}
	if v.region != "" && c.region != v.region {
		return nil, problem(WrongScope, "the credential is for the region %q; this is %q", clip(c.region), v.region)
	}
	secret, ok := v.keys.Secret(c.AccessKey)
	if !ok {
		return nil, problem(UnknownKey, "the access key is not known here")
	}
	if err := c.checkTime(v.now()); err != nil {
		return nil, err
	}
	if err := c.checkSignedHeaders(r); err != nil {
		return nil, err
	}
	c.key = v.derived.get(c, secret)
	return c, nil
}

// Check returns nil if the signature of r is right, given what the request
// says of its body (Payload). Whether the body is what it says is left to the
// caller. An error is an *Error.
func (c *Claim) Check(r *http.Request) error { return c.check(r, c.Payload) }

// CheckBody returns nil if the signature of r is right and covers body. A
// request that says nothing of its body is taken to have signed its hash; only
// with UnsignedPayload the body is not covered. An error is an *Error.
func (c *Claim) CheckBody(r *http.Request, body []byte) error {
	if c.Payload == UnsignedPayload {
		return c.check(r, c.Payload)
	}
	actual := EmptySHA256
	if len(body) > 0 {
		sum := sha256.Sum256(body)
		actual = hex.EncodeToString(sum[:])
	}
	switch {
	case c.Payload == "", subtle.ConstantTimeCompare([]byte(c.Payload), []byte(actual)) == 1:
		return c.check(r, actual)
	case len(c.Payload) != len(EmptySHA256):
		return problem(BadPayloadHash, "the header x-amz-content-sha256 is neither a hash nor %s", UnsignedPayload)
	}
	return problem(BodyMismatch, "the body is not the one that was signed")
}

func (c *Claim) check(r *http.Request, payload string) error {
	buffer := c.verifier.buffers.Get().(*[]byte)
	defer c.verifier.buffers.Put(buffer)
	canonical := c.appendCanonicalRequest((*buffer)[:0], r, payload)
	want := c.signature(canonical)
	*buffer = canonical
	if subtle.ConstantTimeCompare(want, []byte(c.Signature)) != 1 {
		return problem(Mismatch, "the signature does not match: check the secret key")
	}
	return nil
}

// parse finds the signature in the header or the query.
func (c *Claim) parse(r *http.Request) error {
	if r.URL.RawQuery != "" {
		// Not r.URL.Query(), which passes over what it cannot parse.
		var err error
		if c.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return problem(BadQuery, "the query cannot be parsed")
		}
	}
	if header := r.Header.Get("Authorization"); header != "" {
		return c.parseHeader(r, header)
	}
	if c.query.Get("X-Amz-Algorithm") != "" {
		return c.parsePresigned(r)
	}
	return problem(Unsigned, "the request is not signed")
}

func (c *Claim) parseHeader(r *http.Request, header string) error {
	fields, ok := strings.CutPrefix(header, Algorithm+" ")
	if !ok {
		return malformedHeader()
	}
	var credential string
	for field := range strings.SplitSeq(fields, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(field), "=")
		if !ok {
			return malformedHeader()
		}
		switch name {
		case "Credential":
			credential = value
		case "SignedHeaders":
			c.signedHeaders = value
		case "Signature":
			c.Signature = value
		}
	}
	c.Timestamp = r.Header.Get("X-Amz-Date")
	c.Payload = r.Header.Get("X-Amz-Content-Sha256")
	if c.Payload == "" && c.verifier.s3 {
		return problem(NoPayloadHash, "the header x-amz-content-sha256 is missing")
	}
	if !c.parseCredential(credential) || !c.parseTime() {
		return malformedHeader()
	}
	return nil
}

func malformedHeader() error {
	return problem(MalformedHeader, "the Authorization header is not an AWS signature of version 4 with the header x-amz-date")
}

func (c *Claim) parsePresigned(r *http.Request) error {
	malformed := func() error {
		return problem(MalformedQuery, "the query is not an AWS signature of version 4")
	}
	if c.verifier.s3 {
		c.Payload = UnsignedPayload
	}
	for _, sha := range []string{r.Header.Get("X-Amz-Content-Sha256"), c.query.Get("X-Amz-Content-Sha256")} {
		if sha != "" {
			c.Payload = sha
		}
	}
	c.signedHeaders = c.query.Get("X-Amz-SignedHeaders")
	c.Signature = c.query.Get("X-Amz-Signature")
	c.Timestamp = c.query.Get("X-Amz-Date")
	seconds, err := strconv.ParseInt(c.query.Get("X-Amz-Expires"), 10, 32)
	c.Expires = time.Duration(seconds) * time.Second
	if err != nil || c.Expires <= 0 || c.Expires > MaxExpires {
		return malformed()
	}
	if c.query.Get("X-Amz-Algorithm") != Algorithm || !c.parseCredential(c.query.Get("X-Amz-Credential")) || !c.parseTime() {
		return malformed()
	}
	return nil
}

// parseCredential takes a credential apart from its end, since an access key
// may hold slashes: key/date/region/service/aws4_request.
func (c *Claim) parseCredential(credential string) bool {
	var parts [4]string
	rest := credential
	for i := len(parts) - 1; i >= 0; i-- {
		slash := strings.LastIndexByte(rest, '/')
		if slash < 0 {
			return false
		}
		rest, parts[i] = rest[:slash], rest[slash+1:]
	}
	c.AccessKey, c.date, c.region, c.service = rest, parts[0], parts[1], parts[2]
	return c.AccessKey != "" && parts[3] == terminator
}

func (c *Claim) parseTime() bool {
	var err error
	c.Time, err = time.Parse(timeFormat, c.Timestamp)
	return err == nil && len(c.date) == len(dateFormat) && strings.HasPrefix(c.Timestamp, c.date)
}

func (c *Claim) checkTime(now time.Time) error {
	switch {
	case now.Before(c.Time.Add(-MaxSkew)), c.Expires == 0 && now.After(c.Time.Add(MaxSkew)):
		return problem(Skewed, "the request was signed at %s, and it is %s here",
			c.Time.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case c.Expires > 0 && now.After(c.Time.Add(c.Expires)):
		return problem(Expired, "the address was valid until %s", c.Time.Add(c.Expires).Format(time.RFC3339))
	}
	return nil
}

// checkSignedHeaders refuses a request with a header that matters and that
// anybody could have added.
func (c *Claim) checkSignedHeaders(r *http.Request) error {
	if !c.signs("host") {
		return problem(HeaderNotSigned, "the header host is not signed")
	}
	const prefix = "X-Amz-"
	for name := range r.Header {
		if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) && !c.signs(name) {
			return problem(HeaderNotSigned, "the header %s is not signed", clip(strings.ToLower(name)))
		}
	}
	return nil
}

// signs reports whether the signature covers a header.
func (c *Claim) signs(header string) bool {
	for name := range strings.SplitSeq(c.signedHeaders, ";") {
		if strings.EqualFold(name, header) {
			return true
		}
	}
	return false
}

// Problem says why a signature is refused.
type Problem int

// The problems.
const (
	// Unsigned: the request has no signature.
	Unsigned Problem = iota + 1
	// MalformedHeader: the Authorization header, or what belongs to it, cannot
	// be understood.
	MalformedHeader
	// MalformedQuery: the signature of a presigned address cannot be understood.
	MalformedQuery
	// BadQuery: the query is no query.
	BadQuery
	// WrongScope: the signature is for another service or region.
	WrongScope
	// UnknownKey: nobody has that access key.
	UnknownKey
	// Skewed: the time of the signature is too far from now.
	Skewed
	// Expired: a presigned address is not valid any longer.
	Expired
	// HeaderNotSigned: a header that must be signed is not.
	HeaderNotSigned
	// NoPayloadHash: the header with the body's hash is missing.
	NoPayloadHash
	// BadPayloadHash: the header with the body's hash has something else.
	BadPayloadHash
	// BodyMismatch: the body has another hash.
	BodyMismatch
	// Mismatch: the signature is wrong.
	Mismatch
)

// Error is the refusal of a signature.
type Error struct {
	Problem Problem
	// Message is for the client. It holds no secret.
	Message string
}

func (e *Error) Error() string { return e.Message }

func problem(p Problem, format string, args ...any) error {
	return &Error{Problem: p, Message: fmt.Sprintf(format, args...)}
}

// clip keeps what a client sent from filling its own error message.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
