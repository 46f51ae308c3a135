package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/remote"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
)

// The codes of errors.
const (
	CodeInvalid      = "invalid"         // 400: the request makes no sense
	CodeNotFound     = "not_found"       // 404: no function, machine or snapshot of that name
	CodeMethod       = "method"          // 405: the path has no such method
	CodeExists       = "exists"          // 409: there is one of that name already
	CodeBusy         = "busy"            // 409: something else uses it
	CodePaused       = "paused"          // 409: the machine is paused
	CodeTooLarge     = "too_large"       // 413: the body is too large
	CodeDamaged      = "damaged"         // 422: the snapshot is damaged
	CodeVersion      = "version"         // 422: the snapshot is of another version
	CodeImage        = "invalid_image"   // 422: the container image cannot be had or used
	CodeInit         = "init_failed"     // 422: the function's code cannot be initialised
	CodeFunction     = "function_failed" // 422: the function fails on an input to record
	CodeUnsupported  = "unsupported"     // 501: the VMM or the host cannot do that
	CodeStore        = "store"           // 502: the object store fails
	CodeClosed       = "closed"          // 503: the daemon is ending
	CodeInternal     = "failed"          // 500: anything else
	codeCancelled    = "cancelled"       // the client has gone; nobody reads this
	statusClientGone = 499
)

// statusError is an error of the API itself.
type statusError struct {
	status int
	code   string
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func invalid(err error) error {
	return &statusError{status: http.StatusBadRequest, code: CodeInvalid, err: err}
}

func conflict(code string, err error) error {
	return &statusError{status: http.StatusConflict, code: code, err: err}
}

// status returns the HTTP status and the code of an error.
func status(ctx context.Context, err error) (int, string) {
	own, isOwn := errors.AsType[*statusError](err)
	_, isTooLarge := errors.AsType[*http.MaxBytesError](err)
	fn, isFunction := errors.AsType[*function.Error](err)
	_, isInit := errors.AsType[*sandbox.InitError](err)
	code := CodeInternal
	switch {
	case isTooLarge:
		code = CodeTooLarge
	case isOwn:
		return own.status, own.code
	case errors.Is(err, faasnap.ErrNotFound):
		code = CodeNotFound
	case errors.Is(err, faasnap.ErrExists):
		code = CodeExists
	case errors.Is(err, faasnap.ErrBusy), errors.Is(err, sys.ErrLocked):
		code = CodeBusy
	case errors.Is(err, snapshot.ErrDamaged):
		code = CodeDamaged
	case errors.Is(err, snapshot.ErrVersion):
		code = CodeVersion
	case errors.Is(err, remote.ErrStore):
		code = CodeStore
	case errors.Is(err, faasnap.ErrClosed):
		code = CodeClosed
	case errors.Is(err, faasnap.ErrFunction):
		code = CodeFunction
	case isInit:
		code = CodeInit
	case isFunction && fn.Code == function.InvalidImage:
		code = CodeImage
	case errors.Is(err, faasnap.ErrNetwork), isFunction && fn.Code != function.Internal:
		code = CodeInvalid
	case errors.Is(err, vmm.ErrUnsupported), errors.Is(err, errors.ErrUnsupported):
		code = CodeUnsupported
	case ctx.Err() != nil:
		return statusClientGone, codeCancelled
	}
	return statusOf(code), code
}
