package media

import (
	"errors"
	"io/fs"
	"strings"
)

// Kind says why an input cannot be used.
type Kind string

// The kinds of InputError.
const (
	// NotFound: there is no such file, object or page.
	NotFound Kind = "not found"
	// Permission: the file or server refuses this user.
	Permission Kind = "permission denied"
	// Empty: the input has no bytes.
	Empty Kind = "empty"
	// Unsupported: the input is not a video container that can be cut, or its
	// address is of a kind that cannot be read.
	Unsupported Kind = "unsupported"
	// NoVideo: the container is sound, and has no video track.
	NoVideo Kind = "no video"
	// Truncated: the end of the input is missing.
	Truncated Kind = "truncated"
	// Corrupt: the container or its index contradicts itself.
	Corrupt Kind = "corrupt"
	// Unreachable: the network or the server failed, also after retries.
	// Trying later may help; for all other kinds it does not.
	Unreachable Kind = "unreachable"
)

// InputError is why an input cannot be used. Its message is one line: the
// input, what is wrong, and what to do about it. It holds no secret: addresses
// in it have no user, no password and no query string.
type InputError struct {
	// Input is the input's Name.
	Input string
	Kind  Kind
	// Err is the cause; its text says what is wrong.
	Err error
	// Remedy is what the user can do, "download it first"; it may be empty.
	Remedy string
}

// Error implements error.
func (e *InputError) Error() string {
	var b strings.Builder
	b.WriteString("input ")
	b.WriteString(e.Input)
	b.WriteString(": ")
	if e.Err != nil {
		b.WriteString(oneLine(e.Err.Error()))
	} else {
		b.WriteString(string(e.Kind))
	}
	if e.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(e.Remedy)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, fs.ErrNotExist) and fs.ErrPermission hold for inputs
// of every kind of address.
func (e *InputError) Is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return e.Kind == NotFound
	case fs.ErrPermission:
		return e.Kind == Permission
	}
	return false
}

// KindOf returns the kind of the InputError that err wraps, "" when there is
// none.
func KindOf(err error) Kind {
	var ie *InputError
	if errors.As(err, &ie) {
		return ie.Kind
	}
	return ""
}

func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
