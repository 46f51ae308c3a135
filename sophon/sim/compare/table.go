package compare

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteText prints the report as tables.
func (r *Report) WriteText(w io.Writer) error {
	b := &strings.Builder{}
	r.writeHead(b)
	for _, rows := range append(splitSeries(rows(r.Records)), splitSeries(rows(r.Scale))...) {
		if rows[0].Experiment == MaxThroughput {
			writeThroughput(b, rows)
		} else {
			writeLoad(b, rows)
		}
	}
	r.writeRanks(b)
	_, err := io.WriteString(w, b.String())
	return err
}

// splitSeries cuts rows into those of one experiment, load and cluster each.
func splitSeries(all []Row) (series [][]Row) {
	for len(all) > 0 {
		n := 1
		for n < len(all) && sameSeries(all[n], all[0]) {
			n++
		}
		series = append(series, all[:n])
		all = all[n:]
	}
	return series
}

func sameSeries(a, b Row) bool {
	return a.Experiment == b.Experiment && a.Load == b.Load && a.Invokers == b.Invokers && a.MemoryMB == b.MemoryMB
}

func newTable(b *strings.Builder, columns ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, strings.Join(columns, "\t")+"\t")
	return t
}

func size(mb int64) string {
	if mb >= 1024 {
		return fmt.Sprintf("%.4g GB", float64(mb)/1024)
	}
	return fmt.Sprintf("%d MB", mb)
}

func (r *Report) writeHead(b *strings.Builder) {
	t, o := r.Options.Trace, r.Options
	fmt.Fprintf(b, "Trace %s: %d functions, minutes %d to %d, %d invocations (%.1f/s).\n",
		t.Name, len(t.Functions), t.FirstMinute, t.FirstMinute+t.Minutes-1, t.Invocations, t.Rate())
	if t.DurationsDrawn+t.MemoryDrawn > 0 {
		why := "no row of their own"
		if t.Unjoined {
			why = "identifiers that are placeholders, the same in every column"
		}
		fmt.Fprintf(b, "Drawn from the marginals, because of %s: durations of %d functions, memory of %d.\n", why, t.DurationsDrawn, t.MemoryDrawn)
	}
	fmt.Fprintf(b, "%d invokers; %d windows of %d minutes, seeds %s; medians (least to most) over the windows and seeds, x is the ratio to %s in the same run.\n",
		o.Invokers, len(o.Starts), o.Minutes, joinSeeds(o.Seeds), Baseline)
	fmt.Fprintf(b, "A container has its function's largest memory, in steps of %d MB. Starting one takes %v, initialising it %v; a node makes %.3g a second",
		o.StepMB, o.Model.ColdStart, o.Model.Init, o.Model.CreationsPerSecond)
	if o.Model.ContendedPerSecond > 0 {
		fmt.Fprintf(b, ", down to %.3g when it makes many at once", o.Model.ContendedPerSecond)
	}
	fmt.Fprintf(b, ".\n\nWhat the windows ask for, whatever the policy\n\n")
	tw := newTable(b, "from minute", "functions", "recorded/s", "top 1", "top 5", "GB s each", "one container each", "memory", "running functions fill it at")
	for _, p := range r.Pressure {
		for _, mb := range o.MemoryMB {
			whole := int64(o.Invokers) * mb
			fmt.Fprintf(tw, "%d\t%d\t%.1f\t%.0f %%\t%.0f %%\t%.3f\t%s\t%s\t%.0f/s\t\n", p.Start, p.Functions, p.RecordedRate, 100*p.Top1, 100*p.Top5,
				p.MBSeconds/1024, size(p.OneOfEachMB), size(whole), p.FullRate(whole))
		}
	}
	_ = tw.Flush() // into memory
}

func joinSeeds(seeds []uint64) string {
	if n := len(seeds); n > 2 && seeds[n-1]-seeds[0] == uint64(n-1) {
		return fmt.Sprintf("%d to %d", seeds[0], seeds[n-1])
	}
	text := fmt.Sprint(seeds)
	return strings.Trim(text, "[]")
}

