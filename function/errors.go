package function

import (
	"errors"
	"fmt"
)

// ErrorCode says why the platform refused or could not finish something.
// An error that function code returns is no Error but a Result with
// FunctionError set.
type ErrorCode string

// The error codes. The gateway maps each to AWS's exception and HTTP status.
const (
	// InvalidParameter: a field is missing, malformed or out of range.
	InvalidParameter ErrorCode = "InvalidParameter"
	// InvalidPayload: the event is not JSON.
	InvalidPayload ErrorCode = "InvalidPayload"
	NotFound       ErrorCode = "NotFound"
	// Conflict: the name is taken, or another change is under way.
	Conflict ErrorCode = "Conflict"
	// PreconditionFailed: the revision is not the one that the caller named.
	PreconditionFailed ErrorCode = "PreconditionFailed"
	// TooManyRequests: a concurrency limit is reached, or nothing fitted
	// before the queue's deadline. Retryable.
	TooManyRequests ErrorCode = "TooManyRequests"
	// TooLarge: the payload or package exceeds a limit.
	TooLarge ErrorCode = "TooLarge"
	// InvalidImage: an image cannot be pulled, or is not one.
	InvalidImage ErrorCode = "InvalidImage"
	// InvalidCode: a package cannot be unpacked, or has no entry point.
	InvalidCode ErrorCode = "InvalidCode"
	// InvokerLost: the invoker that ran it died or fell silent. Function code
	// may have run.
	InvokerLost ErrorCode = "InvokerLost"
	// Unavailable: no controller leads, or the bus is down. Retryable.
	Unavailable ErrorCode = "Unavailable"
	// Internal: a fault of the platform.
	Internal ErrorCode = "Internal"
)

// Error is a refusal or failure of the platform.
type Error struct {
	Code ErrorCode `json:"code"`
	// Field names the parameter at fault, if one is.
	Field string `json:"field,omitempty"`
	// Reason is a word for programs, such as "ReservedFunctionConcurrentInvocationLimitExceeded".
	Reason string `json:"reason,omitempty"`
	// Message says what is wrong and what to do.
	Message string `json:"message"`
}

func (e *Error) Error() string {
	if e.Field != "" {
		return e.Field + ": " + e.Message
	}
	return e.Message
}

// Retryable reports whether the same call may succeed later.
func (e *Error) Retryable() bool {
	return e.Code == TooManyRequests || e.Code == Unavailable || e.Code == InvokerLost
}

// Errorf makes an Error.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of the Error that err wraps: Internal if it wraps
// none, empty for nil.
func CodeOf(err error) ErrorCode {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}
