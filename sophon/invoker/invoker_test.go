package invoker

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// live runs a test in a bubble where time is virtual.
func live(t *testing.T, change func(*Config, *fakeDriver), test func(*testing.T, *rig), opts ...bus.MemoryOption) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newRig(t, change, opts...)) })
}

func errorOf(t *testing.T, res *wire.Result) *function.Error {
	t.Helper()
	var e function.Error
	if err := json.Unmarshal(res.GetError(), &e); err != nil {
		t.Fatalf("the error %q cannot be read: %v", res.GetError(), err)
	}
	return &e
}

func TestInvokerReportsInFullAtFirstAndThenEverySecond(t *testing.T) {
	live(t, func(_ *Config, d *fakeDriver) { d.leftovers = 3 }, func(t *testing.T, r *rig) {
		first := r.last()
		if !first.GetFull() || first.GetSeq() != 1 || first.GetCapacityMb() != 1000 || first.GetDriver() != "fake" || first.GetBoot() != r.invoker.Boot() {
			t.Errorf("the first report is %v", first)
		}
		if r.driver.recovered != 1 {
			t.Error("nothing was recovered")
		}
		r.after(5 * time.Second)
		if n := r.count(); n != 6 {
			t.Errorf("%d reports in 5 s", n)
		}
		if l := r.last(); l.GetFull() || l.GetSeq() != 6 {
			t.Errorf("the last report is %v", l)
		}
	})
}

func TestInvokerStartsAContainerThenUsesItAgain(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.run(job("j1", "c1", fakeWork{RunMs: 50, Answer: 3}))
		r.after(time.Second)
		res := r.result("j1")
		if !res.GetCold() || res.GetContainer() != "c1" || string(res.GetPayload()) != "xxx" {
			t.Errorf("the first result is %v", res)
		}
		if got := time.Duration(res.GetStartNano()); got != 100*time.Millisecond {
			t.Errorf("the start took %v", got)
		}
		if got := time.Duration(res.GetRunNano()); got != 50*time.Millisecond {
			t.Errorf("the run took %v", got)
		}
		r.run(on(job("j2", "spare", fakeWork{}), "c1"))
		res = r.result("j2")
		if res.GetCold() || res.GetContainer() != "c1" || res.GetStartNano() != 0 {
			t.Errorf("the second result is %v", res)
		}
		if diff := cmp.Diff(map[string]string{"c1": "IDLE"}, r.containers()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestInvokerServesAStaleChoiceAndSaysSoAtOnce(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		before := r.count()
		r.run(on(job("j", "spare", fakeWork{RunMs: 500}), "gone"))
		if r.count() != before+1 || r.last().GetStale() != 1 {
			t.Errorf("%d reports, the last one %v", r.count()-before, r.last())
		}
		if diff := cmp.Diff(map[string]string{"spare": "STARTING"}, r.containers()); diff != "" {
			t.Error(diff)
		}
		r.after(time.Second)
		if res := r.result("j"); !res.GetCold() || res.GetContainer() != "spare" {
			t.Errorf("the result is %v", res)
		}
	})
}

func TestInvokerRunsARequestOnceHoweverOftenItComes(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.run(job("j", "c1", fakeWork{RunMs: 500}))
		r.after(200 * time.Millisecond)
		r.run(job("j", "c2", fakeWork{RunMs: 500})) // while it runs
		if diff := cmp.Diff(map[string]string{"c1": "BUSY"}, r.containers()); diff != "" {
			t.Error(diff)
		}
		r.after(time.Second)
		r.result("j")
		r.run(job("j", "c3", fakeWork{RunMs: 500})) // while the result is kept
		if n := len(r.results["j"]); n != 2 {
			t.Errorf("the result was told %d times", n)
		}
		if n := r.driver.runs["j"]; n != 1 {
			t.Errorf("it ran %d times", n)
		}
		r.send(&wire.ToInvoker{Acked: r.last().GetSeq()})
		r.run(on(job("j", "c4", fakeWork{}), "c1")) // after that it is a new one
		if n := r.driver.runs["j"]; n != 2 {
			t.Errorf("it ran %d times", n)
		}
	})
}

