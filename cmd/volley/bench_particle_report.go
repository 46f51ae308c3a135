//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/volley-run/volley/internal/plot"
	"github.com/volley-run/volley/particle"
)

// thesisContainerStart is the container start, in milliseconds, that the thesis
// adds to the time of the network when it compares (figure 3.2).
const thesisContainerStart = 300

// particleSummary is what the tables show: medians, in milliseconds.
type particleSummary struct {
	Machine string `json:"machine"`
	Rounds  int    `json:"rounds"`
	// ContainerStart is 0 if no container could be started.
	ContainerStart float64          `json:"container_start_ms,omitempty"`
	Setups         []setupSummary   `json:"setups,omitempty"`
	Processes      []processSummary `json:"processes,omitempty"`
	Traffic        []trafficSummary `json:"traffic,omitempty"`
	Nodes          []nodesSummary   `json:"nodes,omitempty"`
}

type setupSummary struct {
	Design    particle.Design    `json:"design"`
	Endpoints int                `json:"endpoints"`
	IPv6      bool               `json:"ipv6"`
	Apply     float64            `json:"apply_ms"`
	Close     float64            `json:"close_ms"`
	Settled   float64            `json:"settled_ms"`
	Steps     map[string]float64 `json:"steps_ms"`
	// Faster is how many times as fast as the baseline: the network alone, and
	// with a container's start added to both, the thesis's and this machine's.
	Faster          float64 `json:"faster_than_baseline,omitempty"`
	FasterThesis    float64 `json:"faster_with_thesis_container,omitempty"`
	FasterContainer float64 `json:"faster_with_container,omitempty"`
}

type processSummary struct {
	Design  particle.Design `json:"design,omitempty"`
	Count   int             `json:"processes"`
	Network float64         `json:"network_ms"`
	Groups  float64         `json:"discipline_ms"`
	Total   float64         `json:"total_ms"`
	Share   float64         `json:"network_share"`
	Faster  float64         `json:"faster_than_baseline,omitempty"`
}

type trafficSummary struct {
	Way       string  `json:"way"`
	Pairs     int     `json:"pairs"`
	PerSecond float64 `json:"bytes_per_second"`
	P50       float64 `json:"round_trip_p50_us"`
	P99       float64 `json:"round_trip_p99_us"`
	// The ratios are to the first way, round by round.
	RateRatio float64 `json:"rate_ratio"`
	P50Ratio  float64 `json:"round_trip_p50_ratio"`
}

type nodesSummary struct {
	Design    particle.Design `json:"design"`
	Nodes     int             `json:"nodes"`
	Endpoints int             `json:"endpoints_per_node"`
	Applied   float64         `json:"applied_ms"`
	Known     float64         `json:"peers_known_ms"`
	Connected float64         `json:"connected_ms"`
}

// chosen returns a figure of those runs that are wanted.
func chosen[R any](runs []R, wanted func(R) bool, figure func(R) float64) []float64 {
	var v []float64
	for _, r := range runs {
		if wanted(r) {
			v = append(v, figure(r))
		}
	}
	return v
}

// ratio returns the median of base[i]/own[i], and 0 if there is none.
func ratio(base, own []float64, plus float64) float64 {
	var v []float64
	for i := range min(len(base), len(own)) {
		v = append(v, (base[i]+plus)/(own[i]+plus))
	}
	return median(v)
}

