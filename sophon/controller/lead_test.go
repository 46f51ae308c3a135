package controller

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

func TestOneOfTwoControllersLeadsAndTheOtherKnows(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.controller("a")
		w.ready(a)
		b := w.controller("b")
		w.ready(b)
		if id, at, self := a.Leader(); id != "a" || at != "a:9000" || !self {
			t.Errorf("a says %s at %s, itself %v", id, at, self)
		}
		if id, at, self := b.Leader(); id != "a" || at != "a:9000" || self {
			t.Errorf("b says %s at %s, itself %v", id, at, self)
		}
		w.create(a, "f")
		synctest.Wait()
		if _, err := b.GetFunction(context.Background(), "f"); err != nil {
			t.Errorf("b does not know the function: %v", err)
		}
		wantCode(t, (<-b.start(context.Background(), "f", "r1")).err, function.Unavailable)
	})
}

func TestAControllerLeadsAtOnceOnAFreshBus(t *testing.T) {
	inWorld(t, func(w *world) {
		began := time.Now()
		w.ready(w.controller("a"))
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

func TestAStandbyTakesOverFromAKilledLeader(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		a := w.controller("a")
		w.ready(a)
		b := w.controller("b")
		w.create(a, "f")
		w.mustInvoke(a, "f", "r1")
		time.Sleep(3 * time.Second)
		began := time.Now()
		go a.kill() // ends when its lease has
		for {
			if _, _, self := b.Leader(); self {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the takeover took %v", took)
		}
		if res := w.mustInvoke(b, "f", "r2"); res.Cold {
			t.Error("the new leader does not know the container")
		}
		if inv.epoch != 2 {
			t.Errorf("the invoker has epoch %d", inv.epoch)
		}
	})
}

func TestALeaderThatEndsHandsOverAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.controller("a")
		w.ready(a)
		b := w.controller("b")
		w.ready(b)
		began := time.Now()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		w.ready(b)
		for {
			if _, _, self := b.Leader(); self {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestALeaderCutOffStepsDownBeforeAnotherLeads(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 1024)
		inv.run = hold
		a := w.controller("a")
		w.ready(a)
		b := w.controller("b")
		w.create(a, "f")
		end := a.start(context.Background(), "f", "r1")
		synctest.Wait()
		w.server.Cut(a.conn)
		for {
			_, _, selfA := a.Leader()
			_, _, selfB := b.Leader()
			if selfA && selfB {
				t.Fatal("both lead")
			}
			if selfB {
				break
			}
			time.Sleep(time.Millisecond)
		}
		wantCode(t, (<-end).err, function.Unavailable)
		w.server.Restore(a.conn)
		time.Sleep(5 * time.Second)
		if id, _, self := a.Leader(); id != "b" || self {
			t.Errorf("a takes %s for the leader", id)
		}
		inv.finish("r1", nil)
		inv.set(func(f *fakeInvoker) { f.run = nil })
		w.mustInvoke(b, "f", "r2")
	})
}

func TestAfterATakeoverRunningAsynchronousInvocationsAreNotRunAgain(t *testing.T) {
	for _, when := range []string{"before the redelivery", "after the redelivery", "before the takeover"} {
		t.Run("ending "+when, func(t *testing.T) {
			inWorld(t, func(w *world) {
				inv := w.invoker("inv-0", 1024)
				inv.run = hold
				a := w.controller("a", func(c *Config) { c.Timing.AckWait = 5 * time.Second })
				w.ready(a)
				b := w.controller("b", func(c *Config) { c.Timing.AckWait = 5 * time.Second })
				w.create(a, "f")
				w.async(a, "f", "r1")
				time.Sleep(10 * time.Second)
				go a.kill()
				switch when {
				case "before the takeover":
					time.Sleep(time.Second)
				case "before the redelivery":
					time.Sleep(3500 * time.Millisecond)
				case "after the redelivery":
					time.Sleep(20 * time.Second)
				}
				inv.finish("r1", nil)
				if r := w.record(b, "r1"); r.Status != Succeeded || inv.times("r1") != 1 {
					t.Errorf("%+v, ran %d times", r, inv.times("r1"))
				}
				if n := w.queueLength(b); n != 0 {
					t.Errorf("%d items are left", n)
				}
			})
		})
	}
}

func TestAShortLossOfTheBusLosesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		inv := w.invoker("inv-0", 2048)
		inv.run = hold
		c := w.controller("a")
		w.ready(c)
		w.create(c, "f")
		var ends []<-chan ending
		for i := range 4 {
			ends = append(ends, c.start(context.Background(), "f", fmt.Sprintf("r%d", i)))
		}
		synctest.Wait()
		w.server.Cut()
		inv.finish("r0", nil)
		late := c.start(context.Background(), "f", "r9") // its message is lost
		time.Sleep(time.Second)
		w.server.Restore()
		time.Sleep(2 * time.Second)
		for i := 1; i < 4; i++ {
			inv.finish(fmt.Sprintf("r%d", i), nil)
		}
		inv.finish("r9", nil)
		for _, end := range append(ends, late) {
			if e := <-end; e.err != nil {
				t.Error(e.err)
			}
		}
		if inv.times("r9") != 1 {
			t.Errorf("the late one ran %d times", inv.times("r9"))
		}
	})
}

func TestEpochsGrowAlsoWhenLeasesAreLostOnTheWay(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.controller("a")
		w.ready(a)
		last := a.term.Load().epoch
		for range 3 {
			// Somebody removes the lease: the leader must notice.
			conn := w.server.Connect()
			kv, err := conn.KV(context.Background(), wire.LeaderBucket, bus.KVOptions{TTL: 2 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if err := kv.Delete(context.Background(), leaseKey); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			time.Sleep(3 * time.Second)
			w.ready(a)
			if e := a.term.Load().epoch; e <= last {
				t.Errorf("epoch %d follows %d", e, last)
			} else {
				last = e
			}
		}
	})
}

func TestARestartUnderTheSameIDTakesItsLeaseOver(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.controller("server")
		w.ready(a)
		go a.kill()
		time.Sleep(time.Millisecond)
		began := time.Now()
		b := w.controller("server")
		w.ready(b)
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}
