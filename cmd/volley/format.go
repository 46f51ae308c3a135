package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// writeJSON prints a value for programs.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// megabytes is a flag for an amount of memory: "512MB", "20GB", or a number of
// MB. As with AWS and container runtimes a MB is 2^20 bytes here.
type megabytes int64

func (m *megabytes) String() string {
	if *m >= 1024 && *m%1024 == 0 {
		return fmt.Sprintf("%dGB", *m/1024)
	}
	return fmt.Sprintf("%dMB", *m)
}

func (m *megabytes) Type() string { return "size" }

func (m *megabytes) Set(text string) error {
	number, unit := strings.TrimSpace(text), 1.0
	upper := strings.ToUpper(number)
	for _, u := range []struct {
		suffix string
		mb     float64
	}{{"TIB", 1 << 20}, {"TB", 1 << 20}, {"GIB", 1 << 10}, {"GB", 1 << 10}, {"MIB", 1}, {"MB", 1}, {"G", 1 << 10}, {"M", 1}} {
		if strings.HasSuffix(upper, u.suffix) {
			number, unit = number[:len(number)-len(u.suffix)], u.mb
			break
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if n *= unit; err != nil || math.IsNaN(n) || n < 1 || n != math.Trunc(n) || n > 1<<40 {
		return fmt.Errorf("%q is not an amount of memory such as 512MB or 20GB", text)
	}
	*m = megabytes(n)
	return nil
}

// shortDuration prints a duration with two digits or so, for tables.
func shortDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}
