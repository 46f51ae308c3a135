package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/johannesboyne/gofakes3"
)

const (
	sigAlgorithm  = "AWS4-HMAC-SHA256"
	sigTimeFormat = "20060102T150405Z"
	// sigSkew is how far a client's clock may be off.
	sigSkew = 15 * time.Minute

	unsignedPayload  = "UNSIGNED-PAYLOAD"
	streamingPayload = "STREAMING-"
	emptySHA256      = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// Error codes of S3 that gofakes3 does not name.
const (
	codeAccessDenied      gofakes3.ErrorCode = "AccessDenied"
	codeInvalidAccessKey  gofakes3.ErrorCode = "InvalidAccessKeyId"
	codeSignatureMismatch gofakes3.ErrorCode = "SignatureDoesNotMatch"
	codeMalformedAuth     gofakes3.ErrorCode = "AuthorizationHeaderMalformed"
)

// verifier checks AWS signatures of version 4 against one pair of keys.
type verifier struct {
	accessKey, secretKey string
	now                  func() time.Time
}

// refusal is why a request is not served.
type refusal struct {
	status  int
	code    gofakes3.ErrorCode
	message string
}

func forbidden(code gofakes3.ErrorCode, format string, args ...any) *refusal {
	return &refusal{http.StatusForbidden, code, fmt.Sprintf(format, args...)}
}

// claim is what a request says about its signature.
type claim struct {
	accessKey     string
	date          string // of the scope: YYYYMMDD
	region        string
	signedHeaders []string
	signature     string
	timestamp     string // as sent
	time          time.Time
	expires       time.Duration // of a presigned request; 0 otherwise
	payload       string        // the hash of the body, or one of its stand-ins
}

func (c *claim) scope() string { return c.date + "/" + c.region + "/s3/aws4_request" }

// verify returns nil if r is signed with the verifier's keys. It replaces the
// body of r with one that is checked against the signature while it is read
// (its Read returns the error), and that is no longer in aws-chunked encoding.
func (v *verifier) verify(r *http.Request) *refusal {
	c, refused := parseClaim(r)
	if refused != nil {
		return refused
	}
	if subtle.ConstantTimeCompare([]byte(c.accessKey), []byte(v.accessKey)) != 1 {
		return forbidden(codeInvalidAccessKey, "the access key is not known here")
	}
	if refused := v.checkTime(c); refused != nil {
		return refused
	}
	if refused := checkSignedHeaders(r, c); refused != nil {
		return refused
	}
	key := signingKey(v.secretKey, c.date, c.region)
	want := sign(key, sigAlgorithm+"\n"+c.timestamp+"\n"+c.scope()+"\n"+hexSHA256(canonicalRequest(r, c)))
	if !hmac.Equal([]byte(want), []byte(c.signature)) {
		return forbidden(codeSignatureMismatch, "the signature does not match: check the secret key")
	}
	return checkedBody(r, c, key)
}

// parseClaim finds the signature in the header or the query.
func parseClaim(r *http.Request) (*claim, *refusal) {
	if header := r.Header.Get("Authorization"); header != "" {
		return parseAuthorization(r, header)
	}
	// Not r.URL.Query(), which passes over what it cannot parse.
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, gofakes3.ErrInvalidURI, "the query cannot be parsed"}
	}
	if query.Get("X-Amz-Algorithm") == "" {
		return nil, forbidden(codeAccessDenied, "the request is not signed")
	}
	return parsePresigned(r, query)
}

func parseAuthorization(r *http.Request, header string) (*claim, *refusal) {
	malformed := &refusal{http.StatusBadRequest, codeMalformedAuth, "the Authorization header is not an AWS signature of version 4"}
	fields, ok := strings.CutPrefix(header, sigAlgorithm+" ")
	if !ok {
		return nil, malformed
	}
	values := map[string]string{}
	for field := range strings.SplitSeq(fields, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(field), "=")
		if !ok {
			return nil, malformed
		}
		values[name] = value
	}
	c := &claim{
		signedHeaders: strings.Split(values["SignedHeaders"], ";"),
		signature:     values["Signature"],
		timestamp:     r.Header.Get("X-Amz-Date"),
		payload:       r.Header.Get("X-Amz-Content-Sha256"),
	}
	if c.payload == "" {
		return nil, &refusal{http.StatusBadRequest, gofakes3.ErrInvalidArgument, "the header x-amz-content-sha256 is missing"}
	}
	if !c.parseScope(values["Credential"]) || !c.parseTime() {
		return nil, malformed
	}
	return c, nil
}

func parsePresigned(r *http.Request, query url.Values) (*claim, *refusal) {
	malformed := &refusal{http.StatusBadRequest, "AuthorizationQueryParametersError", "the query is not an AWS signature of version 4"}
	c := &claim{
		signedHeaders: strings.Split(query.Get("X-Amz-SignedHeaders"), ";"),
		signature:     query.Get("X-Amz-Signature"),
		timestamp:     query.Get("X-Amz-Date"),
		payload:       unsignedPayload,
	}
	for _, sha := range []string{r.Header.Get("X-Amz-Content-Sha256"), query.Get("X-Amz-Content-Sha256")} {
		if sha != "" {
			c.payload = sha
		}
	}
	seconds, err := strconv.ParseInt(query.Get("X-Amz-Expires"), 10, 32)
	c.expires = time.Duration(seconds) * time.Second
	if err != nil || c.expires <= 0 || c.expires > maxPresign {
		return nil, malformed
	}
	if query.Get("X-Amz-Algorithm") != sigAlgorithm || !c.parseScope(query.Get("X-Amz-Credential")) || !c.parseTime() {
		return nil, malformed
	}
	return c, nil
}

