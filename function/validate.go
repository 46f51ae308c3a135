package function

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Family is a kind of runtime: all names of one family are served alike.
type Family string

// The families.
const (
	// Python runs handlers of Python 3.
	Python Family = "python3"
	// Node runs handlers of Node.js.
	Node Family = "node"
	// Provided runs an executable named bootstrap that speaks the Runtime API.
	Provided Family = "provided"
)

// Bounds and defaults of a function's configuration.
const (
	MinMemoryMB     = 32
	MaxMemoryMB     = 10240
	DefaultMemoryMB = 128

	MinTimeout     = time.Second
	MaxTimeout     = 900 * time.Second
	DefaultTimeout = 3 * time.Second

	MinTmpMB     = 16
	MaxTmpMB     = 10240
	DefaultTmpMB = 512

	// MaxEnvironmentBytes bounds the names and values of the environment
	// together.
	MaxEnvironmentBytes = 4096
	// MaxAsyncRetries bounds AsyncConfig.MaxRetries.
	MaxAsyncRetries = 2
	MinAsyncAge     = time.Minute
	MaxAsyncAge     = 6 * time.Hour
)

const (
	maxHandlerBytes     = 128
	maxDescriptionBytes = 256
)

// runtimes lists every runtime name with its family, in the order in which
// Runtimes returns them. It is constant.
var runtimes = []struct {
	name   string
	family Family
}{
	{"python3", Python},
	{"python3.8", Python},
	{"python3.9", Python},
	{"python3.10", Python},
	{"python3.11", Python},
	{"python3.12", Python},
	{"python3.13", Python},
	{"python3.14", Python},
	{"node", Node},
	{"nodejs", Node},
	{"nodejs18.x", Node},
	{"nodejs20.x", Node},
	{"nodejs22.x", Node},
	{"nodejs24.x", Node},
	{"provided", Provided},
	{"provided.al2", Provided},
	{"provided.al2023", Provided},
	{"go1.x", Provided},
}

