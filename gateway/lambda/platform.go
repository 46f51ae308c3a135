// Package lambda serves the AWS Lambda API, so that the AWS CLI, the AWS SDKs
// and what is built on them work with Volley unchanged. docs/lambda-api.md says
// what is supported and what is different.
package lambda

import (
	"context"
	"io"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/controller"
)

// Platform is what runs functions: a controller.Controller. Its methods may be
// called concurrently; their errors are *function.Error where somebody else
// than the platform is at fault.
type Platform interface {
	CreateFunction(ctx context.Context, f function.Function, p controller.Package) (function.Function, error)
	UpdateCode(ctx context.Context, name, revision string, p controller.Package) (function.Function, error)
	UpdateConfiguration(ctx context.Context, name, revision string, change func(f *function.Function)) (function.Function, error)
	SetTags(ctx context.Context, name string, change func(tags map[string]string)) error
	DeleteFunction(ctx context.Context, name string) error
	GetFunction(ctx context.Context, name string) (function.Function, error)
	ListFunctions(ctx context.Context, marker string, limit int) (functions []function.Function, next string, err error)
	Code(ctx context.Context, name string) (io.ReadCloser, error)

	Concurrency() (total, unreserved int)
	PutReservedConcurrency(ctx context.Context, name string, n int) error
	DeleteReservedConcurrency(ctx context.Context, name string) error
	PutProvisionedConcurrency(ctx context.Context, name string, n int) (controller.Provisioned, error)
	GetProvisionedConcurrency(ctx context.Context, name string) (controller.Provisioned, error)
	DeleteProvisionedConcurrency(ctx context.Context, name string) error
	PutAsyncConfig(ctx context.Context, name string, a function.AsyncConfig) (function.AsyncConfig, error)
	GetAsyncConfig(ctx context.Context, name string) (function.AsyncConfig, error)
	DeleteAsyncConfig(ctx context.Context, name string) error

	Invoke(ctx context.Context, inv function.Invocation) (function.Result, error)
	InvokeStream(ctx context.Context, inv function.Invocation, onStart func(contentType string), onPiece func(piece []byte) error) (function.Result, error)
	InvokeAsync(ctx context.Context, inv function.Invocation) error
}

// Uploads gives access to packages that clients have put into an object store,
// for S3Bucket and S3Key. It may be used concurrently.
type Uploads interface {
	// Open opens an object; the caller closes it. One that is not there is a
	// *function.Error with NotFound or an error that wraps store.ErrNotFound.
	Open(ctx context.Context, bucket, key string) (io.ReadCloser, error)
}
