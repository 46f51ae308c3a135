package controller

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/wire"
)

func TestAnInvocationStartsColdAndTheNextOneWarm(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "echo")
		first := w.mustInvoke(c, "echo", "r1")
		second := w.mustInvoke(c, "echo", "r2")
		if !first.Cold || second.Cold || first.Container != second.Container || first.Invoker != inv.name {
			t.Errorf("first %+v, second %+v", first, second)
		}
	})
}

func TestAnUnknownFunctionIsNotFound(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		wantCode(t, (<-c.start(context.Background(), "nothing", "r1")).err, function.NotFound)
	})
}

func TestWhatDoesNotFitWaitsAndRunsInOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 256)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		var ends []<-chan ending
		for i := range 4 {
			ends = append(ends, c.start(context.Background(), "f", fmt.Sprintf("r%d", i)))
			synctest.Wait()
		}
		if got := inv.held(); len(got) != 2 || got[0] != "r0" || got[1] != "r1" {
			t.Fatalf("it runs %v", got)
		}
		inv.finish("r1", nil)
		synctest.Wait()
		if got := inv.held(); len(got) != 2 || got[1] != "r2" {
			t.Fatalf("it runs %v", got)
		}
		for _, id := range []string{"r0", "r2"} {
			inv.finish(id, nil)
			synctest.Wait()
		}
		inv.finish("r3", nil)
		for i, e := range ends {
			if e := <-e; e.err != nil || e.res.ID != fmt.Sprintf("r%d", i) {
				t.Errorf("invocation %d ended with %+v", i, e)
			}
		}
	})
}

func TestWhatNeverFitsInTimeIsThrottled(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 128)
		inv.run = hold
		c := w.controller("a", func(c *Config) { c.Timing.QueueWait = 3 * time.Second })
		w.ready(c)
		w.create(c, "f")
		first := c.start(context.Background(), "f", "r0")
		synctest.Wait()
		began := time.Now()
		e := <-c.start(context.Background(), "f", "r1")
		err := wantCode(t, e.err, function.TooManyRequests)
		if err.Reason != "NoCapacity" || time.Since(began) != 3*time.Second {
			t.Errorf("after %v: %+v", time.Since(began), err)
		}
		inv.finish("r0", nil)
		if e := <-first; e.err != nil {
			t.Error(e.err)
		}
		if n := inv.times("r1"); n != 0 {
			t.Errorf("it ran %d times after all", n)
		}
	})
}

func TestAFunctionLargerThanEveryInvokerIsRefusedAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.invoker("inv-0", 256)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "big", func(f *function.Function) { f.MemoryMB = 512 })
		began := time.Now()
		err := wantCode(t, (<-c.start(context.Background(), "big", "r1")).err, function.InvalidParameter)
		contains(t, err.Message, "512 MiB")
		if time.Since(began) != 0 {
			t.Errorf("it took %v", time.Since(began))
		}
	})
}

func TestWithoutAnInvokerTheErrorSaysSo(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		err := wantCode(t, (<-c.start(context.Background(), "f", "r1")).err, function.Unavailable)
		contains(t, err.Message, "no invoker is connected")
	})
}

func TestARefusedInvocationRunsElsewhere(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.invoker("inv-0", 2048), w.invoker("inv-1", 1024)
		a.refuse = func(*wire.Run) bool {
			a.leaving = true
			return true
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		if res := w.mustInvoke(c, "f", "r1"); res.Invoker != b.name {
			t.Errorf("it ran on %s", res.Invoker)
		}
	})
}

func TestEndlessRefusalsEnd(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 2048)
		inv.refuse = func(*wire.Run) bool { return true }
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		err := wantCode(t, (<-c.start(context.Background(), "f", "r1")).err, function.TooManyRequests)
		contains(t, err.Message, "it was told to")
	})
}

func TestALostRunMessageIsSentAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		lost := 0
		inv.loseMessage = func(m *wire.ToInvoker) bool {
			if len(m.Run) > 0 && lost == 0 {
				lost++
				return true
			}
			return false
		}
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		time.Sleep(2 * time.Second) // virtual: the invoker has seen messages
		w.mustInvoke(c, "f", "r1")
		if lost != 1 || inv.times("r1") != 1 {
			t.Errorf("lost %d messages, ran %d times", lost, inv.times("r1"))
		}
	})
}

