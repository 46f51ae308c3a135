//go:build linux

package oci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

// victim, in the environment, makes the test binary play the invoker that is
// killed.
const victim = "VOLLEY_OCI_TEST_VICTIM"

func TestMain(m *testing.M) {
	if args := os.Getenv(victim); args != "" {
		if err := playVictim(strings.Fields(args)); err != nil {
			fmt.Println(err)
		}
		os.Exit(1)
	}
	// As in the invoker: whatever process 1 of the host may be, the status of
	// containers is taken at once.
	if err := sys.AdoptOrphans(); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// playVictim makes two sandboxes, pauses one, and makes a third until it
// reaches a step. It says so and goes on, or waits to be killed.
func playVictim(args []string) error {
	dir, initPath, code, step, then := args[0], args[1], args[2], args[3], args[4]
	ctx := context.Background()
	d, err := New(ctx, Config{Runtime: Runc, Dir: dir, Init: initPath, Unpacker: sandboxtest.DirUnpacker{}})
	if err != nil {
		return err
	}
	for _, id := range []string{"one", "two"} {
		box, err := d.Create(ctx, sandbox.Spec{ID: id, Function: testFunction(code)})
		if err != nil {
			return err
		}
		if err := box.Pause(ctx); err != nil {
			return err
		}
	}
	d.fault = func(s string) error {
		if s == step {
			fmt.Println("reached")
			if then == "wait" {
				select {}
			}
		}
		return nil
	}
	if _, err := d.Create(ctx, sandbox.Spec{ID: "three", Function: testFunction(code)}); err != nil {
		return err
	}
	select {}
}

func testFunction(code string) *function.Function {
	f := &function.Function{
		Name: "behave", Revision: "1", Runtime: "provided.al2023", Handler: "bootstrap",
		Code: function.Code{Object: code, SHA256: strings.Repeat("0", 64)}, Timeout: 30 * time.Second, MemoryMB: 128,
	}
	f.SetDefaults()
	return f
}

func testDriver(t testing.TB, cfg Config) *Driver {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Runtime == "" {
		cfg.Runtime = Runc
	}
	if cfg.Init == "" {
		cfg.Init = sandboxtest.BuildInit(t)
	}
	if cfg.Unpacker == nil {
		cfg.Unpacker = sandboxtest.DirUnpacker{}
	}
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close driver: %v", err)
		}
	})
	return d
}

// inventory lists what the driver has on the host.
func inventory(t *testing.T, d *Driver) map[string]string {
	t.Helper()
	found := map[string]string{}
	list := func(kind string, names []string) {
		if len(names) > 0 {
			found[kind] = strings.Join(names, " ")
		}
	}
	mounts, err := sys.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if below(m.Point, d.cfg.Dir) {
			found["mount "+m.Point] = m.FSType
		}
	}
	list("control groups", d.parent.children())
	for _, name := range []string{runtimeName, bundlesName, mountsName} {
		entries, err := os.ReadDir(d.path(name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		list(name, names)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range processes {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), d.parent.path) {
			continue
		}
		// When the host's process 1 takes the status of those that ended is its
		// own matter.
		if stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat")); err == nil && !strings.Contains(string(stat), ") Z ") {
			found["process "+filepath.Dir(file)] = string(text)
		}
	}
	return found
}

func wantNothingLeft(t *testing.T, d *Driver) {
	t.Helper()
	if diff := cmp.Diff(map[string]string{}, inventory(t, d)); diff != "" {
		t.Errorf("left on the host (+):\n%s", diff)
	}
}

