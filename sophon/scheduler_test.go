package sophon

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// firstFit is the simplest policy: the newest warm container, else the first
// node that fits. It notes what it hears.
type firstFit struct {
	grain     Grain
	heard     []string
	forgotten []string
}

func (*firstFit) Name() string   { return "first-fit" }
func (p *firstFit) Grain() Grain { return p.grain }

func (p *firstFit) Choose(v View, r Request) Decision {
	if p.grain == ContainerGrained {
		for _, g := range r.Function.Warm() {
			if g.Node().Fits(r.Function.MemoryMB) {
				return Decision{Node: g.Node(), Container: g.Newest()}
			}
		}
	}
	for _, n := range v.Nodes() {
		if n.Fits(r.Function.MemoryMB) {
			return Decision{Node: n}
		}
	}
	return Decision{}
}

func (p *firstFit) Arrived(f *Function, _ time.Time) { p.heard = append(p.heard, "arrived "+f.Name) }
func (p *firstFit) Became(c *Container, s State, _ time.Time) {
	p.heard = append(p.heard, c.ID()+" "+s.String())
}
func (p *firstFit) ColdStarted(f *Function, took time.Duration, _ time.Time) {
	p.heard = append(p.heard, fmt.Sprint(f.Name, " took ", took))
}
func (p *firstFit) Forgot(f *Function) { p.forgotten = append(p.forgotten, f.Name) }

// bed is a scheduler under test.
type bed struct {
	*Scheduler
	t      *testing.T
	policy *firstFit
	now    time.Time
	ids    int
}

// newBed returns a scheduler on nodes n0, n1, ... of the given capacities.
func newBed(t *testing.T, grain Grain, capacities ...int64) *bed {
	b := &bed{t: t, policy: &firstFit{grain: grain}, now: start}
	c := NewCluster(nil)
	b.Scheduler = NewScheduler(c, b.policy, func() string {
		b.ids++
		return "c" + strconv.Itoa(b.ids)
	})
	for i, mb := range capacities {
		c.AddNode("n"+strconv.Itoa(i), mb)
	}
	t.Cleanup(func() { checkCluster(t, c) })
	return b
}

func (b *bed) node(i int) *Node { return b.cluster.nodes[i] }

// function returns the function of a job such as "big.3": name, and id.
func (b *bed) function(name string) *Function {
	mb := map[string]int64{"big": 800, "small": 100}[name]
	if mb == 0 {
		mb = 400
	}
	return b.cluster.Intern(name+"@1", name, mb)
}

func (b *bed) submit(id string) (*Job, Placement, bool) {
	name, _, _ := strings.Cut(id, ".")
	j := &Job{ID: id, Function: b.function(name), Arrived: b.now}
	p, ok := b.Submit(j, b.now)
	return j, p, ok
}

// placed submits a job that must find a place.
func (b *bed) placed(id string) (*Job, Placement) {
	b.t.Helper()
	j, p, ok := b.submit(id)
	if !ok {
		b.t.Fatalf("%s found no place", id)
	}
	return j, p
}

// queued submits a job that must not find a place.
func (b *bed) queued(id string) *Job {
	b.t.Helper()
	j, p, ok := b.submit(id)
	if ok {
		b.t.Fatalf("%s was placed on %s", id, p.Node.Name())
	}
	return j
}

// done ends a job and reports its container idle.
func (b *bed) done(j *Job, container string) {
	n := j.Node()
	b.Finish(j)
	b.Apply(n, []Change{b.change(container, Idle, j)}, b.now)
}

func (b *bed) change(container string, s State, j *Job) Change {
	ch := Change{Container: container, State: s, Function: j.Function, MemoryMB: j.Function.MemoryMB}
	if s == Busy || s == Starting {
		ch.Job = j.ID
	}
	return ch
}

func (b *bed) drained() []string {
	var out []string
	for _, p := range b.Drain(b.now) {
		out = append(out, p.Job.ID)
	}
	return out
}

