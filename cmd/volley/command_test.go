package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/gateway/player"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/coordinator"
	"github.com/volley-run/volley/sprocket/job"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/pipelines"
	"github.com/volley-run/volley/sprocket/stage"
)

// call runs a command line.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestEveryCommandExplainsItself(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" && c.Long == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: the short description ends with a full stop", c.CommandPath())
		}
		topic := c.Run == nil && c.RunE == nil
		if c.Example == "" && !c.Hidden && !topic && !c.HasSubCommands() {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot())
}

func TestHelpNamesEveryExitStatus(t *testing.T) {
	code, out, _ := call(t, "help", "exit-status")
	if code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, status := range []int{exitOK, exitFailure, exitUsage, exitSpec, exitInput, exitOutput, exitInterrupted} {
		if !strings.Contains(out, fmt.Sprintf("\n  %-3d  ", status)) {
			t.Errorf("status %d is not in:\n%s", status, out)
		}
	}
	if code, out, _ := call(t, "--version"); code != 0 || !strings.Contains(out, "volley") {
		t.Errorf("--version: %d, %q", code, out)
	}
	if code, out, _ := call(t); code != 0 || !strings.Contains(out, "volley run") {
		t.Errorf("no arguments: %d, %q", code, out)
	}
}

func TestParseChunk(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"auto": 0, "1s": time.Second, "500ms": 500 * time.Millisecond, "2": 2 * time.Second, "0.5": 500 * time.Millisecond, "10ms": 10 * time.Millisecond, "5m": 5 * time.Minute, "1m30s": 90 * time.Second,
	} {
		if got, err := parseChunk(text); err != nil || got != want {
			t.Errorf("parseChunk(%q) = %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1s", "9ms", "301s", "2h", "one", "1 s", "1x", "NaN", "1e400"} {
		got, err := parseChunk(text)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), "--chunk") {
			t.Errorf("parseChunk(%q) = %s, %v; want a usage error", text, got, err)
		}
	}
}

func TestDefaultOutputIsNamedAfterPipelineAndInput(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"grayscale", []string{"grayscale", "films/in.mp4"}, "grayscale-in"},
		{"", []string{"dir/my-pipe.json", "in.tar.mkv"}, "my-pipe-in.tar"},
		{"blend", []string{"blend", "a.mp4", "b.mp4"}, "blend-a"},
		{"scale", []string{"scale", "https://host/a/film.mp4?X-Signature=secret"}, "scale-film"},
		{"scale", []string{"scale"}, "scale"},
	} {
		if got := defaultOutput(&sprocket.Spec{Name: tc.name}, tc.args); got != filepath.Join("volley-out", tc.want) {
			t.Errorf("defaultOutput(%q, %v) = %s, want volley-out/%s", tc.name, tc.args, got, tc.want)
		}
	}
}

func TestLoadSpecTakesNamesAndFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	_, text, err := pipelines.Load("grayscale")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mine.json", "plain"} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"grayscale", "mine.json", "./mine.json", "plain", "./plain"} {
		if spec, err := loadSpec(name); err != nil || len(spec.Nodes) == 0 {
			t.Errorf("loadSpec(%s): %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"greyscale": `there is no pipeline "greyscale"`, "no.json": "read pipespec", "./grayscale": "read pipespec",
	} {
		_, err := loadSpec(name)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("loadSpec(%s): %v, want a usage error with %q", name, err, want)
		}
	}
	if err := os.WriteFile("bad.json", []byte(`{"nodes": [`), 0o600); err != nil {
		t.Fatal(err)
	}
	var bad *sprocket.SpecError
	if _, err := loadSpec("bad.json"); !errors.As(err, &bad) {
		t.Errorf("loadSpec(bad.json): %v, want a SpecError", err)
	}
}

func TestBadCommandLinesEndWithTheirStatus(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"syntax.json": `{`, "wrong.json": `{"nodes":[{"name":"d","stage":"dekode"}],"streams":[]}`,
		"empty.mp4": "", "text.mp4": "this is no film",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"rum", exitUsage, "did you mean run?"},
		{"--no-such-flag", exitUsage, "--no-such-flag"},
		{"run", exitUsage, "which pipeline?"},
		{"run grayscale", exitUsage, "takes 1 input, 0 given"},
		{"run blend a.mp4", exitUsage, "takes 2 inputs, 1 given"},
		{"run greyscale a.mp4", exitUsage, `no pipeline "greyscale"`},
		{"run grayscale a.mp4 --chunk x", exitUsage, "--chunk x"},
		{"run grayscale a.mp4 --workers 0", exitUsage, "--workers 0"},
		{"run grayscale a.mp4 --workers many", exitUsage, "many"},
		{"run grayscale a.mp4 --format avi", exitUsage, "--format avi"},
		{"run grayscale a.mp4 --frames bmp", exitUsage, "--frames bmp"},
		{"run grayscale a.mp4 --set nonsense", exitUsage, "node.parameter=value"},
		{"run grayscale a.mp4 --set encode.crf=99", exitUsage, "crf"},
		{"run grayscale a.mp4 --resume out", exitUsage, "--resume"},
		{"run syntax.json a.mp4", exitSpec, "syntax.json"},
		{"run wrong.json a.mp4", exitSpec, "dekode"},
		{"run grayscale missing.mp4 -q -o out", exitInput, "missing.mp4"},
		{"run grayscale empty.mp4 -q -o out", exitInput, "empty.mp4"},
		{"run grayscale text.mp4 -q -o out", exitInput, "text.mp4"},
		{"run --resume nowhere -q", exitOutput, "nowhere"},
		{"run grayscale text.mp4 -q -o /dev/null/out", exitOutput, "/dev/null"},
		{"validate wrong.json", exitSpec, "wrong.json"},
		{"validate nothing.json", exitUsage, "nothing.json"},
		{"validate", exitUsage, "accepts 1 arg"},
		{"validate grayscale", exitOK, ""},
		{"graph wrong.json", exitSpec, "dekode"},
		{"graph grayscale --format png", exitUsage, "--format png"},
		{"pipelines nosuch", exitUsage, "nosuch"},
		{"serve missing", exitInput, "missing"},
		{"worker", exitUsage, "started by volley run"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			code, out, errs := call(t, strings.Fields(tc.args)...)
			if code != tc.code || !strings.Contains(errs, tc.want) {
				t.Errorf("status %d, want %d with %q:\n%s%s", code, tc.code, tc.want, out, errs)
			}
			if code == exitOK {
				return
			}
			if !strings.HasPrefix(errs, "volley: ") || strings.Contains(errs, "panic") {
				t.Errorf("message %q", errs)
			}
			if _, err := os.Stat("out"); err == nil {
				t.Error("something was left in out")
			}
		})
	}
}