// descriptors counts the open files of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNothingIsLeftWhereverCreateFails(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	d, code := testDriver(t, Config{}), sandboxtest.BuildBehave(t)
	// The first sandbox opens what stays open, such as the poller.
	box, err := d.Create(t.Context(), sandbox.Spec{ID: "first", Function: testFunction(code)})
	if err != nil {
		t.Fatal(err)
	}
	if len(inventory(t, d)) == 0 {
		t.Error("the inventory finds nothing of a sandbox that runs")
	}
	for range 2 {
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantNothingLeft(t, d)
	before := descriptors(t)
	broken := errors.New("broken")
	for _, step := range []string{"root", "bundle", "run", "started", "boot", "ready"} {
		t.Run("error at "+step, func(t *testing.T) {
			d.fault = func(s string) error {
				if s == step {
					return broken
				}
				return nil
			}
			if _, err := d.Create(t.Context(), sandbox.Spec{ID: "a", Function: testFunction(code)}); !errors.Is(err, broken) {
				t.Errorf("error %v", err)
			}
			wantNothingLeft(t, d)
		})
		t.Run("end of the context at "+step, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			d.fault = func(s string) error {
				if s == step {
					cancel()
				}
				return nil
			}
			box, err := d.Create(ctx, sandbox.Spec{ID: "a", Function: testFunction(code)})
			if err == nil {
				err = box.Close(t.Context()) // too late to matter
				if step != "ready" && step != "root" {
					t.Error("the context's end went unnoticed")
				}
			} else if errors.Is(err, context.Canceled) {
				err = nil
			}
			if err != nil {
				t.Errorf("error %v", err)
			}
			wantNothingLeft(t, d)
		})
		t.Run("the driver's closing at "+step, func(t *testing.T) {
			d := testDriver(t, Config{Init: filepath.Join(d.hostRoot, initPath)})
			closed := make(chan error, 1)
			d.fault = func(s string) error {
				if s == step {
					go func() { closed <- d.Close() }()
				}
				return nil
			}
			if box, err := d.Create(t.Context(), sandbox.Spec{ID: "a", Function: testFunction(code)}); err == nil {
				if err := box.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
			wantNothingLeft(t, d)
			if _, err := d.Create(t.Context(), sandbox.Spec{ID: "b", Function: testFunction(code)}); !errors.Is(err, os.ErrClosed) {
				t.Errorf("create after close: %v", err)
			}
		})
	}
	d.fault = nil
	if after := descriptors(t); after > before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

func TestARuntimeThatFailsIsToldWithItsReason(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	script := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'no such kernel' >&2\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := testDriver(t, Config{Binary: script})
	_, err := d.Create(t.Context(), sandbox.Spec{ID: "a", Function: testFunction(t.TempDir())})
	if err == nil || !strings.Contains(err.Error(), "no such kernel") {
		t.Errorf("error %v", err)
	}
	wantNothingLeft(t, d)
}

func TestWhatAKilledInvokerLeftIsRemoved(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	t.Parallel()
	initPath, code := sandboxtest.BuildInit(t), sandboxtest.BuildBehave(t)
	kill := func(t *testing.T, step, then string, after time.Duration) {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), victim+"="+strings.Join([]string{dir, initPath, code, step, then}, " "))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "reached\n" {
			t.Errorf("the victim says %q, %v", line, err)
		}
		<-time.After(after)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		d := testDriver(t, Config{Dir: dir, Init: initPath})
		n, err := d.Recover(t.Context())
		if err != nil || n < 2 || n > 3 {
			t.Errorf("recovered %d, %v", n, err)
		}
		wantNothingLeft(t, d)
		if n, err := d.Recover(t.Context()); n != 0 || err != nil {
			t.Errorf("then recovered %d, %v", n, err)
		}
		box, err := d.Create(t.Context(), sandbox.Spec{ID: "one", Function: testFunction(code)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Recover(t.Context()); err == nil {
			t.Error("sandboxes in use are recovered")
		}
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, step := range []string{"root", "run", "started", "ready"} {
		t.Run("at "+step, func(t *testing.T) { kill(t, step, "wait", 0) })
	}
	for _, after := range []time.Duration{4, 12, 30} {
		t.Run(fmt.Sprintf("while the runtime works, after %d ms", after), func(t *testing.T) { kill(t, "run", "go-on", after*time.Millisecond) })
	}
}

func TestAHundredFunctionsAtOnceAreServed(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	const n = 100
	code := sandboxtest.BuildBehave(t)
	var mu sync.Mutex
	var timings []Timings
	d := testDriver(t, Config{Observe: func(x Timings) {
		mu.Lock()
		defer mu.Unlock()
		timings = append(timings, x)
	}})
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			f := testFunction(code)
			f.Name = fmt.Sprintf("f%d", i)
			box, err := d.Create(t.Context(), sandbox.Spec{ID: f.Name, Function: f})
			if err != nil {
				t.Error(err)
				return
			}
			payload := fmt.Sprintf(`{"do":"echo","data":%q}`, f.Name)
			resp, err := box.Invoke(t.Context(), sandbox.Request{ID: f.Name, Payload: []byte(payload), Deadline: time.Now().Add(30 * time.Second)})
			if err != nil || string(resp.Payload) != `"`+f.Name+`"` {
				t.Errorf("%s answers %s, %v", f.Name, resp.Payload, err)
			}
		})
	}
	wg.Wait()
	served := time.Since(start)
	start = time.Now()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, d)
	totals := map[string][]time.Duration{}
	for _, x := range timings {
		totals["total"] = append(totals["total"], x.Total())
		totals["runtime"] = append(totals["runtime"], x.Runtime)
		totals["init"] = append(totals["init"], x.Init)
	}
	t.Logf("%d sandboxes served in %v, closed in %v", len(timings), served, time.Since(start))
	for _, part := range slices.Sorted(maps.Keys(totals)) {
		slices.Sort(totals[part])
		t.Logf("%s: p50 %v, max %v", part, totals[part][len(timings)/2], totals[part][len(timings)-1])
	}
}

