package lambda

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/controller"
)

// fakePlatform is a Platform in memory. It runs functions in this process: run
// says how.
type fakePlatform struct {
	run func(ctx context.Context, f function.Function, code []byte, inv function.Invocation) (function.Result, error)

	mu        sync.Mutex
	functions map[string]function.Function
	code      map[string][]byte // by function
	async     []function.Invocation
	invoked   []function.Invocation
}

var _ Platform = (*fakePlatform)(nil)

func newFakePlatform() *fakePlatform {
	return &fakePlatform{run: echo, functions: map[string]function.Function{}, code: map[string][]byte{}}
}

// echo is a function that answers with its event, or fails if that says so.
func echo(_ context.Context, _ function.Function, _ []byte, inv function.Invocation) (function.Result, error) {
	r := function.Result{ID: inv.ID, Payload: inv.Payload, Invoker: "i", Container: "c", Run: time.Millisecond, LogTail: []byte("a line\n")}
	var event struct{ Fail string }
	if json.Unmarshal(inv.Payload, &event) == nil && event.Fail != "" {
		r.FunctionError = function.Unhandled
		r.Payload = fmt.Appendf(nil, `{"errorMessage":%q,"errorType":"Error"}`, event.Fail)
	}
	return r, nil
}

func (p *fakePlatform) get(name string) (function.Function, error) {
	f, ok := p.functions[name]
	if !ok {
		return f, function.Errorf(function.NotFound, "Function not found: %s", function.ARN(name))
	}
	return f, nil
}

// change replaces a function by what change makes of it.
func (p *fakePlatform) change(name, revision string, change func(f *function.Function)) (function.Function, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.get(name)
	if err != nil {
		return f, err
	}
	if revision != "" && revision != f.Revision {
		return f, function.Errorf(function.PreconditionFailed, "the revision is another one")
	}
	f.Tags = maps.Clone(f.Tags)
	change(&f)
	if err := f.Validate(); err != nil {
		return f, err
	}
	p.functions[name] = f
	return f, nil
}

func readPackage(p controller.Package) (function.Code, []byte, error) {
	if p.ImageRef != "" {
		return function.Code{ImageRef: p.ImageRef, ResolvedRef: p.ImageRef + "@sha256:00", SHA256: "00"}, nil, nil
	}
	from := p.Zip
	if from == nil {
		from = p.ImageTar
	}
	text, err := io.ReadAll(from)
	if err != nil {
		return function.Code{}, nil, err
	}
	if p.Zip != nil {
		if _, err := zip.NewReader(bytes.NewReader(text), int64(len(text))); err != nil {
			return function.Code{}, nil, function.Errorf(function.InvalidCode, "the package is no zip file: %v", err)
		}
	}
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	return function.Code{Object: digest, SHA256: digest, SizeBytes: int64(len(text))}, text, nil
}

func (p *fakePlatform) CreateFunction(_ context.Context, f function.Function, pkg controller.Package) (function.Function, error) {
	code, text, err := readPackage(pkg)
	if err != nil {
		return f, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.get(f.Name); err == nil {
		return f, function.Errorf(function.Conflict, "Function already exist: %s", f.Name)
	}
	f.SetDefaults()
	f.Code, f.Revision, f.Created = code, uuid.NewString(), time.Now()
	f.Modified = f.Created
	if err := f.Validate(); err != nil {
		return f, err
	}
	p.functions[f.Name], p.code[f.Name] = f, text
	return f, nil
}

func (p *fakePlatform) UpdateCode(_ context.Context, name, revision string, pkg controller.Package) (function.Function, error) {
	code, text, err := readPackage(pkg)
	if err != nil {
		return function.Function{}, err
	}
	f, err := p.change(name, revision, func(f *function.Function) { f.Code, f.Revision, f.Modified = code, uuid.NewString(), time.Now() })
	if err == nil {
		p.mu.Lock()
		p.code[name] = text
		p.mu.Unlock()
	}
	return f, err
}

func (p *fakePlatform) UpdateConfiguration(_ context.Context, name, revision string, change func(f *function.Function)) (function.Function, error) {
	return p.change(name, revision, func(f *function.Function) {
		change(f)
		f.Revision, f.Modified = uuid.NewString(), time.Now()
	})
}

func (p *fakePlatform) SetTags(_ context.Context, name string, change func(tags map[string]string)) error {
	_, err := p.change(name, "", func(f *function.Function) {
		if f.Tags == nil {
			f.Tags = map[string]string{}
		}
		change(f.Tags)
	})
	return err
}

func (p *fakePlatform) DeleteFunction(_ context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.get(name)
	delete(p.functions, name)
	delete(p.code, name)
	return err
}

func (p *fakePlatform) GetFunction(_ context.Context, name string) (function.Function, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.get(name)
}

func (p *fakePlatform) ListFunctions(_ context.Context, marker string, limit int) (list []function.Function, next string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.SortedFunc(maps.Values(p.functions), func(a, b function.Function) int { return cmp.Compare(a.Name, b.Name) })
	for _, f := range all {
		if f.Name <= marker {
			continue
		}
		if limit > 0 && len(list) == limit {
			return list, list[limit-1].Name, nil
		}
		list = append(list, f)
	}
	return list, "", nil
}

func (p *fakePlatform) Code(_ context.Context, name string) (io.ReadCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.get(name); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(p.code[name])), nil
}

func (p *fakePlatform) Concurrency() (total, unreserved int) { return 1000, 900 }

func (p *fakePlatform) PutReservedConcurrency(_ context.Context, name string, n int) error {
	_, err := p.change(name, "", func(f *function.Function) { f.ReservedConcurrency = &n })
	return err
}