// parseScope takes a credential apart: key/date/region/s3/aws4_request.
func (c *claim) parseScope(credential string) bool {
	parts := strings.Split(credential, "/")
	n := len(parts)
	if n < 5 || parts[n-1] != "aws4_request" || parts[n-2] != "s3" {
		return false
	}
	c.accessKey = strings.Join(parts[:n-4], "/")
	c.date, c.region = parts[n-4], parts[n-3]
	return true
}

func (c *claim) parseTime() bool {
	var err error
	c.time, err = time.Parse(sigTimeFormat, c.timestamp)
	return err == nil && strings.HasPrefix(c.timestamp, c.date) && len(c.date) == len("20060102")
}

func (v *verifier) checkTime(c *claim) *refusal {
	now := v.now()
	until := c.time.Add(sigSkew)
	if c.expires > 0 {
		until = c.time.Add(c.expires)
	}
	switch {
	case now.Before(c.time.Add(-sigSkew)), c.expires == 0 && now.After(until):
		return forbidden(gofakes3.ErrRequestTimeTooSkewed, "the request was signed at %s, and it is %s here",
			c.time.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(until):
		return forbidden(codeAccessDenied, "the address was valid until %s", until.Format(time.RFC3339))
	}
	return nil
}

// checkSignedHeaders refuses a request with a header that matters and that
// anybody could have added.
func checkSignedHeaders(r *http.Request, c *claim) *refusal {
	if !slices.Contains(c.signedHeaders, "host") {
		return forbidden(codeAccessDenied, "the header host is not signed")
	}
	for name := range r.Header {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "x-amz-") && !slices.Contains(c.signedHeaders, lower) {
			return forbidden(codeAccessDenied, "the header %s is not signed", lower)
		}
	}
	return nil
}

func canonicalRequest(r *http.Request, c *claim) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + awsEscape(r.URL.Path, true) + "\n" + canonicalQuery(r.URL.RawQuery) + "\n")
	for _, name := range c.signedHeaders {
		b.WriteString(name + ":" + canonicalHeader(r, name) + "\n")
	}
	b.WriteString("\n" + strings.Join(c.signedHeaders, ";") + "\n" + c.payload)
	return b.String()
}

func canonicalQuery(raw string) string {
	query, _ := url.ParseQuery(raw) // parseClaim has seen to the presigned; others are refused by their signature
	var pairs []string
	for name, values := range query {
		if name == "X-Amz-Signature" {
			continue
		}
		for _, value := range values {
			pairs = append(pairs, awsEscape(name, false)+"="+awsEscape(value, false))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func canonicalHeader(r *http.Request, name string) string {
	var values []string
	switch name {
	case "host":
		values = []string{r.Host}
	case "content-length":
		values = []string{strconv.FormatInt(r.ContentLength, 10)}
	case "transfer-encoding":
		values = r.TransferEncoding
	default:
		values = r.Header.Values(name)
	}
	folded := make([]string, len(values))
	for i, value := range values {
		folded[i] = strings.Join(strings.Fields(value), " ")
	}
	return strings.Join(folded, ",")
}

// awsEscape escapes all bytes but letters, digits, "-", "_", "." and "~", as
// the signature wants it.
func awsEscape(s string, keepSlash bool) string {
	var b strings.Builder
	for i := range len(s) {
		ch := s[i]
		switch {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9',
			ch == '-', ch == '_', ch == '.', ch == '~', ch == '/' && keepSlash:
			b.WriteByte(ch)
		default:
			fmt.Fprintf(&b, "%%%02X", ch)
		}
	}
	return b.String()
}

func signingKey(secret, date, region string) []byte {
	key := []byte("AWS4" + secret)
	for _, part := range []string{date, region, "s3", "aws4_request"} {
		key = hmacSHA256(key, part)
	}
	return key
}

func sign(key []byte, text string) string {
	return hex.EncodeToString(hmacSHA256(key, text))
}

func hmacSHA256(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// checkedBody puts the reader that checks the payload in front of r's body.
func checkedBody(r *http.Request, c *claim, key []byte) *refusal {
	switch {
	case strings.HasPrefix(c.payload, streamingPayload):
		return chunkedBody(r, c, key)
	case c.payload == unsignedPayload:
		return nil
	case len(c.payload) != len(emptySHA256):
		return &refusal{http.StatusBadRequest, gofakes3.ErrInvalidArgument, "x-amz-content-sha256 is neither a hash nor a known word"}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{&hashedReader{r: r.Body, hash: sha256.New(), want: c.payload}, r.Body}
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
