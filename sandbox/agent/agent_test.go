package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeInit plays volley-init: it becomes ready and then does with each event
// what act says.
type fakeInit struct {
	enc *frame.Encoder
	dec *frame.Decoder
	out *io.PipeWriter
	// boot is what the host sent first.
	boot agent.Boot
	// canceled has the ids that the host cancelled.
	canceled chan string
	ended    chan struct{}
}

// startFake starts a fake; first is done instead of becoming ready if it is
// not nil. The fake ends with the conversation.
func startFake(t *testing.T, first, act func(f *fakeInit, ev frame.Event)) agent.Conn {
	t.Helper()
	fromHost, toInit := io.Pipe()
	fromInit, toHost := io.Pipe()
	f := &fakeInit{
		enc: frame.NewEncoder(toHost), dec: frame.NewDecoder(fromHost), out: toHost,
		canceled: make(chan string, 10), ended: make(chan struct{}),
	}
	go func() {
		defer close(f.ended)
		defer fromHost.Close()
		defer toHost.Close()
		f.serve(t, first, act)
	}()
	t.Cleanup(func() { <-f.ended })
	return agent.Conn{Reader: fromInit, Writer: toInit, Closer: closers{toInit, fromInit}}
}

type closers []io.Closer

func (c closers) Close() error {
	for _, one := range c {
		_ = one.Close()
	}
	return nil
}

func (f *fakeInit) serve(t *testing.T, first, act func(f *fakeInit, ev frame.Event)) {
	typ, body, err := f.dec.Next()
	if err != nil || typ != frame.TypeBoot {
		t.Errorf("first frame %q, error %v", typ, err)
		return
	}
	if err := json.Unmarshal(body, &f.boot); err != nil {
		t.Error(err)
	}
	if first != nil {
		first(f, frame.Event{})
	} else {
		_ = f.enc.Encode(frame.TypeReady, nil)
	}
	for {
		typ, body, err := f.dec.Next()
		if err != nil {
			return
		}
		switch typ {
		case frame.TypeEvent:
			ev, err := frame.ParseEvent(body)
			if err != nil {
				t.Error(err)
				return
			}
			ev.Payload = slices.Clone(ev.Payload)
			act(f, ev)
		case frame.TypeCancel:
			f.canceled <- string(body)
			_ = f.enc.JSON(frame.TypeExited, frame.Exit{ID: string(body), Reason: frame.ReasonCanceled})
			return
		case frame.TypeShutdown:
			_ = f.enc.JSON(frame.TypeExited, frame.Exit{Reason: frame.ReasonShutdown})
			return
		}
	}
}

func echo(f *fakeInit, ev frame.Event) {
	_ = f.enc.Log(&frame.Log{Stream: frame.Stdout, Time: 1e6, ID: ev.ID, Lines: frame.AppendLine(nil, []byte("bad \xff byte"))})
	_ = f.enc.Reply(frame.TypeResponse, &frame.Reply{ID: ev.ID, Kind: "application/json", Payload: ev.Payload})
}

func testFunction() *function.Function {
	return &function.Function{Name: "f", Timeout: 3 * time.Second, MemoryMB: 128}
}

