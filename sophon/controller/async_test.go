package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/wire"
)

func (w *world) async(c *process, name, id string) {
	w.t.Helper()
	if err := c.InvokeAsync(context.Background(), function.Invocation{ID: id, Function: name, Payload: []byte(`{"n":1}`)}); err != nil {
		w.t.Fatal(err)
	}
}

// record waits for the outcome of a request.
func (w *world) record(c *process, id string) Record {
	w.t.Helper()
	for range 8 * 3600 {
		r, err := c.Record(context.Background(), id)
		if err == nil {
			synctest.Wait() // for what follows from it
			return r
		}
		wantCode(w.t, err, function.NotFound)
		time.Sleep(time.Second) // virtual
	}
	w.t.Fatalf("there is no outcome of %s", id)
	return Record{}
}

func (w *world) queueLength(c *process) int {
	w.t.Helper()
	synctest.Wait()
	n, err := c.async.len(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func failed(r *wire.Run) *wire.Result {
	return &wire.Result{RequestId: r.RequestId, FunctionError: function.Unhandled, Payload: []byte(`{"errorMessage":"no"}`)}
}

func TestAnAsynchronousInvocationIsRecordedOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		w.async(c, "f", "r1") // the same again
		r := w.record(c, "r1")
		if r.Status != Succeeded || r.Attempts != 1 || string(r.Payload) != `{"n":1}` || inv.times("r1") != 1 {
			t.Errorf("%+v, ran %d times", r, inv.times("r1"))
		}
		if n := w.queueLength(c); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

func TestAFailingAsynchronousInvocationIsRetriedAndBecomesADeadLetter(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		var times []time.Time
		inv.run = func(r *wire.Run) (*wire.Result, bool) {
			if int(r.Attempt) != len(times)+1 {
				t.Errorf("attempt %d is numbered %d", len(times)+1, r.Attempt)
			}
			times = append(times, time.Now())
			return failed(r), false
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		r := w.record(c, "r1")
		if r.Status != Failed || r.Condition != RetriesExhausted || r.Attempts != 3 || r.FunctionError != function.Unhandled {
			t.Errorf("%+v", r)
		}
		if len(times) != 3 {
			t.Fatalf("it ran %d times", len(times))
		}
		if d1, d2 := times[1].Sub(times[0]), times[2].Sub(times[1]); d1 != time.Second || d2 != 2*time.Second {
			t.Errorf("retried after %v and %v", d1, d2)
		}
		letters, _, err := c.DeadLetters(context.Background(), "", 0)
		if err != nil || len(letters) != 1 || letters[0].Record.RequestID != "r1" || string(letters[0].Invocation.Payload) != `{"n":1}` {
			t.Errorf("dead letters %+v, %v", letters, err)
		}
		records, _, err := c.Records(context.Background(), "", 0)
		if err != nil || len(records) != 1 {
			t.Errorf("records %+v, %v", records, err)
		}
		if n := w.queueLength(c); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

func TestDestinationsGetTheRecordAsAWSWritesIt(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 4096)
		events := map[string]string{}
		inv.run = func(r *wire.Run) (*wire.Result, bool) {
			events[trimKey(r.FunctionKey)] = string(r.Payload)
			if trimKey(r.FunctionKey) == "bad" {
				return failed(r), false
			}
			return nil, false
		}
		c := w.controller("a")
		w.ready(c)
		for _, name := range []string{"good", "bad", "won", "lost"} {
			w.create(c, name)
		}
		for _, name := range []string{"good", "bad"} {
			if _, err := c.PutAsyncConfig(context.Background(), name, function.AsyncConfig{MaxRetries: 0, OnSuccess: "won", OnFailure: "lost"}); err != nil {
				t.Fatal(err)
			}
		}
		w.async(c, "good", "r1")
		w.async(c, "bad", "r2")
		w.record(c, derivedID("r1", "won"))
		w.record(c, derivedID("r2", "lost"))
		var won, lost map[string]any
		if err := json.Unmarshal([]byte(events["won"]), &won); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(events["lost"]), &lost); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			fmt.Sprint(won["requestContext"]):   "map[approximateInvokeCount:1 condition:Success functionArn:arn:aws:lambda:us-east-1:000000000000:function:good:$LATEST requestId:r1]",
			fmt.Sprint(won["responseContext"]):  "map[executedVersion:$LATEST statusCode:200]",
			fmt.Sprint(won["responsePayload"]):  "map[n:1]",
			fmt.Sprint(lost["requestContext"]):  "map[approximateInvokeCount:1 condition:RetriesExhausted functionArn:arn:aws:lambda:us-east-1:000000000000:function:bad:$LATEST requestId:r2]",
			fmt.Sprint(lost["responseContext"]): "map[executedVersion:$LATEST functionError:Unhandled statusCode:200]",
			fmt.Sprint(lost["requestPayload"]):  "map[n:1]",
			fmt.Sprint(lost["responsePayload"]): "map[errorMessage:no]",
		}
		for got, want := range want {
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
	})
}

