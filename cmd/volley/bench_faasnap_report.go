//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
)

// faasnapSummary is what the tables and plots are made of.
type faasnapSummary struct {
	Machine   string          `json:"machine"`
	VMM       string          `json:"vmm"`
	Disk      string          `json:"disk"`
	ReadAhead int             `json:"read_ahead_kb"`
	Rounds    int             `json:"rounds"`
	MemoryMB  int64           `json:"guest_memory_mib"`
	Synthetic int             `json:"synthetic_mib"`
	Sizes     []faasnapSize   `json:"inputs"`
	Goals     []faasnapGoal   `json:"goals"`
	Cells     []faasnapCell   `json:"cells"`
	Records   []faasnapRecord `json:"snapshots"`
	Bursts    []faasnapBursts `json:"bursts"`
	Failures  []string        `json:"failures,omitempty"`
	Remote    string          `json:"remote_storage,omitempty"`
}

type faasnapSize struct {
	Function string `json:"function"`
	What     string `json:"what"`
	Unit     string `json:"unit,omitempty"`
	A        int    `json:"a,omitempty"`
	B        int    `json:"b,omitempty"`
}

// faasnapGoal is a ratio of the thesis's, or a time, and whether it is reached.
type faasnapGoal struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Want    string  `json:"want"`
	Verdict string  `json:"verdict"` // "met", "missed" or "not measured"
	// Of is how many medians the value is of.
	Of int `json:"of"`
	// Bound, of a ratio of total times, is what it would be if restoring took no
	// longer than with all of memory cached: what the guest computes, which an
	// emulated processor does slowly, is in every mode. 0 is not known.
	Bound float64 `json:"bound,omitempty"`
}

// faasnapCell is one function by one mode with one pair of inputs: medians.
type faasnapCell struct {
	faasnapRun
	Rounds int `json:"rounds"`
	// Deviation is the standard deviation of the total.
	Deviation float64 `json:"total_deviation_ms"`
}

// faasnapBursts is bursts of one kind.
type faasnapBursts struct {
	Function  string       `json:"function"`
	Same      bool         `json:"same_snapshot"`
	Machines  int          `json:"machines"`
	Mode      faasnap.Mode `json:"mode"`
	Mean      float64      `json:"mean_ms"`
	Deviation float64      `json:"deviation_ms"`
	Last      float64      `json:"last_ms"`
}

// deviation is the standard deviation of a sample.
func deviation(v []float64) float64 {
	if len(v) < 2 {
		return 0
	}
	mean, sum := average(v), 0.0
	for _, x := range v {
		sum += (x - mean) * (x - mean)
	}
	return math.Sqrt(sum / float64(len(v)-1))
}

func average(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(len(v), 1))
}

func geometricMean(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sum := 0.0
	for _, x := range v {
		sum += math.Log(x)
	}
	return math.Exp(sum / float64(len(v)))
}

// cells puts the runs of one kind together.
func (r faasnapRuns) cells() []faasnapCell {
	type key struct {
		part, function, recorded, tested string
		mode                             faasnap.Mode
	}
	groups := map[key][]faasnapRun{}
	var order []key
	for _, t := range r.tests {
		k := key{t.Part, t.Function, t.Recorded, t.Tested, t.Mode}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], t)
	}
	var cells []faasnapCell
	for _, k := range order {
		runs := groups[k]
		all := func(faasnapRun) bool { return true }
		of := func(figure func(faasnapRun) float64) float64 { return median(chosen(runs, all, figure)) }
		whole := func(figure func(faasnapRun) int64) int64 {
			return int64(of(func(r faasnapRun) float64 { return float64(figure(r)) }))
		}
		c := faasnapCell{faasnapRun: runs[len(runs)-1], Rounds: len(runs)}
		c.Kind, c.Round = "cell", 0
		c.Deviation = deviation(chosen(runs, all, func(r faasnapRun) float64 { return r.Total }))
		c.Total, c.VMM = of(func(r faasnapRun) float64 { return r.Total }), of(func(r faasnapRun) float64 { return r.VMM })
		c.Setup, c.Invocation = of(func(r faasnapRun) float64 { return r.Setup }), of(func(r faasnapRun) float64 { return r.Invocation })
		c.Fetch, c.FetchBytes = of(func(r faasnapRun) float64 { return r.Fetch }), whole(func(r faasnapRun) int64 { return r.FetchBytes })
		c.MinorFaults, c.MajorFaults = whole(func(r faasnapRun) int64 { return r.MinorFaults }), whole(func(r faasnapRun) int64 { return r.MajorFaults })
		c.MajorInvoked, c.Handled = whole(func(r faasnapRun) int64 { return r.MajorInvoked }), whole(func(r faasnapRun) int64 { return r.Handled })
		c.VMMReadBytes, c.HostReadBytes = whole(func(r faasnapRun) int64 { return r.VMMReadBytes }), whole(func(r faasnapRun) int64 { return r.HostReadBytes })
		c.CopiedBytes, c.CachedBytes = whole(func(r faasnapRun) int64 { return r.CopiedBytes }), whole(func(r faasnapRun) int64 { return r.CachedBytes })
		c.AnonymousBytes = whole(func(r faasnapRun) int64 { return r.AnonymousBytes })
		cells = append(cells, c)
	}
	return cells
}

// cell returns the cell of those tests, or nil.
func (s faasnapSummary) cell(part, function, recorded, tested string, mode faasnap.Mode) *faasnapCell {
	for i := range s.Cells {
		if c := &s.Cells[i]; c.Part == part && c.Function == function && c.Recorded == recorded && c.Tested == tested && c.Mode == mode {
			return c
		}
	}
	return nil
}

