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

// uniform draws a number below n, all with about the same probability: the
// library's own ranges prefer small ones.
func uniform(t *rapid.T, n int, label string) int {
	return rapid.Custom(func(t *rapid.T) int {
		x := 0
		for range 8 {
			x *= 2
			if rapid.Bool().Draw(t, "bit") {
				x++
			}
		}
		return x % n
	}).Draw(t, label)
}

// walk does some hundred things by chance, and checks after each. Doing nothing
// is what a failure is reduced to.
func walk(t *rapid.T, actions []func(), check func()) {
	for range 300 {
		if i := uniform(t, len(actions)+1, "action"); i > 0 {
			actions[i-1]()
			check()
		}
	}
}

// chancePolicy chooses by chance among everything that a policy may choose.
type chancePolicy struct {
	grain sophon.Grain
	t     *rapid.T
}

func (p *chancePolicy) Name() string { return "chance" }

func (p *chancePolicy) Grain() sophon.Grain { return p.grain }

func (p *chancePolicy) Choose(v sophon.View, r sophon.Request) sophon.Decision {
	var fits []sophon.Decision
	for _, n := range v.Nodes() {
		if n.Fits(r.Function.MemoryMB) {
			fits = append(fits, sophon.Decision{Node: n})
		}
	}
	if p.grain == sophon.ContainerGrained {
		var warm []sophon.Decision
		for _, c := range r.Function.Idle() {
			if c.Node().Fits(r.Function.MemoryMB) {
				warm = append(warm, sophon.Decision{Node: c.Node(), Container: c})
			}
		}
		if len(warm) > 0 && uniform(p.t, 10, "warm") > 0 {
			fits = warm
		}
	}
	if len(fits) == 0 {
		return sophon.Decision{}
	}
	return rapid.SampledFrom(fits).Draw(p.t, "decision")
}

// agreedMessage goes to an invoker, agreedReport comes back.
type agreedMessage struct {
	seq   uint64
	order *Order
	end   []string
}

type agreedReport struct {
	changes         []sophon.Change
	results, refuse []string
	full            bool
	seen            uint64
}

// agreedNode is an invoker without a network: a pool, and what is on its way
// in both directions.
type agreedNode struct {
	view     *sophon.Node
	pool     *Pool
	sent     uint64
	in       []agreedMessage
	out      []agreedReport
	seen     uint64
	full     bool
	results  []string
	refused  []string
	starting map[string]bool
	waiting  map[string]bool
	busy     map[string]string
	closing  map[string]bool
}

// agreement is a scheduler and its invokers, with messages that take their time.
type agreement struct {
	t         *rapid.T
	scheduler *sophon.Scheduler
	functions []*sophon.Function
	nodes     []*agreedNode
	now       time.Time
	jobs      map[string]*sophon.Job
	ended     map[string]int
	stale     int
	messages  int
}

func newAgreement(t *rapid.T, grain sophon.Grain) *agreement {
	cluster := sophon.NewCluster(nil)
	ids := 0
	a := &agreement{t: t, now: start0, jobs: map[string]*sophon.Job{}, ended: map[string]int{}}
	a.scheduler = sophon.NewScheduler(cluster, &chancePolicy{grain, t}, func() string {
		ids++
		return "c" + strconv.Itoa(ids)
	})
	for name, mb := range map[string]int64{"f": 100, "g": 100, "h": 250} {
		a.functions = append(a.functions, cluster.Intern(name, name, mb))
	}
	slices.SortFunc(a.functions, func(x, y *sophon.Function) int { return int(x.Name[0]) - int(y.Name[0]) })
	for i := range 2 {
		name := "n" + strconv.Itoa(i)
		a.nodes = append(a.nodes, &agreedNode{
			view: cluster.AddNode(name, 500), pool: NewPool(PoolConfig{Name: name, CapacityMB: 500}),
			starting: map[string]bool{}, waiting: map[string]bool{}, busy: map[string]string{}, closing: map[string]bool{},
		})
	}
	return a
}

func (a *agreement) send(p sophon.Placement) {
	n := a.nodes[p.Node.Index()]
	n.sent++
	p.Sent(n.sent)
	o := OrderOf(p)
	n.in = append(n.in, agreedMessage{seq: n.sent, order: &o})
	a.messages++
}