func TestExitStatusFollowsTheError(t *testing.T) {
	task := func(kind stage.FailureKind) error {
		return fmt.Errorf("run: %w", &coordinator.TaskError{Kind: kind})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want int
	}{
		{"anything", t.Context(), errors.New("x"), exitFailure},
		{"usage", t.Context(), usagef("x"), exitUsage},
		{"pipespec", t.Context(), fmt.Errorf("x: %w", &sprocket.SpecError{}), exitSpec},
		{"input", t.Context(), fmt.Errorf("x: %w", &media.InputError{Kind: media.NotFound}), exitInput},
		{"nothing to play", t.Context(), fmt.Errorf("x: %w", player.ErrNoResult), exitInput},
		{"output", t.Context(), &job.OutputError{Err: errors.New("x")}, exitOutput},
		{"output during a task", t.Context(), &job.OutputError{Err: task(stage.FailureNoSpace)}, exitOutput},
		{"damaged input", t.Context(), task(stage.FailureInput), exitInput},
		{"a stage's settings", t.Context(), task(stage.FailureConfig), exitSpec},
		{"a task that just fails", t.Context(), task(stage.FailureTransient), exitFailure},
		{"interrupted", cancelled, context.Canceled, exitInterrupted},
		{"interrupted with wrong usage", cancelled, usagef("x"), exitUsage},
	} {
		if got := exitStatus(tc.ctx, tc.err); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestPipelinesAreListedAsJSON(t *testing.T) {
	code, out, errs := call(t, "pipelines", "--json")
	if code != 0 {
		t.Fatalf("status %d: %s", code, errs)
	}
	var list []listedPipeline
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range list {
		names = append(names, p.Name)
		if p.Description == "" || p.Inputs < 1 || !strings.HasPrefix(p.Example, "volley run "+p.Name) {
			t.Errorf("%+v", p)
		}
		for _, prm := range p.Parameters {
			if prm.Doc == "" || prm.Kind == "" || !strings.Contains(prm.Name, ".") {
				t.Errorf("%s: %+v", p.Name, prm)
			}
		}
		_, text, _ := call(t, "pipelines")
		if !strings.Contains(text, p.Name+"\n  "+p.Description) {
			t.Errorf("%s is not in the plain list", p.Name)
		}
		code, spec, _ := call(t, "pipelines", p.Name)
		if _, err := sprocket.ParseSpec(p.Name, []byte(spec)); code != 0 || err != nil {
			t.Errorf("pipelines %s: %d, %v", p.Name, code, err)
		}
	}
	if !slices.Equal(names, pipelines.Names()) {
		t.Errorf("listed %v, there are %v", names, pipelines.Names())
	}
}

func TestValidateTellsProgramsWhatIsWrong(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("wrong.json", []byte(`{"nodes":[{"name":"d","stage":"dekode"}],"streams":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, valid := range map[string]bool{"wrong.json": false, "blend": true} {
		_, out, _ := call(t, "validate", "--json", name)
		var report struct {
			Valid    bool
			Problems []sprocket.Problem
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err)
		}
		if report.Valid != valid || (len(report.Problems) == 0) != valid || report.Problems == nil {
			t.Errorf("%s: %s", name, out)
		}
	}
}

func TestGraphWritesAFileOrStandardOutput(t *testing.T) {
	t.Chdir(t.TempDir())
	if code, out, _ := call(t, "graph", "blend", "--format", "dot"); code != 0 || !strings.HasPrefix(out, "digraph") {
		t.Errorf("dot: %d, %.40q", code, out)
	}
	if code, out, _ := call(t, "graph", "blend", "-o", "b.svg"); code != 0 || out != "" {
		t.Errorf("svg: %d, %q", code, out)
	}
	if text, err := os.ReadFile("b.svg"); err != nil || !bytes.Contains(text, []byte("<svg")) {
		t.Errorf("b.svg: %v, %.40q", err, text)
	}
	if code, _, _ := call(t, "graph", "blend", "-o", "no/such/dir.svg"); code == 0 {
		t.Error("a file that cannot be written gave status 0")
	}
}
