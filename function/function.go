// Package function holds what all of Volley means by a function: its
// configuration, one invocation of it, the result, and the errors between.
// It knows no system and uses the standard library only.
package function

import (
	"regexp"
	"strings"
	"time"
)

// LatestVersion is the only version that a function has, and the alias that
// names it.
const LatestVersion = "$LATEST"

// PackageType says how a function's code comes.
type PackageType string

// The package types.
const (
	Zip   PackageType = "Zip"
	Image PackageType = "Image"
)

// Network says what a function's sandbox can reach.
type Network string

// The networks.
const (
	// NetworkNone is a network namespace with nothing but loopback.
	NetworkNone Network = "none"
	// NetworkHost is the host's own network: no isolation.
	NetworkHost Network = "host"
)

// jobNetworkPrefix comes before the name of a job's network.
const jobNetworkPrefix = "net:"

// JobNetwork is the network of that name, which is declared on the nodes
// (package particle): each sandbox has an address of its own there.
func JobNetwork(name string) Network { return Network(jobNetworkPrefix + name) }

// Job returns the name of a job's network; ok is false for None and Host.
func (n Network) Job() (name string, ok bool) {
	return strings.CutPrefix(string(n), jobNetworkPrefix)
}

// Valid says whether n is None, Host, or a job's network whose name could be one.
func (n Network) Valid() bool {
	if name, ok := n.Job(); ok {
		return networkNamePattern.MatchString(name)
	}
	return n == NetworkNone || n == NetworkHost
}

// networkNamePattern is what networks may be called.
var networkNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// NetworkTag is the tag by which a client of the Lambda API, which has no such
// field, chooses a function's Network.
const NetworkTag = "volley:network"