// ratios returns, for each pair of inputs that both modes were tested with, the
// first's figure by the second's.
func (s faasnapSummary) ratios(part string, mode, by faasnap.Mode, wanted func(faasnapCell) bool, figure func(faasnapCell) float64) []float64 {
	var v []float64
	for _, c := range s.Cells {
		if c.Part != part || c.Mode != mode || !wanted(c) {
			continue
		}
		if other := s.cell(part, c.Function, c.Recorded, c.Tested, by); other != nil {
			v = append(v, figure(c)/figure(*other))
		}
	}
	return v
}

// helloLimit is how long hello-world may take from cold caches, in milliseconds.
const helloLimit = 150

func (s *faasnapSummary) addGoals() {
	// Each function counts once, whatever pairs of inputs it has.
	forward := func(c faasnapCell) bool { return c.Recorded == "A" && (c.Tested == "B" || !variable(c.Function)) }
	backward := func(c faasnapCell) bool { return c.Recorded == "B" && c.Tested == "A" }
	both := func(c faasnapCell) bool { return forward(c) || backward(c) }
	larger := func(c faasnapCell) bool { return c.Recorded == "A" && c.Tested == "B" }
	add := func(name string, v []float64, want string, bound float64, met func(float64) bool) {
		g := faasnapGoal{Name: name, Value: geometricMean(v), Want: want, Verdict: "not measured", Of: len(v), Bound: bound}
		if len(v) > 0 {
			g.Verdict = "missed"
			if met(g.Value) {
				g.Verdict = "met"
			}
		}
		s.Goals = append(s.Goals, g)
	}
	total := func(c faasnapCell) float64 { return c.Total }
	faster := func(than faasnap.Mode, what string, wanted func(faasnapCell) bool, times float64) {
		bound := geometricMean(s.ratios(figTimes, than, faasnap.Cached, wanted, total))
		add(fmt.Sprintf("%s by faasnap, total time%s", than, what), s.ratios(figTimes, than, faasnap.FaaSnap, wanted, total),
			fmt.Sprintf("at least %.2f", times), bound, func(v float64) bool { return v >= times })
	}
	faster(faasnap.Full, "", both, 2)
	faster(faasnap.REAP, "", both, 1.4)
	faster(faasnap.REAP, ", recorded A, tested B", larger, 1.55)
	add("faasnap by cached, total time", s.ratios(figTimes, faasnap.FaaSnap, faasnap.Cached, both, total), "at most 1.035", 0, func(v float64) bool { return v <= 1.035 })
	for _, mode := range []faasnap.Mode{faasnap.FaaSnap, bench.Standby} {
		var hello []float64
		if c := s.cell(figTimes, bench.HelloWorld, "A", "A", mode); c != nil {
			hello = append(hello, c.Total)
		}
		add(fmt.Sprintf("hello-world by %s, median, ms", mode), hello, "at most 150", 0, func(v float64) bool { return v <= helloLimit })
	}
	// What emulation does not dilute. A mode may have none, so one is added.
	for _, c := range []struct {
		name   string
		figure func(faasnapCell) float64
	}{
		{"major page faults", func(c faasnapCell) float64 { return float64(c.MajorFaults + 1) }},
		{"MiB read from disk by the VMM", func(c faasnapCell) float64 { return float64(c.VMMReadBytes)/(1<<20) + 1 }},
	} {
		v := s.ratios(figTimes, faasnap.Full, faasnap.FaaSnap, both, c.figure)
		s.Goals = append(s.Goals, faasnapGoal{Name: "full by faasnap, " + c.name + " and one", Value: geometricMean(v), Of: len(v)})
	}
}

func variable(function string) bool {
	w, _ := bench.Find(function)
	return w.Variable()
}

func (s *faasnapSession) summarise(ctx context.Context, workloads []bench.Workload) faasnapSummary {
	sum := faasnapSummary{
		Machine: machine(ctx), VMM: s.vmm, Disk: s.disk.Name, ReadAhead: s.o.readAhead, Rounds: s.o.rounds,
		MemoryMB: s.o.memoryMB, Synthetic: s.o.synthetic, Cells: s.runs.cells(), Records: s.runs.records, Failures: s.failures,
	}
	for _, w := range workloads {
		sum.Sizes = append(sum.Sizes, faasnapSize{w.Name, w.What, w.Unit, w.A, w.B})
	}
	if s.wants(figRemote) {
		sum.Remote = fmt.Sprintf("%d MB/s, %d reads a second", s.o.remoteMBs, s.o.remoteOps)
	}
	sum.addGoals()
	for _, b := range s.runs.bursts {
		same := func(o faasnapBurst) bool {
			return o.Function == b.Function && o.Same == b.Same && o.Machines == b.Machines && o.Mode == b.Mode
		}
		if slices.ContainsFunc(sum.Bursts, func(o faasnapBursts) bool {
			return o.Function == b.Function && o.Same == b.Same && o.Machines == b.Machines && o.Mode == b.Mode
		}) {
			continue
		}
		var times, last []float64
		for _, o := range s.runs.bursts {
			if same(o) {
				times, last = append(times, o.Times...), append(last, slices.Max(o.Times))
			}
		}
		sum.Bursts = append(sum.Bursts, faasnapBursts{b.Function, b.Same, b.Machines, b.Mode, average(times), deviation(times), median(last)})
	}
	return sum
}

// write writes the summary and the plots; runs.jsonl is there.
func (s faasnapSummary) write(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "summary.json"), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write summary.json: %w", err)
	}
	return s.plot(dir)
}
