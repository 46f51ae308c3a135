//go:build unix

// Package sandboxtest is the conformance suite of sandbox drivers: what every
// sandbox does, whatever the function in it does.
package sandboxtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox"
)

// Options says what a driver promises beyond the interface. The zero value is
// a driver that isolates nothing.
type Options struct {
	// Memory: the memory limit is enforced, and running over it reported.
	Memory bool
	// Processes bounds how many processes a function can have; 0 is no bound.
	Processes int
	// Tmp: the size of /tmp is enforced as a whole.
	Tmp bool
	// ReadOnlyRoot: nothing outside /tmp can be written to.
	ReadOnlyRoot bool
	// UID is the user that functions run as; 0 is not tested.
	UID int
	// NoNetwork: functions do not reach the host's loopback.
	NoNetwork bool
	// OwnProcesses: functions do not see the host's processes.
	OwnProcesses bool
	// NoPause: Pause does nothing.
	NoPause bool
	// InitTimeout is what the driver gives functions of a short timeout for
	// their initialisation; 0 is the default, 10 s.
	InitTimeout time.Duration
	// Slow leaves out tests that take long where system calls are slow.
	Slow bool
	// Patience is how many times as long as usual everything may take; 0 is 1.
	Patience int
	// SharedRevisions gives functions that are the same the same revision, for
	// drivers that keep something of a revision.
	SharedRevisions bool
	// Restored: sandboxes may come from snapshots, whose first invocation tells
	// of no initialisation.
	Restored bool
	// Groups are the groups of tests that are run, such as "life"; nil is all.
	Groups []string
}

// createTime bounds the start of one sandbox in a test, for the patient.
const createTime = time.Minute

// patient returns how long something may take that usually takes up to d.
func (s *suite) patient(d time.Duration) time.Duration {
	return d * time.Duration(max(s.opts.Patience, 1))
}

// DirUnpacker is a sandbox.Unpacker for tests: a function's Code.Object is the
// path of the directory with its code.
type DirUnpacker struct{}

// Unpack implements sandbox.Unpacker.
func (DirUnpacker) Unpack(_ context.Context, f *function.Function) (sandbox.Package, error) {
	if _, err := os.Stat(f.Code.Object); err != nil {
		return sandbox.Package{}, function.Errorf(function.InvalidCode, "package of %s: %v", f.Name, err)
	}
	return sandbox.Package{Dir: f.Code.Object, Release: func() {}}, nil
}

// BuildInit builds volley-init and returns its path.
func BuildInit(t testing.TB) string { return build(t, "cmd/volley-init", "volley-init") }

// BuildBehave builds the suite's function, and returns the directory with it.
func BuildBehave(t testing.TB) string {
	return filepath.Dir(build(t, "sandbox/sandboxtest/behave", "bootstrap"))
}

// build builds a command of the module, statically, into a directory that all
// users can read.
func build(t testing.TB, pkg, name string) string {
	t.Helper()
	dir := openDir(t)
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./"+pkg)
	cmd.Dir = testenv.RepoRoot(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// openDir returns a temporary directory that sandboxes of any user can reach,
// unlike those of testing.T.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "volley-sandboxtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Run tests the drivers that newDriver makes. A driver is closed by the suite;
// all else that newDriver makes, it removes with t.Cleanup.
func Run(t *testing.T, newDriver func(t *testing.T) sandbox.Driver, opts Options) {
	RunBehave(t, BuildBehave(t), newDriver, opts)
}

// RunBehave is Run with what BuildBehave has returned.
func RunBehave(t *testing.T, behave string, newDriver func(t *testing.T) sandbox.Driver, opts Options) {
	s := &suite{opts: opts, newDriver: newDriver, behave: behave}
	s.driver = newDriver(t)
	t.Cleanup(func() {
		if err := s.driver.Close(); err != nil {
			t.Errorf("close driver: %v", err)
		}
	})
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"answers", s.answerTests()},
		{"logs", s.logTests()},
		{"faults", s.faultTests()},
		{"initialisation", s.initTests()},
		{"life", s.lifeTests()},
		{"languages", s.languageTests()},
		{"limits", s.limitTests()},
	} {
		if opts.Groups != nil && !slices.Contains(opts.Groups, group.name) {
			continue
		}
		t.Run(group.name, func(t *testing.T) {
			for _, tt := range group.tests {
				t.Run(tt.name, tt.run)
			}
		})
	}
}

// test is one promise.
type test struct {
	name string
	run  func(t *testing.T)
}

type suite struct {
	opts      Options
	newDriver func(t *testing.T) sandbox.Driver
	driver    sandbox.Driver
	behave    string // directory of the function
}

// function returns a function that behaves; changes are applied to it.
func (s *suite) function(changes ...func(*function.Function)) *function.Function {
	f := &function.Function{
		Name: "behave", Revision: newID(), Runtime: "provided.al2023", Handler: "bootstrap",
		Code: function.Code{Object: s.behave, SHA256: strings.Repeat("0", 64)}, Timeout: 30 * time.Second, MemoryMB: 256,
	}
	f.SetDefaults()
	for _, change := range changes {
		change(f)
	}
	if s.opts.SharedRevisions {
		f.Revision = ""
		text, err := json.Marshal(f)
		if err != nil {
			panic(err) // there is nothing in it that cannot be encoded
		}
		f.Revision = fmt.Sprintf("%x", sha256.Sum256(text))[:32]
	}
	return f
}

