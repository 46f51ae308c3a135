package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// appendCanonicalRequest appends the form of r that is hashed into the
// signature.
func (c *Claim) appendCanonicalRequest(b []byte, r *http.Request, payload string) []byte {
	b = append(b, r.Method...)
	b = append(b, '\n')
	if c.verifier.s3 {
		b = appendEscaped(b, r.URL.Path, true)
	} else {
		// The path as it was sent, which is escaped already, is escaped again.
		b = appendEscaped(b, r.URL.EscapedPath(), true)
	}
	b = append(b, '\n')
	b = appendCanonicalQuery(b, c.query)
	b = append(b, '\n')
	for name := range strings.SplitSeq(c.signedHeaders, ";") {
		b = append(b, name...)
		b = append(b, ':')
		b = appendCanonicalHeader(b, r, name)
		b = append(b, '\n')
	}
	b = append(b, '\n')
	b = append(b, c.signedHeaders...)
	b = append(b, '\n')
	return append(b, payload...)
}

// signature returns, in hex, what the signature of a canonical request is.
func (c *Claim) signature(canonical []byte) []byte {
	sum := sha256.Sum256(canonical)
	text := make([]byte, 0, 256)
	text = append(text, Algorithm+"\n"...)
	text = append(text, c.Timestamp...)
	text = append(text, '\n')
	text = append(text, c.Scope()...)
	text = append(text, '\n')
	text = hex.AppendEncode(text, sum[:])
	return hex.AppendEncode(nil, hmacSHA256(c.key, text))
}

// Sign returns the signature of text, in hex, by the claim's key: what a body
// that is signed in chunks needs.
func (c *Claim) Sign(text string) string {
	return hex.EncodeToString(hmacSHA256(c.key, []byte(text)))
}

func appendCanonicalQuery(b []byte, query url.Values) []byte {
	if len(query) == 0 {
		return b
	}
	type pair struct{ name, value string }
	pairs := make([]pair, 0, len(query))
	for name, values := range query {
		if name == "X-Amz-Signature" {
			continue
		}
		name = Escape(name)
		for _, value := range values {
			pairs = append(pairs, pair{name, Escape(value)})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		if order := strings.Compare(a.name, b.name); order != 0 {
			return order
		}
		return strings.Compare(a.value, b.value)
	})
	for i, p := range pairs {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(b, p.name...)
		b = append(b, '=')
		b = append(b, p.value...)
	}
	return b
}

func appendCanonicalHeader(b []byte, r *http.Request, name string) []byte {
	var values []string
	switch name {
	case "host":
		return appendFolded(b, r.Host)
	case "content-length":
		return strconv.AppendInt(b, r.ContentLength, 10)
	case "transfer-encoding":
		values = r.TransferEncoding
	default:
		values = r.Header.Values(name)
	}
	for i, value := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFolded(b, value)
	}
	return b
}

// appendFolded appends a header's value without white space around it and with
// single spaces in it.
func appendFolded(b []byte, value string) []byte {
	if strings.IndexFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x80 }) < 0 {
		return append(b, value...)
	}
	first := true
	for field := range strings.FieldsSeq(value) {
		if !first {
			b = append(b, ' ')
		}
		b, first = append(b, field...), false
	}
	return b
}

// Escape escapes all bytes of s but letters, digits, "-", "_", "." and "~", as
// signatures want it.
func Escape(s string) string {
	if !needsEscape(s) {
		return s
	}
	return string(appendEscaped(nil, s, false))
}

func needsEscape(s string) bool {
	for i := range len(s) {
		if !plain(s[i]) {
			return true
		}
	}
	return false
}

func plain(ch byte) bool {
	return 'a' <= ch && ch <= 'z' || 'A' <= ch && ch <= 'Z' || '0' <= ch && ch <= '9' ||
		ch == '-' || ch == '_' || ch == '.' || ch == '~'
}

func appendEscaped(b []byte, s string, keepSlash bool) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		ch := s[i]
		if plain(ch) || ch == '/' && keepSlash {
			b = append(b, ch)
		} else {
			b = append(b, '%', digits[ch>>4], digits[ch&15])
		}
	}
	return b
}

// maxDerived bounds how many derived keys are remembered: one is used for each
// access key, region and day.
const maxDerived = 256

// derivedKeys remembers the keys that are derived from secrets, which costs
// four HMACs. The zero value is ready to use.
type derivedKeys struct {
	mu   sync.RWMutex
	keys map[derivation]derivedKey
}

type derivation struct{ accessKey, date, region string }

type derivedKey struct {
	secret string // that it was derived from: secrets change
	key    []byte
}

func (d *derivedKeys) get(c *Claim, secret string) []byte {
	from := derivation{c.AccessKey, c.date, c.region}
	d.mu.RLock()
	found, ok := d.keys[from]
	d.mu.RUnlock()
	if ok && found.secret == secret {
		return found.key
	}
	key := derive(secret, c.date, c.region, c.service)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == nil || len(d.keys) >= maxDerived {
		d.keys = map[derivation]derivedKey{}
	}
	// The strings are parts of a header, which need not live on for them.
	from = derivation{strings.Clone(from.accessKey), strings.Clone(from.date), strings.Clone(from.region)}
	d.keys[from] = derivedKey{secret, key}
	return key
}

func derive(secret, date, region, service string) []byte {
	key := []byte("AWS4" + secret)
	for _, part := range []string{date, region, service, terminator} {
		key = hmacSHA256(key, []byte(part))
	}
	return key
}

func hmacSHA256(key, text []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	return mac.Sum(nil)
}