func summariseParticle(o benchParticleOptions, runs *particleRuns) particleSummary {
	s := particleSummary{Rounds: o.rounds, ContainerStart: median(runs.containers)}
	for _, size := range o.sizes {
		for _, six := range []bool{false, true} {
			for _, d := range o.designs {
				s.addSetup(runs.setups, particle.Design(d), size, six)
			}
		}
	}
	for _, count := range o.processes {
		of := func(d particle.Design, figure func(processRun) float64) []float64 {
			return chosen(runs.processes, func(r processRun) bool { return r.Design == d && r.Count == count }, figure)
		}
		total := func(r processRun) float64 { return r.Total }
		for _, d := range burstDesigns() {
			if len(of(d, total)) == 0 {
				continue
			}
			s.Processes = append(s.Processes, processSummary{
				Design: d, Count: count, Total: median(of(d, total)),
				Network: median(of(d, func(r processRun) float64 { return r.Network })),
				Groups:  median(of(d, func(r processRun) float64 { return r.Groups })),
				Share:   median(of(d, func(r processRun) float64 { return r.Network / r.Total })),
				Faster:  ratio(of(particle.Baseline, total), of(d, total), 0),
			})
		}
	}
	for _, pairs := range o.pairs {
		of := func(way string, figure func(trafficRun) float64) []float64 {
			return chosen(runs.traffic, func(r trafficRun) bool { return r.Way == way && r.Pairs == pairs }, figure)
		}
		rate, p50 := func(r trafficRun) float64 { return r.PerSecond }, func(r trafficRun) float64 { return r.P50 }
		first := trafficWays()[0].name
		for _, way := range trafficWays() {
			s.Traffic = append(s.Traffic, trafficSummary{
				Way: way.name, Pairs: pairs, PerSecond: median(of(way.name, rate)), P50: median(of(way.name, p50)),
				P99:       median(of(way.name, func(r trafficRun) float64 { return r.P99 })),
				RateRatio: ratio(of(way.name, rate), of(first, rate), 0), P50Ratio: ratio(of(way.name, p50), of(first, p50), 0),
			})
		}
	}
	for _, nodes := range o.nodes {
		for _, d := range []particle.Design{particle.Baseline, particle.AnyIP} {
			of := func(figure func(nodesRun) float64) float64 {
				return median(chosen(runs.nodes, func(r nodesRun) bool { return r.Design == d && r.Nodes == nodes }, figure))
			}
			s.Nodes = append(s.Nodes, nodesSummary{
				Design: d, Nodes: nodes, Endpoints: endpointsPerNode,
				Applied:   of(func(r nodesRun) float64 { return r.Applied }),
				Known:     of(func(r nodesRun) float64 { return r.Known }),
				Connected: of(func(r nodesRun) float64 { return r.Connected }),
			})
		}
	}
	return s
}

func (s *particleSummary) addSetup(runs []setupRun, d particle.Design, size int, six bool) {
	of := func(d particle.Design, figure func(setupRun) float64) []float64 {
		return chosen(runs, func(r setupRun) bool { return r.Design == d && r.Endpoints == size && r.IPv6 == six }, figure)
	}
	apply := func(r setupRun) float64 { return r.Apply }
	own, base := of(d, apply), of(particle.Baseline, apply)
	if len(own) == 0 {
		return
	}
	row := setupSummary{
		Design: d, Endpoints: size, IPv6: six, Apply: median(own), Steps: map[string]float64{},
		Close:   median(of(d, func(r setupRun) float64 { return r.Close })),
		Settled: median(of(d, func(r setupRun) float64 { return r.Settled })),
		Faster:  ratio(base, own, 0), FasterThesis: ratio(base, own, thesisContainerStart),
	}
	if s.ContainerStart > 0 {
		row.FasterContainer = ratio(base, own, s.ContainerStart)
	}
	for _, r := range runs {
		if r.Design == d && r.Endpoints == size && r.IPv6 == six {
			for name := range r.Steps {
				row.Steps[name] = median(of(d, func(r setupRun) float64 { return r.Steps[name] }))
			}
		}
	}
	s.Setups = append(s.Setups, row)
}

// times prints a ratio, or that there is none.
func times(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3gx", v)
}

func (s particleSummary) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s, medians\n", s.Machine, plural(s.Rounds, "round"))
	for _, part := range []func(io.Writer) error{s.printSetups, s.printSteps, s.printProcesses, s.printTraffic, s.printNodes} {
		if err := part(w); err != nil {
			return err
		}
	}
	return nil
}

// table prints rows below a title, if there are any.
func table[R any](w io.Writer, title, heads string, rows []R, line func(R) string) error {
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, heads)
	for _, r := range rows {
		fmt.Fprintln(t, line(r))
	}
	return t.Flush()
}

func families(six bool) string {
	if six {
		return "4+6"
	}
	return "4"
}

func (s particleSummary) printSetups(w io.Writer) error {
	title := "Connecting endpoints to an overlay on one node (figure 3.2, table 3.2), and removing them; how much faster than the\n" +
		"baseline: the network, and with a container's start added to both: the thesis's 300 ms"
	if s.ContainerStart > 0 {
		title += fmt.Sprintf(", and runc's here, %.0f ms", s.ContainerStart)
	}
	return table(w, title, "endpoints\tIP\tdesign\tms\tclose ms\tsettled ms\tfaster\t+300 ms\t+runc\t", s.Setups, func(r setupSummary) string {
		return fmt.Sprintf("%d\t%s\t%s\t%.2f\t%.2f\t%.1f\t%s\t%s\t%s\t", r.Endpoints, families(r.IPv6), r.Design, r.Apply, r.Close, r.Settled,
			times(r.Faster), times(r.FasterThesis), times(r.FasterContainer))
	})
}

