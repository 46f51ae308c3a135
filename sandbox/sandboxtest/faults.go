//go:build unix

package sandboxtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

func (s *suite) faultTests() []test {
	return []test{
		{"an error is told and the sandbox goes on", s.testError},
		{"a panic is told and breaks the sandbox", s.testPanic},
		{"an exit is told with its status", s.testExit},
		{"a signal is told by its name", s.testSignal},
		{"a function that hangs is ended at its deadline", s.testHang},
		{"a function that ignores SIGTERM is ended too", s.testIgnoreTerm},
		{"a cancelled invocation ends the function", s.testCancel},
		{"processes that linger end with the sandbox", s.testLinger},
		{"bytes that are no JSON are passed on", s.testGarbage},
		{"bytes that are no HTTP hurt nobody", s.testNoHTTP},
		{"answers for other requests are refused", s.testWrongID},
		{"an event is not given out before the last is answered", s.testAskAgain},
		{"an event that a dead function never saw is not lost", s.testNotStarted},
	}
}

func (s *suite) testError(t *testing.T) {
	box := s.create(t, s.function())
	req := request(t, do{"do": "error", "text": "so it goes"})
	wantError(t, invoke(t, box, req), req, "errorString", "so it goes", false)
	wantEcho(t, box)
}

func (s *suite) testPanic(t *testing.T) {
	box := s.create(t, s.function())
	req := request(t, do{"do": "panic", "text": "aargh"})
	wantError(t, invoke(t, box, req), req, "string", "aargh", true)
	wait(t, box.Done(), "the end of the sandbox")
}

func (s *suite) testExit(t *testing.T) {
	for status, message := range map[int]string{
		0: "RequestId: ID Error: Runtime exited without providing a reason",
		1: "RequestId: ID Error: Runtime exited with error: exit status 1",
	} {
		box := s.create(t, s.function())
		req := request(t, do{"do": "exit", "status": status})
		wantError(t, invoke(t, box, req), req, "Runtime.ExitError", message, true)
		wait(t, box.Done(), "the end of the sandbox")
		if _, err := box.Invoke(t.Context(), request(t, do{"do": "echo"})); err == nil {
			t.Error("a sandbox that ended takes an invocation")
		}
	}
}

func (s *suite) testSignal(t *testing.T) {
	box := s.create(t, s.function())
	req := request(t, do{"do": "kill"})
	wantError(t, invoke(t, box, req), req, "Runtime.ExitError",
		"RequestId: ID Error: Runtime exited with error: signal: killed", true)
	box = s.create(t, s.function())
	req = request(t, do{"do": "crash"})
	resp := invoke(t, box, req)
	if resp.FunctionError != function.Unhandled || !resp.Broken || !strings.Contains(string(resp.Payload), "Runtime.ExitError") {
		t.Errorf("response %+v: %s", resp, resp.Payload)
	}
}

// hang runs an invocation that hangs for the function's timeout of a second.
func (s *suite) hang(t *testing.T, what string) {
	t.Helper()
	var log collector
	box := s.createLogging(t, s.function(timeout(time.Second)), &log)
	req := request(t, do{"do": what})
	req.LogTail = true
	start := time.Now()
	req.Deadline = start.Add(time.Second)
	resp := invoke(t, box, req)
	took := time.Since(start)
	wantError(t, resp, req, "Sandbox.Timedout", "RequestId: ID Error: Task timed out after 1.00 seconds", true)
	if took < time.Second || took > s.patient(3*time.Second) {
		t.Errorf("the answer took %v, want a second", took)
	}
	if !strings.Contains(string(resp.LogTail), "Status: timeout") {
		t.Errorf("log tail %q", resp.LogTail)
	}
	wait(t, box.Done(), "the end of the sandbox")
}

func (s *suite) testHang(t *testing.T)       { s.hang(t, "hang") }
func (s *suite) testIgnoreTerm(t *testing.T) { s.hang(t, "ignore-term") }

func (s *suite) testCancel(t *testing.T) {
	var log collector
	box := s.createLogging(t, s.function(), &log)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		poll(func() bool { return len(log.of("stdout")) > 0 })
	}()
	resp, err := box.Invoke(ctx, request(t, do{"do": "hang"}))
	if !errors.Is(err, context.Canceled) || !resp.Broken {
		t.Errorf("response %+v, error %v; want context.Canceled and a broken sandbox", resp, err)
	}
	wait(t, box.Done(), "the end of the sandbox")
}

func (s *suite) testLinger(t *testing.T) {
	box := s.create(t, s.function())
	token := newID()
	wantAnswer(t, invoke(t, box, request(t, do{"do": "linger", "text": token})), nil)
	wantEcho(t, box)
	closeBox(t, box)
	if n := lingering(t, token); n != 0 {
		t.Errorf("%d processes outlive their sandbox", n)
	}
	// They end with a function that ends by itself, too.
	box = s.create(t, s.function())
	token = newID()
	invoke(t, box, request(t, do{"do": "linger", "text": token}))
	invoke(t, box, request(t, do{"do": "exit"}))
	wait(t, box.Done(), "the end of the sandbox")
	if n := lingering(t, token); n != 0 {
		t.Errorf("%d processes outlive their function", n)
	}
}

// lingering returns how many processes have a token as an argument.
func lingering(t *testing.T, token string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		// A process that is gone by now does not count.
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), token) {
			n++
		}
	}
	return n
}