func TestOneDriverUsesADirectory(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	dir := t.TempDir()
	d := testDriver(t, Config{Dir: dir})
	cfg := d.cfg
	if _, err := New(t.Context(), cfg); !errors.Is(err, sys.ErrLocked) {
		t.Errorf("a second driver: %v", err)
	}
	code := t.TempDir()
	for _, id := range []string{"", "a/b", "../x"} {
		if _, err := d.Create(t.Context(), sandbox.Spec{ID: id, Function: testFunction(code)}); err == nil {
			t.Errorf("id %q is accepted", id)
		}
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, d)
}

// BenchmarkColdStart measures Create of a function in Go, phase by phase.
func BenchmarkColdStart(b *testing.B) {
	for _, runtime := range []string{Runc, Runsc} {
		b.Run(runtime, func(b *testing.B) {
			testenv.Need(b, map[string]testenv.Capability{Runc: testenv.Runc, Runsc: testenv.Runsc}[runtime])
			code := sandboxtest.BuildBehave(b)
			var all []Timings
			d := testDriver(b, Config{Runtime: runtime, Observe: func(x Timings) { all = append(all, x) }})
			var closing []time.Duration
			for i := 0; b.Loop(); i++ {
				box, err := d.Create(b.Context(), sandbox.Spec{ID: fmt.Sprintf("b%d", i), Function: testFunction(code)})
				if err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				if err := box.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
				closing = append(closing, time.Since(start))
			}
			report := func(part string, of func(int) time.Duration) {
				list := make([]time.Duration, len(all))
				for i := range all {
					list[i] = of(i)
				}
				slices.Sort(list)
				b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, part+"-p50-ms")
				b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, part+"-p99-ms")
			}
			report("prepare", func(i int) time.Duration { return all[i].Prepare })
			report("runtime", func(i int) time.Duration { return all[i].Runtime })
			report("init", func(i int) time.Duration { return all[i].Init })
			report("total", func(i int) time.Duration { return all[i].Total() })
			report("close", func(i int) time.Duration { return closing[i] })
		})
	}
}
