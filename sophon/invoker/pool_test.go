package invoker

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/sophon"
)

// testFunction returns a function that no cluster knows.
func testFunction(name string, memoryMB int64) *sophon.Function {
	return &sophon.Function{Key: name + "@1", Name: name, MemoryMB: memoryMB}
}

// at is a moment some seconds after start0.
func at(seconds float64) time.Time { return start0.Add(time.Duration(seconds * float64(time.Second))) }

// idle puts idle containers into a pool, one second after another.
func idle(p *Pool, f *sophon.Function, ids ...string) {
	for i, id := range ids {
		p.Run(Order{Function: f, Container: id}, at(0))
		p.Started(id, time.Second, at(float64(i)))
	}
	p.Changes()
}

// states returns the containers of a list of changes with their last states.
func states(changes []sophon.Change) map[string]string {
	out := map[string]string{}
	for _, c := range changes {
		out[c.Container] = c.State.String()
		if c.Job != "" {
			out[c.Container] += " " + c.Job
		}
	}
	return out
}

func TestPoolUsesTheExpectedContainer(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 1000})
	f := testFunction("f", 100)
	idle(p, f, "a", "b")
	got := p.Run(Order{Job: "j", Function: f, Expect: "a", Container: "spare"}, at(5))
	if diff := cmp.Diff(Outcome{Verdict: Warm, Container: "a"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "busy j"}, states(p.Changes())); diff != "" {
		t.Error(diff)
	}
	if !p.Finished("a", false, at(6)) {
		t.Error("the container is not kept")
	}
	if diff := cmp.Diff(map[string]string{"a": "idle"}, states(p.Changes())); diff != "" {
		t.Error(diff)
	}
}

func TestPoolReplacesAStaleExpectation(t *testing.T) {
	f, g := testFunction("f", 100), testFunction("g", 100)
	tests := []struct {
		name string
		idle []string
		want Outcome
		told map[string]string
	}{
		{
			"by another idle container, the one used last", []string{"b", "c"},
			Outcome{Verdict: Warm, Container: "c", Stale: true}, map[string]string{"c": "busy j"},
		},
		{
			"by a cold start", nil,
			Outcome{Verdict: Cold, Container: "spare", Stale: true}, map[string]string{"spare": "starting j"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := NewPool(PoolConfig{CapacityMB: 1000})
			idle(p, g, "other")
			idle(p, f, tt.idle...)
			got := p.Run(Order{Job: "j", Function: f, Expect: "gone", Container: "spare"}, at(9))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.told, states(p.Changes())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPoolTellsOfTheProvisionalContainerThatANodeGrainedRunDidNotNeed(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 1000})
	f := testFunction("f", 100)
	idle(p, f, "a")
	got := p.Run(Order{Job: "j", Function: f, AnyWarm: true, Container: "new"}, at(1))
	if diff := cmp.Diff(Outcome{Verdict: Warm, Container: "a"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "busy j", "new": "gone"}, states(p.Changes())); diff != "" {
		t.Error(diff)
	}
	got = p.Run(Order{Job: "k", Function: f, AnyWarm: true, Container: "new2"}, at(1))
	if diff := cmp.Diff(Outcome{Verdict: Cold, Container: "new2"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPoolEvictsWhatItIsToldAndThenTheLeastRecentlyUsed(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 400})
	f, g := testFunction("f", 100), testFunction("g", 200)
	idle(p, f, "a", "b", "c", "d")
	got := p.Run(Order{Job: "j", Function: g, Container: "new", Evict: []string{"d"}}, at(9))
	want := Outcome{Verdict: Cold, Container: "new", Wait: true, Close: []string{"d", "a"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if p.Closed("d"); len(p.Ready()) != 0 {
		t.Error("the start may begin before its memory is free")
	}
	if p.Closed("a"); !slices.Equal(p.Ready(), []string{"new"}) {
		t.Error("the start may not begin although its memory is free")
	}
	if p.TakenMB() != 400 || p.Node().BusyMB() != 200 || p.Node().IdleMB() != 200 {
		t.Errorf("taken %d, busy %d, idle %d MiB", p.TakenMB(), p.Node().BusyMB(), p.Node().IdleMB())
	}
}

func TestPoolKeepsAVictimThatIsBusyAndSaysSo(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 300})
	f, g := testFunction("f", 100), testFunction("g", 100)
	idle(p, f, "a", "b", "c")
	p.Run(Order{Job: "k", Function: f, Expect: "a"}, at(8))
	p.Changes()
	got := p.Run(Order{Job: "j", Function: g, Container: "new", Evict: []string{"a"}}, at(9))
	want := Outcome{Verdict: Cold, Container: "new", Wait: true, Close: []string{"b"}, Stale: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "busy k", "b": "gone", "new": "starting j"}, states(p.Changes())); diff != "" {
		t.Error(diff)
	}
}

func TestPoolRefusesWhatDoesNotFitAndEvictsNothingForIt(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 300})
	f, g := testFunction("f", 100), testFunction("g", 250)
	idle(p, f, "a", "b")
	p.Run(Order{Job: "k", Function: f, Expect: "a"}, at(8))
	p.Changes()
	got := p.Run(Order{Job: "j", Function: g, Container: "new", Evict: []string{"a", "b"}}, at(9))
	if diff := cmp.Diff(Outcome{Verdict: Refused}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "busy k", "b": "idle", "new": "gone"}, states(p.Changes())); diff != "" {
		t.Error(diff)
	}
}