func span(s Spread, format string, scale float64) string {
	median, low, high := fmt.Sprintf(format, s.Median*scale), fmt.Sprintf(format, s.Min*scale), fmt.Sprintf(format, s.Max*scale)
	if low == high {
		return median
	}
	return fmt.Sprintf("%s (%s to %s)", median, low, high)
}

func times(s Spread) string {
	if s.Max == 0 {
		return "-"
	}
	if s.Max >= 100 || s.Median < 0.01 {
		return span(s, "%.3g", 1)
	}
	return span(s, "%.2f", 1)
}

func writeThroughput(b *strings.Builder, rows []Row) {
	fmt.Fprintf(b, "\nMaximum throughput of %d invokers of %s, completions/s over 10 s (%s)\n\n", rows[0].Invokers, size(rows[0].MemoryMB), figure(rows[0], "figure 4.10"))
	t := newTable(b, "policy", "throughput/s", "x", "cold starts", "cold start ms", "saturated")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d of %d\t\n", r.label(), span(r.Throughput, "%.0f", 1), times(r.ThroughputRatio),
			span(r.ColdShare, "%.2f %%", 100), span(r.ColdStartMS, "%.0f", 1), r.Saturated, r.Runs)
	}
	_ = t.Flush()
}

// figure names the thesis's figure that rows correspond to.
func figure(r Row, usual string) string {
	if r.Invokers > 20 || r.Sample > 0 {
		return "figure 4.16"
	}
	return usual
}

func writeLoad(b *strings.Builder, rows []Row) {
	r := rows[0]
	fmt.Fprintf(b, "\nAt %s with %d invokers of %s", r.Load, r.Invokers, size(r.MemoryMB))
	if strings.HasSuffix(r.Load, "x") {
		fmt.Fprintf(b, ", x what %s can take: %s/s", Baseline, span(r.Rate, "%.0f", 1))
	}
	fmt.Fprintf(b, " (%s)\n\n", figure(r, "figures 4.2 to 4.9 and 4.11 to 4.15"))
	t := newTable(b, "policy", "cold starts", "x", "steady half", "cold start ms", "mean latency ms", "x", "p99 ms", "memory", "deviation", "waiting", "evicted", "stale")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%.2f %%\t%.0f\t%s\t%s\t%.4g\t%.1f %%\t%.1f %%\t%.3g\t%.0f\t%.3f %%\t\n", r.label(),
			span(r.ColdShare, "%.2f %%", 100), times(r.ColdRatio), 100*r.SteadyCold.Median, r.ColdStartMS.Median,
			span(r.MeanLatencyMS, "%.4g", 1), times(r.LatencyRatio), r.P99LatencyMS.Median,
			100*r.MemoryMean.Median, 100*r.Deviation.Median, r.MeanWaiting.Median, r.Evicted.Median, 100*r.StaleShare.Median)
	}
	_ = t.Flush()
}

func (r *Report) writeRanks(b *strings.Builder) {
	if len(r.Options.Policies) < 2 {
		return
	}
	var throughput, rates []Record
	for _, rec := range r.Records {
		if rec.Experiment == MaxThroughput {
			throughput = append(throughput, rec)
		} else {
			rates = append(rates, rec)
		}
	}
	fmt.Fprintf(b, "\nPlaces in each window, seed, load and memory: how often best, mean place, worst ratio to the best\n\n")
	type column struct {
		name  string
		ranks []Rank
	}
	var columns []column
	add := func(name string, records []Record, get func(Record) float64) {
		if len(records) > 0 {
			columns = append(columns, column{name, ranks(records, r.Options.Policies, get)})
		}
	}
	add("throughput", throughput, func(r Record) float64 { return 1 / max(r.Throughput, 1e-9) })
	add("cold starts", rates, func(r Record) float64 { return r.ColdShare })
	add("mean latency", rates, func(r Record) float64 { return r.MeanLatencyMS })
	names := []string{"policy"}
	for _, c := range columns {
		names = append(names, c.name)
	}
	t := newTable(b, names...)
	for i, p := range r.Options.Policies {
		fmt.Fprintf(t, "%s\t", p)
		for _, c := range columns {
			fmt.Fprintf(t, "%d, %.1f, %.3g\t", c.ranks[i].Best, c.ranks[i].Mean, c.ranks[i].WorstRatio)
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
}