// poll waits until done returns true, for half a minute at most.
func poll(done func() bool) bool {
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}

func (s *suite) testGarbage(t *testing.T) {
	box := s.create(t, s.function(mode("garbage")))
	for range 2 {
		if resp := invoke(t, box, request(t, "go")); string(resp.Payload) != "\x00\xff{garbage" || resp.FunctionError != "" {
			t.Errorf("answer %q, error %q", resp.Payload, resp.FunctionError)
		}
	}
}

func (s *suite) testNoHTTP(t *testing.T) {
	box := s.create(t, s.function(mode("no-http")))
	for range 2 {
		wantAnswer(t, invoke(t, box, request(t, "go")), "still here")
	}
}

func (s *suite) testWrongID(t *testing.T) {
	box := s.create(t, s.function(mode("wrong-id")))
	for range 2 {
		wantAnswer(t, invoke(t, box, request(t, "go")), 400)
	}
}

func (s *suite) testAskAgain(t *testing.T) {
	box := s.create(t, s.function(mode("ask-again")))
	for range 2 {
		wantAnswer(t, invoke(t, box, request(t, "go")), 403)
	}
}

// testNotStarted uses a function that ends after its first answer: whatever the
// moment that the second event comes at, it can be run elsewhere.
func (s *suite) testNotStarted(t *testing.T) {
	for range 5 {
		box := s.create(t, s.function(mode("answer-once")))
		wantAnswer(t, invoke(t, box, request(t, "go")), "once")
		resp, err := box.Invoke(context.Background(), request(t, "go"))
		if !errors.Is(err, sandbox.ErrNotStarted) || !resp.Broken {
			t.Errorf("response %+v, error %v; want ErrNotStarted", resp, err)
		}
	}
}

func (s *suite) initTests() []test {
	return []test{
		{"a process that ends is an error with its status", s.testExitAtInit},
		{"a process that ends well is an error too", s.testLeaveAtInit},
		{"a process that hangs is ended", s.testHangAtInit},
		{"what the runtime reports is told", s.testReportAtInit},
		{"code without a program is the function's fault", s.testNoProgram},
		{"a package that cannot be had is an error of the package", s.testNoPackage},
		{"a context that ends stops the creation", s.testCreateCancelled},
	}
}

// wantInitError creates a sandbox in vain.
func (s *suite) wantInitError(t *testing.T, f *function.Function, kind, message string) *sandbox.InitError {
	t.Helper()
	_, err := s.tryCreate(t, s.driver, f, nil)
	var initErr *sandbox.InitError
	if !errors.As(err, &initErr) {
		t.Fatalf("create sandbox: %v; want an InitError", err)
	}
	if initErr.Type != kind || !strings.Contains(initErr.Message, message) {
		t.Errorf("error %q, %q; want %q, %q", initErr.Type, initErr.Message, kind, message)
	}
	if !strings.Contains(string(initErr.Payload), `"`+kind+`"`) {
		t.Errorf("payload %s", initErr.Payload)
	}
	return initErr
}

func (s *suite) testExitAtInit(t *testing.T) {
	err := s.wantInitError(t, s.function(mode("exit-at-init")), "Runtime.ExitError", "Error: Runtime exited with error: exit status 3")
	if string(err.LogTail) != "leaving early\n" {
		t.Errorf("log tail %q", err.LogTail)
	}
}

func (s *suite) testLeaveAtInit(t *testing.T) {
	s.wantInitError(t, s.function(mode("leave-at-init")), "Runtime.ExitError", "Error: Runtime exited without providing a reason")
}

func (s *suite) testHangAtInit(t *testing.T) {
	limit := cmp.Or(s.opts.InitTimeout, frame.DefaultInitTimeout)
	err := s.wantInitError(t, s.function(mode("hang-at-init"), timeout(time.Second)),
		"Sandbox.Timedout", fmt.Sprintf("Error: Initialization timed out after %.2f seconds", limit.Seconds()))
	if string(err.LogTail) != "hanging early\n" {
		t.Errorf("log tail %q", err.LogTail)
	}
}

func (s *suite) testReportAtInit(t *testing.T) {
	err := s.wantInitError(t, s.function(mode("report-at-init")), "Extra.Fault", "no way")
	if want := `{"errorType":"Extra.Fault","errorMessage":"no way"}`; string(err.Payload) != want {
		t.Errorf("payload %s, want %s", err.Payload, want)
	}
}

func (s *suite) testNoProgram(t *testing.T) {
	s.wantInitError(t, s.function(script(t, "provided", "x", nil)), "Runtime.InvalidEntrypoint", "bootstrap: no such file or directory")
}

func (s *suite) testNoPackage(t *testing.T) {
	f := s.function()
	f.Code.Object = filepath.Join(t.TempDir(), "none")
	if _, err := s.tryCreate(t, s.driver, f, nil); function.CodeOf(err) != function.InvalidCode {
		t.Errorf("create sandbox: %v; want InvalidCode", err)
	}
}

func (s *suite) testCreateCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	box, err := s.driver.Create(ctx, sandbox.Spec{ID: newID(), Function: s.function(mode("hang-at-init"))})
	if err == nil {
		closeBox(t, box)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("create sandbox: %v; want context.DeadlineExceeded", err)
	}
	if took := time.Since(start); took > s.patient(8*time.Second) {
		t.Errorf("it took %v", took)
	}
}