func start(t *testing.T, conn agent.Conn, opts agent.Options) *agent.Agent {
	t.Helper()
	if opts.Function == nil {
		opts.Function = testFunction()
	}
	a, err := agent.Start(t.Context(), conn, agent.Boot{Argv: []string{"x"}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func request(id string) sandbox.Request {
	return sandbox.Request{ID: id, Payload: []byte(`"x"`), Deadline: time.Now().Add(3 * time.Second)}
}

func TestAnInvocationHasAnAnswerAndItsLog(t *testing.T) {
	var mu sync.Mutex
	var texts []string
	a := start(t, startFake(t, nil, echo), agent.Options{
		Container: "box", PeakMemory: func() int64 { return 5<<20 + 1 },
		Log: func(l function.LogLine) {
			mu.Lock()
			defer mu.Unlock()
			if l.Request != "id" || l.Container != "box" || l.Function != "f" {
				t.Errorf("line %+v", l)
			}
			texts = append(texts, l.Text)
		},
	})
	req := request("id")
	req.LogTail = true
	resp, err := a.Invoke(t.Context(), req)
	if err != nil || string(resp.Payload) != `"x"` || resp.FunctionError != "" || resp.Broken || resp.MaxMemoryBytes != 5<<20+1 {
		t.Errorf("response %+v, error %v", resp, err)
	}
	if len(texts) != 4 || texts[1] != "bad \uFFFD byte" || !strings.Contains(texts[3], "\tMemory Size: 128 MB\tMax Memory Used: 6 MB\tInit Duration: ") {
		t.Errorf("lines %q", texts)
	}
	if want := strings.Join(texts, "\n") + "\n"; string(resp.LogTail) != want {
		t.Errorf("tail %q, want %q", resp.LogTail, want)
	}
}

func exit(e frame.Exit) func(*fakeInit, frame.Event) {
	return func(f *fakeInit, ev frame.Event) {
		e := e
		if e.ID == "" {
			e.ID = ev.ID
		}
		_ = f.enc.JSON(frame.TypeExited, e)
		_ = f.out.Close()
	}
}

func TestTheEndOfAFunctionIsToldAsOnLambda(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	for name, tc := range map[string]struct {
		exit          frame.Exit
		outOfMemory   func() bool
		kind, message string
	}{
		"status":                {frame.Exit{Reason: frame.ReasonExit, Status: 2}, nil, "Runtime.ExitError", "RequestId: id Error: Runtime exited with error: exit status 2"},
		"no status":             {frame.Exit{Reason: frame.ReasonExit}, no, "Runtime.ExitError", "RequestId: id Error: Runtime exited without providing a reason"},
		"killed by somebody":    {frame.Exit{Reason: frame.ReasonExit, Signal: "killed", Killed: true}, no, "Runtime.ExitError", "RequestId: id Error: Runtime exited with error: signal: killed"},
		"killed, nobody knows":  {frame.Exit{Reason: frame.ReasonExit, Signal: "killed", Killed: true}, nil, "Runtime.ExitError", "RequestId: id Error: Runtime exited with error: signal: killed"},
		"killed for its memory": {frame.Exit{Reason: frame.ReasonExit, Signal: "killed", Killed: true}, yes, "Runtime.OutOfMemory", "RequestId: id Error: Runtime exited with error: signal: killed"},
		"killed by its kernel":  {frame.Exit{Reason: frame.ReasonExit, Signal: "killed", Killed: true, OutOfMemory: true}, nil, "Runtime.OutOfMemory", "RequestId: id Error: Runtime exited with error: signal: killed"},
		"deadline":              {frame.Exit{Reason: frame.ReasonDeadline}, no, "Sandbox.Timedout", "RequestId: id Error: Task timed out after 3.00 seconds"},
		"deadline before it began": {frame.Exit{Reason: frame.ReasonDeadline, Unseen: true}, no,
			"Sandbox.Timedout", "RequestId: id Error: Task timed out after 3.00 seconds"},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, startFake(t, nil, exit(tc.exit)), agent.Options{OutOfMemory: tc.outOfMemory})
			resp, err := a.Invoke(t.Context(), request("id"))
			if err != nil || !resp.Broken || resp.FunctionError != function.Unhandled {
				t.Fatalf("response %+v, error %v", resp, err)
			}
			want := `{"errorType":"` + tc.kind + `","errorMessage":"` + tc.message + `"}`
			if string(resp.Payload) != want {
				t.Errorf("payload %s, want %s", resp.Payload, want)
			}
			<-a.Done()
		})
	}
}

func TestAnEventThatNobodySawCanBeRunElsewhere(t *testing.T) {
	for name, e := range map[string]frame.Exit{
		"it was waiting":    {Reason: frame.ReasonExit, Status: 1, Unseen: true},
		"it crossed an end": {ID: "another", Reason: frame.ReasonExit},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, startFake(t, nil, exit(e)), agent.Options{})
			for range 2 {
				resp, err := a.Invoke(t.Context(), request("id"))
				if err == nil || !resp.Broken {
					t.Errorf("response %+v, error %v", resp, err)
				}
				if !errors.Is(err, sandbox.ErrNotStarted) && !strings.Contains(err.Error(), "broken") {
					t.Errorf("error %v, want ErrNotStarted", err)
				}
			}
		})
	}
}

func TestALostInitIsAnErrorOrTheFunctionsMemory(t *testing.T) {
	lose := func(f *fakeInit, _ frame.Event) { _ = f.out.Close() }
	a := start(t, startFake(t, nil, lose), agent.Options{OutOfMemory: func() bool { return false }})
	if resp, err := a.Invoke(t.Context(), request("id")); err == nil || !resp.Broken || errors.Is(err, sandbox.ErrNotStarted) {
		t.Errorf("response %+v, error %v; want an error of the platform", resp, err)
	}
	a = start(t, startFake(t, nil, lose), agent.Options{OutOfMemory: func() bool { return true }})
	if resp, err := a.Invoke(t.Context(), request("id")); err != nil || !strings.Contains(string(resp.Payload), "Runtime.OutOfMemory") {
		t.Errorf("response %+v, error %v; want Runtime.OutOfMemory", resp, err)
	}
}