func (b *bed) expect(what string, got, want any) {
	b.t.Helper()
	if d := cmp.Diff(want, got, identical()); d != "" {
		b.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// identical compares the cluster's records by identity.
func identical() cmp.Option {
	return cmp.Options{
		cmp.AllowUnexported(Placement{}),
		cmp.Comparer(func(a, b *Job) bool { return a == b }),
		cmp.Comparer(func(a, b *Node) bool { return a == b }),
		cmp.Comparer(func(a, b *Function) bool { return a == b }),
		cmp.Comparer(func(a, b *Container) bool { return a == b }),
	}
}

func ids(jobs []*Job) []string {
	var out []string
	for _, j := range jobs {
		out = append(out, j.ID)
	}
	return out
}

func TestAContainerGrainedChoiceIsCommitted(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	a, p := b.placed("a.1")
	b.expect("cold start", p, Placement{Job: a, Node: b.node(0), Container: "c1", Function: a.Function})
	b.expect("available", b.node(0).AvailableMB(), int64(600))
	b.Apply(b.node(0), []Change{{Container: "c1", State: Busy, Function: a.Function, MemoryMB: 400, Job: "a.1", Cold: time.Second}}, b.now)
	b.done(a, "c1")

	again, p := b.placed("a.2")
	b.expect("warm start", p, Placement{Job: again, Node: b.node(0), Expect: "c1", Container: "c2", Function: a.Function})
	b.done(again, "c1")

	big, p := b.placed("big.1")
	b.expect("eviction", p, Placement{Job: big, Node: b.node(0), Container: "c3", Evict: []string{"c1"}, Function: big.Function})
	b.expect("what the policy heard", b.policy.heard, []string{
		"arrived a", "c1 starting", "a took 1s", "c1 busy", "c1 idle", "arrived a", "c1 busy", "c1 idle", "arrived big", "c1 gone", "c3 starting"})
}

func TestANodeGrainedChoiceReservesMemoryUntilTheInvokerTells(t *testing.T) {
	b := newBed(t, NodeGrained, 1000)
	a, p := b.placed("a.1")
	b.expect("placement", p, Placement{Job: a, Node: b.node(0), Container: "c1", AnyWarm: true, Function: a.Function})
	b.expect("reserved", [2]int64{b.node(0).ReservedMB(), b.node(0).AvailableMB()}, [2]int64{400, 600})
	b.Apply(b.node(0), []Change{b.change("c1", Busy, a)}, b.now)
	b.expect("told", [2]int64{b.node(0).ReservedMB(), b.node(0).AvailableMB()}, [2]int64{0, 600})
	b.done(a, "c1")

	// The invoker uses the idle container, and tells of the start and the end
	// at once.
	second, _ := b.placed("a.2")
	b.Finish(second)
	b.Apply(b.node(0), []Change{{Container: "c2", State: Gone}, b.change("c1", Busy, second), b.change("c1", Idle, second)}, b.now)
	b.expect("afterwards", [3]int64{b.node(0).ReservedMB(), b.node(0).BusyMB(), b.node(0).IdleMB()}, [3]int64{0, 0, 400})
}

func TestAnExpectedContainerThatIsGoneIsReplacedByTheSpare(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	first, _ := b.placed("a.1")
	b.done(first, "c1")
	j, p := b.placed("a.2")
	b.Apply(b.node(0), []Change{{Container: p.Expect, State: Gone}, b.change(p.Container, Busy, j)}, b.now)
	if c := j.Container(); c.ID() != "c2" || c.Job() != j || b.node(0).BusyMB() != 400 {
		t.Errorf("the job runs in %s, and %d MiB are busy", c.ID(), b.node(0).BusyMB())
	}
}

func TestAnIdleReportFromBeforeTheNextJobIsIgnored(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	first, _ := b.placed("a.1")
	b.done(first, "c1")
	j, _ := b.placed("a.2")
	b.Apply(b.node(0), []Change{b.change("c1", Idle, j)}, b.now)
	if j.Container().State() != Busy {
		t.Errorf("the container is %v, and could be given to another job", j.Container().State())
	}
}

func TestAContainerThatWasNeverMadeIsForgottenWithTheResult(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	j, _ := b.placed("a.1")
	b.Finish(j) // failed before there was a container
	b.Apply(b.node(0), nil, b.now)
	b.expect("memory in use", b.node(0).BusyMB(), int64(0))
}

func TestAJobThatRunsElsewhereGivesUpTheContainerMadeForIt(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	first, _ := b.placed("a.1")
	second, _ := b.placed("a.2")
	b.done(first, "c1")
	b.Apply(b.node(0), []Change{b.change("c1", Busy, second)}, b.now)
	b.expect("memory in use", b.node(0).BusyMB(), int64(400))
	if second.Container().ID() != "c1" {
		t.Errorf("the job runs in %s", second.Container().ID())
	}
}

func TestTwoJobsInOneContainerAreToldApart(t *testing.T) {
	b := newBed(t, ContainerGrained, 2000)
	first, _ := b.placed("a.1")
	b.done(first, "c1")
	onItsWay, _ := b.placed("a.2") // expects c1
	other, _ := b.placed("a.3")    // is to start c3
	b.Apply(b.node(0), []Change{b.change("c1", Busy, other)}, b.now)
	if other.Container().ID() != "c1" || onItsWay.Container().ID() != "c2" {
		t.Errorf("the jobs are in %s and %s", other.Container().ID(), onItsWay.Container().ID())
	}
	b.expect("memory in use", b.node(0).BusyMB(), int64(800))
}

func TestJobsOfAFunctionKeepTheirOrder(t *testing.T) {
	b := newBed(t, ContainerGrained, 800)
	running, _ := b.placed("big.1")
	for i := 2; i < 5; i++ {
		b.queued("big." + strconv.Itoa(i))
	}
	b.expect("queued", [2]int{b.Queued(), running.Function.Waiting()}, [2]int{3, 3})
	b.done(running, "c1")
	b.expect("drained", b.drained(), []string{"big.2"})
}

func TestARequeuedJobComesFirst(t *testing.T) {
	b := newBed(t, ContainerGrained, 800)
	j, _ := b.placed("big.1")
	b.now = b.now.Add(time.Second)
	b.queued("big.2")
	b.Requeue(j)
	b.expect("memory in use", b.node(0).BusyMB(), int64(0))
	b.expect("drained", b.drained(), []string{"big.1"})
	b.Requeue(b.Job("big.1"))
	b.Requeue(j) // twice does no harm
	b.expect("queued", b.Queued(), 2)
}

func TestALostJobCanBeRequeued(t *testing.T) {
	b := newBed(t, ContainerGrained, 800, 800)
	j, _ := b.placed("big.1")
	lost := b.Lose(b.node(0), b.now)
	b.expect("lost", ids(lost), []string{"big.1"})
	b.Requeue(lost[0])
	b.expect("drained", b.drained(), []string{"big.1"})
	if j.Node() != b.node(1) {
		t.Error("the job is not on the other node")
	}
}

func TestDeadlinesHoldBehindJobsThatHaveNone(t *testing.T) {
	b := newBed(t, ContainerGrained, 800)
	b.placed("big.1")
	b.queued("big.2")
	for i, seconds := range []int{9, 3, 5} {
		j := &Job{ID: "big." + strconv.Itoa(3+i), Function: b.function("big"), Arrived: b.now, Deadline: b.now.Add(time.Duration(seconds) * time.Second)}
		b.Submit(j, b.now)
	}
	if got := b.NextDeadline(); !got.Equal(start.Add(3 * time.Second)) {
		t.Errorf("the next deadline is %v", got)
	}
	b.expect("expired", ids(b.Expire(start.Add(5*time.Second))), []string{"big.4", "big.5"})
	b.expect("expired again", ids(b.Expire(start.Add(5*time.Second))), []string(nil))
	b.expect("queued", b.Queued(), 2)
}

func TestACancelledJobIsGone(t *testing.T) {
	b := newBed(t, ContainerGrained, 800)
	running, _ := b.placed("big.1")
	waiting := b.queued("big.2")
	b.expect("cancel", []bool{b.Cancel(waiting), b.Cancel(waiting), b.Cancel(running)}, []bool{true, false, false})
	b.done(running, "c1")
	b.expect("drained", b.drained(), []string(nil))
	b.cluster.Retire(running.Function)
	b.Apply(b.node(0), []Change{{Container: "c1", State: Gone}}, b.now)
	b.expect("forgotten", b.policy.forgotten, []string{"big"})
}

func TestTheLongestWaitingComeFirstAsFarAsTheyFit(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	x, _ := b.placed("x.1")
	y, _ := b.placed("y.1")
	for _, id := range []string{"big.1", "z.1", "w.1"} {
		b.now = b.now.Add(time.Millisecond)
		b.queued(id)
	}
	b.done(x, "c1")
	b.expect("drained", b.drained(), []string{"z.1"})
	b.done(y, "c2")
	b.expect("drained", b.drained(), []string{"w.1"})
}

func TestWarmStartsComeBeforeEvictions(t *testing.T) {
	for _, tc := range []struct {
		grain Grain
		want  string
	}{{ContainerGrained, "x.2"}, {NodeGrained, "y.1"}} {
		b := newBed(t, tc.grain, 400)
		x, p := b.placed("x.1")
		b.now = b.now.Add(time.Millisecond)
		b.queued("y.1")
		b.now = b.now.Add(time.Millisecond)
		b.queued("x.2")
		b.done(x, p.Container)
		b.expect("drained", b.drained(), []string{tc.want})
	}
}

func TestWarmStartsOvertakeAnAgedJobOnlySoOften(t *testing.T) {
	b := newBed(t, ContainerGrained, 400)
	running, p := b.placed("x.0")
	b.SetPatience(0)
	b.queued("y.1")
	for i := range 100 {
		b.queued("x." + strconv.Itoa(i+1))
	}
	b.now = b.now.Add(agedAfter)
	for i := range maxOvertakes + 1 {
		b.done(running, p.Container)
		placements := b.Drain(b.now)
		if len(placements) != 1 {
			t.Fatalf("%d jobs were placed", len(placements))
		}
		running = placements[0].Job
		if running.ID == "y.1" {
			b.expect("overtaken", i, maxOvertakes)
			return
		}
	}
	t.Errorf("an aged job was overtaken more than %d times", maxOvertakes)
}

func TestALargeJobRunsInTheEndHoweverManySmallOnesCome(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000, 1000)
	type run struct {
		job *Job
		end time.Time
	}
	var running []run
	n := 0
	b.placed("big.0")
	large := &Job{ID: "large", Function: b.cluster.Intern("large@1", "large", 1000), Arrived: b.now}
	begin := func(p Placement) { running = append(running, run{p.Job, b.now.Add(time.Second)}) }
	for range 400 { // every 100 ms, for 40 s
		b.now = b.now.Add(100 * time.Millisecond)
		var left []run
		for _, r := range running {
			if b.now.Before(r.end) {
				left = append(left, r)
			} else {
				b.done(r.job, r.job.Container().ID())
			}
		}
		running = left
		for _, p := range b.Drain(b.now) {
			begin(p)
		}
		for range 3 {
			n++
			if _, p, ok := b.submit("small." + strconv.Itoa(n)); ok {
				begin(p)
			}
		}
		if n == 30 {
			if p, ok := b.Submit(large, b.now); ok {
				t.Fatalf("the large job was placed at once on %v", p.Node)
			}
		}
		if large.Node() != nil {
			if waited := b.now.Sub(large.Arrived); waited < DefaultPatience || waited > 2*DefaultPatience+2*time.Second {
				t.Errorf("the large job waited for %v", waited)
			}
			if b.saved.job == large {
				t.Error("a node is still saved for it")
			}
			return
		}
	}
	t.Error("the large job never ran")
}

func TestASavedNodeIsGivenBackWhenItsJobGoes(t *testing.T) {
	for name, leave := range map[string]func(b *bed, j *Job){
		"cancelled": func(b *bed, j *Job) { b.Cancel(j) },
		"expired":   func(b *bed, j *Job) { b.Expire(b.now.Add(time.Hour)) },
		"lost":      func(b *bed, j *Job) { b.Lose(b.node(0), b.now) },
		"offline":   func(b *bed, j *Job) { b.cluster.SetOnline(b.node(0), false); b.Drain(b.now) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, ContainerGrained, 1000)
			b.placed("a.1")
			j := &Job{ID: "big.1", Function: b.function("big"), Arrived: b.now, Deadline: b.now.Add(time.Minute)}
			b.Submit(j, b.now)
			b.now = b.now.Add(DefaultPatience)
			b.Drain(b.now)
			if !b.node(0).held {
				t.Fatal("no node is saved")
			}
			b.queued("small.1")
			leave(b, j)
			if b.node(0).held {
				t.Error("the node is still saved")
			}
		})
	}
}

