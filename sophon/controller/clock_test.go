package controller

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
)

func TestJumpsOfTheClockLoseNoInvokerAndNoInvocation(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 24 * time.Hour, -24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			inWorld(t, func(w *world) {
				var off atomic.Int64
				inv := w.invoker("inv-0", 1024)
				c := w.controller("a", func(cfg *Config) {
					cfg.WallClock = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
				})
				w.ready(c)
				w.create(c, "f", func(f *function.Function) { f.Async.MaxAge = function.MaxAsyncAge })
				w.mustInvoke(c, "f", "before")
				for n := range 4 { // there and back again, twice
					off.Store(int64(jump) * int64((n+1)%2))
					w.mustInvoke(c, "f", fmt.Sprintf("sync-%d", n))
					id := fmt.Sprintf("async-%d", n)
					w.async(c, "f", id)
					if r := w.record(c, id); r.Status != Succeeded || inv.times(id) != 1 {
						t.Errorf("%s: %+v, ran %d times", id, r, inv.times(id))
					}
					time.Sleep(3 * time.Second) // of virtual time: leases and silence are looked at
				}
				nodes, err := c.Nodes(t.Context())
				if err != nil || len(nodes) != 1 || !nodes[0].Online {
					t.Errorf("nodes: %+v, %v", nodes, err)
				}
				if _, _, self := c.Leader(); !self {
					t.Error("it does not lead any longer")
				}
			})
		})
	}
}