func TestAnInitThatKeepsSilentIsNotWaitedFor(t *testing.T) {
	a := start(t, startFake(t, nil, func(*fakeInit, frame.Event) {}), agent.Options{})
	req := request("id")
	req.Deadline = time.Now().Add(50 * time.Millisecond)
	resp, err := a.Invoke(t.Context(), req)
	if err != nil || !resp.Broken || !strings.Contains(string(resp.Payload), "Task timed out after 0.05 seconds") {
		t.Errorf("response %+v %s, error %v", resp, resp.Payload, err)
	}
}

func TestFramesThatMakeNoSenseEndTheConversation(t *testing.T) {
	for name, act := range map[string]func(*fakeInit, frame.Event){
		"an unknown type": func(f *fakeInit, _ frame.Event) { _ = f.enc.Encode('?', nil) },
		"a short reply":   func(f *fakeInit, _ frame.Event) { _ = f.enc.Encode(frame.TypeResponse, []byte{0}) },
		"a short log":     func(f *fakeInit, _ frame.Event) { _ = f.enc.Encode(frame.TypeLog, []byte{1}) },
		"no JSON":         func(f *fakeInit, _ frame.Event) { _ = f.enc.Encode(frame.TypeExited, []byte("{")) },
		"a host's frame":  func(f *fakeInit, _ frame.Event) { _ = f.enc.Encode(frame.TypeBoot, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, startFake(t, nil, act), agent.Options{})
			if resp, err := a.Invoke(t.Context(), request("id")); err == nil || !resp.Broken {
				t.Errorf("response %+v, error %v", resp, err)
			}
		})
	}
}

func TestAnswersToOthersAreIgnored(t *testing.T) {
	a := start(t, startFake(t, nil, func(f *fakeInit, ev frame.Event) {
		_ = f.enc.Reply(frame.TypeResponse, &frame.Reply{ID: "somebody else's", Payload: []byte("1")})
		echo(f, ev)
		echo(f, ev) // once too often
	}), agent.Options{})
	for _, id := range []string{"a", "b", "c"} {
		if resp, err := a.Invoke(t.Context(), request(id)); err != nil || string(resp.Payload) != `"x"` {
			t.Errorf("response %+v, error %v", resp, err)
		}
	}
}

func TestAStreamCanEndInTheMiddle(t *testing.T) {
	a := start(t, startFake(t, nil, func(f *fakeInit, ev frame.Event) {
		_ = f.enc.Reply(frame.TypeStreamHead, &frame.Reply{ID: ev.ID, Kind: "text/plain"})
		_ = f.enc.Reply(frame.TypeStreamPiece, &frame.Reply{ID: ev.ID, Payload: []byte("one")})
		exit(frame.Exit{Reason: frame.ReasonExit, Status: 1})(f, ev)
	}), agent.Options{})
	var got string
	req := request("id")
	req.Stream = func(p []byte) error { got += string(p); return nil }
	resp, err := a.Invoke(t.Context(), req)
	if err != nil || got != "one" || !strings.Contains(string(resp.Payload), "exit status 1") || !resp.Broken {
		t.Errorf("got %q, response %+v, error %v", got, resp, err)
	}
}

func TestAStreamThatNobodyTakesInPiecesIsBounded(t *testing.T) {
	a := start(t, startFake(t, nil, func(f *fakeInit, ev frame.Event) {
		for range 8 {
			_ = f.enc.Reply(frame.TypeStreamPiece, &frame.Reply{ID: ev.ID, Payload: make([]byte, 1<<20)})
		}
		_ = f.enc.Reply(frame.TypeStreamEnd, &frame.Reply{ID: ev.ID})
	}), agent.Options{})
	resp, err := a.Invoke(t.Context(), request("id"))
	if err != nil || !strings.Contains(string(resp.Payload), "Function.ResponseSizeTooLarge") || !resp.Broken {
		t.Errorf("response %+v, error %v", resp, err)
	}
}

func TestACancelledInvocationIsCancelledInTheSandbox(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	bored := errors.New("bored")
	var id string
	conn := startFake(t, nil, func(f *fakeInit, ev frame.Event) {
		cancel(bored)
		id = ev.ID
	})
	a := start(t, conn, agent.Options{})
	resp, err := a.Invoke(ctx, request("id"))
	if !errors.Is(err, bored) || !resp.Broken || id != "id" {
		t.Errorf("response %+v, error %v", resp, err)
	}
	<-a.Done()
}

