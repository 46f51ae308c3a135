//go:build unix

package sandboxtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/sandbox"
)

func (s *suite) lifeTests() []test {
	tests := []test{
		{"the driver introduces itself", s.testNames},
		{"two sandboxes do not disturb each other", s.testTwo},
		{"a burst of sandboxes is served", s.testBurst},
		{"a sandbox can be closed again and again", s.testCloseTwice},
		{"closing ends what is running", s.testCloseRunning},
		{"an id can be used again after its sandbox is closed", s.testSameID},
		{"usage tells what is there", s.testUsage},
		{"a closed driver closes its sandboxes and makes no more", s.testDriverClose},
		{"there is nothing to recover beside what runs", s.testRecover},
	}
	if !s.opts.NoPause {
		tests = append(tests, test{"a paused sandbox stands still until it is resumed", s.testPause},
			test{"a paused sandbox can be closed", s.testClosePaused})
	}
	return tests
}

func (s *suite) testNames(t *testing.T) {
	if s.driver.Name() == "" || s.driver.Isolation() == "" {
		t.Errorf("name %q, isolation %q", s.driver.Name(), s.driver.Isolation())
	}
}

func (s *suite) testTwo(t *testing.T) {
	good, bad := s.create(t, s.function()), s.create(t, s.function())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := bad.Invoke(context.Background(), request(t, do{"do": "exit", "status": 1})); err != nil {
			t.Error(err)
		}
	})
	for range 20 {
		wantEcho(t, good)
	}
	wg.Wait()
	wantEcho(t, good)
}

func (s *suite) testBurst(t *testing.T) {
	n := 8
	if s.opts.Slow {
		n = 3
	}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.patient(createTime))
			defer cancel()
			box, err := s.driver.Create(ctx, sandbox.Spec{ID: newID(), Function: s.function()})
			if err != nil {
				t.Errorf("create sandbox: %v", err)
				return
			}
			for range 5 {
				if resp, err := box.Invoke(ctx, request(t, do{"do": "echo", "data": 7})); err != nil || string(resp.Payload) != "7" {
					t.Errorf("answer %s, error %v", resp.Payload, err)
				}
			}
			closeBox(t, box)
		})
	}
	wg.Wait()
}

func (s *suite) testCloseTwice(t *testing.T) {
	box := s.create(t, s.function())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { closeBox(t, box) })
	}
	wg.Wait()
	wait(t, box.Done(), "Done of a closed sandbox")
	closeBox(t, box)
	if _, err := box.Invoke(t.Context(), request(t, do{"do": "echo"})); err == nil {
		t.Error("a closed sandbox takes an invocation")
	}
}

func (s *suite) testCloseRunning(t *testing.T) {
	var log collector
	box := s.createLogging(t, s.function(), &log)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := box.Invoke(context.Background(), request(t, do{"do": "hang"})); err == nil && resp.FunctionError == "" || !resp.Broken {
			t.Errorf("response %+v, error %v; want a failure and a broken sandbox", resp, err)
		}
	}()
	if !poll(func() bool { return len(log.of("stdout")) > 0 }) {
		t.Error("the invocation did not begin")
	}
	closeBox(t, box)
	wait(t, ended, "the invocation's end")
}

func (s *suite) testSameID(t *testing.T) {
	id := newID()
	for range 2 {
		box, err := s.driver.Create(t.Context(), sandbox.Spec{ID: id, Function: s.function()})
		if err != nil {
			t.Fatal(err)
		}
		wantEcho(t, box)
		closeBox(t, box)
	}
}

func (s *suite) testUsage(t *testing.T) {
	box := s.create(t, s.function())
	wantEcho(t, box)
	u, err := box.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.MemoryBytes < 1<<20 || u.MaxMemoryBytes < u.MemoryBytes/2 || u.Processes < 1 {
		t.Errorf("usage %+v", u)
	}
}

func (s *suite) testDriverClose(t *testing.T) {
	d := s.newDriver(t)
	box, err := s.tryCreate(t, d, s.function(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("close driver: %v", err)
		}
	}
	wait(t, box.Done(), "the sandbox of a closed driver")
	if _, err := s.tryCreate(t, d, s.function(), nil); err == nil {
		t.Error("a closed driver makes a sandbox")
	}
}

func (s *suite) testRecover(t *testing.T) {
	d := s.newDriver(t)
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if n, err := d.Recover(t.Context()); n != 0 || err != nil {
		t.Errorf("Recover = %d, %v in a new directory", n, err)
	}
	box, err := s.tryCreate(t, d, s.function(), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, box)
}

func (s *suite) testPause(t *testing.T) {
	box := s.create(t, s.function())
	for range 2 {
		if err := box.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		done := make(chan sandbox.Response, 1)
		go func() {
			resp, err := box.Invoke(context.Background(), request(t, do{"do": "echo", "data": 1}))
			if err != nil {
				t.Errorf("invoke: %v", err)
			}
			done <- resp
		}()
		select {
		case resp := <-done:
			t.Errorf("a paused sandbox answered %s", resp.Payload)
		case <-time.After(300 * time.Millisecond):
		}
		if err := box.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case resp := <-done:
			wantAnswer(t, resp, 1)
		case <-time.After(s.patient(10 * time.Second)):
			t.Fatal("a resumed sandbox does not answer")
		}
	}
}

func (s *suite) testClosePaused(t *testing.T) {
	box := s.create(t, s.function())
	if err := box.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	closeBox(t, box)
	if took := time.Since(start); took > s.patient(8*time.Second) {
		t.Errorf("it took %v", took)
	}
}
