package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon"
)

// metrics is what operators see. A nil one counts nothing.
type metrics struct {
	registerer prometheus.Registerer
	collector  *collector

	invocations *prometheus.CounterVec
	steps       [stepCount]prometheus.Observer
	stale       prometheus.Counter
	refusals    prometheus.Counter
	retries     prometheus.Counter
	deadLetters prometheus.Counter
	records     *prometheus.CounterVec

	all []prometheus.Collector
}

// step is a part of an invocation whose duration is measured.
type step int

const (
	stepQueued step = iota
	stepDecision
	stepStart
	stepRun
	stepTotal
	stepCount
)

func (s step) String() string {
	return [stepCount]string{"queued", "decision", "start", "run", "total"}[s]
}

// newMetrics makes and registers the metrics; nil where there is no registerer.
func newMetrics(c *Controller, r prometheus.Registerer) (*metrics, error) {
	if r == nil {
		return nil, nil
	}
	m := &metrics{registerer: r, collector: newCollector(c)}
	m.invocations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "volley_invocations_total",
		Help: "Invocations that have ended, by function, outcome (ok, function_error, or a platform error's code) and whether a container was started for them.",
	}, []string{"function", "outcome", "cold"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "volley_invocation_seconds",
		Help:    "What an invocation's time was spent on: waiting for a place, deciding, starting a container, running, and in total.",
		Buckets: prometheus.ExponentialBuckets(1e-6, 4, 16),
	}, []string{"step"})
	for s := range stepCount {
		m.steps[s] = seconds.WithLabelValues(s.String())
	}
	m.stale = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "volley_stale_decisions_total", Help: "Decisions whose expected container was gone or busy when they arrived."})
	m.refusals = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "volley_refusals_total", Help: "Invocations that an invoker gave back."})
	m.retries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "volley_async_retries_total", Help: "Asynchronous invocations that were put back to be tried again."})
	m.deadLetters = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "volley_async_dead_letters_total", Help: "Asynchronous invocations that failed for good."})
	m.records = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "volley_async_records_total", Help: "Outcomes of asynchronous invocations that were recorded."}, []string{"status"})
	m.all = []prometheus.Collector{m.invocations, seconds, m.stale, m.refusals, m.retries, m.deadLetters, m.records, m.collector}
	for i, x := range m.all {
		if err := r.Register(x); err != nil {
			for _, done := range m.all[:i] {
				r.Unregister(done)
			}
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m == nil {
		return
	}
	for _, x := range m.all {
		m.registerer.Unregister(x)
	}
}

// functionMetrics are the counters of one function, looked up once.
type functionMetrics struct {
	vec  *prometheus.CounterVec
	name string

	mu       sync.Mutex
	counters map[outcome]prometheus.Counter
}

type outcome struct {
	word string
	cold bool
}

func (m *metrics) function(name string) *functionMetrics {
	if m == nil {
		return nil
	}
	return &functionMetrics{vec: m.invocations, name: name, counters: map[outcome]prometheus.Counter{}}
}

// forget drops the series of a function that is deleted.
func (m *metrics) forget(name string) {
	if m != nil {
		m.invocations.DeletePartialMatch(prometheus.Labels{"function": name})
	}
}

func (f *functionMetrics) count(o outcome) {
	f.mu.Lock()
	c := f.counters[o]
	if c == nil {
		cold := "false"
		if o.cold {
			cold = "true"
		}
		c = f.vec.WithLabelValues(f.name, o.word, cold)
		f.counters[o] = c
	}
	f.mu.Unlock()
	c.Inc()
}

// observe counts an invocation that has ended for its caller.
func (m *metrics) observe(k *call, err error) {
	if m == nil {
		return
	}
	switch {
	case err != nil:
		k.revision.usage.metrics.count(outcome{errorWord(err), false})
		return
	case k.result.FunctionError != "":
		k.revision.usage.metrics.count(outcome{"function_error", k.result.Cold})
	default:
		k.revision.usage.metrics.count(outcome{"ok", k.result.Cold})
	}
	if !k.placed.IsZero() {
		m.steps[stepQueued].Observe(k.placed.Sub(k.accepted).Seconds())
		if k.decision > 0 {
			m.steps[stepDecision].Observe(k.decision.Seconds())
		}
	}
	if k.result.Cold {
		m.steps[stepStart].Observe(k.result.Start.Seconds())
	}
	m.steps[stepRun].Observe(k.result.Run.Seconds())
	m.steps[stepTotal].Observe(time.Since(k.accepted).Seconds())
}

// refused counts an invocation that was not accepted.
func (m *metrics) refused(k *call, err error) {
	if m != nil {
		m.invocations.WithLabelValues(k.inv.Function, errorWord(err), "false").Inc()
	}
}

func errorWord(err error) string {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return "cancelled"
	}
	return string(function.CodeOf(err))
}

