//go:build linux

package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
	"github.com/volley-run/volley/internal/plot"
)

// plot draws those figures that something was measured for.
func (s faasnapSummary) plot(dir string) error {
	for _, draw := range []func(string) error{s.plotBreakdown, s.plotFaults, s.plotTimes, s.plotRatios, s.plotSteps, s.plotBursts, s.plotRemote} {
		if err := draw(dir); err != nil {
			return err
		}
	}
	return nil
}

// modesOf returns the modes of cells, in order.
func modesOf(cells []faasnapCell) []faasnap.Mode {
	var modes []faasnap.Mode
	for _, m := range bench.Modes() {
		if slices.ContainsFunc(cells, func(c faasnapCell) bool { return c.Mode == m }) {
			modes = append(modes, m)
		}
	}
	return modes
}

// bars draws total times: groups of functions, a bar for each mode.
func bars(path, title string, cells []faasnapCell) error {
	if len(cells) == 0 {
		return nil
	}
	var groups []string
	for _, c := range cells {
		if !slices.Contains(groups, c.Function) {
			groups = append(groups, c.Function)
		}
	}
	var series []plot.Series
	for _, m := range modesOf(cells) {
		one := plot.Series{Name: string(m)}
		for _, g := range groups {
			value, deviation := math.NaN(), math.NaN()
			if i := slices.IndexFunc(cells, func(c faasnapCell) bool { return c.Function == g && c.Mode == m }); i >= 0 {
				value, deviation = cells[i].Total, cells[i].Deviation
			}
			one.Values, one.Err = append(one.Values, value), append(one.Err, deviation)
		}
		series = append(series, one)
	}
	return plot.Bars(path, plot.Figure{Title: title, YLabel: "total time, ms"}, groups, series)
}

// plotBreakdown draws figure 5.1: setup beside the whole.
func (s faasnapSummary) plotBreakdown(dir string) error {
	var groups []string
	setup, all := plot.Series{Name: "setup"}, plot.Series{Name: "all"}
	for _, c := range s.of(figTimes) {
		name := c.Function
		switch {
		case c.Mode == faasnap.Boot || c.Recorded != "A":
			continue
		case c.Function == bench.Image && c.Tested == "B":
			name = "image-diff"
		case c.Function != bench.Image && variable(c.Function):
			continue
		}
		groups = append(groups, fmt.Sprintf("%s %s", name, c.Mode))
		setup.Values, all.Values = append(setup.Values, c.Setup), append(all.Values, c.Total)
	}
	if len(groups) == 0 {
		return nil
	}
	return plot.Bars(filepath.Join(dir, "figure-5.1"), plot.Figure{Title: "Where the time of an invocation goes", YLabel: "ms"}, groups, []plot.Series{setup, all})
}