// Function is a registered function: one immutable revision of its code and
// configuration. The JSON form is what the registry stores and what the
// controller sends to invokers.
type Function struct {
	Name        string      `json:"name"`
	Revision    string      `json:"revision"` // a UUID, new with every change
	Description string      `json:"description,omitempty"`
	PackageType PackageType `json:"packageType"`
	// Runtime is one of Runtimes for Zip, empty for Image.
	Runtime string `json:"runtime,omitempty"`
	// Handler is what the runtime calls, such as "module.function".
	Handler string `json:"handler,omitempty"`
	// Role is accepted and returned for the sake of AWS clients; it has no effect.
	Role        string            `json:"role,omitempty"`
	Code        Code              `json:"code"`
	ImageConfig ImageConfig       `json:"imageConfig,omitzero"`
	Environment map[string]string `json:"environment,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	// MemoryMB is the memory limit in MiB, and what the scheduler reserves.
	MemoryMB int `json:"memoryMB"`
	// Timeout bounds one invocation.
	Timeout time.Duration `json:"timeout"`
	// TmpMB is the size limit of /tmp in MiB.
	TmpMB    int       `json:"tmpMB"`
	Network  Network   `json:"network"`
	Created  time.Time `json:"created"`
	Modified time.Time `json:"modified"`
	// ReservedConcurrency bounds how many invocations run at once; nil is no
	// bound, 0 lets none run.
	ReservedConcurrency *int `json:"reservedConcurrency,omitempty"`
	// ProvisionedConcurrency is how many containers are kept ready.
	ProvisionedConcurrency int         `json:"provisionedConcurrency,omitempty"`
	Async                  AsyncConfig `json:"async"`
}

// MBPerCPU is the memory in MiB that a CPU comes with, as on AWS Lambda.
const MBPerCPU = 1769

// CPUs is how many CPUs a sandbox of the function may use: one for each 1769 MiB
// of memory begun.
func (f *Function) CPUs() int { return max(1, (f.MemoryMB+MBPerCPU-1)/MBPerCPU) }

// Key identifies a revision among all functions: containers of one key can
// serve each other's invocations.
func (f *Function) Key() string { return f.Name + "@" + f.Revision }

// Code is where a function's code is and what it must hash to.
type Code struct {
	// Object is the key of the package in the platform's object store: a zip
	// file, or a tar of an image that was uploaded. Empty for an image that is
	// pulled from a registry.
	Object string `json:"object,omitempty"`
	// SHA256 is the package's digest in hex, or for a pulled image that of its
	// manifest.
	SHA256    string `json:"sha256"`
	SizeBytes int64  `json:"sizeBytes"`
	// ImageRef is the reference that the user gave, for Image.
	ImageRef string `json:"imageRef,omitempty"`
	// ResolvedRef is ImageRef pinned to its digest.
	ResolvedRef string `json:"resolvedRef,omitempty"`
}

// ImageConfig overrides what an image says of itself.
type ImageConfig struct {
	EntryPoint       []string `json:"entryPoint,omitempty"`
	Command          []string `json:"command,omitempty"`
	WorkingDirectory string   `json:"workingDirectory,omitempty"`
}

// AsyncConfig is what happens to invocations of type Event.
type AsyncConfig struct {
	// MaxRetries is how often a failed invocation is run again: 0 to 2.
	MaxRetries int `json:"maxRetries"`
	// MaxAge is how long an invocation may wait to be run.
	MaxAge time.Duration `json:"maxAge"`
	// OnFailure names the function that gets the record of an invocation that
	// failed for good; empty leaves it in the dead-letter list only.
	OnFailure string `json:"onFailure,omitempty"`
	// OnSuccess names the function that gets the record of one that succeeded.
	OnSuccess string `json:"onSuccess,omitempty"`
	// Modified is when the user set it; zero means that these are the defaults.
	Modified time.Time `json:"modified,omitzero"`
}

// Type is how an invocation is made.
type Type string

// The invocation types of the Lambda Invoke API.
const (
	RequestResponse Type = "RequestResponse"
	Event           Type = "Event"
	DryRun          Type = "DryRun"
)

// Invocation is one call of a function.
type Invocation struct {
	// ID is the request id: a UUID.
	ID string `json:"id"`
	// Function is the function's name.
	Function string `json:"function"`
	Type     Type   `json:"type"`
	Payload  []byte `json:"payload,omitempty"`
	// ClientContext is the client's JSON, decoded from the header's base64.
	ClientContext []byte `json:"clientContext,omitempty"`
	// LogTail asks for the last 4 KiB of log in the result.
	LogTail bool `json:"logTail,omitempty"`
	// Received is when the platform accepted it.
	Received time.Time `json:"received"`
	// Attempt counts from 1; only invocations of type Event get beyond.
	Attempt int `json:"attempt"`
	// TraceParent is the W3C trace context, or empty.
	TraceParent string `json:"traceParent,omitempty"`
}

// How a function said that it failed (header X-Amz-Function-Error).
const (
	// Handled is not used by today's runtimes, which report every error as
	// Unhandled.
	Handled   = "Handled"
	Unhandled = "Unhandled"
)

// Result is the outcome of an invocation that reached function code, well or
// not.
type Result struct {
	ID      string `json:"id"`
	Payload []byte `json:"payload,omitempty"`
	// FunctionError is empty for success, else Handled or Unhandled; Payload
	// is then a JSON object with errorMessage and errorType.
	FunctionError string `json:"functionError,omitempty"`
	// LogTail is at most the last 4 KiB of log, if it was asked for.
	LogTail []byte `json:"logTail,omitempty"`
	// Cold tells whether a container was started for it.
	Cold      bool   `json:"cold"`
	Invoker   string `json:"invoker"`
	Container string `json:"container"`
	// Queued is the time from Received until an invoker took it, Start the
	// time to get a container ready (0 if warm), Run the time in the function.
	Queued time.Duration `json:"queued"`
	Start  time.Duration `json:"start"`
	Run    time.Duration `json:"run"`
	// MaxMemoryBytes is the sandbox's peak so far, 0 if unknown.
	MaxMemoryBytes int64 `json:"maxMemoryBytes,omitempty"`
}

// MaxLogTailBytes is how much log a result carries.
const MaxLogTailBytes = 4096

// Payload limits in bytes, as AWS Lambda has them.
const (
	MaxSyncPayloadBytes  = 6 << 20
	MaxAsyncPayloadBytes = 1 << 20
	// MaxStreamBytes bounds a streamed response.
	MaxStreamBytes = 200 << 20
)

// LogLine is a line that a function wrote, or the platform about it.
type LogLine struct {
	Time      time.Time `json:"time"`
	Function  string    `json:"function"`
	Container string    `json:"container"`
	// Request is the request id that ran when the line was written, or empty.
	Request string `json:"request,omitempty"`
	// Stream is "stdout", "stderr" or "platform".
	Stream string `json:"stream"`
	Text   string `json:"text"`
}
