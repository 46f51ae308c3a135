package compare

import (
	"fmt"
	"math"
	"slices"
)

// Spread is the median of several runs, and the least and the most.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) Spread {
	values = slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(values) == 0 {
		return Spread{}
	}
	slices.Sort(values)
	n := len(values)
	return Spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Min: values[0], Max: values[n-1]}
}

// Row sums up the runs of one policy in one experiment, over the windows and
// seeds.
type Row struct {
	Experiment string `json:"experiment"`
	Load       string `json:"load,omitempty"`
	Invokers   int    `json:"invokers"`
	MemoryMB   int64  `json:"memory_mb"`
	Policy     string `json:"policy"`
	Sample     int    `json:"sample,omitempty"`
	Runs       int    `json:"runs"`
	// Saturated counts the runs that ended because too many waited.
	Saturated     int    `json:"saturated_runs"`
	Rate          Spread `json:"rate_per_second"`
	Throughput    Spread `json:"max_throughput_per_second"`
	ColdShare     Spread `json:"cold_share"`
	SteadyCold    Spread `json:"steady_cold_share"`
	ColdStartMS   Spread `json:"mean_cold_start_ms"`
	MeanLatencyMS Spread `json:"mean_latency_ms"`
	P99LatencyMS  Spread `json:"p99_latency_ms"`
	MemoryMean    Spread `json:"memory_mean"`
	Deviation     Spread `json:"memory_deviation"`
	MeanWaiting   Spread `json:"mean_waiting"`
	Evicted       Spread `json:"evicted"`
	StaleShare    Spread `json:"stale_share"`
	// The ratios are to the baseline in the run of the same window and seed;
	// all 0 without it.
	ThroughputRatio Spread `json:"throughput_ratio"`
	ColdRatio       Spread `json:"cold_ratio"`
	LatencyRatio    Spread `json:"latency_ratio"`
}

// Rows sums up the records, in their order: those of Scale last.
func (r *Report) Rows() []Row { return append(rows(r.Records), rows(r.Scale)...) }

// Summary is what the tables show, for programs.
type Summary struct {
	Trace          string     `json:"trace"`
	Functions      int        `json:"functions"`
	Invocations    int64      `json:"invocations"`
	Unjoined       bool       `json:"unjoined"`
	DurationsDrawn int        `json:"durations_drawn"`
	MemoryDrawn    int        `json:"memory_drawn"`
	Windows        []Pressure `json:"windows"`
	Seeds          []uint64   `json:"seeds"`
	Rows           []Row      `json:"rows"`
}

// Summary returns what the tables show.
func (r *Report) Summary() Summary {
	t := r.Options.Trace
	return Summary{
		Trace: t.Name, Functions: len(t.Functions), Invocations: t.Invocations, Unjoined: t.Unjoined,
		DurationsDrawn: t.DurationsDrawn, MemoryDrawn: t.MemoryDrawn,
		Windows: r.Pressure, Seeds: r.Options.Seeds, Rows: r.Rows(),
	}
}

// series is what the runs of a Row have in common.
type series struct {
	experiment, load string
	invokers         int
	memoryMB         int64
}

func seriesKey(r Record) series { return series{r.Experiment, r.Load, r.Invokers, r.MemoryMB} }

