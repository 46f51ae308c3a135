package compare

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volley-run/volley/internal/plot"
)

// The groups of figures that Draw knows.
const (
	OverTime         = "over-time"  // 4.2 to 4.9
	ThroughputFigure = "throughput" // 4.10
	LatencyFigure    = "latency"    // 4.11, 4.12
	ColdFigure       = "cold"       // 4.13, 4.14
	MemoryFigure     = "memory"     // 4.15
	ScaleFigure      = "scale"      // 4.16
)

// Figures returns the names of the groups of figures.
func Figures() []string {
	return []string{OverTime, ThroughputFigure, LatencyFigure, ColdFigure, MemoryFigure, ScaleFigure}
}

// Draw draws the figures of the groups named, as far as there are data for
// them, into SVG and PNG files in a directory that is there.
func (r *Report) Draw(dir string, figures []string) error {
	d := drawing{report: r, dir: dir}
	if slices.Contains(figures, OverTime) {
		for _, s := range r.Series {
			d.overTime(s)
		}
	}
	for _, rows := range splitSeries(rows(r.Records)) {
		d.bars(rows, figures)
	}
	if slices.Contains(figures, LatencyFigure) {
		d.latency()
	}
	if slices.Contains(figures, ScaleFigure) {
		d.scale()
	}
	return d.err
}

// drawing draws until something fails.
type drawing struct {
	report *Report
	dir    string
	err    error
}

// path makes the name of a file of its parts.
func (d *drawing) path(memoryMB int64, parts ...string) string {
	if len(d.report.Options.MemoryMB) > 1 {
		parts = append(parts, strings.ReplaceAll(size(memoryMB), " ", ""))
	}
	return filepath.Join(d.dir, strings.ReplaceAll(strings.Join(parts, "-"), "/s", ""))
}

// overTime draws what happened in one run, as in figures 4.2 to 4.9.
func (d *drawing) overTime(s *Series) {
	if d.err != nil {
		return
	}
	const bin = 5 // seconds
	seconds := make([]float64, 0, len(s.Arrived)/bin)
	rate := func(counts []int) []float64 {
		var out []float64
		for i := 0; i+bin <= len(counts); i += bin {
			sum := 0
			for _, n := range counts[i : i+bin] {
				sum += n
			}
			out = append(out, float64(sum)/bin)
		}
		return out
	}
	var latency, mean []float64
	nodes := make([][]float64, d.report.Options.Invokers)
	for i := 0; i+bin <= len(s.Arrived); i += bin {
		seconds = append(seconds, float64(i+bin))
		sum, n := 0.0, 0
		for j := i; j < i+bin; j++ {
			sum += s.LatencyMS[j] * float64(s.Started[j])
			n += s.Started[j]
		}
		latency = append(latency, sum/float64(max(n, 1)))
		all := 0.0
		for k, mb := range s.ActiveMB[i+bin-1] {
			share := 100 * float64(mb) / float64(s.MemoryMB)
			nodes[k] = append(nodes[k], share)
			all += share / float64(len(nodes))
		}
		mean = append(mean, all)
	}
	var memory []plot.XY
	for _, y := range nodes {
		memory = append(memory, plot.XY{X: seconds, Y: y, Thin: true})
	}
	memory = append(memory, plot.XY{Name: "mean", X: seconds, Y: mean})
	title := fmt.Sprintf("%s at %s, %d invokers of %s, from minute %d", s.Policy, s.Load, len(nodes), size(s.MemoryMB), s.Start)
	d.err = plot.Panels(d.path(s.MemoryMB, "over-time", s.Policy, s.Load), []plot.Panel{
		{Figure: plot.Figure{Title: title, YLabel: "invocations/s"}, Lines: []plot.XY{
			{Name: "arrived", X: seconds, Y: rate(s.Arrived)}, {Name: "completed", X: seconds, Y: rate(s.Completed)}, {Name: "cold starts", X: seconds, Y: rate(s.Cold)},
		}},
		{Figure: plot.Figure{YLabel: "mean latency, ms"}, Lines: []plot.XY{{Name: "latency", X: seconds, Y: latency}}},
		{Figure: plot.Figure{XLabel: "time, s", YLabel: "active memory, %"}, Lines: memory},
	})
}