func TestOneInvocationAtATime(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	a := start(t, startFake(t, nil, func(f *fakeInit, ev frame.Event) {
		close(begun)
		<-release
		echo(f, ev)
	}), agent.Options{})
	done := make(chan error)
	go func() {
		_, err := a.Invoke(context.Background(), request("a"))
		done <- err
	}()
	<-begun
	if _, err := a.Invoke(t.Context(), request("b")); err == nil {
		t.Error("a second invocation is let in")
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStartTellsWhatTheInitialisationCameTo(t *testing.T) {
	for name, tc := range map[string]struct {
		first         func(*fakeInit, frame.Event)
		outOfMemory   bool
		kind, message string
	}{
		"reported": {func(f *fakeInit, _ frame.Event) {
			_ = f.enc.Log(&frame.Log{Stream: frame.Stderr, Lines: frame.AppendLine(nil, []byte("why"))})
			_ = f.enc.Reply(frame.TypeInitError, &frame.Reply{Kind: "A.B", Payload: []byte(`{"errorMessage":"m","errorType":"A.B"}`)})
		}, false, "A.B", "m"},
		"ended": {func(f *fakeInit, ev frame.Event) {
			_ = f.enc.Log(&frame.Log{Stream: frame.Stderr, Lines: frame.AppendLine(nil, []byte("why"))})
			exit(frame.Exit{Reason: frame.ReasonExit, Status: 1})(f, ev)
		}, false, "Runtime.ExitError", "Error: Runtime exited with error: exit status 1"},
		"lost for its memory": {func(f *fakeInit, _ frame.Event) {
			_ = f.enc.Log(&frame.Log{Stream: frame.Stderr, Lines: frame.AppendLine(nil, []byte("why"))})
			_ = f.out.Close()
		}, true, "Runtime.OutOfMemory", "Error: Runtime exited with error: signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := startFake(t, tc.first, echo)
			_, err := agent.Start(t.Context(), conn, agent.Boot{Argv: []string{"x"}},
				agent.Options{Function: testFunction(), OutOfMemory: func() bool { return tc.outOfMemory }})
			var initErr *sandbox.InitError
			if !errors.As(err, &initErr) {
				t.Fatalf("Start: %v, want an InitError", err)
			}
			if initErr.Type != tc.kind || initErr.Message != tc.message || string(initErr.LogTail) != "why\n" || !json.Valid(initErr.Payload) {
				t.Errorf("error %+v", initErr)
			}
		})
	}
}

func TestStartGivesUp(t *testing.T) {
	silent := func(*fakeInit, frame.Event) {}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := agent.Start(ctx, startFake(t, silent, echo), agent.Boot{Argv: []string{"x"}}, agent.Options{Function: testFunction()})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a context that ends: %v", err)
	}
	_, err = agent.Start(t.Context(), startFake(t, silent, echo), agent.Boot{Argv: []string{"x"}, InitTimeout: 20 * time.Millisecond},
		agent.Options{Function: testFunction()})
	var initErr *sandbox.InitError
	if !errors.As(err, &initErr) || initErr.Type != "Sandbox.Timedout" {
		t.Errorf("with an init that keeps silent: %v", err)
	}
}

func TestShutdownEndsAndIsIdempotent(t *testing.T) {
	a := start(t, startFake(t, nil, echo), agent.Options{})
	for range 2 {
		if err := a.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	<-a.Done()
}

func TestShutdownDoesNotWaitForAnInitThatHangs(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	a := start(t, startFake(t, nil, func(*fakeInit, frame.Event) {
		close(begun)
		<-release
	}), agent.Options{})
	defer close(release)
	go func() { _, _ = a.Invoke(context.Background(), request("id")) }()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	<-a.Done()
}

func TestAnInitThatDoesNotReadIsNotWaitedFor(t *testing.T) {
	for name, tc := range map[string]struct{ deadline, patience time.Duration }{
		"beyond the deadline":         {20 * time.Millisecond, time.Hour},
		"when the caller has left it": {time.Hour, 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			defer close(release)
			a := start(t, startFake(t, func(f *fakeInit, _ frame.Event) {
				_ = f.enc.Encode(frame.TypeReady, nil)
				<-release
			}, echo), agent.Options{})
			ctx, cancel := context.WithTimeout(t.Context(), tc.patience)
			defer cancel()
			req := request("id")
			req.Payload = make([]byte, 1<<20)
			req.Deadline = time.Now().Add(tc.deadline)
			resp, err := a.Invoke(ctx, req)
			if !resp.Broken || tc.patience < tc.deadline != errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("response %+v, error %v", resp, err)
			}
		})
	}
}

func TestAnEventThatIsTooLargeIsRefusedAndHarmsNothing(t *testing.T) {
	a := start(t, startFake(t, nil, echo), agent.Options{})
	req := request("id")
	req.Payload = make([]byte, frame.MaxBody)
	if resp, err := a.Invoke(t.Context(), req); function.CodeOf(err) != function.TooLarge || resp.Broken {
		t.Errorf("response %+v, error %v; want TooLarge", resp, err)
	}
	if resp, err := a.Invoke(t.Context(), request("id")); err != nil || resp.Broken {
		t.Errorf("response %+v, error %v", resp, err)
	}
}