func (m *metrics) countStale(n uint32) {
	if m != nil {
		m.stale.Add(float64(n))
	}
}

func (m *metrics) countRefusal() {
	if m != nil {
		m.refusals.Inc()
	}
}

func (m *metrics) countRetry() {
	if m != nil {
		m.retries.Inc()
	}
}

func (m *metrics) countRecord(r *Record) {
	if m == nil {
		return
	}
	m.records.WithLabelValues(string(r.Status)).Inc()
	if r.Status == Failed {
		m.deadLetters.Inc()
	}
}

// collector reads the term's state when it is asked for.
type collector struct {
	c *Controller

	leader, queued, underWay, async, memory, capacity, containers, online *prometheus.Desc
}

func newCollector(c *Controller) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("volley_"+name, help, labels, nil)
	}
	return &collector{
		c:          c,
		leader:     desc("controller_leader", "1 while this controller leads."),
		queued:     desc("queue_length", "Invocations that wait for a place."),
		underWay:   desc("invocations_under_way", "Invocations that were accepted and have not ended."),
		async:      desc("async_queue_length", "Asynchronous invocations that are stored and have not ended."),
		memory:     desc("node_memory_mib", "Memory that containers hold, by invoker and use (busy, idle).", "invoker", "use"),
		capacity:   desc("node_capacity_mib", "Memory for containers, by invoker.", "invoker"),
		containers: desc("containers", "Containers by state.", "state"),
		online:     desc("node_online", "1 for an invoker that answers.", "invoker"),
	}
}

func (l *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.leader, l.queued, l.underWay, l.async, l.memory, l.capacity, l.containers, l.online} {
		ch <- d
	}
}

// scrapeTimeout bounds what a scrape waits for the bus.
const scrapeTimeout = time.Second

func (l *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	t := l.c.term.Load()
	if t == nil {
		gauge(l.leader, 0)
		return
	}
	gauge(l.leader, 1)
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	if n, err := l.c.async.len(ctx); err == nil {
		gauge(l.async, float64(n))
	}
	type node struct {
		name                 string
		busy, idle, capacity int64
		online               bool
	}
	var nodes []node
	states := map[sophon.State]int{sophon.Starting: 0, sophon.Busy: 0, sophon.Idle: 0, sophon.Paused: 0}
	t.mu.Lock()
	queued, underWay := t.sched.Queued(), t.underWay
	for _, n := range t.cluster.Nodes() {
		nodes = append(nodes, node{n.Name(), n.BusyMB(), n.IdleMB(), n.CapacityMB(), n.Online()})
		for c := range n.Containers {
			states[c.State()]++
		}
	}
	t.mu.Unlock()
	gauge(l.queued, float64(queued))
	gauge(l.underWay, float64(underWay))
	for s, n := range states {
		gauge(l.containers, float64(n), s.String())
	}
	for _, n := range nodes {
		gauge(l.memory, float64(n.busy), n.name, "busy")
		gauge(l.memory, float64(n.idle), n.name, "idle")
		gauge(l.capacity, float64(n.capacity), n.name)
		up := 0.0
		if n.online {
			up = 1
		}
		gauge(l.online, up, n.name)
	}
}