func TestNoNodeIsSavedForAJobThatFitsNone(t *testing.T) {
	b := newBed(t, ContainerGrained, 500)
	b.queued("big.1")
	b.now = b.now.Add(time.Hour)
	b.expect("drained", b.drained(), []string(nil))
	b.placed("a.1")
	b.expect("largest node", b.cluster.LargestMB(), int64(500))
}

func TestADrainOfManyFunctionsAsksOnlyForWhatFits(t *testing.T) {
	b := newBed(t, ContainerGrained, 800)
	running, p := b.placed("big.0")
	for i := range 1000 {
		b.now = b.now.Add(time.Microsecond)
		j := &Job{ID: "j" + strconv.Itoa(i), Function: b.cluster.Intern("f"+strconv.Itoa(i), "f"+strconv.Itoa(i), 300), Arrived: b.now}
		b.Submit(j, b.now)
	}
	asked := 0
	b.Scheduler.policy = counting{b.policy, &asked}
	b.done(running, p.Container)
	b.expect("drained", b.drained(), []string{"j0", "j1"})
	b.expect("asked", asked, 2)
	b.expect("classes", len(b.waits.classes), 1)
}

type counting struct {
	Policy
	asked *int
}

func (c counting) Choose(v View, r Request) Decision {
	*c.asked++
	return c.Policy.Choose(v, r)
}