func TestInvokerKeepsResultsUntilTheyAreAcknowledged(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.warmUp("c1")
		r.run(on(job("j1", "s1", fakeWork{}), "c1"))
		acked := r.last().GetSeq()
		r.run(on(job("j2", "s2", fakeWork{}), "c1"))
		volatile := on(job("j3", "s3", fakeWork{}), "c1")
		volatile.Durable = false
		r.run(volatile)
		r.after(2 * maxVolatileAge)
		r.send(&wire.ToInvoker{Acked: acked, Resync: true})
		full := r.last()
		if !full.GetFull() {
			t.Fatalf("the answer to a resync is %v", full)
		}
		var got []string
		for _, res := range full.GetResults() {
			got = append(got, res.GetRequestId())
		}
		if diff := cmp.Diff([]string{"j2"}, got); diff != "" {
			t.Error(diff)
		}
		if c := full.GetChanges(); len(c) != 1 || c[0].GetUses() != 3 || c[0].GetMadeUnixNano() == 0 || c[0].GetRssBytes() != 12345 {
			t.Errorf("the changes are %v", c)
		}
		r.send(&wire.ToInvoker{Acked: 1 << 40}) // of another boot
		r.send(&wire.ToInvoker{Resync: true})
		if n := len(r.last().GetResults()); n != 1 {
			t.Errorf("%d results are kept", n)
		}
	})
}

func TestInvokerTellsEverythingAfterALostConnection(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.run(job("j", "c1", fakeWork{RunMs: 500}))
		r.server.Cut(r.theirs)
		r.after(3 * time.Second)
		if len(r.results["j"]) != 0 {
			t.Fatal("the connection was not cut")
		}
		r.server.Restore(r.theirs)
		synctest.Wait()
		r.result("j")
		if !r.last().GetFull() {
			t.Errorf("the first report is %v", r.last())
		}
		if diff := cmp.Diff(map[string]string{"c1": "IDLE"}, r.containers()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestInvokerSeesAGapInTheMessages(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.send(&wire.ToInvoker{})
		r.after(3 * time.Second)
		r.seq += 2 // lost
		r.send(&wire.ToInvoker{})
		if l := r.last(); !l.GetFull() || l.GetSeen() != r.seq || l.GetEpoch() != r.epoch {
			t.Errorf("after a gap the report is %v", l)
		}
		n := r.count()
		r.send(&wire.ToInvoker{})
		if r.count() != n {
			t.Errorf("a message without content is answered by %v", r.last())
		}
	})
}

func TestInvokerFollowsTheLatestLeader(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.run(job("j1", "c1", fakeWork{}))
		r.after(time.Second)
		old := r.seq
		r.epoch, r.seq = 2, 0
		r.sendRaw(wire.AnnounceSubject, &wire.ToInvoker{Epoch: 2, Resync: true})
		if l := r.last(); !l.GetFull() || l.GetEpoch() != 2 || l.GetSeen() != 0 || len(l.GetResults()) != 1 {
			t.Errorf("a new leader is told %v", l)
		}
		r.sendRaw(wire.InvokerSubject("i1"), &wire.ToInvoker{Epoch: 1, Seq: old + 1, Run: []*wire.Run{job("late", "c2", fakeWork{})}})
		r.after(time.Second)
		if len(r.results["late"]) != 0 || len(r.driver.there()) != 1 {
			t.Error("a former leader is obeyed")
		}
		r.seq = 1 // the first message is lost
		r.send(&wire.ToInvoker{})
		if l := r.last(); !l.GetFull() || l.GetSeen() != 2 {
			t.Errorf("after a lost first message the report is %v", l)
		}
	})
}

