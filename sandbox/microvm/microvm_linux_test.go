package microvm_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/faasnaptest"
	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/microvm"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newService(t *testing.T, dir string) *faasnap.Service {
	t.Helper()
	driver, builder := faasnaptest.QEMU(t)
	s, err := faasnap.Open(faasnap.Config{Dir: dir, Driver: driver, Builder: builder})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newDriver(t *testing.T, s *faasnap.Service, policy microvm.Policy, change ...func(*microvm.Config)) *microvm.Driver {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	c := microvm.Config{
		Service: s, Unpacker: sandboxtest.DirUnpacker{}, Policy: policy, InitTimeout: initTimeout, Log: log,
		Observe: func(m faasnap.Mode, times faasnap.Times) { log.Info("started", "mode", m, "took", times.Start) },
	}
	for _, f := range change {
		f(&c)
	}
	d, err := microvm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

const pythonFunction = `
import os, random, time

restored = []

def after_restore():
    restored.append(open("/run/volley/instance-id").read())

def handler(event, context):
    if event.get("do") == "fail":
        raise ValueError("as it was told")
    if event.get("do") == "exit":
        os._exit(3)
    if event.get("do") == "hang":
        time.sleep(60)
    print("handled", event)
    return {"restored": len(restored), "random": random.random(), "uid": os.getuid(), "env": os.environ.get("GREETING")}
`

type answer struct {
	Restored, UID, MTU, Processes int
	Random                        float64
	Env                           string
}

func pythonIn(t *testing.T) *function.Function {
	t.Helper()
	return functionOf(t, pythonFunction)
}

// functionOf returns a function in Python.
func functionOf(t *testing.T, text string) *function.Function {
	t.Helper()
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "app.py"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f := &function.Function{
		Name: "f", Revision: "1", PackageType: function.Zip, Runtime: "python3.12", Handler: "app.handler",
		Code: function.Code{Object: code}, MemoryMB: 128, Timeout: 20 * time.Second, Environment: map[string]string{"GREETING": "hello"},
	}
	f.SetDefaults()
	return f
}

func invoke(t *testing.T, box sandbox.Sandbox, event string) (answer, sandbox.Response) {
	t.Helper()
	resp, err := box.Invoke(t.Context(), sandbox.Request{ID: "7a1b9a5e-9c8d-4d57-8e0a-7d4c4be1a001", Payload: []byte(event), Deadline: time.Now().Add(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	if resp.FunctionError == "" {
		if err := json.Unmarshal(resp.Payload, &a); err != nil {
			t.Fatalf("answer %s: %v", resp.Payload, err)
		}
	}
	return a, resp
}

func create(t *testing.T, d *microvm.Driver, id string, f *function.Function) sandbox.Sandbox {
	t.Helper()
	box, err := d.Create(t.Context(), sandbox.Spec{ID: id, Function: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close(context.Background()) }) // where a test has ended early
	return box
}

// awaitSnapshots waits until there are so many.
func awaitSnapshots(t *testing.T, s *faasnap.Service, n int) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		names, err := s.Snapshots()
		if err != nil {
			t.Fatal(err)
		}
		if len(names) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d snapshots: want %d", len(names), n)
		}
	}
}

// A function boots once, is recorded after its first invocation, and comes from
// its snapshot from then on.
func TestMachinesServeAFunction(t *testing.T) {
	s := newService(t, t.TempDir())
	policy := microvm.DefaultPolicy()
	policy.MaxStandby = 1
	d := newDriver(t, s, policy)
	f := pythonIn(t)
	first := create(t, d, "first", f)
	if a, _ := invoke(t, first, "{}"); a.Restored != 0 || a.UID != guest.FunctionID || a.Env != "hello" {
		t.Errorf("the machine that was booted answers %+v", a)
	}
	awaitSnapshots(t, s, 1)
	waits := func() bool {
		for _, b := range s.Standbys() {
			return b.Ready == 1
		}
		return false
	}
	for end := time.Now().Add(time.Minute); !waits() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	// The one that serves was not held up, and goes on.
	if a, _ := invoke(t, first, "{}"); a.Restored != 0 {
		t.Errorf("the machine that was booted answers %+v", a)
	}
	var lines []string
	begin := time.Now()
	second, err := d.Create(t.Context(), sandbox.Spec{ID: "second", Function: f, Log: func(l function.LogLine) { lines = append(lines, l.Text) }})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := invoke(t, second, "{}")
	t.Logf("created and answered in %v", time.Since(begin))
	if i := slices.IndexFunc(s.VMs(), func(v *faasnap.VM) bool { return v.Info().Standby }); i < 0 {
		t.Error("no VMM had waited for it")
	}
	third := create(t, d, "third", f)
	b, _ := invoke(t, third, "{}")
	if a.Restored != 1 || b.Restored != 1 || a.Random == b.Random {
		t.Errorf("the machines from the snapshot answer %+v and %+v", a, b)
	}
	if !strings.Contains(strings.Join(lines, "\n"), "handled {}") {
		t.Errorf("the function's log is %q", lines)
	}
	if _, resp := invoke(t, third, `{"do": "fail"}`); resp.FunctionError == "" || !strings.Contains(string(resp.Payload), "as it was told") || resp.Broken {
		t.Errorf("an error is answered by %s", resp.Payload)
	}
	if err := third.Pause(t.Context()); err != nil {
		t.Error(err)
	}
	if err := third.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if u, err := third.Usage(t.Context()); err != nil || u.MemoryBytes < 10<<20 {
		t.Errorf("usage %+v, error %v", u, err)
	}
	if _, resp := invoke(t, third, `{"do": "exit"}`); !strings.Contains(string(resp.Payload), "exit status 3") || !resp.Broken {
		t.Errorf("the end of its process is answered by %s", resp.Payload)
	}
	<-third.Done()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if resp, err := second.Invoke(ctx, sandbox.Request{ID: "x", Payload: []byte(`{"do": "hang"}`)}); err == nil || !resp.Broken {
		t.Errorf("an invocation that is canceled gives %+v, error %v", resp, err)
	}
	for _, box := range []sandbox.Sandbox{first, second, third} {
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := len(s.VMs()); n != 0 {
		t.Errorf("%d machines are left", n)
	}

	// A new revision leaves nothing of the old one.
	f2 := *f
	f2.Revision, f2.Modified = "2", time.Now()
	// What is kept is removed before anything is started.
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if box, err := d.Create(ctx, sandbox.Spec{ID: "other", Function: &f2}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("sandbox %v, error %v; want none in so short a time", box, err)
	}
	if names, err := s.Snapshots(); err != nil || len(names) != 0 {
		t.Errorf("snapshots %v, error %v; want none of the earlier revision", names, err)
	}
	if n := len(s.VMs()) + len(s.Standbys()); n != 0 {
		t.Errorf("%d machines are left", n)
	}
}

// A function that is not invoked often enough for a recorded working set has a
// plain snapshot, also for the driver of the next process; one that is hardly
// invoked has none.
func TestThePolicyDecidesWhatIsKept(t *testing.T) {
	s := newService(t, t.TempDir())
	f := pythonIn(t)
	policy := microvm.DefaultPolicy()
	policy.Trial, policy.FaaSnapPerDay = 0, 1000
	d := newDriver(t, s, policy)
	first := create(t, d, "first", f)
	invoke(t, first, "{}")
	awaitSnapshots(t, s, 1)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = newDriver(t, s, policy)
	second := create(t, d, "second", f)
	if a, _ := invoke(t, second, "{}"); a.Restored != 1 {
		t.Errorf("the machine of the next driver answers %+v", a)
	}
	if vms := s.VMs(); len(vms) != 1 || vms[0].Info().Mode != faasnap.Full {
		t.Errorf("machines %+v; want one of a plain snapshot", vms)
	}
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "second", Function: f}); err == nil {
		t.Error("two sandboxes have the same id")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// Nothing fits.
	policy.MaxBytes = 1
	d = newDriver(t, s, policy)
	d.Tidy()
	if names, err := s.Snapshots(); err != nil || len(names) != 0 {
		t.Errorf("snapshots %v, error %v; want none in one byte", names, err)
	}
}

// A bomb goes off in a booted machine and in one of its snapshot: the agent goes
// on, and so does the function if it puts an end to it.
func TestAForkBombIsContained(t *testing.T) {
	s := newService(t, t.TempDir())
	d := newDriver(t, s, microvm.DefaultPolicy(), func(c *microvm.Config) { c.MaxProcesses = maxProcesses })
	f := functionOf(t, `
import glob, os, signal, time

def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.05)

def handler(event, context):
    if "for" not in event:
        return {}
    child = os.fork()
    if child == 0:
        os.setsid()
        bomb()
    time.sleep(event["for"])
    count = sum(os.stat(p).st_uid == os.getuid() for p in glob.glob("/proc/[0-9]*"))
    os.killpg(child, signal.SIGKILL)
    return {"processes": count}
`)
	f.Timeout = 10 * time.Second
	box := create(t, d, "booted", f)
	for _, name := range []string{"restored", ""} {
		a, resp := invoke(t, box, `{"for": 2}`)
		if a.Processes < maxProcesses/2 || a.Processes > maxProcesses || resp.Broken {
			t.Errorf("a bomb of which %s is left; want at most %d processes", resp.Payload, maxProcesses)
		}
		if _, resp := invoke(t, box, "{}"); resp.FunctionError != "" || resp.Broken {
			t.Errorf("after the bomb the function answers %+v", resp)
		}
		if name == "" {
			break
		}
		awaitSnapshots(t, s, 1)
		box = create(t, d, name, f)
	}
	resp, err := box.Invoke(t.Context(), sandbox.Request{ID: "x", Payload: []byte(`{"for": 60}`), Deadline: time.Now().Add(2 * time.Second)})
	if err != nil || !resp.Broken || !strings.Contains(string(resp.Payload), "Sandbox.Timedout") {
		t.Errorf("a bomb until the deadline: %s, %v", resp.Payload, err)
	}
	<-box.Done()
}

func TestWhatAMachineCannotDoIsRefused(t *testing.T) {
	d := newDriver(t, newService(t, t.TempDir()), microvm.DefaultPolicy())
	for name, tc := range map[string]struct {
		change func(*function.Function)
		want   function.ErrorCode
		text   string
	}{
		"the host's network": {func(f *function.Function) { f.Network = function.NetworkHost }, function.InvalidParameter, "does not share the host's network"},
		"a job's network":    {func(f *function.Function) { f.Network = function.JobNetwork("jobs") }, function.InvalidParameter, "there are no job networks here"},
		"an image":           {func(f *function.Function) { f.PackageType = function.Image }, function.InvalidImage, "images are not enabled"},
	} {
		f := pythonIn(t)
		tc.change(f)
		if _, err := d.Create(t.Context(), sandbox.Spec{ID: "x", Function: f}); function.CodeOf(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %v; want one of %q", name, err, tc.text)
		}
	}
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "../x", Function: pythonIn(t)}); err == nil {
		t.Error("an id that is a path is taken")
	}
}
