package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

func TestBenchFaaSnap(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.Userfaultfd)
	out := filepath.Join(t.TempDir(), "out")
	modes := []string{string(bench.Warm), string(bench.Standby)}
	for _, m := range faasnap.Modes() {
		if m != faasnap.Boot {
			modes = append(modes, string(m))
		}
	}
	// That all modes give the same answers is looked at by the command.
	code, stdout, stderr := call(t, "bench", "faasnap", "--functions", "hello-world,json", "--modes", strings.Join(modes, ","), "--figures", "times",
		"--sizes", "json=2000:9000", "--rounds", "1", "--memory", "192", "--accel", "tcg", "--init", sandboxtest.BuildInit(t), "--out", out)
	if code != exitOK {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	for _, want := range []string{"figures 5.1, 5.6, 5.7", "5.6.3", "full by faasnap", "host-recording"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the tables have no %q:\n%s", want, stdout)
		}
	}
	for _, name := range []string{"figure-5.1", "figure-5.6-a-b", "figure-5.6-b-a", "figure-5.7"} {
		if _, err := os.Stat(filepath.Join(out, name+".svg")); err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(out, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	var sum faasnapSummary
	if err := json.Unmarshal(text, &sum); err != nil {
		t.Fatal(err)
	}
	for _, g := range sum.Goals {
		if g.Of == 0 || g.Value <= 0 {
			t.Errorf("%s: %v of %d", g.Name, g.Value, g.Of)
		}
		if g.Want != "" && g.Verdict != "met" && g.Verdict != "missed" {
			t.Errorf("%s: %s", g.Name, g.Verdict)
		}
	}
	f, err := os.Open(filepath.Join(out, "runs.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		if !json.Valid(s.Bytes()) {
			t.Errorf("no JSON: %s", s.Bytes())
		}
	}
	// Snapshots, and tests: json is tested by two pairs of inputs.
	if want := 3 + 3*len(modes); lines != want {
		t.Errorf("%d lines in runs.jsonl, want %d", lines, want)
	}
	if left, err := os.ReadDir(filepath.Join(out, "data")); err == nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestBenchFaaSnapRefusesWhatIsNotThere(t *testing.T) {
	for _, tt := range [][]string{
		{"--functions", "no-such"}, {"--modes", "slow"}, {"--figures", "5.99"}, {"--sizes", "json=1"}, {"--sizes", "mmap=1:2"}, {"--sizes", "json=-1:2"},
		{"--ratios", "0"}, {"--parallel", "0"}, {"--rounds", "0"}, {"--memory", "1"}, {"--synthetic-mb", "2000"}, {"--accel", "xen"},
	} {
		if code, _, stderr := call(t, append([]string{"bench", "faasnap"}, tt...)...); code != exitUsage || !strings.Contains(stderr, tt[0]) {
			t.Errorf("%v: exit status %d, %q", tt, code, stderr)
		}
	}
}