func (a *agreement) submit() {
	j := &sophon.Job{ID: "j" + strconv.Itoa(len(a.jobs)), Function: rapid.SampledFrom(a.functions).Draw(a.t, "function"), Arrived: a.now}
	a.jobs[j.ID] = j
	if p, ok := a.scheduler.Submit(j, a.now); ok {
		a.send(p)
	}
}

// arrive delivers the next message to an invoker.
func (a *agreement) arrive(n *agreedNode) {
	if len(n.in) == 0 {
		return
	}
	m := n.in[0]
	n.in = n.in[1:]
	if m.seq != n.seen+1 {
		n.full = true
	}
	n.seen = m.seq
	for _, id := range n.pool.End(m.end) {
		n.closing[id] = true
	}
	if m.order != nil {
		a.take(n, *m.order)
	}
}

func (a *agreement) take(n *agreedNode, o Order) {
	out := n.pool.Run(o, a.now)
	if out.Stale {
		a.stale++
	}
	for _, id := range out.Close {
		n.closing[id] = true
	}
	switch {
	case out.Verdict == Warm:
		if n.busy[out.Container] != "" {
			a.t.Fatalf("container %s runs %s and %s", out.Container, n.busy[out.Container], o.Job)
		}
		n.busy[out.Container] = o.Job
	case out.Verdict == Cold && out.Wait:
		n.waiting[out.Container] = true
	case out.Verdict == Cold:
		n.starting[out.Container] = true
	case o.Job != "":
		n.refused = append(n.refused, o.Job)
	}
}

// work has something happen on an invoker.
func (a *agreement) work(n *agreedNode) {
	for _, id := range n.pool.Ready() {
		delete(n.waiting, id)
		n.starting[id] = true
	}
	if id, ok := a.some(n.starting); ok && rapid.Bool().Draw(a.t, "start") {
		delete(n.starting, id)
		job := n.pool.Job(id)
		if uniform(a.t, 20, "fails") == 1 {
			n.pool.StartFailed(id)
			if job != "" {
				n.results = append(n.results, job)
			}
			return
		}
		if !n.pool.Started(id, time.Second, a.now) {
			n.closing[id] = true
		} else if job != "" {
			n.busy[id] = job
		}
	}
	if id, ok := a.some(n.closing); ok && rapid.Bool().Draw(a.t, "close") {
		delete(n.closing, id)
		n.pool.Closed(id)
	}
	busy := map[string]bool{}
	for id := range n.busy {
		busy[id] = true
	}
	if id, ok := a.some(busy); ok {
		n.results = append(n.results, n.busy[id])
		delete(n.busy, id)
		if !n.pool.Finished(id, uniform(a.t, 10, "broken") == 1, a.now) {
			n.closing[id] = true
		}
	}
}

// lapse has an idle container end by itself.
func (a *agreement) lapse(n *agreedNode) {
	idle := map[string]bool{}
	for c := range n.pool.Node().Containers {
		if c.State() == sophon.Idle {
			idle[c.ID()] = true
		}
	}
	if id, ok := a.some(idle); ok && n.pool.Ended(id) {
		n.closing[id] = true
	}
}