func TestALostReportIsMadeUpForByAFullOne(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		lost := 0
		inv.set(func(f *fakeInvoker) {
			f.loseReport = func(r *wire.Report) bool {
				if len(r.Results) > 0 && lost == 0 {
					lost++
					return true
				}
				return false
			}
		})
		w.mustInvoke(c, "f", "r1")
		if lost != 1 || inv.times("r1") != 1 {
			t.Errorf("lost %d reports, ran %d times", lost, inv.times("r1"))
		}
	})
}

func TestReportsThatComeTwiceCountOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.twice = func(*wire.Report) bool { return true }
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		for i := range 5 {
			w.mustInvoke(c, "f", fmt.Sprintf("r%d", i))
		}
		stats, err := c.Functions(context.Background())
		if err != nil || stats[0].Invocations != 5 || stats[0].ColdStarts != 1 || stats[0].Idle != 1 {
			t.Errorf("statistics %+v, error %v", stats, err)
		}
	})
}

func TestAFullReportKeepsWhatRuns(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		end := c.start(context.Background(), "f", "r1")
		synctest.Wait()
		for range 3 {
			inv.report(true, nil, nil, nil)
		}
		pending(t, end)
		inv.finish("r1", nil)
		if e := <-end; e.err != nil || inv.times("r1") != 1 {
			t.Errorf("%+v, ran %d times", e, inv.times("r1"))
		}
	})
}

func TestANewProcessOfAnInvokerHasLostWhatRan(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		end := c.start(context.Background(), "f", "r1")
		synctest.Wait()
		inv.kill()
		inv.start(t, w.server, "boot-2")
		err := wantCode(t, (<-end).err, function.InvokerLost)
		contains(t, err.Message, "may have run")
		inv.set(func(f *fakeInvoker) { f.run = nil })
		if res := w.mustInvoke(c, "f", "r2"); !res.Cold {
			t.Error("a container has outlived its invoker")
		}
	})
}

func TestASilentInvokerIsLostAndComesBack(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		end := c.start(context.Background(), "f", "r1")
		synctest.Wait()
		began := time.Now()
		inv.hush(true)
		wantCode(t, (<-end).err, function.InvokerLost)
		if took := time.Since(began); took < 9*time.Second || took > 13*time.Second {
			t.Errorf("it was given up after %v", took)
		}
		nodes, _ := c.Nodes(context.Background())
		if nodes[0].Online {
			t.Error("it is online")
		}
		inv.hush(false)
		time.Sleep(3 * time.Second)
		inv.finish("r1", nil) // too late, for nobody
		synctest.Wait()
		inv.set(func(f *fakeInvoker) { f.run = nil })
		if res := w.mustInvoke(c, "f", "r2"); res.Cold {
			t.Error("the container that is still there was not used")
		}
	})
}

func TestALeavingInvokerGetsNothingAndFinishes(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.invoker("inv-0", 2048)
		a.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		end := c.start(context.Background(), "f", "r1")
		synctest.Wait()
		a.leave()
		b := w.invoker("inv-1", 256)
		synctest.Wait()
		if res := w.mustInvoke(c, "f", "r2"); res.Invoker != b.name {
			t.Errorf("it ran on %s", res.Invoker)
		}
		a.finish("r1", nil)
		if e := <-end; e.err != nil {
			t.Error(e.err)
		}
	})
}

func TestReservedConcurrencyThrottles(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 4096)
		inv.run = hold
		c := w.controller("a", func(c *Config) { c.Limits.Concurrency = 3 })
		w.ready(c)
		w.create(c, "f")
		w.create(c, "g")
		ctx := context.Background()
		if err := c.PutReservedConcurrency(ctx, "f", 1); err != nil {
			t.Fatal(err)
		}
		wantCode(t, c.PutReservedConcurrency(ctx, "g", 3), function.InvalidParameter)
		first := c.start(ctx, "f", "r1")
		synctest.Wait()
		err := wantCode(t, (<-c.start(ctx, "f", "r2")).err, function.TooManyRequests)
		if err.Reason != "ReservedFunctionConcurrentInvocationLimitExceeded" {
			t.Errorf("reason %s", err.Reason)
		}
		g1, g2 := c.start(ctx, "g", "r3"), c.start(ctx, "g", "r4")
		synctest.Wait()
		err = wantCode(t, (<-c.start(ctx, "g", "r5")).err, function.TooManyRequests)
		if err.Reason != "ConcurrentInvocationLimitExceeded" {
			t.Errorf("reason %s", err.Reason)
		}
		for _, id := range []string{"r1", "r3", "r4"} {
			inv.finish(id, nil)
		}
		for _, end := range []<-chan ending{first, g1, g2} {
			if e := <-end; e.err != nil {
				t.Error(e.err)
			}
		}
		if err := c.PutReservedConcurrency(ctx, "f", 0); err != nil {
			t.Fatal(err)
		}
		wantCode(t, (<-c.start(ctx, "f", "r6")).err, function.TooManyRequests)
		if err := c.DeleteReservedConcurrency(ctx, "f"); err != nil {
			t.Fatal(err)
		}
		inv.set(func(f *fakeInvoker) { f.run = nil })
		w.mustInvoke(c, "f", "r7")
	})
}

