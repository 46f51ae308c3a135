package rtnl

import (
	"errors"
	"fmt"
)

var (
	// ErrExists says that something of that name, index or address is there.
	ErrExists = errors.New("exists already")
	// ErrNotFound says that there is no such link, address, route or namespace.
	ErrNotFound = errors.New("not found")
	// ErrBridgeFull says that a bridge has no port left: Linux ends at 1,023.
	ErrBridgeFull = errors.New("the bridge has no port left")
	// ErrUnsupported says that this kernel has no such feature.
	ErrUnsupported = errors.New("not supported by this kernel")
	// ErrNotPermitted says that the process lacks a capability.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNotNamespace says that a file is no network namespace.
	ErrNotNamespace = errors.New("no network namespace")
)

// RequestError says which request of a Batch the kernel refused.
type RequestError struct {
	// Op is what was asked for, such as "add address", and Subject for what.
	Op, Subject string
	// Detail is what the kernel said in words, if it did.
	Detail string
	// Err is an error of this package if one fits, joined with the errno.
	Err error
}

func (e *RequestError) Error() string {
	if e.Detail != "" {
		return fmt.Sprintf("%s %s: %v: %s", e.Op, e.Subject, e.Err, e.Detail)
	}
	return fmt.Sprintf("%s %s: %v", e.Op, e.Subject, e.Err)
}

// Unwrap returns e.Err.
func (e *RequestError) Unwrap() error { return e.Err }
