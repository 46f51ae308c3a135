package policy

import (
	"strconv"
	"testing"
	"time"

	"github.com/volley-run/volley/sophon"
)

func TestWeightedEvictsTheFunctionThatIsNeededLeast(t *testing.T) {
	p := newPolicy(t, "weighted", Options{}).(*weighted)
	c := sophon.NewCluster(nil)
	ids := 0
	s := sophon.NewScheduler(c, p, func() string { ids++; return strconv.Itoa(ids) })
	n := c.AddNode("n", 200)
	often, seldom := c.Intern("often@1", "often", 100), c.Intern("seldom@1", "seldom", 100)
	now, jobs := start, 0
	call := func(f *sophon.Function) sophon.Placement {
		jobs++
		j := &sophon.Job{ID: strconv.Itoa(jobs), Function: f, Arrived: now}
		placement, ok := s.Submit(j, now)
		if !ok {
			t.Fatal("no place")
		}
		id := j.Container().ID()
		s.Finish(j)
		s.Apply(n, []sophon.Change{{Container: id, State: sophon.Idle, Function: f, MemoryMB: 100, Cold: time.Second}}, now)
		return placement
	}
	for range 10 {
		call(often)
		now = now.Add(time.Second)
	}
	call(seldom)
	for range 10 {
		now = now.Add(2 * time.Second)
		call(often)
	}
	now = now.Add(time.Minute)
	call(seldom)
	now = now.Add(time.Second)
	// The function called seldom was used last, and still is worth less.
	if first := n.FirstVictim().Function(); first != seldom {
		t.Errorf("%s would be evicted first", first.Name)
	}
	if got := call(c.Intern("new@1", "new", 100)); len(got.Evict) != 1 || c.Lookup(n, got.Evict[0]) != nil {
		t.Errorf("evicts %v", got.Evict)
	}
	if seldom.Containers() != 0 || often.Containers() != 1 {
		t.Errorf("%d and %d containers are left", seldom.Containers(), often.Containers())
	}
}

func TestWeightedCountsAColdStartAfterAnEvictionAsAReuse(t *testing.T) {
	w := &worth{}
	w.haunt(start, start.Add(time.Minute))
	w.exorcise(start.Add(2 * time.Minute))
	if w.reuses != 1 || w.rests != 120 {
		t.Errorf("%v reuses after %v s", w.reuses, w.rests)
	}
	w.exorcise(start.Add(3 * time.Minute)) // the first container ever of another burst
	if w.reuses != 1 {
		t.Error("a cold start without an eviction before counts as a reuse")
	}
	for i := range maxGhosts + 3 {
		w.haunt(start.Add(time.Duration(i)*time.Second), start.Add(time.Hour))
	}
	if len(w.ghosts) != maxGhosts || !w.ghosts[0].Equal(start.Add(3*time.Second)) {
		t.Errorf("%d evictions are remembered, since %v", len(w.ghosts), w.ghosts[0])
	}
}

func TestForgottenFunctionsLeaveNothingInAPolicy(t *testing.T) {
	for _, name := range Names() {
		c := sophon.NewCluster(nil)
		ids := 0
		p := newPolicy(t, name, Options{})
		s := sophon.NewScheduler(c, p, func() string { ids++; return strconv.Itoa(ids) })
		n := c.AddNode("n", 1000)
		now := start
		for i := range 200 {
			f := c.Intern("f@"+strconv.Itoa(i), "f", 100)
			j := &sophon.Job{ID: strconv.Itoa(i), Function: f, Arrived: now}
			placement, _ := s.Submit(j, now)
			s.Finish(j)
			s.Apply(n, []sophon.Change{
				{Container: placement.Container, State: sophon.Busy, Function: f, MemoryMB: 100, Cold: time.Second},
				{Container: placement.Container, State: sophon.Idle, Function: f, MemoryMB: 100}}, now)
			c.Retire(f)
			now = now.Add(time.Second)
			s.Apply(n, []sophon.Change{{Container: placement.Container, State: sophon.Gone}}, now)
		}
		known := 0
		switch p := p.(type) {
		case *weighted:
			known = len(p.functions.items)
		case *chRLU:
			known = len(p.arrivals.items)
		case *hybrid:
			known = len(p.functions.items) + len(p.timers)
		}
		if c.Functions() != 0 || known > 1 {
			t.Errorf("%s: %d functions are known to the cluster, %d to the policy", name, c.Functions(), known)
		}
	}
}