func (p *fakePlatform) DeleteReservedConcurrency(_ context.Context, name string) error {
	_, err := p.change(name, "", func(f *function.Function) { f.ReservedConcurrency = nil })
	return err
}

func (p *fakePlatform) PutProvisionedConcurrency(_ context.Context, name string, n int) (controller.Provisioned, error) {
	f, err := p.change(name, "", func(f *function.Function) { f.ProvisionedConcurrency = n })
	return controller.Provisioned{Function: name, Requested: f.ProvisionedConcurrency}, err
}

func (p *fakePlatform) GetProvisionedConcurrency(ctx context.Context, name string) (controller.Provisioned, error) {
	f, err := p.GetFunction(ctx, name)
	n := f.ProvisionedConcurrency
	return controller.Provisioned{Function: name, Requested: n, Available: n, Ready: n}, err
}

func (p *fakePlatform) DeleteProvisionedConcurrency(_ context.Context, name string) error {
	_, err := p.change(name, "", func(f *function.Function) { f.ProvisionedConcurrency = 0 })
	return err
}

func (p *fakePlatform) PutAsyncConfig(_ context.Context, name string, a function.AsyncConfig) (function.AsyncConfig, error) {
	f, err := p.change(name, "", func(f *function.Function) {
		f.Async = a
		f.Async.Modified = time.Now()
	})
	return f.Async, err
}

func (p *fakePlatform) GetAsyncConfig(ctx context.Context, name string) (function.AsyncConfig, error) {
	f, err := p.GetFunction(ctx, name)
	if err == nil && f.Async.Modified.IsZero() {
		err = function.Errorf(function.NotFound, "The function %s doesn't have an EventInvokeConfig", name)
	}
	return f.Async, err
}

func (p *fakePlatform) DeleteAsyncConfig(_ context.Context, name string) error {
	_, err := p.change(name, "", func(f *function.Function) { f.Async = function.AsyncConfig{MaxAge: time.Hour} })
	return err
}

func (p *fakePlatform) Invoke(ctx context.Context, inv function.Invocation) (function.Result, error) {
	p.mu.Lock()
	f, err := p.get(inv.Function)
	code := p.code[inv.Function]
	p.invoked = append(p.invoked, inv)
	p.mu.Unlock()
	if err != nil {
		return function.Result{}, err
	}
	if f.ReservedConcurrency != nil && *f.ReservedConcurrency == 0 {
		return function.Result{}, &function.Error{Code: function.TooManyRequests,
			Reason: "ReservedFunctionConcurrentInvocationLimitExceeded", Message: "Rate Exceeded."}
	}
	return p.run(ctx, f, code, inv)
}

// InvokeStream hands on the response in two pieces.
func (p *fakePlatform) InvokeStream(ctx context.Context, inv function.Invocation, onStart func(string), onPiece func([]byte) error) (function.Result, error) {
	r, err := p.Invoke(ctx, inv)
	if err != nil || r.FunctionError != "" {
		return r, err
	}
	onStart("text/plain")
	half := len(r.Payload) / 2
	for _, piece := range [][]byte{r.Payload[:half], r.Payload[half:]} {
		if err := onPiece(piece); err != nil {
			return function.Result{}, fmt.Errorf("hand on piece: %w", err)
		}
	}
	r.Payload = nil
	return r, nil
}

func (p *fakePlatform) InvokeAsync(ctx context.Context, inv function.Invocation) error {
	if _, err := p.GetFunction(ctx, inv.Function); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.async = append(p.async, inv)
	return nil
}

// pythonDriver calls a handler as Lambda's Python runtime does: code, handler
// and client context as arguments, the event on standard input, the answer or
// error on standard output.
const pythonDriver = `
import importlib, json, os, sys, types
sys.path.insert(0, sys.argv[1])
module, name = sys.argv[2].rsplit(".", 1)
client = json.loads(sys.argv[3]) if sys.argv[3] else {}
context = types.SimpleNamespace(
    function_name=os.environ["AWS_LAMBDA_FUNCTION_NAME"], aws_request_id=sys.argv[4],
    memory_limit_in_mb=os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"],
    client_context=types.SimpleNamespace(custom=client.get("custom")))
answers, sys.stdout = sys.stdout, sys.stderr
try:
    answer = getattr(importlib.import_module(module), name)(json.load(sys.stdin), context)
    print(json.dumps(answer), file=answers)
except Exception as e:
    print(json.dumps({"errorMessage": str(e), "errorType": type(e).__name__}), file=answers)
    sys.exit(3)
`

// runPython runs functions with the host's Python.
func runPython(ctx context.Context, f function.Function, code []byte, inv function.Invocation) (function.Result, error) {
	archive, err := zip.NewReader(bytes.NewReader(code), int64(len(code)))
	if err != nil {
		return function.Result{}, err
	}
	dir, err := os.MkdirTemp("", "volley-fake-")
	if err != nil {
		return function.Result{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, archive); err != nil {
		return function.Result{}, err
	}
	cmd := exec.CommandContext(ctx, "python3", "-c", pythonDriver, dir, f.Handler, string(inv.ClientContext), inv.ID)
	cmd.Env = append(os.Environ(), "AWS_LAMBDA_FUNCTION_NAME="+f.Name, fmt.Sprintf("AWS_LAMBDA_FUNCTION_MEMORY_SIZE=%d", f.MemoryMB))
	for name, value := range f.Environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var out, log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(inv.Payload), &out, &log
	r := function.Result{ID: inv.ID}
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 {
			return r, fmt.Errorf("run python: %w: %s", err, log.String())
		}
		r.FunctionError = function.Unhandled
	}
	r.Payload = []byte(strings.TrimSpace(out.String()))
	r.LogTail = log.Bytes()[max(0, log.Len()-function.MaxLogTailBytes):]
	return r, nil
}