func TestACallerThatGoesCancelsWhatRunsAndWhatWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 128)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		ends := map[string]<-chan ending{}
		cancels := map[string]context.CancelFunc{}
		for _, id := range []string{"r1", "r2"} {
			ctx, cancel := context.WithCancel(context.Background())
			ends[id], cancels[id] = c.start(ctx, "f", id), cancel
			synctest.Wait()
		}
		for _, id := range []string{"r2", "r1"} {
			cancels[id]()
			if e := <-ends[id]; !errors.Is(e.err, context.Canceled) {
				t.Errorf("%s ended with %v", id, e.err)
			}
		}
		synctest.Wait()
		inv.set(func(f *fakeInvoker) {
			if f.cancelled["r1"] != 1 || f.ran["r2"] != 0 {
				t.Errorf("cancelled %v, ran %v", f.cancelled, f.ran)
			}
			f.run = nil
		})
		w.mustInvoke(c, "f", "r3")
		stats, _ := c.Functions(context.Background())
		if stats[0].UnderWay != 0 {
			t.Errorf("statistics %+v", stats[0])
		}
	})
}

func TestAnUpdateReplacesContainersOnceTheyAreIdle(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 4096)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		old := w.create(c, "f")
		ctx := context.Background()
		end := c.start(ctx, "f", "r1")
		synctest.Wait()
		inv.set(func(f *fakeInvoker) { f.run = nil })
		w.mustInvoke(c, "f", "r2") // leaves an idle container
		changed, err := c.UpdateCode(ctx, "f", old.Revision, Package{Zip: zipOf("bootstrap", "new")})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := inv.idleContainers(); n != 0 {
			t.Errorf("%d idle containers of the old code are left", n)
		}
		inv.finish("r1", nil)
		if e := <-end; e.err != nil {
			t.Fatal(e.err)
		}
		if res := w.mustInvoke(c, "f", "r3"); !res.Cold {
			t.Error("old code has served an invocation")
		}
		list, _ := c.Containers(ctx)
		if len(list) != 1 || list[0].Revision != changed.Revision {
			t.Errorf("containers %+v", list)
		}
		time.Sleep(5 * time.Second)
		term := c.term.Load()
		term.mu.Lock()
		if len(term.functions) != 1 || len(term.retired) != 0 {
			t.Errorf("%d revisions are remembered, %d of them retired", len(term.functions), len(term.retired))
		}
		term.mu.Unlock()
	})
}

func TestProvisionedContainersAreSpreadAndReplaced(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.invoker("inv-0", 1024), w.invoker("inv-1", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		ctx := context.Background()
		if _, err := c.PutProvisionedConcurrency(ctx, "f", 4); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if a.idleContainers() != 2 || b.idleContainers() != 2 {
			t.Errorf("%d and %d containers", a.idleContainers(), b.idleContainers())
		}
		p, err := c.GetProvisionedConcurrency(ctx, "f")
		if err != nil || p.Available != 4 || p.Ready != 4 {
			t.Errorf("%+v, %v", p, err)
		}
		if res := w.mustInvoke(c, "f", "r1"); res.Start != 0 {
			t.Errorf("it started in %v", res.Start)
		}
		a.kill()
		time.Sleep(15 * time.Second)
		if b.idleContainers() != 4 {
			t.Errorf("%d containers after the loss of an invoker", b.idleContainers())
		}
		if err := c.DeleteProvisionedConcurrency(ctx, "f"); err != nil {
			t.Fatal(err)
		}
		_, err = c.GetProvisionedConcurrency(ctx, "f")
		wantCode(t, err, function.NotFound)
	})
}

func TestAStaleDecisionIsCountedAndServed(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		w.mustInvoke(c, "f", "r1")
		inv.set(func(f *fakeInvoker) { // it ends without a word
			for id := range f.containers {
				delete(f.containers, id)
			}
			f.order = nil
		})
		w.mustInvoke(c, "f", "r2")
		nodes, err := c.Nodes(context.Background())
		if err != nil || nodes[0].Stale != 1 || nodes[0].Containers != 1 {
			t.Errorf("nodes %+v, %v", nodes, err)
		}
	})
}