func TestAPolicyCanServeOneClusterAfterAnother(t *testing.T) {
	for _, name := range Names() {
		p := newPolicy(t, name, Options{Seed: 5})
		for _, invokers := range []int{30, 30, 7} {
			l := newLoad(p, uint64(invokers), MeasureConfig{Invokers: invokers, MemoryMB: 2048})
			for range 1500 { // the scheduler refuses what is of another cluster
				l.step(false)
			}
			if h, ok := p.(*hybrid); ok {
				for _, i := range h.timers {
					if l.scheduler.Cluster().Intern(i.function.Key, "", 0) != i.function {
						t.Fatal("a timer is of another cluster")
					}
				}
			}
		}
	}
}

func TestCHRLUKeepsRareFunctionsAtHomeAndSpillsPopularOnes(t *testing.T) {
	b := newBed(1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000)
	for i := range 8 {
		b.busy(i, "x", 400)
	}
	p := newPolicy(t, "ch-rlu", Options{Seed: 1}).(*chRLU)
	rare, popular := b.function("rare", 50), b.function("popular", 50)
	p.Arrived(rare, b.now)
	for range 5000 {
		p.Arrived(popular, b.now)
	}
	seen := map[*sophon.Function]map[*sophon.Node]int{rare: {}, popular: {}}
	for f, nodes := range seen {
		for range 300 {
			nodes[b.choose(p, f).Node]++
		}
	}
	if len(seen[rare]) != 1 || len(seen[popular]) < 2 {
		t.Errorf("the rare function went to %d nodes, the popular one to %d", len(seen[rare]), len(seen[popular]))
	}
	var home *sophon.Node
	for n := range seen[rare] {
		home = n
	}
	b.busy(home.Index(), "x", 500)
	if b.choose(p, rare).Node == home {
		t.Error("a node over the bound is still chosen")
	}
	b.SetOnline(home, false)
	b.AddNode("another", 1000)
	if n := b.choose(p, rare).Node; n == nil || n == home {
		t.Errorf("chose %v", n)
	}
}

func TestCHRLUMovesFewFunctionsWhenANodeComes(t *testing.T) {
	b := newBed()
	for i := range 20 {
		b.AddNode("n"+strconv.Itoa(i), 1000)
	}
	p := newPolicy(t, "ch-rlu", Options{})
	var functions []*sophon.Function
	before := map[*sophon.Function]*sophon.Node{}
	for i := range 1000 {
		f := b.function("f"+strconv.Itoa(i), 10)
		functions = append(functions, f)
		before[f] = b.choose(p, f).Node
	}
	added := b.AddNode("added", 1000)
	moved := 0
	for _, f := range functions {
		if n := b.choose(p, f).Node; n != before[f] {
			moved++
			if n != added {
				t.Fatalf("%s moved to an old node", f.Name)
			}
		}
	}
	if moved == 0 || moved > 150 {
		t.Errorf("%d of 1000 functions moved, about 48 should", moved)
	}
}

// hybridBed runs a hybrid policy on one node.
type hybridBed struct {
	t    *testing.T
	p    *hybrid
	s    *sophon.Scheduler
	c    *sophon.Cluster
	node *sophon.Node
	f    *sophon.Function
	now  time.Time
	jobs int
}

func newHybridBed(t *testing.T) *hybridBed {
	h := &hybridBed{t: t, p: newPolicy(t, "hybrid", Options{}).(*hybrid), c: sophon.NewCluster(nil), now: start}
	ids := 0
	h.s = sophon.NewScheduler(h.c, h.p, func() string { ids++; return strconv.Itoa(ids) })
	h.node = h.c.AddNode("n", 1000)
	h.f = h.c.Intern("f@1", "f", 100)
	return h
}

