package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/volley-run/volley/internal/plot"
)

// command runs a program and puts what it complained about into the error.
func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String() + stderr.String(), nil
}

// peakBytes is the peak resident size of the largest process of a run.
func peakBytes(state *os.ProcessState) int64 {
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(usage.Maxrss)
	}
	return int64(usage.Maxrss) * 1024
}

// videoBytes adds up the video packets of a file or playlist.
func videoBytes(ctx context.Context, file string) (int64, error) {
	text, err := output(ctx, "ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "packet=size", "-of", "csv=p=0", file)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, line := range strings.Fields(text) {
		n, err := strconv.ParseInt(strings.Trim(line, ","), 10, 64)
		if err != nil {
			continue
		}
		total += n
	}
	return total, nil
}

// lumaPSNR compares a result with the losslessly filtered source, frame by
// frame in order.
func lumaPSNR(ctx context.Context, file, source string) (float64, error) {
	text, err := output(ctx, "ffmpeg", "-nostdin", "-v", "info", "-nostats", "-i", file, "-i", source, "-filter_complex",
		"[0:v:0]settb=1/1000,setpts=N,format=yuv420p[a];[1:v:0]settb=1/1000,setpts=N,hue=s=0,format=yuv420p[b];[a][b]psnr", "-an", "-f", "null", "-")
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`PSNR y:([0-9.]+|inf)`).FindStringSubmatch(text)
	if m == nil {
		return 0, errors.New("ffmpeg reported no PSNR")
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if math.IsInf(v, 0) {
		return 99, nil
	}
	return v, err
}

// machine names what the figures were taken on.
func machine(ctx context.Context) string {
	cpu := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(text); m != nil {
			cpu = string(m[1])
		}
	}
	ffmpeg := "ffmpeg"
	if text, err := output(ctx, "ffmpeg", "-version"); err == nil {
		first, _, _ := strings.Cut(text, " Copyright")
		ffmpeg = first
	}
	return fmt.Sprintf("%s, %d cores, %s, %s", cpu, runtime.NumCPU(), runtime.GOOS, ffmpeg)
}

// writeRunsAndSummary writes runs.jsonl, one line a run, and summary.json.
func writeRunsAndSummary[R any](dir string, runs []R, summary any) error {
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	for _, r := range runs {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	whole, err := json.MarshalIndent(summary, "", "  ")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"runs.jsonl": lines.Bytes(), "summary.json": append(whole, '\n')} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// writeBenchFiles writes runs.jsonl, summary.json and the plots.
func writeBenchFiles(dir string, runs []benchRun, s benchSummary) error {
	if err := writeRunsAndSummary(dir, runs, s); err != nil {
		return err
	}
	var groups []string
	var wall, cpu []float64
	var shared []string
	var process, readWrite, wait []float64
	for _, m := range s.Modes {
		groups, wall, cpu = append(groups, m.Mode), append(wall, m.Wall), append(cpu, m.CPU)
		if m.Process > 0 {
			shared = append(shared, m.Mode)
			process, readWrite, wait = append(process, 100*m.Process), append(readWrite, 100*m.ReadWrite), append(wait, 100*m.Wait)
		}
	}
	err := plot.Bars(filepath.Join(dir, "time"), plot.Figure{Title: "Grayscale: time of a run", YLabel: "seconds"}, groups,
		[]plot.Series{{Name: "wall", Values: wall}, {Name: "CPU", Values: cpu}})
	if err != nil || len(shared) == 0 {
		return err
	}
	return plot.Bars(filepath.Join(dir, "breakdown"), plot.Figure{Title: "Where workers spend their time", YLabel: "percent"}, shared,
		[]plot.Series{{Name: "process", Values: process}, {Name: "read and write", Values: readWrite}, {Name: "wait", Values: wait}})
}