// bars draws the figures of one experiment and load.
func (d *drawing) bars(rows []Row, figures []string) {
	r := rows[0]
	at := fmt.Sprintf("%d invokers of %s", r.Invokers, size(r.MemoryMB))
	if r.Experiment == MaxThroughput {
		if slices.Contains(figures, ThroughputFigure) {
			d.bar(d.path(r.MemoryMB, "throughput"), plot.Figure{Title: "Maximum throughput, " + at, YLabel: "invocations/s"}, rows, 1, func(r Row) Spread { return r.Throughput })
		}
		return
	}
	if slices.Contains(figures, ColdFigure) {
		d.bar(d.path(r.MemoryMB, "cold-share", r.Load), plot.Figure{Title: "Cold starts at " + r.Load + ", " + at, YLabel: "share of invocations, %"}, rows, 100, func(r Row) Spread { return r.ColdShare })
		d.bar(d.path(r.MemoryMB, "cold-delay", r.Load), plot.Figure{Title: "Duration of a cold start at " + r.Load + ", " + at, YLabel: "ms"}, rows, 1, func(r Row) Spread { return r.ColdStartMS })
	}
	if slices.Contains(figures, MemoryFigure) {
		d.memory(rows)
	}
}

// bar draws medians; the error bars reach as far as the farther of the least
// and the most.
func (d *drawing) bar(path string, fig plot.Figure, rows []Row, scale float64, get func(Row) Spread) {
	if d.err != nil {
		return
	}
	groups := make([]string, len(rows))
	s := plot.Series{Values: make([]float64, len(rows)), Err: make([]float64, len(rows))}
	for i, r := range rows {
		v := get(r)
		groups[i], s.Values[i] = r.label(), v.Median*scale
		s.Err[i] = max(v.Max-v.Median, v.Median-v.Min) * scale
	}
	d.err = plot.Bars(path, fig, groups, []plot.Series{s})
}

// memory draws the mean memory in use; here the error bars are the standard
// deviation between nodes, as in figure 4.15.
func (d *drawing) memory(rows []Row) {
	if d.err != nil {
		return
	}
	r := rows[0]
	groups := make([]string, len(rows))
	s := plot.Series{Values: make([]float64, len(rows)), Err: make([]float64, len(rows))}
	for i, r := range rows {
		groups[i], s.Values[i], s.Err[i] = r.label(), 100*r.MemoryMean.Median, 100*r.Deviation.Median
	}
	d.err = plot.Bars(d.path(r.MemoryMB, "memory", r.Load), plot.Figure{
		Title:  fmt.Sprintf("Active memory and its deviation between nodes at %s, %d invokers of %s", r.Load, r.Invokers, size(r.MemoryMB)),
		YLabel: "share of memory, %",
	}, groups, []plot.Series{s})
}

// latency draws the distributions, all policies of one load in a figure, from
// the share up that the worst of them has at once.
func (d *drawing) latency() {
	type load struct {
		name     string
		memoryMB int64
	}
	type line struct {
		name      string
		ms, share []float64
	}
	var order []load
	lines := map[load][]line{}
	d.report.eachLatency(func(key LatencyKey, h *Histogram) {
		l := load{key.Load, key.MemoryMB}
		if lines[l] == nil {
			order = append(order, l)
		}
		if ms, share := h.CDF(); len(ms) > 0 {
			lines[l] = append(lines[l], line{key.Policy, ms, share})
		}
	})
	for _, l := range order {
		if d.err != nil {
			return
		}
		longest, least := 0.0, 1.0
		for _, line := range lines[l] {
			longest, least = max(longest, line.ms[len(line.ms)-1]), min(least, line.share[0])
		}
		from := max(0, math.Floor(40*least-1)/40)
		var steps []plot.XY
		for _, line := range lines[l] {
			s := plot.XY{Name: line.name}
			last := from
			for i, ms := range line.ms {
				s.X, s.Y = append(s.X, ms, ms), append(s.Y, last, line.share[i])
				last = line.share[i]
			}
			s.X, s.Y = append(s.X, 1.1*longest), append(s.Y, 1)
			steps = append(steps, s)
		}
		d.err = plot.Lines(d.path(l.memoryMB, "latency", l.name), plot.Figure{
			Title:  fmt.Sprintf("Latency at %s, %d invokers of %s", l.name, d.report.Options.Invokers, size(l.memoryMB)),
			XLabel: "latency, ms", YLabel: "share of invocations", LogX: true, YFrom: from,
		}, steps)
	}
}

// scale draws figure 4.16.
func (d *drawing) scale() {
	for _, r := range splitSeries(rows(d.report.Scale)) {
		fig := plot.Figure{Title: fmt.Sprintf("%d invokers of %s", r[0].Invokers, size(r[0].MemoryMB))}
		if r[0].Experiment == MaxThroughput {
			fig.Title, fig.YLabel = "Maximum throughput, "+fig.Title, "invocations/s"
			d.bar(filepath.Join(d.dir, "scale-throughput"), fig, r, 1, func(r Row) Spread { return r.Throughput })
			continue
		}
		fig.Title, fig.YLabel = "Cold starts at "+r[0].Load+", "+fig.Title, "share of invocations, %"
		d.bar(filepath.Join(d.dir, "scale-cold-share"), fig, r, 100, func(r Row) Spread { return r.ColdShare })
	}
}