// plotFaults draws figure 5.2 for image-diff.
func (s faasnapSummary) plotFaults(dir string) error {
	var lines []plot.XY
	for _, mode := range modesOf(s.of(figTimes + " observed")) {
		c := s.cell(figTimes+" observed", bench.Image, "A", "B", mode)
		if c == nil {
			continue
		}
		l := plot.XY{Name: string(c.Mode)}
		for i, n := range c.FaultCounts {
			if n > 0 {
				l.X, l.Y = append(l.X, math.Exp2(float64(i))), append(l.Y, float64(n))
			}
		}
		if len(l.X) > 0 {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return plot.Lines(filepath.Join(dir, "figure-5.2"), plot.Figure{
		Title: "Time of page faults, image-diff", XLabel: "below, microseconds", YLabel: "page faults", LogX: true, LogY: true,
	}, lines)
}

// plotTimes draws figures 5.6 and 5.7.
func (s faasnapSummary) plotTimes(dir string) error {
	var forward, backward, synthetic []faasnapCell
	for _, c := range s.of(figTimes) {
		switch {
		case c.Mode == faasnap.Boot || c.Mode == bench.Warm:
		case !variable(c.Function):
			synthetic = append(synthetic, c)
		case c.Recorded == "A" && c.Tested == "B":
			forward = append(forward, c)
		case c.Recorded == "B":
			backward = append(backward, c)
		}
	}
	for _, f := range []struct {
		name, title string
		cells       []faasnapCell
	}{
		{"figure-5.6-a-b", "Recorded with input A, tested with B", forward},
		{"figure-5.6-b-a", "Recorded with input B, tested with A", backward},
		{"figure-5.7", "The synthetic functions", synthetic},
	} {
		if err := bars(filepath.Join(dir, f.name), f.title, f.cells); err != nil {
			return err
		}
	}
	return nil
}

// plotRatios draws figure 5.8.
func (s faasnapSummary) plotRatios(dir string) error {
	var panels []plot.Panel
	cells := s.of(figRatios)
	for _, size := range s.Sizes {
		own := slices.DeleteFunc(slices.Clone(cells), func(c faasnapCell) bool { return c.Function != size.Function })
		panel := plot.Panel{Figure: plot.Figure{Title: size.Function, XLabel: "size of the tested input by the recorded one's", YLabel: "total time, ms", LogX: true}}
		for _, m := range modesOf(own) {
			l := plot.XY{Name: string(m)}
			for _, c := range own {
				if c.Mode == m {
					l.X, l.Y = append(l.X, c.Ratio), append(l.Y, c.Total)
				}
			}
			panel.Lines = append(panel.Lines, l)
		}
		if len(panel.Lines) > 0 {
			panels = append(panels, panel)
		}
	}
	if len(panels) == 0 {
		return nil
	}
	return plot.Panels(filepath.Join(dir, "figure-5.8"), panels)
}

// plotSteps draws figure 5.9, a chart for each of what it compares.
func (s faasnapSummary) plotSteps(dir string) error {
	cells := s.of(figSteps)
	if len(cells) == 0 {
		return nil
	}
	var groups []string
	for _, c := range cells {
		groups = append(groups, string(c.Mode))
	}
	for _, f := range []struct {
		name, title, unit string
		figure            func(faasnapCell) float64
	}{
		{"time", "Total time", "ms", func(c faasnapCell) float64 { return c.Total }},
		{"major-faults", "Major page faults of the VMM", "", func(c faasnapCell) float64 { return float64(c.MajorFaults) }},
		{"read", "Read from disk by the VMM", "MB", func(c faasnapCell) float64 { return float64(c.VMMReadBytes) / mega }},
		{"fault-time", "Time of page faults in the invocation", "ms", func(c faasnapCell) float64 {
			if o := s.cell(figSteps+" observed", c.Function, c.Recorded, c.Tested, c.Mode); o != nil {
				return o.FaultTime
			}
			return math.NaN()
		}},
	} {
		one := plot.Series{}
		for _, c := range cells {
			one.Values = append(one.Values, f.figure(c))
		}
		if math.IsNaN(one.Values[0]) {
			continue
		}
		err := plot.Bars(filepath.Join(dir, "figure-5.9-"+f.name), plot.Figure{Title: f.title + ", image", YLabel: f.unit}, groups, []plot.Series{one})
		if err != nil {
			return err
		}
	}
	return nil
}

// plotBursts draws figure 5.10.
func (s faasnapSummary) plotBursts(dir string) error {
	var panels []plot.Panel
	for _, function := range []string{bench.HelloWorld, bench.JSON} {
		for _, same := range []bool{true, false} {
			panel := plot.Panel{Figure: plot.Figure{Title: function + ", different snapshots", XLabel: "machines at once", YLabel: "mean time, ms", LogX: true, LogY: true}}
			if same {
				panel.Title = function + ", the same snapshot"
			}
			for _, m := range faasnap.Modes() {
				l := plot.XY{Name: string(m)}
				for _, b := range s.Bursts {
					if b.Function == function && b.Same == same && b.Mode == m {
						l.X, l.Y = append(l.X, float64(b.Machines)), append(l.Y, b.Mean)
					}
				}
				if len(l.X) > 0 {
					panel.Lines = append(panel.Lines, l)
				}
			}
			if len(panel.Lines) > 0 {
				panels = append(panels, panel)
			}
		}
	}
	if len(panels) == 0 {
		return nil
	}
	return plot.Panels(filepath.Join(dir, "figure-5.10"), panels)
}

func (s faasnapSummary) plotRemote(dir string) error {
	return bars(filepath.Join(dir, "figure-5.11"), "Reads throttled to "+s.Remote, s.of(figRemote))
}