func TestPoolExpiresAndPausesIdleContainersInTime(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 1000, KeepAlive: 60 * time.Second, PauseAfter: 10 * time.Second})
	f := testFunction("f", 100)
	idle(p, f, "a", "b") // idle since 0 s and 1 s
	p.Run(Order{Function: f, Container: "own", KeepAlive: 20 * time.Second}, at(0))
	p.Started("own", 0, at(0))
	p.Run(Order{Function: f, Container: "ever", KeepAlive: -1}, at(0))
	p.Started("ever", 0, at(0))
	type step struct {
		At    float64
		Close []string
		Pause []string
	}
	var got []step
	for s := 0.0; s < 100; s++ {
		closing, pause := p.Expire(at(s))
		slices.Sort(closing)
		slices.Sort(pause)
		for _, id := range pause {
			p.Paused(id)
		}
		if len(closing)+len(pause) > 0 {
			got = append(got, step{s, closing, pause})
		}
		if s == 30 {
			if out := p.Run(Order{Job: "j", Function: f, Expect: "b"}, at(30)); !out.Paused {
				t.Error("b was not paused")
			}
			p.Finished("b", false, at(30))
		}
	}
	want := []step{
		{10, nil, []string{"a", "ever", "own"}},
		{11, nil, []string{"b"}},
		{20, []string{"own"}, nil},
		{40, nil, []string{"b"}},
		{60, []string{"a"}, nil},
		{90, []string{"b"}, nil},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, ok := p.NextExpiry(); ok {
		t.Error("something is left to expire")
	}
}

func TestPoolEndsContainersAsSoonAsTheyAreNotInUse(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 1000})
	f := testFunction("f", 100)
	idle(p, f, "idle", "busy")
	p.Run(Order{Job: "j", Function: f, Expect: "busy"}, at(1))
	p.Run(Order{Function: f, Container: "starting"}, at(1))
	if got := p.End([]string{"idle", "busy", "starting", "unknown"}); !slices.Equal(got, []string{"idle"}) {
		t.Errorf("End = %v", got)
	}
	if p.Finished("busy", false, at(2)) || p.Started("starting", time.Second, at(2)) {
		t.Error("a container that was to be ended is kept")
	}
	want := map[string]string{"idle": "gone", "busy": "gone", "starting": "gone", "unknown": "gone"}
	if diff := cmp.Diff(want, states(p.Changes())); diff != "" {
		t.Error(diff)
	}
	for _, id := range []string{"idle", "busy", "starting"} {
		p.Closed(id)
	}
	if p.TakenMB() != 0 || p.Len() != 0 {
		t.Errorf("%d MiB and %d containers are left", p.TakenMB(), p.Len())
	}
}

func TestSnapshotListsContainersInOrderOfUse(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 1000})
	f := testFunction("f", 100)
	idle(p, f, "a", "b", "c")
	p.Run(Order{Job: "j", Function: f, Expect: "a"}, at(7))
	p.Finished("a", false, at(8))
	var got []string
	for _, c := range p.Snapshot() {
		got = append(got, c.Container)
	}
	if diff := cmp.Diff([]string{"b", "c", "a"}, got); diff != "" {
		t.Error(diff)
	}
	if p.Pending() {
		t.Error("changes are left after a snapshot")
	}
}