// call runs an invocation of a second and reports whether it was warm.
func (h *hybridBed) call() bool {
	h.jobs++
	j := &sophon.Job{ID: strconv.Itoa(h.jobs), Function: h.f, Arrived: h.now}
	p, _ := h.s.Submit(j, h.now)
	id := j.Container().ID()
	h.s.Apply(h.node, []sophon.Change{{Container: id, State: sophon.Busy, Function: h.f, MemoryMB: 100, Job: j.ID}}, h.now)
	h.now = h.now.Add(time.Second)
	h.s.Finish(j)
	h.s.Apply(h.node, []sophon.Change{{Container: id, State: sophon.Idle, Function: h.f, MemoryMB: 100}}, h.now)
	return p.Expect != ""
}

// wait lets time pass, and carries out what the policy plans by the second.
func (h *hybridBed) wait(d time.Duration) {
	for end := h.now.Add(d); h.now.Before(end); h.now = h.now.Add(time.Second) {
		actions, _ := h.p.Plan(sophon.ViewOf(h.c), h.now)
		for _, a := range actions {
			if a.End != nil {
				h.s.End(a.End, h.now)
				continue
			}
			p, ok := h.s.Prewarm(a.Function, a.Node, h.now)
			if !ok {
				h.t.Fatal("no room for a container started ahead")
			}
			h.s.Apply(h.node, []sophon.Change{{Container: p.Container, State: sophon.Idle, Function: h.f, MemoryMB: 100}}, h.now)
		}
	}
}

func TestHybridStartsAContainerJustBeforeAPeriodicFunctionNeedsIt(t *testing.T) {
	h := newHybridBed(t)
	for range minIdleTimes + 1 {
		h.call()
		h.wait(20*time.Minute + 10*time.Second)
	}
	if warm := h.call(); !warm {
		t.Error("the function is called every 20 minutes and was not warm")
	}
	h.wait(time.Minute)
	if n := h.f.Containers(); n != 0 {
		t.Errorf("%d containers are kept, right after a call, for 20 minutes", n)
	}
	h.wait(17*time.Minute + 10*time.Second) // 20 minutes less a margin of a tenth
	if n := h.f.Containers(); n != 1 {
		t.Errorf("%d containers are there shortly before the next call", n)
	}
	h.wait(10 * time.Minute)
	if n := h.f.Containers(); n != 0 {
		t.Errorf("%d containers are kept long after the call should have come", n)
	}
}

func TestHybridLeavesWhatItCannotForecastToTheKeepAlive(t *testing.T) {
	for name, gap := range map[string]func(i int) time.Duration{
		"too few":           func(i int) time.Duration { return 20 * time.Minute },
		"spread evenly":     func(i int) time.Duration { return time.Duration(i%240)*time.Minute + time.Second },
		"beyond four hours": func(i int) time.Duration { return 5*time.Hour + time.Duration(i/8)*time.Minute },
	} {
		i := &idleness{}
		n := map[bool]int{true: minIdleTimes - 1, false: 480}[name == "too few"]
		for k := range n {
			i.observe(gap(k))
		}
		if i.telling() {
			t.Errorf("%s: the histogram is taken to tell something", name)
		}
	}
}

func TestHybridKeepsAFrequentFunctionAndEndsItWhenItStops(t *testing.T) {
	h := newHybridBed(t)
	for range 30 {
		h.call()
		h.wait(20 * time.Second)
	}
	if n := h.f.Containers(); n != 1 {
		t.Errorf("%d containers are there between calls", n)
	}
	h.wait(90 * time.Second)
	if n := h.f.Containers(); n != 0 {
		t.Errorf("%d containers are kept after the calls have stopped", n)
	}
	actions, next := h.p.Plan(sophon.ViewOf(h.c), h.now)
	if len(actions) > 0 || !next.IsZero() {
		t.Errorf("plans %v at %v", actions, next)
	}
}