func TestInvokerTellsWhatWentWrongWithARun(t *testing.T) {
	tests := []struct {
		name      string
		work      fakeWork
		code      function.ErrorCode // of the platform
		errorType string             // of the function
		kept      bool               // the container
	}{
		{"the function returns an error", fakeWork{Fail: true}, "", "Oops", true},
		{"the process ends", fakeWork{Crash: true}, "", "Runtime.ExitError", false},
		{"the function takes too long", fakeWork{RunMs: 60000}, "", "Sandbox.Timedout", false},
		{"the sandbox breaks", fakeWork{Platform: true}, function.Internal, "", false},
		{"the answer is too large", fakeWork{Answer: function.MaxSyncPayloadBytes + 1}, "", "Function.ResponseSizeTooLarge", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live(t, nil, func(t *testing.T, r *rig) {
				r.run(job("j", "c1", tt.work))
				r.after(20 * time.Second)
				res := r.result("j")
				if tt.code != "" {
					if e := errorOf(t, res); e.Code != tt.code {
						t.Errorf("the error is %v", e)
					}
				} else {
					var e struct{ ErrorType, ErrorMessage string }
					if err := json.Unmarshal(res.GetPayload(), &e); err != nil || e.ErrorType != tt.errorType || e.ErrorMessage == "" || res.GetFunctionError() != function.Unhandled {
						t.Errorf("the result is %v", res)
					}
				}
				if _, kept := r.containers()["c1"]; kept != tt.kept || (r.driver.box("c1") != nil) != tt.kept {
					t.Errorf("the container is reported: %v, there: %v", kept, r.driver.there())
				}
			})
		})
	}
}

func TestInvokerTellsWhyAContainerDidNotStart(t *testing.T) {
	tests := []struct {
		name    string
		err     error
		code    function.ErrorCode
		payload string
	}{
		{"initialising fails", &sandbox.InitError{Type: "Runtime.ExitError", Message: "exit status 1"}, "", `{"errorMessage":"exit status 1","errorType":"Runtime.ExitError"}`},
		{"initialising reports an error", &sandbox.InitError{Type: "X", Payload: []byte(`{"errorType":"X"}`)}, "", `{"errorType":"X"}`},
		{"the code cannot be unpacked", function.Errorf(function.InvalidCode, "no zip file"), function.InvalidCode, ""},
		{"the host fails", errors.New("disk is full"), function.Internal, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live(t, func(_ *Config, d *fakeDriver) { d.createErr = func(sandbox.Spec) error { return tt.err } }, func(t *testing.T, r *rig) {
				r.run(job("j", "c1", fakeWork{}))
				r.after(time.Second)
				res := r.result("j")
				if tt.code != "" {
					if e := errorOf(t, res); e.Code != tt.code {
						t.Errorf("the error is %v", e)
					}
				} else if string(res.GetPayload()) != tt.payload || res.GetFunctionError() != function.Unhandled {
					t.Errorf("the result is %v", res)
				}
				if len(r.containers()) != 0 || r.driver.memoryMB != 0 {
					t.Errorf("containers %v are reported, %d MiB in use", r.containers(), r.driver.memoryMB)
				}
			})
		})
	}
}