func TestGreedyDualKeepsWhatIsCostlyOftenUsedAndSmall(t *testing.T) {
	newPool := func() *Pool { return NewPool(PoolConfig{CapacityMB: 10000, Eviction: NewGreedyDual()}) }
	add := func(p *Pool, f *sophon.Function, id string, cold time.Duration, uses int) {
		p.Run(Order{Function: f, Container: id}, at(0))
		p.Started(id, cold, at(0))
		for range uses {
			p.Run(Order{Job: "j", Function: f, Expect: id}, at(1))
			p.Finished(id, false, at(1))
		}
	}
	tests := []struct {
		name string
		fill func(*Pool)
	}{
		{"cheap before costly", func(p *Pool) {
			add(p, testFunction("kept", 100), "kept", 10*time.Second, 1)
			add(p, testFunction("first", 100), "first", time.Second, 1)
		}},
		{"seldom before often used", func(p *Pool) {
			add(p, testFunction("kept", 100), "kept", time.Second, 9)
			add(p, testFunction("first", 100), "first", time.Second, 2)
		}},
		{"large before small", func(p *Pool) {
			add(p, testFunction("kept", 100), "kept", time.Second, 1)
			add(p, testFunction("first", 800), "first", time.Second, 1)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPool()
			tt.fill(p)
			if got := p.Node().FirstVictim().ID(); got != "first" {
				t.Errorf("%s would be evicted first", got)
			}
		})
	}
}

func TestGreedyDualLetsWhatIsNoLongerUsedAge(t *testing.T) {
	p := NewPool(PoolConfig{CapacityMB: 300, Eviction: NewGreedyDual()})
	old := testFunction("old", 100)
	p.Run(Order{Function: old, Container: "old"}, at(0))
	p.Started("old", time.Second, at(0))
	for range 5 {
		p.Run(Order{Job: "j", Function: old, Expect: "old"}, at(0))
		p.Finished("old", false, at(0))
	}
	for i := range 50 {
		f := testFunction("f"+strconv.Itoa(i), 100)
		out := p.Run(Order{Function: f, Container: f.Name}, at(float64(i)))
		if slices.Contains(out.Close, "old") {
			if i < 3 {
				t.Errorf("evicted after %d others only", i)
			}
			return
		}
		for _, id := range out.Close {
			p.Closed(id)
		}
		p.Started(f.Name, time.Second, at(float64(i)))
	}
	t.Error("a container that is no longer used is never evicted")
}