var (
	namePattern    = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)
	envNamePattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]+$`)
	handlerPattern = regexp.MustCompile(`^[^\s\x00-\x1f\x7f]+$`)
)

// reservedEnv are the names that the platform itself sets in a function's
// environment. It is constant.
var reservedEnv = []string{
	"_HANDLER",
	"_X_AMZN_TRACE_ID",
	"AWS_DEFAULT_REGION",
	"AWS_EXECUTION_ENV",
	"AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
	"AWS_LAMBDA_FUNCTION_NAME",
	"AWS_LAMBDA_FUNCTION_VERSION",
	"AWS_LAMBDA_INITIALIZATION_TYPE",
	"AWS_LAMBDA_LOG_GROUP_NAME",
	"AWS_LAMBDA_LOG_STREAM_NAME",
	"AWS_LAMBDA_RUNTIME_API",
	"AWS_REGION",
	"LAMBDA_RUNTIME_DIR",
	"LAMBDA_TASK_ROOT",
}

// Runtimes returns every runtime name that Function.Runtime may have.
func Runtimes() []string {
	names := make([]string, len(runtimes))
	for i, r := range runtimes {
		names[i] = r.name
	}
	return names
}

// RuntimeFamily returns the family that a runtime name belongs to; ok is false
// for a name that is not one of Runtimes.
func RuntimeFamily(name string) (family Family, ok bool) {
	for _, r := range runtimes {
		if r.name == name {
			return r.family, true
		}
	}
	return "", false
}

// ValidName reports whether name can be a function's: 1 to 64 letters, digits,
// '-' and '_'.
func ValidName(name string) bool { return namePattern.MatchString(name) }

// SetDefaults fills in what is zero and has a default: package type, memory,
// timeout, /tmp, network and the greatest age of asynchronous invocations.
func (f *Function) SetDefaults() {
	if f.PackageType == "" {
		f.PackageType = Zip
	}
	if f.MemoryMB == 0 {
		f.MemoryMB = DefaultMemoryMB
	}
	if f.Timeout == 0 {
		f.Timeout = DefaultTimeout
	}
	if f.TmpMB == 0 {
		f.TmpMB = DefaultTmpMB
	}
	if f.Network == "" {
		f.Network = NetworkNone
	}
	if f.Async.MaxAge == 0 {
		f.Async.MaxAge = MaxAsyncAge
	}
}

// Validate returns nil if f can be registered, or else an *Error with
// InvalidParameter that names the first field at fault and says what it may
// be. It looks at the configuration only, not at the code.
func (f *Function) Validate() error {
	for _, check := range []func() *Error{
		f.checkName, f.checkPackage, f.checkHandler, f.checkLimits, f.checkEnvironment, f.checkConcurrency, f.checkAsync,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (f *Function) checkName() *Error {
	if !ValidName(f.Name) {
		return invalid("name", "%q is no function name: use 1 to 64 of the characters a-z, A-Z, 0-9, '-' and '_'", f.Name)
	}
	if len(f.Description) > maxDescriptionBytes {
		return invalid("description", "it has %d bytes; use at most %d", len(f.Description), maxDescriptionBytes)
	}
	return nil
}

func (f *Function) checkPackage() *Error {
	switch f.PackageType {
	case Zip:
		if f.Runtime == "" {
			return invalid("runtime", "a function of package type Zip needs a runtime: one of %s", strings.Join(Runtimes(), ", "))
		}
		if _, ok := RuntimeFamily(f.Runtime); !ok {
			return invalid("runtime", "%q is unknown: use one of %s", f.Runtime, strings.Join(Runtimes(), ", "))
		}
		if f.ImageConfig.set() {
			return invalid("imageConfig", "only functions of package type Image have one: leave it out")
		}
	case Image:
		if f.Runtime != "" {
			return invalid("runtime", "an image brings its own runtime: leave it out")
		}
		if f.Handler != "" {
			return invalid("handler", "an image says itself what to run: leave it out, or set imageConfig.command")
		}
		if wd := f.ImageConfig.WorkingDirectory; wd != "" && !strings.HasPrefix(wd, "/") {
			return invalid("imageConfig.workingDirectory", "%q is not absolute: begin it with /", wd)
		}
	default:
		return invalid("packageType", "%q is unknown: use %s or %s", f.PackageType, Zip, Image)
	}
	return nil
}

func (c ImageConfig) set() bool {
	return len(c.EntryPoint) > 0 || len(c.Command) > 0 || c.WorkingDirectory != ""
}

func (f *Function) checkHandler() *Error {
	family, _ := RuntimeFamily(f.Runtime)
	example := ""
	switch family {
	case Python:
		example = "lambda_function.lambda_handler"
	case Node:
		example = "index.handler"
	}
	switch {
	case f.Handler == "" && example != "":
		return invalid("handler", "runtime %s needs one: the module and the function in it, such as %q", f.Runtime, example)
	case f.Handler == "":
		return nil
	case len(f.Handler) > maxHandlerBytes:
		return invalid("handler", "it has %d bytes; use at most %d", len(f.Handler), maxHandlerBytes)
	case !handlerPattern.MatchString(f.Handler):
		return invalid("handler", "%q has white space or control characters: take them out", f.Handler)
	case example != "" && !moduleAndName(f.Handler):
		return invalid("handler", "%q names no function: write module, dot, function, such as %q", f.Handler, example)
	}
	return nil
}

// moduleAndName reports whether a handler has a dot with something on either
// side.
func moduleAndName(handler string) bool {
	i := strings.LastIndexByte(handler, '.')
	return i > 0 && i < len(handler)-1
}

func (f *Function) checkLimits() *Error {
	if f.MemoryMB < MinMemoryMB || f.MemoryMB > MaxMemoryMB {
		return invalid("memoryMB", "%d is out of range: use %d to %d (MiB)", f.MemoryMB, MinMemoryMB, MaxMemoryMB)
	}
	if f.Timeout < MinTimeout || f.Timeout > MaxTimeout {
		return invalid("timeout", "%v is out of range: use %v to %v", f.Timeout, MinTimeout, MaxTimeout)
	}
	if f.TmpMB < MinTmpMB || f.TmpMB > MaxTmpMB {
		return invalid("tmpMB", "%d is out of range: use %d to %d (MiB)", f.TmpMB, MinTmpMB, MaxTmpMB)
	}
	if !f.Network.Valid() {
		return invalid("network", "%q is unknown: use %q, %q, or %q and the name of a job's network", f.Network, NetworkNone, NetworkHost, jobNetworkPrefix)
	}
	return nil
}

func (f *Function) checkEnvironment() *Error {
	total := 0
	for _, name := range slices.Sorted(maps.Keys(f.Environment)) {
		value := f.Environment[name]
		switch {
		case !envNamePattern.MatchString(name):
			return invalid("environment", "%q is no name for a variable: begin with a letter and go on with letters, digits and '_'; two characters at least", name)
		case slices.Contains(reservedEnv, name):
			return invalid("environment", "%s is set by the platform: choose another name", name)
		case strings.ContainsRune(value, 0):
			return invalid("environment", "the value of %s has a NUL byte: take it out", name)
		}
		total += len(name) + len(value)
	}
	if total > MaxEnvironmentBytes {
		return invalid("environment", "names and values have %d bytes together; use at most %d", total, MaxEnvironmentBytes)
	}
	return nil
}

func (f *Function) checkConcurrency() *Error {
	if f.ReservedConcurrency != nil && *f.ReservedConcurrency < 0 {
		return invalid("reservedConcurrency", "%d is negative: use 0 or more", *f.ReservedConcurrency)
	}
	if f.ProvisionedConcurrency < 0 {
		return invalid("provisionedConcurrency", "%d is negative: use 0 or more", f.ProvisionedConcurrency)
	}
	if r := f.ReservedConcurrency; r != nil && f.ProvisionedConcurrency > *r {
		return invalid("provisionedConcurrency", "%d is more than the reserved concurrency of %d: lower the one or raise the other",
			f.ProvisionedConcurrency, *r)
	}
	return nil
}

func (f *Function) checkAsync() *Error {
	a := f.Async
	if a.MaxRetries < 0 || a.MaxRetries > MaxAsyncRetries {
		return invalid("async.maxRetries", "%d is out of range: use 0 to %d", a.MaxRetries, MaxAsyncRetries)
	}
	if a.MaxAge < MinAsyncAge || a.MaxAge > MaxAsyncAge {
		return invalid("async.maxAge", "%v is out of range: use %v to %v", a.MaxAge, MinAsyncAge, MaxAsyncAge)
	}
	for _, to := range []struct{ field, name string }{{"async.onFailure", a.OnFailure}, {"async.onSuccess", a.OnSuccess}} {
		if to.name != "" && !ValidName(to.name) {
			return invalid(to.field, "%q is no function name: use 1 to 64 of the characters a-z, A-Z, 0-9, '-' and '_'", to.name)
		}
	}
	return nil
}

func invalid(field, format string, args ...any) *Error {
	return &Error{Code: InvalidParameter, Field: field, Message: fmt.Sprintf(format, args...)}
}
