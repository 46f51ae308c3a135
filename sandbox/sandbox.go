// Package sandbox says what a sandbox is: an isolated place, prepared for one
// function, that runs its invocations one at a time. The drivers are in the
// packages below it.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volley-run/volley/function"
)

// Driver makes sandboxes of one kind. Its methods may be called concurrently.
type Driver interface {
	// Name is the driver's name on the command line: "process", "runc", "runsc", "microvm".
	Name() string
	// Isolation says in one sentence what it isolates, and what not.
	Isolation() string
	// Create makes a sandbox and waits until the function is initialised: its
	// runtime has asked for the first event. The context bounds that. An error
	// that function code is to blame for is an *InitError; a package or image
	// that cannot be used is a *function.Error with InvalidCode or
	// InvalidImage. Nothing is left behind after an error. The caller closes
	// the Sandbox.
	Create(ctx context.Context, spec Spec) (Sandbox, error)
	// Recover removes what an earlier process left behind in the driver's
	// directory: containers, mounts, cgroups, files. It returns how many
	// sandboxes that were. Call it before the first Create.
	Recover(ctx context.Context) (int, error)
	// Close closes all sandboxes and frees what the driver holds. It is
	// idempotent.
	Close() error
}

// Spec is what a sandbox is made for.
type Spec struct {
	// ID names the sandbox: letters, digits, '-', at most 64 bytes, unique on the host.
	ID       string
	Function *function.Function
	// Log takes every line that the function or the platform writes, in
	// order, from one goroutine at a time. It must not block. Time, Function,
	// Container and Request are filled in. May be nil.
	Log func(function.LogLine)
}

// Request is one invocation as a sandbox gets it.
type Request struct {
	ID            string
	Payload       []byte
	ClientContext []byte
	LogTail       bool
	// Deadline ends the invocation: the function is killed then.
	Deadline    time.Time
	TraceParent string
	// Stream, if not nil, takes the response in pieces as they come, and
	// Response.Payload stays empty for what went through it. A call may block
	// (that holds the function back); an error ends the invocation. The slice
	// is valid during the call only.
	Stream func(piece []byte) error
}

// Response is how an invocation ended in function code.
type Response struct {
	// Payload is the function's answer, or the error as JSON.
	Payload []byte
	// FunctionError is empty, or "Unhandled".
	FunctionError string
	// ContentType is what the function declared for a streamed answer.
	ContentType string
	LogTail     []byte
	// Run is the time from handing over the event to the response.
	Run time.Duration
	// MaxMemoryBytes is the peak so far, 0 if unknown.
	MaxMemoryBytes int64
	// Broken says that the sandbox must not be used again: the function timed
	// out, its process ended, or it broke the protocol. The caller closes it.
	Broken bool
}

// Sandbox is one function's sandbox. Invoke is called by one goroutine at a
// time; the other methods may be called concurrently with everything.
type Sandbox interface {
	ID() string
	// Invoke runs one invocation. Whatever the function does (returns an
	// error, crashes, hangs, runs out of memory) gives a Response; error means
	// that the platform failed, and the sandbox is then broken. Cancelling the
	// context kills the function.
	Invoke(ctx context.Context, req Request) (Response, error)
	// Pause stops the sandbox from using the CPU; Resume lets it go on.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Usage tells what the sandbox uses now.
	Usage(ctx context.Context) (Usage, error)
	// Done is closed when the sandbox has ended by itself or was closed.
	Done() <-chan struct{}
	// Close ends the sandbox: SIGTERM, SIGKILL after a moment, and removes
	// all it had on the host. It is idempotent and waits for the end.
	Close(ctx context.Context) error
}

// Usage is what a sandbox uses.
type Usage struct {
	MemoryBytes, MaxMemoryBytes int64
	CPU                         time.Duration
	Processes                   int
}

// InitError says that a function could not be initialised because of its own
// code: its process ended, reported an error, or took too long.
type InitError struct {
	// Type and Message are what the runtime reported, or for instance
	// "Runtime.ExitError".
	Type, Message string
	// Payload is the error as JSON, for the caller of the function.
	Payload []byte
	// LogTail is the end of what the function wrote.
	LogTail []byte
}

func (e *InitError) Error() string {
	return fmt.Sprintf("initialise function: %s: %s", e.Type, e.Message)
}

// ErrNotStarted says, wrapped in an error of Invoke, that function code has not
// seen the event: its process ended while it was idle. The sandbox is broken,
// and the invocation can be run in another one without being run twice.
var ErrNotStarted = errors.New("the function ended before it took the event")

// Unpacker gives access to the unpacked code of functions of package type Zip.
// It may be used concurrently.
type Unpacker interface {
	// Unpack returns the code of f, fetching and unpacking it if need be. A
	// package that cannot be used is a *function.Error with InvalidCode.
	Unpack(ctx context.Context, f *function.Function) (Package, error)
}

// Package is the unpacked code of a function. It is shared by all sandboxes of
// the function, and must not be written to.
type Package struct {
	// Dir is the absolute path of the directory that functions see as /var/task.
	Dir string
	// Release says that Dir is not needed any longer. It is never nil, and is
	// called once.
	Release func()
}