// Function returns the function that most tests use, for drivers that are to know
// it beforehand; behave is what BuildBehave has returned.
func Function(behave string, opts Options) *function.Function {
	s := &suite{opts: opts, behave: behave}
	return s.function()
}

// mode sets how the function behaves before its first event.
func mode(m string) func(*function.Function) { return environment("BEHAVE", m) }

func environment(name, value string) func(*function.Function) {
	return func(f *function.Function) {
		if f.Environment == nil {
			f.Environment = map[string]string{}
		}
		f.Environment[name] = value
	}
}

func timeout(d time.Duration) func(*function.Function) {
	return func(f *function.Function) { f.Timeout = d }
}

// script makes the function one of an interpreted language, with the given
// files.
func script(t *testing.T, runtime, handler string, files map[string]string) func(*function.Function) {
	t.Helper()
	dir := openDir(t)
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return func(f *function.Function) {
		f.Runtime, f.Handler, f.Code.Object = runtime, handler, dir
	}
}

// newID returns an id that no other test has.
func newID() string { return strings.ToLower(rand.Text()) }

// collector collects lines of log.
type collector struct {
	mu    sync.Mutex
	lines []function.LogLine
}

func (c *collector) add(l function.LogLine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, l)
}

// of returns the texts of one stream.
func (c *collector) of(stream string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var texts []string
	for _, l := range c.lines {
		if l.Stream == stream {
			texts = append(texts, l.Text)
		}
	}
	return texts
}

// create makes a sandbox that lasts until the test ends.
func (s *suite) create(t *testing.T, f *function.Function) sandbox.Sandbox {
	t.Helper()
	return s.createLogging(t, f, nil)
}

func (s *suite) createLogging(t *testing.T, f *function.Function, log *collector) sandbox.Sandbox {
	t.Helper()
	box, err := s.tryCreate(t, s.driver, f, log)
	if err != nil {
		t.Fatalf("create sandbox: %v", err)
	}
	return box
}

func (s *suite) tryCreate(t *testing.T, d sandbox.Driver, f *function.Function, log *collector) (sandbox.Sandbox, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.patient(createTime))
	defer cancel()
	spec := sandbox.Spec{ID: newID(), Function: f}
	if log != nil {
		spec.Log = log.add
	}
	box, err := d.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	if box.ID() != spec.ID {
		t.Errorf("ID = %q, want %q", box.ID(), spec.ID)
	}
	t.Cleanup(func() { closeBox(t, box) })
	return box, nil
}

func closeBox(t *testing.T, box sandbox.Sandbox) {
	t.Helper()
	if err := box.Close(context.Background()); err != nil {
		t.Errorf("close sandbox: %v", err)
	}
}

// request returns a request whose payload is v as JSON.
func request(t *testing.T, v any) sandbox.Request {
	t.Helper()
	payload, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return sandbox.Request{ID: requestID(), Payload: payload, Deadline: time.Now().Add(30 * time.Second)}
}

// requestID returns a random UUID.
func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// do is an event for behave.
type do map[string]any

// invoke runs an invocation that the platform must not fail at.
func invoke(t *testing.T, box sandbox.Sandbox, req sandbox.Request) sandbox.Response {
	t.Helper()
	resp, err := box.Invoke(context.Background(), req)
	if err != nil {
		t.Fatalf("invoke: %v", err)
	}
	return resp
}

// wantEcho fails the test unless the sandbox works.
func wantEcho(t *testing.T, box sandbox.Sandbox) {
	t.Helper()
	text := newID()
	wantAnswer(t, invoke(t, box, request(t, do{"do": "echo", "data": text})), text)
}

// wantAnswer fails the test unless resp is a success with the given value.
func wantAnswer(t *testing.T, resp sandbox.Response, want any) {
	t.Helper()
	wantJSON, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if resp.FunctionError != "" || resp.Broken || string(resp.Payload) != string(wantJSON) {
		t.Fatalf("answer = %s, error %q, broken %v; want %s", short(resp.Payload), resp.FunctionError, resp.Broken, short(wantJSON))
	}
}

// reported is the JSON form of a function's error.
type reported struct {
	ErrorType    string `json:"errorType"`
	ErrorMessage string `json:"errorMessage"`
}

// wantError fails the test unless resp is an error of the given type and with
// the message, in which ID stands for the request id.
func wantError(t *testing.T, resp sandbox.Response, req sandbox.Request, kind, message string, broken bool) {
	t.Helper()
	if resp.FunctionError != function.Unhandled {
		t.Fatalf("answer = %s, error %q; want %s", short(resp.Payload), resp.FunctionError, kind)
	}
	var got reported
	if err := json.Unmarshal(resp.Payload, &got); err != nil {
		t.Fatalf("error %s: %v", short(resp.Payload), err)
	}
	want := reported{kind, strings.ReplaceAll(message, "ID", req.ID)}
	if got != want {
		t.Errorf("error = %+v, want %+v", got, want)
	}
	if resp.Broken != broken {
		t.Errorf("broken = %v, want %v", resp.Broken, broken)
	}
}

func short(b []byte) string {
	if len(b) > 300 {
		return fmt.Sprintf("%s... (%d bytes)", b[:300], len(b))
	}
	return string(b)
}

// wait waits for a channel to be closed.
func wait(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatalf("waited in vain for %s", what)
	}
}