func TestABrokenPolicyIsNotObeyed(t *testing.T) {
	for name, choose := range map[string]func(b *bed, idle *Container) Decision{
		"a node that does not fit": func(b *bed, _ *Container) Decision { return Decision{Node: b.node(1)} },
		"a container that is busy": func(b *bed, idle *Container) Decision {
			b.cluster.SetState(idle, Busy, b.now)
			return Decision{Node: b.node(0), Container: idle}
		},
		"a container of another node":      func(b *bed, idle *Container) Decision { return Decision{Node: b.node(2), Container: idle} },
		"a victim that is not on the node": func(b *bed, idle *Container) Decision { return Decision{Node: b.node(2), Victims: []*Container{idle}} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, ContainerGrained, 1000, 10, 1000)
			j, _ := b.placed("a.1")
			b.done(j, "c1")
			d := choose(b, b.cluster.Lookup(b.node(0), "c1"))
			b.Scheduler.policy = fixed{b.policy, d}
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "policy first-fit") {
					t.Errorf("recovered %v", r)
				}
			}()
			b.submit("a.2")
		})
	}
}

type fixed struct {
	Policy
	decision Decision
}

func (f fixed) Choose(View, Request) Decision { return f.decision }

func TestSchedulerKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		grain := rapid.SampledFrom([]Grain{NodeGrained, ContainerGrained}).Draw(t, "grain")
		policy := &firstFit{grain: grain}
		c := NewCluster(nil)
		containers := 0
		s := NewScheduler(c, policy, func() string { containers++; return strconv.Itoa(containers) })
		for i := range 3 {
			c.AddNode("n"+strconv.Itoa(i), 1000)
		}
		now := start
		jobs := 0
		placed, waiting := map[*Job]bool{}, map[*Job]bool{}
		place := func(p Placement) {
			delete(waiting, p.Job)
			placed[p.Job] = true
		}
		pick := func(t *rapid.T, set map[*Job]bool) *Job {
			var all []*Job
			for i := range jobs {
				for j := range set {
					if j.Value == i+1 {
						all = append(all, j)
					}
				}
			}
			if len(all) == 0 {
				t.Skip("none")
			}
			return rapid.SampledFrom(all).Draw(t, "job")
		}
		t.Repeat(map[string]func(*rapid.T){
			"submit": func(t *rapid.T) {
				jobs++
				k := rapid.IntRange(1, 4).Draw(t, "function")
				j := &Job{ID: "j" + strconv.Itoa(jobs), Function: c.Intern(strconv.Itoa(k), strconv.Itoa(k), int64(150*k)), Arrived: now, Value: jobs}
				if rapid.Bool().Draw(t, "deadline") {
					j.Deadline = now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second)
				}
				if p, ok := s.Submit(j, now); ok {
					place(p)
				} else {
					waiting[j] = true
				}
			},
			"finish": func(t *rapid.T) {
				j := pick(t, placed)
				n, f := j.Node(), j.Function
				container := "x" + j.ID
				if j.Container() != nil {
					container = j.Container().ID()
				}
				s.Finish(j)
				delete(placed, j)
				s.Apply(n, []Change{
					{Container: container, State: Busy, Function: f, MemoryMB: f.MemoryMB, Job: j.ID},
					{Container: container, State: rapid.SampledFrom([]State{Idle, Gone}).Draw(t, "state"), Function: f, MemoryMB: f.MemoryMB}}, now)
				// A node-grained invoker makes room itself.
				for n.FreeMB() < 0 && n.FirstVictim() != nil {
					s.Apply(n, []Change{{Container: n.FirstVictim().ID(), State: Gone}}, now)
				}
			},
			"requeue": func(t *rapid.T) {
				j := pick(t, placed)
				s.Requeue(j)
				delete(placed, j)
				waiting[j] = true
			},
			"cancel": func(t *rapid.T) {
				j := pick(t, waiting)
				if !s.Cancel(j) {
					t.Fatalf("%s does not wait", j.ID)
				}
				delete(waiting, j)
			},
			"expire": func(*rapid.T) {
				for _, j := range s.Expire(now) {
					if !waiting[j] || now.Before(j.Deadline) {
						t.Fatalf("%s expired", j.ID)
					}
					delete(waiting, j)
				}
			},
			"drain": func(*rapid.T) {
				for _, p := range s.Drain(now) {
					place(p)
				}
				for j := range waiting {
					if ViewOf(c).Fits(j.Function.MemoryMB) {
						t.Fatalf("%s waits although it fits", j.ID)
					}
				}
			},
			"lose": func(t *rapid.T) {
				n := rapid.SampledFrom(c.Nodes()).Draw(t, "node")
				for _, j := range s.Lose(n, now) {
					if !placed[j] {
						t.Fatalf("%s was lost and not placed", j.ID)
					}
					delete(placed, j)
				}
				if rapid.Bool().Draw(t, "back") {
					c.AddNode(n.Name(), 1000)
				}
			},
			"sync": func(t *rapid.T) {
				n := rapid.SampledFrom(c.Nodes()).Draw(t, "node")
				var full []Change
				for _, ct := range n.sorted() {
					if rapid.IntRange(0, 9).Draw(t, "known") == 0 {
						continue
					}
					ch := Change{Container: ct.id, State: ct.state, Function: ct.Function(), MemoryMB: ct.memoryMB, Used: ct.lastUsed}
					if ct.claim != nil {
						ch.Job = ct.claim.ID
					}
					full = append(full, ch)
				}
				for j := n.jobs.first; j != nil; j = j.next {
					j.Seq = uint64(rapid.IntRange(0, 2).Draw(t, "seq"))
				}
				for _, j := range s.Sync(n, full, 1, now) {
					if !placed[j] || j.Seq != 1 {
						t.Fatalf("%s was lost", j.ID)
					}
					delete(placed, j)
				}
			},
			"prewarm": func(t *rapid.T) {
				k := rapid.IntRange(1, 4).Draw(t, "function")
				s.Prewarm(c.Intern(strconv.Itoa(k), strconv.Itoa(k), int64(150*k)), rapid.SampledFrom(c.Nodes()).Draw(t, "node"), now)
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
			},
			"": func(t *rapid.T) {
				checkCluster(t, c)
				if s.Queued() != len(waiting) || s.Running() != len(placed) {
					t.Fatalf("%d wait and %d run, not %d and %d", len(waiting), len(placed), s.Queued(), s.Running())
				}
				for j := range placed {
					if ct := j.Container(); ct != nil && (ct.claim != j || ct.state.evictable()) {
						t.Fatalf("the container of %s is not its own", j.ID)
					}
				}
				for _, n := range c.Nodes() {
					if grain == ContainerGrained && n.BusyMB() > n.CapacityMB() {
						t.Fatalf("node %s has %d of %d MiB busy", n.Name(), n.BusyMB(), n.CapacityMB())
					}
				}
			},
		})
	})
}