func (a *agreement) some(from map[string]bool) (string, bool) {
	if len(from) == 0 {
		return "", false
	}
	ids := make([]string, 0, len(from))
	for id := range from {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(a.t, "one"), true
}

// report puts on its way what an invoker has to say.
func (a *agreement) report(n *agreedNode) {
	r := agreedReport{results: n.results, refuse: n.refused, full: n.full, seen: n.seen}
	if n.full {
		r.changes = n.pool.Snapshot()
	} else {
		r.changes = n.pool.Changes()
	}
	n.results, n.refused, n.full = nil, nil, false
	n.out = append(n.out, r)
}

// hear delivers the next report to the scheduler.
func (a *agreement) hear(n *agreedNode) {
	if len(n.out) == 0 {
		return
	}
	r := n.out[0]
	n.out = n.out[1:]
	for _, id := range r.results {
		a.ended[id]++
		if j := a.jobs[id]; j.Node() == n.view {
			a.scheduler.Finish(j)
		}
	}
	for _, id := range r.refuse {
		a.scheduler.Requeue(a.jobs[id])
	}
	if r.full {
		for _, j := range a.scheduler.Sync(n.view, r.changes, r.seen, a.now) {
			a.scheduler.Requeue(j)
		}
	} else {
		a.scheduler.Apply(n.view, r.changes, a.now)
	}
	a.drain()
}

func (a *agreement) drain() {
	for _, p := range a.scheduler.Drain(a.now) {
		a.send(p)
	}
}

func (a *agreement) check() {
	for _, n := range a.nodes {
		if v := n.pool.Node(); v.BusyMB()+v.IdleMB() > 500 || n.pool.TakenMB() > 500 {
			a.t.Fatalf("%s holds %d+%d MiB, %d taken", v.Name(), v.BusyMB(), v.IdleMB(), n.pool.TakenMB())
		}
	}
}

// settle lets everything come to an end.
func (a *agreement) settle() {
	for round := 0; ; round++ {
		if round > 2000 {
			a.t.Fatalf("%d jobs wait and %d run for ever", a.scheduler.Queued(), a.scheduler.Running())
		}
		quiet := a.scheduler.Queued()+a.scheduler.Running() == 0
		for _, n := range a.nodes {
			if len(n.in)+len(n.out)+len(n.starting)+len(n.waiting)+len(n.busy)+len(n.closing) > 0 {
				quiet = false
			}
			for len(n.in) > 0 {
				a.arrive(n)
			}
			a.work(n)
			if n.pool.Pending() || len(n.results)+len(n.refused) > 0 || n.full {
				quiet = false
				a.report(n)
			}
			for len(n.out) > 0 {
				a.hear(n)
			}
		}
		a.now = a.now.Add(time.Second)
		a.drain()
		a.check()
		if quiet {
			return
		}
	}
}

// compare checks that the scheduler knows of each invoker what is true.
func (a *agreement) compare() {
	for _, n := range a.nodes {
		real, view := map[string]string{}, map[string]string{}
		for c := range n.pool.Node().Containers {
			real[c.ID()] = c.Function().Key + " " + c.State().String()
		}
		for c := range n.view.Containers {
			view[c.ID()] = c.Function().Key + " " + c.State().String()
		}
		if diff := cmp.Diff(real, view); diff != "" {
			a.t.Fatalf("the scheduler's view of %s is not what is there: %s", n.view.Name(), diff)
		}
	}
	for id := range a.jobs {
		if a.ended[id] != 1 {
			a.t.Fatalf("job %s ended %d times", id, a.ended[id])
		}
	}
}

func TestSchedulerKnowsWhatEveryPoolHolds(t *testing.T) {
	tests := []struct {
		name  string
		grain sophon.Grain
		loses bool
	}{
		{"with a container-grained policy", sophon.ContainerGrained, false},
		{"with a node-grained policy", sophon.NodeGrained, false},
		{"when messages are lost", sophon.ContainerGrained, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stale, messages := 0, 0
			rapid.Check(t, func(t *rapid.T) {
				a := newAgreement(t, tt.grain)
				node := func() *agreedNode { return rapid.SampledFrom(a.nodes).Draw(t, "node") }
				actions := []func(){
					func() { a.now = a.now.Add(time.Second) },
					a.submit, a.submit, a.submit,
					func() { a.arrive(node()) }, func() { a.arrive(node()) },
					func() { a.work(node()) }, func() { a.work(node()) }, func() { a.work(node()) },
					func() { a.lapse(node()) },
					func() { a.report(node()) }, func() { a.hear(node()) }, func() { a.hear(node()) },
					func() {
						n := node()
						if p, ok := a.scheduler.Prewarm(rapid.SampledFrom(a.functions).Draw(t, "function"), n.view, a.now); ok {
							a.send(p)
						}
					},
					func() {
						n := node()
						if c := n.view.FirstVictim(); c != nil && a.scheduler.End(c, a.now) {
							n.sent++
							n.in = append(n.in, agreedMessage{seq: n.sent, end: []string{c.ID()}})
						}
					},
				}
				if tt.loses {
					actions = append(actions, func() {
						if n := node(); len(n.in) > 0 {
							n.in = n.in[1:]
						}
					})
				}
				walk(t, actions, a.check)
				if tt.loses { // the controller's next message shows the gap
					for _, n := range a.nodes {
						n.sent++
						n.in = append(n.in, agreedMessage{seq: n.sent})
					}
				}
				a.settle()
				a.compare()
				stale, messages = stale+a.stale, messages+a.messages
			})
			if stale == 0 && tt.grain == sophon.ContainerGrained {
				t.Error("nothing was ever stale: the test does not test what it should")
			}
			t.Logf("%d of %d messages were stale", stale, messages)
		})
	}
}
