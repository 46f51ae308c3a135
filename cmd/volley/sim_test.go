package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/sophon/sim/compare"
)

// tinyTrace is a made-up trace of four minutes.
var tinyTrace = filepath.Join("..", "..", "sophon", "sim", "testdata", "tiny") // constant

func TestSimComparesPoliciesOnATrace(t *testing.T) {
	out := filepath.Join(t.TempDir(), "results")
	args := []string{"sim", "--trace", tinyTrace, "--rate", "5,0.8x", "--policy", "sticky-random,ma-mc", "--seeds", "1", "--windows", "2", "--minutes", "2",
		"--invokers", "3", "--memory", "1.5GB", "--out", out, "--figures", "throughput,latency"}
	code, stdout, stderr := call(t, args...)
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	for _, want := range []string{"Trace tiny: 5 functions", "Maximum throughput", "At 0.8x", "ma-mc"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("output lacks %q:\n%s", want, stdout)
		}
	}
	for _, name := range []string{"runs.jsonl", "summary.jsonl", "seconds.jsonl", "latency.jsonl", "pressure.jsonl", "throughput.svg", "latency-5.png"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	code, stdout, stderr = call(t, append(args, "--json")...)
	var summary compare.Summary
	if err := json.Unmarshal([]byte(stdout), &summary); code != 0 || err != nil || len(summary.Rows) != 6 || summary.Functions != 5 {
		t.Errorf("exit status %d, error %v, %d rows of %d functions: %s", code, err, len(summary.Rows), summary.Functions, stderr)
	}
}

func TestSimSaysWhatIsWrongWithItsArguments(t *testing.T) {
	for _, tc := range []struct {
		code    int
		message string
		args    []string
	}{
		{exitUsage, "--trace is missing", nil},
		{exitUsage, `"fast" is not a rate`, []string{"--rate", "fast"}},
		{exitUsage, "add it to --policy", []string{"--rate", "0.9x", "--policy", "ma-mc"}},
		{exitUsage, `no policy "fifo"`, []string{"--policy", "fifo"}},
		{exitUsage, "--memory", []string{"--memory", "much"}},
		{exitUsage, "--eviction", []string{"--eviction", "fifo"}},
		{exitUsage, `no figure "4.2"`, []string{"--figures", "4.2"}},
		{exitUsage, "--seeds: 0", []string{"--seeds", "0"}},
		{exitUsage, "--windows", []string{"--windows", "9"}},
		{exitUsage, "--start", []string{"--start", "7"}},
		{exitUsage, "must not be negative", []string{"--init", "-1s"}},
		{exitUsage, "must be in invocations a second", []string{"--live", "--rate", "1x"}},
		{exitUsage, "whole minutes", []string{"--live-time", "90s"}},
		{exitInput, "no file *durations*.csv", []string{"--trace", "only-invocations"}},
		{exitInput, `invocations.csv:2:`, []string{"--trace", "bad-row"}},
		{exitInput, "no such file", []string{"--trace", "nowhere"}},
		{exitOutput, "make output directory", []string{"--minutes", "1", "--out", "file/results"}},
	} {
		t.Run(tc.message, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{
				"only-invocations/invocations.csv": "HashOwner,HashApp,HashFunction,1\no,a,f,3\n",
				"bad-row/invocations.csv":          "HashOwner,HashApp,HashFunction,1\no,a,f,many\n",
				"file":                             "",
			} {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			trace, err := filepath.Abs(tinyTrace)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"sim"}
			if tc.args != nil {
				args = append(args, "--trace", trace)
			}
			t.Chdir(dir)
			code, stdout, stderr := call(t, append(append(args, "--out", "out"), tc.args...)...)
			if code != tc.code || !strings.Contains(stderr, tc.message) || stdout != "" {
				t.Errorf("exit status %d, %q; want %d, %q", code, stderr, tc.code, tc.message)
			}
		})
	}
}