func TestInvokerMovesAnInvocationAwayFromADeadContainer(t *testing.T) {
	tests := []struct {
		name string
		kill bool // before the invocation comes
	}{{"that has ended", true}, {"that ends meanwhile", false}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live(t, nil, func(t *testing.T, r *rig) {
				r.warmUp("c1", "c2")
				if tt.kill {
					r.driver.box("c1").end()
				}
				r.run(on(job("j", "spare", fakeWork{Dead: !tt.kill}), "c1"))
				r.after(10 * time.Millisecond)
				res := r.result("j")
				if res.GetContainer() != "c2" || len(res.GetError()) > 0 {
					t.Errorf("the result is %v", res)
				}
				if r.stale != 1 {
					t.Errorf("%d choices count as stale", r.stale)
				}
				if diff := cmp.Diff(map[string]string{"c2": "IDLE"}, r.containers()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestInvokerNoticesAnIdleContainerThatEnds(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.warmUp("c1", "c2")
		r.driver.box("c1").end()
		r.after(2 * time.Second)
		if diff := cmp.Diff(map[string]string{"c2": "IDLE"}, r.containers()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"c2"}, r.driver.there()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestInvokerNeverHoldsMoreThanItsMemory(t *testing.T) {
	live(t, func(_ *Config, d *fakeDriver) { d.closing = 300 * time.Millisecond }, func(t *testing.T, r *rig) {
		r.warmUp(names(10)...)
		run := of(job("big", "b1", fakeWork{}), "g", 500)
		run.Evict = []string{"c7"}
		r.run(run)
		if got := r.driver.box("c7"); got == nil {
			t.Error("the sandbox was not closed first")
		}
		r.after(time.Second)
		res := r.result("big")
		if got := time.Duration(res.GetStartNano()); got != 400*time.Millisecond {
			t.Errorf("the start took %v", got)
		}
		if r.driver.mostMB > 1000 {
			t.Errorf("%d MiB were in use", r.driver.mostMB)
		}
		want := map[string]string{"b1": "IDLE", "c5": "IDLE", "c6": "IDLE", "c8": "IDLE", "c9": "IDLE", "c10": "IDLE"}
		if diff := cmp.Diff(want, r.containers()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestInvokerGivesBackWhatDoesNotFit(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.run(of(job("j1", "c1", fakeWork{RunMs: 2000}), "g", 600))
		r.run(of(job("j2", "c2", fakeWork{}), "h", 600))
		if r.refused["j2"] != 1 {
			t.Errorf("refusals: %v", r.refused)
		}
		r.after(3 * time.Second)
		r.run(of(job("j2", "c3", fakeWork{}), "h", 600)) // it is free now
		r.after(time.Second)
		r.result("j2")
		r.send(&wire.ToInvoker{Resync: true})
		if r.refused["j2"] != 1 {
			t.Error("a refusal is repeated although the request was sent again")
		}
	})
}

func TestInvokerEndsIdleContainersAfterTheKeepAlive(t *testing.T) {
	live(t, func(c *Config, _ *fakeDriver) { c.KeepAlive = time.Minute }, func(t *testing.T, r *rig) {
		own := job("", "own", fakeWork{})
		own.FunctionKey = "g@1"
		text, err := json.Marshal(function.Function{Name: "g", Revision: "1", MemoryMB: 100, Tags: map[string]string{KeepAliveTag: "5m"}})
		if err != nil {
			t.Fatal(err)
		}
		own.Function = text
		r.run(own)
		r.warmUp("c1", "c2")
		r.after(50 * time.Second)
		r.run(on(job("j", "s", fakeWork{}), "c2"))
		r.after(15 * time.Second)
		if diff := cmp.Diff(map[string]string{"c2": "IDLE", "own": "IDLE"}, r.containers()); diff != "" {
			t.Error(diff)
		}
		r.after(4 * time.Minute)
		if len(r.containers()) != 0 || len(r.driver.there()) != 0 {
			t.Errorf("left are %v, %v", r.containers(), r.driver.there())
		}
	})
}

func TestInvokerPausesIdleContainersAndResumesThem(t *testing.T) {
	live(t, func(c *Config, _ *fakeDriver) { c.PauseAfter = 5 * time.Second }, func(t *testing.T, r *rig) {
		r.warmUp("c1")
		r.after(6 * time.Second)
		if !r.driver.box("c1").isPaused() || r.containers()["c1"] != "PAUSED" {
			t.Errorf("the container is %v", r.containers())
		}
		r.run(on(job("j", "s", fakeWork{}), "c1"))
		if res := r.result("j"); res.GetContainer() != "c1" || len(res.GetError()) > 0 {
			t.Errorf("the result is %v", res)
		}
		if r.driver.box("c1").isPaused() || r.containers()["c1"] != "IDLE" {
			t.Errorf("the container is %v", r.containers())
		}
		r.after(5*time.Second - time.Millisecond) // it is just being paused
		r.run(on(job("j2", "s", fakeWork{}), "c1"))
		r.after(20 * time.Millisecond)
		if res := r.result("j2"); res.GetContainer() != "c1" || len(res.GetError()) > 0 {
			t.Errorf("the result is %v", res)
		}
	})
}

func TestInvokerCancelsInvocations(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.run(job("starting", "c1", fakeWork{}))
		r.send(&wire.ToInvoker{Cancel: []string{"starting", "unknown"}})
		if e := errorOf(t, r.result("starting")); e.Reason != "Cancelled" {
			t.Errorf("the error is %v", e)
		}
		r.after(time.Second)
		if n := r.driver.runs["starting"]; n != 0 || r.containers()["c1"] != "IDLE" {
			t.Errorf("it ran %d times; containers: %v", n, r.containers())
		}
		r.run(on(job("running", "c2", fakeWork{RunMs: 2000}), "c1"))
		r.send(&wire.ToInvoker{Cancel: []string{"running"}})
		if e := errorOf(t, r.result("running")); e.Reason != "Cancelled" {
			t.Errorf("the error is %v", e)
		}
		if len(r.containers()) != 0 {
			t.Errorf("containers: %v", r.containers())
		}
	})
}

func TestInvokerEndsContainersForTheController(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.warmUp("c1", "c2")
		r.run(on(job("j", "s", fakeWork{RunMs: 1000}), "c2"))
		r.send(&wire.ToInvoker{End: []string{"c1", "c2"}})
		if diff := cmp.Diff(map[string]string{"c2": "BUSY"}, r.containers()); diff != "" {
			t.Error(diff)
		}
		r.after(2 * time.Second)
		r.result("j")
		if len(r.containers())+len(r.driver.there()) != 0 {
			t.Errorf("left are %v, %v", r.containers(), r.driver.there())
		}
	})
}

func TestInvokerLeavesInOrder(t *testing.T) {
	live(t, func(c *Config, _ *fakeDriver) { c.Grace = 5 * time.Second }, func(t *testing.T, r *rig) {
		r.warmUp("c1", "c2", "c3")
		long := on(job("long", "s", fakeWork{RunMs: 60000}), "c2")
		long.TimeoutNano = int64(time.Hour)
		r.run(on(job("short", "s", fakeWork{RunMs: 2500}), "c1"), long, job("starting", "c4", fakeWork{}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.stop()
		}()
		synctest.Wait()
		if l := r.last(); !l.GetLeaving() {
			t.Errorf("the report is %v", l)
		}
		if r.refused["starting"] != 1 {
			t.Errorf("refusals: %v", r.refused)
		}
		r.run(job("new", "c5", fakeWork{}))
		if r.refused["new"] != 1 {
			t.Errorf("refusals: %v", r.refused)
		}
		<-done
		synctest.Wait()
		if res := r.result("short"); len(res.GetError()) > 0 {
			t.Errorf("the short one's result is %v", res)
		}
		if e := errorOf(t, r.result("long")); e.Code != function.InvokerLost {
			t.Errorf("the long one's error is %v", e)
		}
		if l := r.last(); !l.GetLeaving() || len(r.containers()) != 0 {
			t.Errorf("the last report is %v; containers: %v", l, r.containers())
		}
	})
}

func TestInvokerSplitsWhatIsTooMuchForOneReport(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		r.warmUp(names(8)...)
		var runs []*wire.Run
		for _, c := range names(8) {
			runs = append(runs, on(job("j-"+c, "s-"+c, fakeWork{RunMs: 100, Answer: 100 << 10}), c))
		}
		r.run(runs...)
		r.after(time.Second)
		for _, c := range names(8) {
			if res := r.result("j-" + c); len(res.GetPayload()) != 100<<10 {
				t.Errorf("the result of %s has %d bytes", c, len(res.GetPayload()))
			}
			if r.containers()[c] != "IDLE" {
				t.Errorf("containers: %v", r.containers())
			}
		}
		r.run(on(job("huge", "s", fakeWork{Answer: 300 << 10}), "c1"))
		if res := r.result("huge"); res.GetFunctionError() != function.Unhandled || !strings.Contains(string(res.GetPayload()), "ResponseSizeTooLarge") {
			t.Errorf("the result is %v", res)
		}
	}, bus.WithMaxMessageBytes(256<<10))
}

func TestInvokerWritesLogLinesToTheBus(t *testing.T) {
	live(t, nil, func(t *testing.T, r *rig) {
		run := job("j", "c1", fakeWork{Log: "hello"})
		run.LogTail = true
		r.run(run)
		r.after(time.Second)
		if got := string(r.result("j").GetLogTail()); got != "hello" {
			t.Errorf("the tail is %q", got)
		}
		log, err := r.own.Log(t.Context(), wire.LogName, bus.LogOptions{MaxAge: DefaultLogAge, MaxBytes: DefaultLogBytes})
		if err != nil {
			t.Fatal(err)
		}
		var lines []function.LogLine
		err = log.Read(t.Context(), wire.LogSubject("f"), time.Time{}, false, func(rec bus.Record) error {
			var l function.LogLine
			err := json.Unmarshal(rec.Data, &l)
			lines = append(lines, l)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(lines) != 1 || lines[0].Text != "hello" || lines[0].Request != "j" || lines[0].Container != "c1" {
			t.Errorf("the log is %v", lines)
		}
	})
}

func TestLogWriterDropsRatherThanBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := bus.NewMemory()
		b := server.Connect()
		defer func() { _ = b.Close() }()
		dropped := prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped"})
		w := newLogWriter(b, bus.LogOptions{MaxAge: time.Hour, MaxBytes: 1 << 20}, nil, dropped)
		for range maxQueuedLines + 5 {
			w.write(function.LogLine{Function: "f", Text: "x"})
		}
		stop := own(t.Context(), w.run)
		synctest.Wait()
		w.write(function.LogLine{Function: "f", Text: "y"})
		stop()
		log, err := b.Log(t.Context(), wire.LogName, bus.LogOptions{MaxAge: time.Hour, MaxBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		n, notes := 0, ""
		err = log.Read(t.Context(), wire.LogSubject("f"), time.Time{}, false, func(rec bus.Record) error {
			n += bytes.Count(rec.Data, []byte("\n"))
			for line := range bytes.Lines(rec.Data) {
				if bytes.Contains(line, []byte(`"platform"`)) {
					notes += string(line)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n != maxQueuedLines+2 || !strings.Contains(notes, "5 log lines") {
			t.Errorf("%d lines, notes %q", n, notes)
		}
	})
}

func TestNewRejectsABadConfiguration(t *testing.T) {
	server := bus.NewMemory()
	b := server.Connect()
	defer func() { _ = b.Close() }()
	good := Config{Name: "i1", Bus: b, Driver: NewStub(Model{}), CapacityMB: 1}
	tests := []struct {
		name   string
		change func(*Config)
	}{
		{"a name that is no token of a subject", func(c *Config) { c.Name = "a.b" }},
		{"no bus", func(c *Config) { c.Bus = nil }},
		{"no memory", func(c *Config) { c.CapacityMB = 0 }},
		{"an unknown eviction order", func(c *Config) { c.Eviction = "fifo" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			if _, err := New(c); err == nil {
				t.Error("it is accepted")
			}
		})
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}

func TestMetricsTellTheContainersByState(t *testing.T) {
	reg := prometheus.NewRegistry()
	live(t, func(c *Config, _ *fakeDriver) { c.Registerer = reg }, func(t *testing.T, r *rig) {
		r.warmUp("c1", "c2")
		r.run(on(job("j", "s", fakeWork{RunMs: 1000}), "c1"))
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					if l.GetName() != "invoker" {
						name += " " + l.GetValue()
					}
				}
				got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		for name, want := range map[string]float64{
			"volley_invoker_containers busy": 1, "volley_invoker_containers idle": 1, "volley_invoker_containers paused": 0,
			"volley_invoker_memory_bytes busy": 100 << 20, "volley_invoker_memory_bytes free": 800 << 20,
			"volley_invoker_cold_start_seconds": 2, "volley_invoker_stale_total": 0,
		} {
			if got[name] != want {
				t.Errorf("%s is %v, want %v", name, got[name], want)
			}
		}
		if _, err := New(r.invoker.config); err == nil {
			t.Error("the same metrics are registered twice")
		}
	})
}