// printSteps prints the parts of the baseline.
func (s particleSummary) printSteps(w io.Writer) error {
	var rows []setupSummary
	for _, r := range s.Setups {
		if r.Design == particle.Baseline || r.Design == particle.AnyIP {
			rows = append(rows, r)
		}
	}
	return table(w, "Where the time goes (table 3.3), ms and share", "endpoints\tIP\tdesign\t  steps", rows, func(r setupSummary) string {
		var sum float64
		for _, v := range r.Steps {
			sum += v
		}
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(r.Steps)) {
			parts = append(parts, fmt.Sprintf("%s %.2f (%.0f %%)", name, r.Steps[name], 100*r.Steps[name]/sum))
		}
		return fmt.Sprintf("%d\t%s\t%s\t  %s", r.Endpoints, families(r.IPv6), r.Design, strings.Join(parts, ", "))
	})
}

func (s particleSummary) printProcesses(w io.Writer) error {
	return table(w, "Starting processes, until each has spoken from its own address", "processes\tdesign\ttotal ms\tnetwork ms\tof it discipline\tnetwork's share\tfaster\t",
		s.Processes, func(r processSummary) string {
			return fmt.Sprintf("%d\t%s\t%.1f\t%.1f\t%.1f\t%.1f %%\t%s\t", r.Count, wayOf(r.Design), r.Total, r.Network, r.Groups, 100*r.Share, times(r.Faster))
		})
}

func (s particleSummary) printTraffic(w io.Writer) error {
	return table(w, "TCP between two nodes", "pairs\tway\tMB/s\tof direct\tround trip us\tof direct\tp99 us\t", s.Traffic, func(r trafficSummary) string {
		return fmt.Sprintf("%d\t%s\t%.0f\t%.3f\t%.1f\t%.3f\t%.1f\t", r.Pairs, r.Way, r.PerSecond/1e6, r.RateRatio, r.P50, r.P50Ratio, r.P99)
	})
}

func (s particleSummary) printNodes(w io.Writer) error {
	return table(w, fmt.Sprintf("Nodes of %d endpoints each, on this one machine, over NATS (table 3.1)", endpointsPerNode),
		"nodes\tdesign\tnetworks ms\tpeers known ms\tconnected ms\t", s.Nodes, func(r nodesSummary) string {
			return fmt.Sprintf("%d\t%s\t%.1f\t%.1f\t%.1f\t", r.Nodes, r.Design, r.Applied, r.Known, r.Connected)
		})
}

// plot draws figure 3.2 and where the processes' time goes.
func (s particleSummary) plot(dir string) error {
	for _, six := range []bool{false, true} {
		var lines []plot.XY
		for _, d := range particle.Designs() {
			l := plot.XY{Name: string(d)}
			for _, r := range s.Setups {
				if r.Design == d && r.IPv6 == six {
					l.X, l.Y = append(l.X, float64(r.Endpoints)), append(l.Y, r.Apply)
				}
			}
			if len(l.X) > 0 {
				lines = append(lines, l)
			}
		}
		if len(lines) == 0 {
			continue
		}
		name, title := "figure-3.2", "Time to connect endpoints to an overlay"
		if six {
			name, title = name+"-ipv6", title+", IPv4 and IPv6"
		}
		if err := plot.Lines(filepath.Join(dir, name), plot.Figure{Title: title, XLabel: "endpoints", YLabel: "ms", LogX: true, LogY: true}, lines); err != nil {
			return err
		}
	}
	if len(s.Processes) == 0 {
		return nil
	}
	var groups []string
	network, rest := plot.Series{Name: "network"}, plot.Series{Name: "all"}
	for _, r := range s.Processes {
		groups = append(groups, fmt.Sprintf("%d %s", r.Count, wayOf(r.Design)))
		network.Values, rest.Values = append(network.Values, r.Network/1e3), append(rest.Values, r.Total/1e3)
	}
	return plot.Bars(filepath.Join(dir, "processes"), plot.Figure{Title: "Until processes have spoken from their own addresses", YLabel: "s"},
		groups, []plot.Series{network, rest})
}
