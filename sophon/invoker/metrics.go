package invoker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/volley-run/volley/sophon"
	"github.com/volley-run/volley/sophon/wire"
)

// metrics is what an Invoker counts.
type metrics struct {
	coldStarts      prometheus.Histogram
	startFailures   prometheus.Counter
	runSeconds      prometheus.Histogram
	succeeded       prometheus.Counter
	functionFailed  prometheus.Counter
	platformFailed  prometheus.Counter
	stale           prometheus.Counter
	refusals        prometheus.Counter
	logLinesDropped prometheus.Counter
	ended           *prometheus.CounterVec
}

// newMetrics makes the metrics of an invoker, and registers them if it may.
func newMetrics(v *Invoker, r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "volley_invoker_" + name, Help: help})
	}
	runs := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "volley_invoker_runs_total", Help: "Invocations by how they ended.",
	}, []string{"outcome"})
	m := &metrics{
		coldStarts: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "volley_invoker_cold_start_seconds", Help: "How long containers took to start.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
		runSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "volley_invoker_run_seconds", Help: "How long invocations were in function code.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 18),
		}),
		startFailures:   counter("start_failures_total", "Containers that could not be started."),
		succeeded:       runs.WithLabelValues("ok"),
		functionFailed:  runs.WithLabelValues("function_error"),
		platformFailed:  runs.WithLabelValues("platform_error"),
		stale:           counter("stale_total", "Choices of the controller whose expectations did not hold."),
		refusals:        counter("refusals_total", "Invocations and starts given back to the controller."),
		logLinesDropped: counter("log_lines_dropped_total", "Log lines lost because the bus was slow."),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "volley_invoker_containers_ended_total", Help: "Containers that were closed, by reason; \"memory\" is eviction.",
		}, []string{"reason"}),
	}
	if r == nil {
		return m, nil
	}
	r = prometheus.WrapRegistererWith(prometheus.Labels{"invoker": v.config.Name}, r)
	collectors := []prometheus.Collector{m.coldStarts, m.runSeconds, m.startFailures, runs, m.stale, m.refusals, m.logLinesDropped, m.ended}
	collectors = append(collectors, v.gauges()...)
	for i, c := range collectors {
		if err := r.Register(c); err != nil {
			for _, done := range collectors[:i] {
				r.Unregister(done)
			}
			return nil, err
		}
	}
	return m, nil
}

// gauges are read off the pool when they are asked for.
func (v *Invoker) gauges() []prometheus.Collector {
	var out []prometheus.Collector
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		out = append(out, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "volley_invoker_" + name, Help: help, ConstLabels: labels}, value))
	}
	for _, s := range []sophon.State{sophon.Starting, sophon.Busy, sophon.Idle, sophon.Paused} {
		gauge("containers", "Containers by state.", prometheus.Labels{"state": s.String()}, func() float64 { return float64(v.count(s)) })
	}
	memory := func(state string, value func(*sophon.Node) int64) {
		gauge("memory_bytes", "Memory reserved for containers.", prometheus.Labels{"state": state}, func() float64 {
			v.mu.Lock()
			defer v.mu.Unlock()
			return float64(value(v.pool.Node()) << 20)
		})
	}
	memory("busy", (*sophon.Node).BusyMB)
	memory("idle", (*sophon.Node).IdleMB)
	memory("free", (*sophon.Node).FreeMB)
	return out
}

func (m *metrics) evictions(reason string) prometheus.Counter { return m.ended.WithLabelValues(reason) }

// ran counts an invocation that has ended.
func (m *metrics) ran(res *wire.Result) {
	switch {
	case len(res.GetError()) > 0:
		m.platformFailed.Inc()
		return
	case res.GetFunctionError() != "":
		m.functionFailed.Inc()
	default:
		m.succeeded.Inc()
	}
	m.runSeconds.Observe(float64(res.GetRunNano()) / 1e9)
}
