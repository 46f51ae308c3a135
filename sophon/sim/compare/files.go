package compare

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// LatencyLine is a line of latency.jsonl: the distribution of the latencies of
// one policy at one load, over all windows and seeds.
type LatencyLine struct {
	Policy   string    `json:"policy"`
	Load     string    `json:"load"`
	MemoryMB int64     `json:"memory_mb"`
	Count    int       `json:"count"`
	MS       []float64 `json:"ms"`
	Share    []float64 `json:"share"`
}

// WriteFiles writes pressure.jsonl, runs.jsonl, summary.jsonl, seconds.jsonl
// and latency.jsonl into a directory that is there. Each is replaced whole.
func (r *Report) WriteFiles(dir string) error {
	var latency []LatencyLine
	r.eachLatency(func(key LatencyKey, h *Histogram) {
		ms, share := h.CDF()
		latency = append(latency, LatencyLine{key.Policy, key.Load, key.MemoryMB, h.Len(), ms, share})
	})
	for _, err := range []error{
		writeLines(filepath.Join(dir, "pressure.jsonl"), r.Pressure),
		writeLines(filepath.Join(dir, "runs.jsonl"), append(append([]Record(nil), r.Records...), r.Scale...)),
		writeLines(filepath.Join(dir, "summary.jsonl"), r.Rows()),
		writeLines(filepath.Join(dir, "seconds.jsonl"), r.Series),
		writeLines(filepath.Join(dir, "latency.jsonl"), latency),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// eachLatency visits the histograms in a fixed order.
func (r *Report) eachLatency(visit func(LatencyKey, *Histogram)) {
	for _, mb := range r.Options.MemoryMB {
		for _, l := range r.Options.Loads {
			for _, p := range r.Options.Policies {
				key := LatencyKey{p, l.String(), mb}
				if h := r.Latency[key]; h != nil {
					visit(key, h)
				}
			}
		}
	}
}

func writeLines[T any](path string, lines []T) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