func rows(records []Record) []Row {
	type key struct {
		series
		policy string
		sample int
	}
	type run struct {
		series
		start int
		seed  uint64
	}
	baseline := map[run]Record{}
	var order []key
	groups := map[key][]Record{}
	for _, r := range records {
		k := key{seriesKey(r), r.Policy, r.Sample}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], r)
		if r.Policy == Baseline {
			baseline[run{seriesKey(r), r.Start, r.Seed}] = r
		}
	}
	// Series one after the other, policies in their order within.
	var ordered []series
	for _, k := range order {
		if !slices.Contains(ordered, k.series) {
			ordered = append(ordered, k.series)
		}
	}
	slices.SortStableFunc(order, func(a, b key) int { return slices.Index(ordered, a.series) - slices.Index(ordered, b.series) })
	var out []Row
	for _, k := range order {
		of := func(get func(Record) float64) Spread {
			var values []float64
			for _, r := range groups[k] {
				values = append(values, get(r))
			}
			return spreadOf(values)
		}
		ratio := func(get func(Record) float64) Spread {
			return of(func(r Record) float64 {
				base, ok := baseline[run{seriesKey(r), r.Start, r.Seed}]
				if !ok || get(base) == 0 {
					return math.NaN()
				}
				return get(r) / get(base)
			})
		}
		throughput := func(r Record) float64 { return r.Throughput }
		cold := func(r Record) float64 { return r.ColdShare }
		latency := func(r Record) float64 { return r.MeanLatencyMS }
		row := Row{
			Experiment: k.experiment, Load: k.load, Invokers: k.invokers, MemoryMB: k.memoryMB, Policy: k.policy, Sample: k.sample,
			Runs:       len(groups[k]),
			Rate:       of(func(r Record) float64 { return r.Rate }),
			Throughput: of(throughput), ThroughputRatio: ratio(throughput),
			ColdShare: of(cold), ColdRatio: ratio(cold),
			SteadyCold:    of(func(r Record) float64 { return r.SteadyColdShare }),
			ColdStartMS:   of(func(r Record) float64 { return r.MeanColdStartMS }),
			MeanLatencyMS: of(latency), LatencyRatio: ratio(latency),
			P99LatencyMS: of(func(r Record) float64 { return r.P99LatencyMS }),
			MemoryMean:   of(func(r Record) float64 { return r.MemoryMean }),
			Deviation:    of(func(r Record) float64 { return r.MemoryDeviation }),
			MeanWaiting:  of(func(r Record) float64 { return r.MeanWaiting }),
			Evicted:      of(func(r Record) float64 { return float64(r.Evicted) }),
			StaleShare:   of(func(r Record) float64 { return r.StaleShare }),
		}
		for _, r := range groups[k] {
			if r.Saturated {
				row.Saturated++
			}
		}
		out = append(out, row)
	}
	return out
}

// label names the policy of a row in tables and figures.
func (r Row) label() string {
	if r.Sample > 0 {
		return fmt.Sprintf("%s, %d sampled", r.Policy, r.Sample)
	}
	return r.Policy
}

// Rank is how a policy does against all others, run by run.
type Rank struct {
	Policy string `json:"policy"`
	// Best counts the runs in which no policy did better, Mean is the mean
	// place (1 is best).
	Best int     `json:"best"`
	Mean float64 `json:"mean_rank"`
	// WorstRatio is the worst ratio to the best policy of a run.
	WorstRatio float64 `json:"worst_ratio_to_best"`
}

// ranks ranks policies within runs of the same window, seed and cluster, by a
// measure of which less is better.
func ranks(records []Record, policies []string, get func(Record) float64) []Rank {
	type run struct {
		series
		start int
		seed  uint64
	}
	runs := map[run][]Record{}
	for _, r := range records {
		k := run{seriesKey(r), r.Start, r.Seed}
		runs[k] = append(runs[k], r)
	}
	out := make([]Rank, len(policies))
	for i, name := range policies {
		out[i] = Rank{Policy: name, WorstRatio: 1}
		for _, rs := range runs {
			own, best, place := math.NaN(), math.Inf(1), 1
			for _, r := range rs {
				if r.Policy == name {
					own = get(r)
				}
				best = min(best, get(r))
			}
			for _, r := range rs {
				if get(r) < own {
					place++
				}
			}
			if place == 1 {
				out[i].Best++
			}
			out[i].Mean += float64(place) / float64(len(runs))
			if best != 0 {
				out[i].WorstRatio = max(out[i].WorstRatio, own/best)
			}
		}
	}
	return out
}
