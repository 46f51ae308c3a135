package agent_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// resumeFake resumes a fake that acts on the frames from the host.
func resumeFake(t *testing.T, r agent.Restore, act func(f *fakeInit, typ frame.Type, body []byte)) *agent.Agent {
	t.Helper()
	fromHost, toInit := io.Pipe()
	fromInit, toHost := io.Pipe()
	f := &fakeInit{enc: frame.NewEncoder(toHost), dec: frame.NewDecoder(fromHost), ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		defer toHost.Close()
		for {
			typ, body, err := f.dec.Next()
			if err != nil {
				return
			}
			act(f, typ, body)
		}
	}()
	a, err := agent.Resume(t.Context(), agent.Conn{Reader: fromInit, Writer: toInit, Closer: closers{toInit, fromInit}}, r, agent.Options{Function: testFunction()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		<-f.ended
	})
	return a
}

// answer answers events, and what act does not.
func answer(t *testing.T, f *fakeInit, typ frame.Type, body []byte) {
	t.Helper()
	if typ != frame.TypeEvent {
		return
	}
	ev, err := frame.ParseEvent(body)
	if err != nil {
		t.Error(err)
		return
	}
	echo(f, ev)
}

func TestARestoredGuestIsInvokedWithoutWaitingForItsAnswer(t *testing.T) {
	restores := make(chan frame.Restore, 1)
	a := resumeFake(t, agent.Restore{ID: "machine"}, func(f *fakeInit, typ frame.Type, body []byte) {
		if typ == frame.TypeRestore {
			r, err := frame.ParseRestore(body)
			if err != nil {
				t.Error(err)
			}
			restores <- r
			return // and never an answer
		}
		answer(t, f, typ, body)
	})
	resp, err := a.Invoke(t.Context(), request("one"))
	if err != nil || string(resp.Payload) != string(request("one").Payload) {
		t.Fatalf("%+v, error %v", resp, err)
	}
	r := <-restores
	if r.ID != "machine" || time.Since(time.Unix(0, r.Time)).Abs() > time.Minute || r.Seed == [frame.SeedBytes]byte{} {
		t.Errorf("the guest got %+v", r)
	}
}

func TestAGuestThatCannotBeRestoredRunsNothing(t *testing.T) {
	a := resumeFake(t, agent.Restore{ID: "machine"}, func(f *fakeInit, typ frame.Type, _ []byte) {
		if typ == frame.TypeRestore {
			_ = f.enc.Encode(frame.TypeRestored, []byte("no clock"))
		}
	})
	_, err := a.Invoke(t.Context(), request("one"))
	if !errors.Is(err, sandbox.ErrNotStarted) {
		t.Errorf("error %v", err)
	}
	<-a.Done()
	if resp, err := a.Invoke(t.Context(), request("two")); err == nil || !resp.Broken {
		t.Errorf("%+v, error %v", resp, err)
	}
	if err := a.Quiesce(t.Context()); err == nil || !strings.Contains(err.Error(), "no clock") && !strings.Contains(err.Error(), "closed") {
		t.Errorf("quiesce: %v", err)
	}
}

func TestQuiesceWaitsForTheGuest(t *testing.T) {
	quiet := make(chan struct{})
	a := resumeFake(t, agent.Restore{ID: "machine"}, func(f *fakeInit, typ frame.Type, body []byte) {
		if typ == frame.TypeQuiesce {
			q, err := frame.ParseQuiesce(body)
			if err != nil {
				t.Error(err)
			}
			go func() {
				<-quiet
				_ = f.enc.Quiet(&frame.Quiet{Number: q.Number})
			}()
			return
		}
		answer(t, f, typ, body)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Quiesce(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before: %v", err)
	}
	close(quiet)
	if err := a.Quiesce(t.Context()); err != nil {
		t.Error(err)
	}
	// It goes on as if nothing had been.
	if _, err := a.Invoke(t.Context(), request("one")); err != nil {
		t.Error(err)
	}
}

func TestResumeGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := io.Pipe()
	if _, err := agent.Resume(ctx, agent.Conn{Reader: r, Writer: w, Closer: closers{r, w}}, agent.Restore{}, agent.Options{Function: testFunction()}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	r, w = io.Pipe()
	_ = r.Close()
	if _, err := agent.Resume(t.Context(), agent.Conn{Reader: r, Writer: w, Closer: closers{r, w}}, agent.Restore{}, agent.Options{Function: testFunction()}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("with a guest that is gone: %v", err)
	}
}
