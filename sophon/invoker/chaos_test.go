package invoker

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volley-run/volley/sophon/wire"
)

// disorder does to an invoker whatever a cluster may do to it.
type disorder struct {
	*rig
	rand *rand.Rand
	cut  bool
	sent []*wire.Run
	next int
}

func (d *disorder) id(prefix string) string {
	d.next++
	return prefix + strconv.Itoa(d.next)
}

// some is a container that was reported, or one that never was.
func (d *disorder) some() string {
	ids := append(slices.Sorted(maps.Keys(d.containers())), "unknown")
	return ids[d.rand.IntN(len(ids))]
}

func (d *disorder) work() fakeWork {
	switch d.rand.IntN(12) {
	case 0:
		return fakeWork{Crash: true}
	case 1:
		return fakeWork{Platform: true}
	case 2:
		return fakeWork{Dead: true}
	case 3:
		return fakeWork{Fail: true, RunMs: d.rand.IntN(100)}
	}
	return fakeWork{RunMs: d.rand.IntN(3000)}
}

func (d *disorder) newRun() *wire.Run {
	run := job(d.id("j"), d.id("c"), d.work())
	if f := d.rand.IntN(3); f > 0 {
		run = of(run, "f"+strconv.Itoa(f), 150*f)
	}
	switch d.rand.IntN(3) {
	case 0:
		run.Expect = d.some()
	case 1:
		run.AnyWarm = true
	default:
		if d.rand.IntN(2) == 0 {
			run.Evict = []string{d.some()}
		}
	}
	if d.rand.IntN(10) == 0 {
		run.RequestId = "" // in advance
	}
	return run
}

func (d *disorder) step() {
	switch k := d.rand.IntN(16); {
	case k < 6:
		run := d.newRun()
		if run.GetRequestId() != "" {
			d.sent = append(d.sent, run)
		}
		d.run(run)
	case k == 6 && len(d.sent) > 0: // once more, in another container
		again := d.sent[d.rand.IntN(len(d.sent))]
		run := job(again.GetRequestId(), d.id("c"), fakeWork{})
		run.Payload = again.GetPayload()
		run.Expect = d.some()
		d.run(run)
	case k == 7 && len(d.sent) > 0:
		d.send(&wire.ToInvoker{Cancel: []string{d.sent[d.rand.IntN(len(d.sent))].GetRequestId()}})
	case k == 8:
		d.send(&wire.ToInvoker{End: []string{d.some()}})
	case k == 9:
		d.send(&wire.ToInvoker{Resync: true})
	case k == 10 && !d.cut:
		d.server.Cut(d.theirs)
		d.cut = true
	case k == 11 && d.cut:
		d.server.Restore(d.theirs)
		d.cut = false
	case k == 12:
		if b := d.driver.box(d.some()); b != nil {
			b.end()
		}
	case k == 13:
		d.epoch++
		d.seq = 0
		d.sendRaw(wire.AnnounceSubject, &wire.ToInvoker{Epoch: d.epoch, Resync: true})
	default:
		d.after(time.Duration(d.rand.IntN(500)) * time.Millisecond)
	}
}

func (d *disorder) check(t *testing.T) {
	if d.cut {
		d.server.Restore(d.theirs)
	}
	d.after(time.Minute)
	d.send(&wire.ToInvoker{Resync: true})
	d.after(time.Second)
	if d.driver.mostMB > 1000 {
		t.Errorf("%d MiB were in use", d.driver.mostMB)
	}
	if diff := cmp.Diff(d.driver.there(), slices.Sorted(maps.Keys(d.containers()))); diff != "" {
		t.Errorf("the sandboxes are not what is reported: %s", diff)
	}
	for id, s := range d.containers() {
		if s != "IDLE" {
			t.Errorf("container %s is still %s", id, s)
		}
	}
	for _, run := range d.sent {
		id := run.GetRequestId()
		results := d.results[id]
		if n := d.driver.runs[id]; n > 1 {
			t.Errorf("%s ran %d times", id, n)
		} else if n == 1 && len(results) == 0 {
			t.Errorf("%s ran and has no result", id)
		}
		for _, r := range results {
			if string(r.GetPayload()) != string(results[0].GetPayload()) || r.GetContainer() != results[0].GetContainer() {
				t.Errorf("%s has two results: %v and %v", id, results[0], r)
			}
		}
	}
}

func TestInvokerKeepsItsPromisesInDisorder(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(c *Config, d *fakeDriver) {
					d.closing = 50 * time.Millisecond
					c.PauseAfter = time.Second
					c.KeepAlive = 5 * time.Second
					c.Eviction = Evictions()[seed%2]
				})
				d := &disorder{rig: r, rand: rand.New(rand.NewPCG(seed, 1))}
				for range 300 {
					d.step()
				}
				d.check(t)
			})
		})
	}
}
