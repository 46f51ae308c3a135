package store

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrBadKey means that the key cannot name an object; see CheckKey.
var ErrBadKey = errors.New("bad object key")

const (
	// maxKeyBytes is what S3 allows.
	maxKeyBytes = 1024
	// maxElementBytes is what file systems allow.
	maxElementBytes = 255
	// tempDir is where a local store keeps files that are not objects yet. No
	// store allows it as the first element of a key, so that every key works
	// everywhere.
	tempDir = ".tmp"
)

// CheckKey returns nil if key may name an object in every kind of store, or an
// error that wraps ErrBadKey and says why not. A key is UTF-8 of at most 1024
// bytes without control characters; its elements, between slashes, have 1 to
// 255 bytes and are neither "." nor "..", and the first is not ".tmp".
func CheckKey(key string) error {
	if reason := keyFault(key); reason != "" {
		return fmt.Errorf("%w %q: %s", ErrBadKey, key, reason)
	}
	return nil
}

// keyFault says what is wrong with key; empty means nothing is.
func keyFault(key string) string {
	switch {
	case key == "":
		return "it is empty"
	case len(key) > maxKeyBytes:
		return fmt.Sprintf("it has %d bytes, more than %d", len(key), maxKeyBytes)
	case !utf8.ValidString(key):
		return "it is not UTF-8"
	}
	for _, r := range key {
		// S3 lists keys in XML, which cannot hold these.
		if r < ' ' || r == 0x7f || r == 0xfffe || r == 0xffff {
			return fmt.Sprintf("it holds the character %U", r)
		}
	}
	first := true
	for element := range strings.SplitSeq(key, "/") {
		switch {
		case element == "":
			return "it has an empty element (a slash too many)"
		case element == "." || element == "..":
			return fmt.Sprintf("it has an element %q", element)
		case first && element == tempDir:
			return fmt.Sprintf("%s is reserved", tempDir)
		case len(element) > maxElementBytes:
			return fmt.Sprintf("it has an element of %d bytes, more than %d", len(element), maxElementBytes)
		}
		first = false
	}
	return ""
}