func TestNewKeepAliveRejectsAnUnknownName(t *testing.T) {
	for _, name := range Evictions() {
		if _, err := NewKeepAlive(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := NewKeepAlive("fifo"); err == nil {
		t.Error("an unknown name is accepted")
	}
}

// poolMachine drives a Pool by chance, and knows what must be true of it.
type poolMachine struct {
	pool      *Pool
	capacity  int64
	functions []*sophon.Function
	now       time.Time
	next      int
	starting  map[string]bool // began
	waiting   map[string]bool
	busy      map[string]string
	closing   map[string]bool
	jobs      map[string]int    // ends by job
	view      map[string]string // by the changes
}

func (m *poolMachine) id(prefix string) string {
	m.next++
	return prefix + strconv.Itoa(m.next)
}

func (m *poolMachine) idle() []string {
	var out []string
	for c := range m.pool.Node().Containers {
		if c.State() == sophon.Idle || c.State() == sophon.Paused {
			out = append(out, c.ID())
		}
	}
	slices.Sort(out)
	return out
}

func (m *poolMachine) check(t *rapid.T) {
	n := m.pool.Node()
	if n.BusyMB()+n.IdleMB() > m.capacity || m.pool.TakenMB() > m.capacity {
		t.Fatalf("%d busy + %d idle, %d taken of %d MiB", n.BusyMB(), n.IdleMB(), m.pool.TakenMB(), m.capacity)
	}
	for _, id := range m.pool.Ready() {
		if !m.waiting[id] {
			t.Fatalf("%s is ready, but did not wait", id)
		}
		delete(m.waiting, id)
		m.starting[id] = true
	}
	for id, s := range states(m.pool.Changes()) {
		if s == "gone" {
			delete(m.view, id)
		} else {
			m.view[id] = s
		}
	}
	real := map[string]string{}
	for c := range n.Containers {
		real[c.ID()] = c.State().String()
		if job := m.pool.Job(c.ID()); job != "" {
			real[c.ID()] += " " + job
		}
	}
	if diff := cmp.Diff(real, m.view); diff != "" {
		t.Fatalf("the changes do not tell what is there: %s", diff)
	}
	if len(m.closing) == 0 && len(m.waiting) > 0 {
		t.Fatalf("%d starts wait for nothing", len(m.waiting))
	}
}

func (m *poolMachine) order(t *rapid.T) {
	o := Order{Function: rapid.SampledFrom(m.functions).Draw(t, "function"), Container: m.id("c"), AnyWarm: rapid.Bool().Draw(t, "any")}
	if uniform(t, 10, "advance") > 0 {
		o.Job = m.id("j")
	}
	candidates := append(m.idle(), "unknown")
	for id := range m.busy {
		candidates = append(candidates, id)
	}
	slices.Sort(candidates)
	if rapid.Bool().Draw(t, "expects") {
		o.Expect = rapid.SampledFrom(candidates).Draw(t, "expect")
	}
	o.Evict = rapid.SliceOfNDistinct(rapid.SampledFrom(candidates), 0, min(2, len(candidates)), rapid.ID[string]).Draw(t, "evict")
	out := m.pool.Run(o, m.now)
	for _, id := range out.Close {
		if m.busy[id] != "" || m.starting[id] || m.waiting[id] {
			t.Fatalf("%s was evicted while it was in use", id)
		}
		m.closing[id] = true
	}
	switch out.Verdict {
	case Warm:
		if m.busy[out.Container] != "" || m.closing[out.Container] {
			t.Fatalf("%s was given to a second job", out.Container)
		}
		m.busy[out.Container] = o.Job
	case Cold:
		if out.Wait {
			m.waiting[out.Container] = true
		} else {
			m.starting[out.Container] = true
		}
	case Refused:
		if o.Job != "" {
			m.jobs[o.Job]++
		}
	}
}

func (m *poolMachine) pick(t *rapid.T, from map[string]bool) (string, bool) {
	ids := make([]string, 0, len(from))
	for id := range from {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return "", false
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(t, "container"), true
}

func TestPoolKeepsItsInvariantsWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		eviction, err := NewKeepAlive(rapid.SampledFrom(Evictions()).Draw(t, "eviction"))
		if err != nil {
			t.Fatal(err)
		}
		m := &poolMachine{
			capacity: 1000, now: start0,
			functions: []*sophon.Function{testFunction("f", 100), testFunction("g", 250), testFunction("h", 600)},
			starting:  map[string]bool{}, waiting: map[string]bool{}, busy: map[string]string{},
			closing: map[string]bool{}, jobs: map[string]int{}, view: map[string]string{},
		}
		m.pool = NewPool(PoolConfig{CapacityMB: m.capacity, KeepAlive: time.Minute, PauseAfter: 20 * time.Second, Eviction: eviction})
		keep := func(id string, kept bool) {
			if !kept {
				m.closing[id] = true
			}
		}
		walk(t, []func(){
			func() { m.order(t) }, func() { m.order(t) }, func() { m.order(t) },
			func() {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "seconds")) * time.Second)
			},
			func() {
				id, ok := m.pick(t, m.starting)
				if !ok {
					return
				}
				delete(m.starting, id)
				job := m.pool.Job(id)
				kept := m.pool.Started(id, time.Second, m.now)
				keep(id, kept)
				if job != "" {
					m.busy[id] = job
				}
			},
			func() {
				all := map[string]bool{}
				for _, from := range []map[string]bool{m.starting, m.waiting} {
					for id := range from {
						all[id] = true
					}
				}
				id, ok := m.pick(t, all)
				if !ok {
					return
				}
				m.pool.StartFailed(id)
				delete(m.starting, id)
				delete(m.waiting, id)
			},
			func() {
				all := map[string]bool{}
				for id := range m.busy {
					all[id] = true
				}
				id, ok := m.pick(t, all)
				if !ok {
					return
				}
				m.jobs[m.busy[id]]++
				delete(m.busy, id)
				keep(id, m.pool.Finished(id, rapid.Bool().Draw(t, "broken"), m.now))
			},
			func() {
				id, ok := m.pick(t, m.closing)
				if !ok {
					return
				}
				delete(m.closing, id)
				m.pool.Closed(id)
			},
			func() {
				closing, pause := m.pool.Expire(m.now)
				for _, id := range closing {
					keep(id, false)
				}
				for _, id := range pause {
					m.pool.Paused(id)
				}
			},
			func() {
				for _, id := range m.pool.End(m.idle()[:min(1, len(m.idle()))]) {
					keep(id, false)
				}
			},
			func() {
				if ids := m.idle(); len(ids) > 0 && m.pool.Ended(ids[0]) {
					keep(ids[0], false)
				}
			},
			func() {
				if id, ok := m.pick(t, m.starting); ok {
					m.pool.Detach(id)
				}
			},
		}, func() { m.check(t) })
		// However it stands, everything can come to an end.
		for len(m.starting)+len(m.waiting)+len(m.closing)+len(m.busy) > 0 {
			for id := range m.closing {
				delete(m.closing, id)
				m.pool.Closed(id)
			}
			m.check(t)
			for id := range m.starting {
				delete(m.starting, id)
				m.pool.StartFailed(id)
			}
			for id := range m.busy {
				delete(m.busy, id)
				m.jobs[id]++
				keep(id, m.pool.Finished(id, true, m.now))
			}
			m.check(t)
		}
		for job, n := range m.jobs {
			if n != 1 && job[0] == 'j' {
				t.Fatalf("job %s ended %d times", job, n)
			}
		}
	})
}
