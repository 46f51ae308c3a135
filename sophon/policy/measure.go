package policy

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/volley-run/volley/sophon"
)

// MeasureConfig describes the cluster and load that a policy is measured with.
// Zero is the default.
type MeasureConfig struct {
	// Invokers is how many nodes there are; default 100.
	Invokers int
	// MemoryMB is the capacity of each; default 20 GiB.
	MemoryMB int64
	// Duration is for how long to measure; default 1 s.
	Duration time.Duration
}

// Measurement is how fast a policy decides.
type Measurement struct {
	Policy   string `json:"policy"`
	Invokers int    `json:"invokers"`
	Sample   int    `json:"sample"`
	// Decisions is how many were made. PerSecond is the rate at which one core
	// makes them: takes an invocation in, places it and commits that.
	Decisions int     `json:"decisions"`
	PerSecond float64 `json:"decisions_per_second"`
	// CyclesPerSecond is the rate of all that a scheduler does for an invocation,
	// its end and its container's changes included, and of driving the load.
	CyclesPerSecond float64 `json:"cycles_per_second"`
	// P50, P99 and Max are how long taking in, placing and committing took, in
	// nanoseconds.
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
	// Warm, Cold and Evicting are shares of the decisions: those that used an
	// idle container, those that did not, and of these that evicted some.
	// Waited is the share that fitted nowhere.
	Warm     float64 `json:"warm_share"`
	Cold     float64 `json:"cold_share"`
	Evicting float64 `json:"evicting_share"`
	Waited   float64 `json:"waited_share"`
}

const (
	measuredMemoryMB = 20 << 10
	// functionsPerNode is how many functions there are for each node, within
	// bounds.
	functionsPerNode, minFunctions, maxFunctions = 100, 500, 100_000
	// skew is the exponent of the functions' popularity: five functions make
	// up about half of the invocations (thesis 4.2).
	skew = 1.4
	// activeShare is the part of the memory that is in use.
	activeShare = 0.3
	// maxWarmUp bounds the time before the measurement, in durations of it.
	maxWarmUp = 5
	// latencyEvery is how many decisions come on each whose time is taken.
	latencyEvery = 8
	// batch is how many decisions are made before the time is looked at.
	batch = 256
	// applyStep is the virtual time between two invocations.
	applyStep = 100 * time.Microsecond
)

// Measure runs a policy in a scheduler, on a cluster in a steady state: the
// nodes are full of containers, most of them idle, popularity is skewed as in
// the Azure traces, and each invocation that arrives is followed by the end of
// an earlier one. It uses one core. It returns an error if there is no such
// policy or the context ends.
func Measure(ctx context.Context, name string, o Options, c MeasureConfig) (Measurement, error) {
	p, err := New(name, o)
	if err != nil {
		return Measurement{}, err
	}
	if c.Invokers <= 0 {
		c.Invokers = 100
	}
	if c.MemoryMB <= 0 {
		c.MemoryMB = measuredMemoryMB
	}
	if c.Duration <= 0 {
		c.Duration = time.Second
	}
	l := newLoad(p, o.Seed, c)
	begun := time.Now()
	for i := range 2 * l.mean {
		if i%256 == 0 {
			if ctx.Err() != nil {
				return Measurement{}, fmt.Errorf("measure policy %s: %w", name, ctx.Err())
			}
			if time.Since(begun) > maxWarmUp*c.Duration {
				break // what is slow gets steady enough for what is counted
			}
		}
		l.step(false)
	}
	l.placed, l.warm, l.evicting, l.waited = 0, 0, 0, 0
	m := Measurement{Policy: name, Invokers: c.Invokers, Sample: o.Sample}
	begun = time.Now()
	for elapsed := time.Duration(0); elapsed < c.Duration; elapsed = time.Since(begun) {
		if ctx.Err() != nil {
			return Measurement{}, fmt.Errorf("measure policy %s: %w", name, ctx.Err())
		}
		for i := range batch {
			l.step(i%latencyEvery == 0)
		}
		m.Decisions += batch
		m.CyclesPerSecond = float64(m.Decisions) / time.Since(begun).Seconds()
	}
	var sum time.Duration
	for _, d := range l.took {
		sum += d
	}
	m.PerSecond = float64(len(l.took)) / sum.Seconds()
	slices.Sort(l.took)
	m.P50, m.P99, m.Max = l.took[len(l.took)/2], l.took[len(l.took)*99/100], l.took[len(l.took)-1]
	all := float64(l.placed + l.waited)
	m.Warm, m.Cold = float64(l.warm)/all, float64(l.placed-l.warm)/all
	m.Evicting, m.Waited = float64(l.evicting)/all, float64(l.waited)/all
	return m, nil
}

// load drives a scheduler. The invokers are played without delay: their state
// is the scheduler's.
type load struct {
	scheduler *sophon.Scheduler
	now       time.Time
	steps     int
	// arrivals and durations, in steps, are drawn in advance and used in turns.
	arrivals  []*sophon.Function
	durations []int
	mean      int // of durations
	// wheel holds the jobs that end at each step to come.
	wheel   [][]*sophon.Job
	changes []sophon.Change
	took    []time.Duration
	ids     int

	placed, warm, evicting, waited int
}