func trimKey(key string) string {
	for i := range key {
		if key[i] == '@' {
			return key[:i]
		}
	}
	return key
}

func TestThrottledAsynchronousInvocationsWaitWithoutLosingAttempts(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		ctx := context.Background()
		if err := c.PutReservedConcurrency(ctx, "f", 0); err != nil {
			t.Fatal(err)
		}
		w.async(c, "f", "r1")
		time.Sleep(10 * time.Minute)
		if n := w.queueLength(c); n != 1 {
			t.Fatalf("%d items", n)
		}
		if err := c.DeleteReservedConcurrency(ctx, "f"); err != nil {
			t.Fatal(err)
		}
		if r := w.record(c, "r1"); r.Status != Succeeded || r.Attempts != 1 || inv.times("r1") != 1 {
			t.Errorf("%+v", r)
		}
	})
}

func TestAnAsynchronousInvocationThatIsTooOldIsGivenUp(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a") // and no invoker
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		if r := w.record(c, "r1"); r.Status != Failed || r.Condition != EventAgeExceeded || r.Attempts != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestAnAsynchronousInvocationOfALostInvokerRunsAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		synctest.Wait()
		inv.kill()
		other := w.invoker("inv-1", 1024)
		if r := w.record(c, "r1"); r.Status != Succeeded || r.Attempts != 1 || r.Invoker != "inv-1" {
			t.Errorf("%+v", r)
		}
		if inv.times("r1") != 1 || other.times("r1") != 1 {
			t.Errorf("it ran %d and %d times", inv.times("r1"), other.times("r1"))
		}
	})
}

func TestALongAsynchronousInvocationIsNotDeliveredAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		time.Sleep(10 * time.Minute)
		inv.finish("r1", nil)
		if r := w.record(c, "r1"); r.Status != Succeeded || inv.times("r1") != 1 {
			t.Errorf("%+v, ran %d times", r, inv.times("r1"))
		}
	})
}

func TestALateResultOfALostInvokerCounts(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		synctest.Wait()
		inv.hush(true)
		time.Sleep(15 * time.Second) // it is lost, and the invocation waits for an invoker
		inv.hush(false)
		inv.finish("r1", nil)
		if r := w.record(c, "r1"); r.Status != Succeeded || inv.times("r1") != 1 {
			t.Errorf("%+v, ran %d times", r, inv.times("r1"))
		}
		if n := w.queueLength(c); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

func TestAnOldResultIsNotTakenForThatOfTheNextAttempt(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = func(r *wire.Run) (*wire.Result, bool) {
			if r.Attempt == 1 {
				return failed(r), false
			}
			return nil, false
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		synctest.Wait()
		inv.report(true, nil, nil, nil) // has the first result again
		if r := w.record(c, "r1"); r.Status != Succeeded || r.Attempts != 2 || inv.times("r1") != 2 {
			t.Errorf("%+v, ran %d times", r, inv.times("r1"))
		}
	})
}

func TestAnAsynchronousInvocationOfADeletedFunctionIsADeadLetter(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.async(c, "f", "r1")
		time.Sleep(time.Second)
		if err := c.DeleteFunction(context.Background(), "f"); err != nil {
			t.Fatal(err)
		}
		r := w.record(c, "r1")
		if r.Status != Failed || r.Error == nil || r.Error.Code != function.NotFound {
			t.Errorf("%+v", r)
		}
	})
}

func TestAnAsynchronousPayloadIsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		err := c.InvokeAsync(context.Background(), function.Invocation{Function: "f", Payload: make([]byte, function.MaxAsyncPayloadBytes+1)})
		wantCode(t, err, function.TooLarge)
		wantCode(t, c.InvokeAsync(context.Background(), function.Invocation{ID: "no key", Function: "f"}), function.InvalidParameter)
	})
}
