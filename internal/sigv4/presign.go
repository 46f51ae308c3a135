package sigv4

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Key is a pair of keys. Printing or logging one does not show the secret.
type Key struct {
	// ID is the access key, which is no secret.
	ID string
	// Secret is the secret key.
	Secret string
}

// String returns the access key only.
func (k Key) String() string { return k.ID }

// GoString returns the access key only.
func (k Key) GoString() string { return fmt.Sprintf("sigv4.Key{ID:%q}", k.ID) }

// LogValue returns the access key only.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.ID) }

// Scope says what a signature is made for.
type Scope struct {
	Service, Region string
	// Now is the time of the signature.
	Now time.Time
}

// PresignGet returns address, an absolute URL, with a signature in its query:
// whoever has it can GET it until expires (more than 0, at most MaxExpires) has
// passed since scope.Now.
func PresignGet(address string, key Key, scope Scope, expires time.Duration) (string, error) {
	if expires < time.Second || expires > MaxExpires {
		return "", fmt.Errorf("presign address: %v is not between a second and %v", expires, MaxExpires)
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("presign address: %w", err)
	}
	if u.Host == "" {
		return "", errors.New("presign address: it has no host")
	}
	now := scope.Now.UTC()
	c := &Claim{
		Timestamp: now.Format(timeFormat), date: now.Format(dateFormat), region: scope.Region, service: scope.Service,
		signedHeaders: "host", query: u.Query(), verifier: &Verifier{s3: scope.Service == serviceS3},
	}
	c.key = derive(key.Secret, c.date, c.region, c.service)
	payload := EmptySHA256
	if c.verifier.s3 {
		payload = UnsignedPayload
	}
	c.query.Set("X-Amz-Algorithm", Algorithm)
	c.query.Set("X-Amz-Credential", key.ID+"/"+c.Scope())
	c.query.Set("X-Amz-Date", c.Timestamp)
	c.query.Set("X-Amz-Expires", strconv.FormatInt(int64(expires/time.Second), 10))
	c.query.Set("X-Amz-SignedHeaders", c.signedHeaders)
	r := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host}
	c.query.Set("X-Amz-Signature", string(c.signature(c.appendCanonicalRequest(nil, r, payload))))
	u.RawQuery = c.query.Encode()
	return u.String(), nil
}