func newLoad(p sophon.Policy, seed uint64, c MeasureConfig) *load {
	rng := rand.New(rand.NewPCG(seed, 99))
	cluster := sophon.NewCluster(nil)
	l := &load{now: time.Now()}
	l.scheduler = sophon.NewScheduler(cluster, p, l.newID)
	functions := make([]*sophon.Function, min(max(minFunctions, functionsPerNode*c.Invokers), maxFunctions))
	cumulated := make([]float64, len(functions))
	sum, meanMB := 0.0, 0.0
	for i := range functions {
		name := "function-" + strconv.Itoa(i)
		functions[i] = cluster.Intern(name+"@1", name, int64(128*(1+rng.IntN(3))))
		share := math.Pow(float64(i+2), -skew)
		sum += share
		meanMB += share * float64(functions[i].MemoryMB)
		cumulated[i] = sum
	}
	meanMB /= sum
	draw := func() *sophon.Function {
		i, _ := slices.BinarySearch(cumulated, rng.Float64()*sum)
		return functions[min(i, len(functions)-1)]
	}
	l.mean = max(1, int(activeShare*float64(c.MemoryMB)*float64(c.Invokers)/meanMB))
	const drawn = 1 << 17
	longest := 8 * l.mean
	for range drawn {
		l.arrivals = append(l.arrivals, draw())
		l.durations = append(l.durations, 1+min(longest-2, int(rng.ExpFloat64()*float64(l.mean))))
	}
	l.wheel = make([][]*sophon.Job, longest)
	l.fill(cluster, c, rng, functions, draw)
	return l
}

// fill makes the nodes full of idle containers: half of them of functions as
// they are called, half of any.
func (l *load) fill(cluster *sophon.Cluster, c MeasureConfig, rng *rand.Rand, functions []*sophon.Function, draw func() *sophon.Function) {
	for i := range c.Invokers {
		n := cluster.AddNode("invoker"+strconv.Itoa(i), c.MemoryMB)
		l.changes = l.changes[:0]
		for free := c.MemoryMB; ; {
			f := functions[rng.IntN(len(functions))]
			if rng.IntN(2) == 0 {
				f = draw()
			}
			if free -= f.MemoryMB; free < 0 {
				break
			}
			l.changes = append(l.changes, sophon.Change{Container: l.newID(), State: sophon.Idle, Function: f, MemoryMB: f.MemoryMB,
				Used: l.now.Add(-time.Duration(rng.ExpFloat64() * float64(time.Minute)))})
		}
		l.scheduler.Apply(n, l.changes, l.now)
	}
}

func (l *load) newID() string {
	l.ids++
	return strconv.Itoa(l.ids)
}

// step lets one invocation arrive, and those end that are due.
func (l *load) step(timed bool) {
	l.steps++
	l.now = l.now.Add(applyStep)
	i := l.steps % len(l.arrivals)
	j := &sophon.Job{ID: l.newID(), Function: l.arrivals[i], Arrived: l.now}
	var begun time.Time
	if timed {
		begun = time.Now()
	}
	p, ok := l.scheduler.Submit(j, l.now)
	if timed {
		l.took = append(l.took, time.Since(begun))
	}
	if ok {
		l.begin(p)
	} else {
		l.waited++
	}
	slot := l.steps % len(l.wheel)
	due := l.wheel[slot]
	for k, j := range due {
		due[k] = nil
		l.end(j)
	}
	l.wheel[slot] = due[:0]
}

// begin plays the invoker that gets a placement.
func (l *load) begin(p sophon.Placement) {
	l.placed++
	l.changes = l.changes[:0]
	evicts := len(p.Evict) > 0
	f := p.Function
	container := p.Container
	switch {
	case p.Expect != "":
		l.warm++
		container = ""
	case p.AnyWarm:
		if g := p.Node.Group(f); g != nil && g.Newest() != nil {
			l.warm++
			container = g.Newest().ID()
			l.changes = append(l.changes, sophon.Change{Container: p.Container, State: sophon.Gone})
			break
		}
		free := p.Node.FreeMB() // the new container counts already
		for c := p.Node.FirstVictim(); c != nil && free < 0; c = c.NextVictim() {
			evicts = true
			free += c.MemoryMB()
			l.changes = append(l.changes, sophon.Change{Container: c.ID(), State: sophon.Gone})
		}
	}
	if evicts {
		l.evicting++
	}
	if container != "" {
		ch := sophon.Change{Container: container, State: sophon.Busy, Function: f, MemoryMB: f.MemoryMB, Job: p.Job.ID}
		if container == p.Container {
			ch.Cold = 500 * time.Millisecond
		}
		l.changes = append(l.changes, ch)
		l.scheduler.Apply(p.Node, l.changes, l.now)
	}
	slot := (l.steps + l.durations[l.steps%len(l.durations)]) % len(l.wheel)
	l.wheel[slot] = append(l.wheel[slot], p.Job)
}

// end plays the invoker that reports a result.
func (l *load) end(j *sophon.Job) {
	n, c := j.Node(), j.Container()
	l.scheduler.Finish(j)
	l.changes = append(l.changes[:0], sophon.Change{Container: c.ID(), State: sophon.Idle, Function: j.Function, MemoryMB: c.MemoryMB()})
	l.scheduler.Apply(n, l.changes, l.now)
	for _, p := range l.scheduler.Drain(l.now) {
		l.begin(p)
	}
}
