package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/faasnaptest"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const code = `
def handler(event, context):
    print("called with", event)
    if event.get("do") == "fail":
        raise ValueError("as it was told")
    if event.get("do") == "exit":
        import os
        os._exit(3)
    if event.get("do") == "addresses":
        import re
        return sorted(set(re.findall(r"10\.77\.0\.[1-9]\d*", open("/proc/net/fib_trie").read())))
    return {"got": event}
`

// openServer opens a server on QEMU, and returns the Service's directory too.
func openServer(t *testing.T) (c *Client, places *sandboxtest.LoosePlaces, dir string) {
	t.Helper()
	driver, builder := faasnaptest.QEMU(t)
	dir = t.TempDir()
	s, err := faasnap.Open(faasnap.Config{Dir: dir, Driver: driver, Builder: builder})
	if err != nil {
		t.Fatal(err)
	}
	places = sandboxtest.NewLoosePlaces(t)
	server := New(Config{Service: s, Networks: places})
	c, closeClient := Local(server)
	t.Cleanup(func() {
		if err := errors.Join(closeClient(), server.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		for _, left := range []string{"vms", "snapshots/.*draft*"} {
			if found, err := filepath.Glob(filepath.Join(dir, left, "*")); err != nil || len(found) > 0 {
				t.Errorf("left behind: %v, %v", found, err)
			}
		}
	})
	return c, places, dir
}

// call makes a call that must succeed.
func call[T any](t *testing.T, c *Client, method, path string, body any) T {
	t.Helper()
	var result T
	if err := c.Call(t.Context(), method, path, body, &result); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return result
}

// fails makes a call that must fail with a code.
func fails(t *testing.T, c *Client, code, method, path string, body any) *Error {
	t.Helper()
	err := c.Call(t.Context(), method, path, body, nil)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != code {
		t.Fatalf("%s %s: %v; want code %s", method, path, err, code)
	}
	return e
}

func invoke(t *testing.T, c *Client, path, event string) *Invocation {
	t.Helper()
	in, err := c.Invoke(t.Context(), path, []byte(event))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return in
}

// One machine that is booted and one snapshot serve all of this.
func TestAFunctionOverTheAPI(t *testing.T) {
	c, places, dir := openServer(t)
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "app.py"), []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	build := BuildRequest{From: source, Runtime: "python3", Handler: "app.handler", TimeoutSeconds: 20, GuestMemoryMB: 256, Environment: map[string]string{"WHO": "me"}}
	f := call[Function](t, c, http.MethodPut, "/v1/functions/app", build)
	if f.Name != "app" || f.GuestMemoryMB != 256 || len(f.Drives) != 2 || f.Environment["WHO"] != "me" {
		t.Errorf("built %+v", f)
	}
	if got := call[Functions](t, c, http.MethodGet, "/v1/functions", nil); len(got.Functions) != 1 || got.Functions[0].Kernel != f.Kernel {
		t.Errorf("functions %+v", got)
	}
	if info := call[Info](t, c, http.MethodGet, "/v1", nil); !strings.HasPrefix(info.VMM, "qemu ") || info.Mode != "faasnap" {
		t.Errorf("info %+v", info)
	}

	var steps []string
	record := SnapshotRequest{Function: "app", Inputs: []json.RawMessage{[]byte(`{"a":1}`), []byte(`{"a":2}`)}}
	e, err := c.Long(t.Context(), http.MethodPost, "/v1/snapshots", record, func(step string) { steps = append(steps, step) })
	if err != nil || e.Snapshot == nil {
		t.Fatalf("record: %+v, %v", e, err)
	}
	if got := strings.Join(steps, ", "); got != "start, boot, warm up, save, record input 1 of 2, record input 2 of 2, plan" {
		t.Errorf("steps: %s", got)
	}
	t.Run("snapshots tell what was recorded", func(t *testing.T) { snapshotsTell(t, c, *e.Snapshot) })
	t.Run("a snapshot of that name is not replaced unasked", func(t *testing.T) {
		fails(t, c, CodeExists, http.MethodPost, "/v1/snapshots", record)
	})
	t.Run("an invocation has a machine of its own", func(t *testing.T) {
		for _, mode := range []string{"", "full", "faasnap"} {
			in := invoke(t, c, "/v1/functions/app/invocations?log=tail&mode="+mode, `{"n": 7}`)
			if mode == "" {
				mode = "faasnap"
			}
			if string(in.Payload) != `{"got": {"n": 7}}` || in.FunctionError != "" || in.Mode != mode || in.RequestID == "" || !strings.Contains(string(in.Log), "called with") {
				t.Errorf("%s: %+v: %s", mode, in, in.Payload)
			}
			if in.Start <= 0 || in.Run <= 0 || in.Total < in.Start+in.Run || in.Host.ResidentBytes < 1<<20 || in.Host.MinorFaults == 0 {
				t.Errorf("%s: figures %+v", mode, in)
			}
		}
		if in := invoke(t, c, "/v1/functions/app/invocations", `{"do": "fail"}`); in.FunctionError != "Unhandled" || !strings.Contains(string(in.Payload), "as it was told") {
			t.Errorf("a function that fails: %+v: %s", in, in.Payload)
		}
		if vms := call[VMs](t, c, http.MethodGet, "/v1/vms", nil); len(vms.VMs) != 0 {
			t.Errorf("left %+v", vms)
		}
		if err := c.Call(t.Context(), http.MethodPost, "/v1/functions/app/invocations?mode=reap", nil, nil); err == nil || !strings.Contains(err.Error(), "faults") {
			t.Errorf("a mode without what it needs: %v", err)
		}
	})
	t.Run("a monitor waits for a restore", func(t *testing.T) { monitorWaits(t, c) })
	t.Run("a snapshot learns from an input", func(t *testing.T) { learns(t, c, *e.Snapshot) })
	t.Run("a machine is an endpoint of a job's network", func(t *testing.T) { joinsJob(t, c, places) })
	t.Run("a restored machine stays", func(t *testing.T) { machineStays(t, c) })
	t.Run("a damaged snapshot is refused", func(t *testing.T) { damageIsTold(t, c, dir) })
}

func snapshotsTell(t *testing.T, c *Client, made Snapshot) {
	got := call[Snapshot](t, c, http.MethodGet, "/v1/snapshots/app", nil)
	if got.ID != made.ID || got.Function != "app" || got.Plan == nil || got.MemoryBytes != 256<<20 || len(got.Files) < 5 {
		t.Fatalf("snapshot %+v, made as %+v", got, made)
	}
	p := *got.Plan
	if p.Pages != 1<<16 || p.ZeroPages+p.ColdPages+p.LoadingPages != p.Pages || p.LoadingPages == 0 || p.Groups == 0 {
		t.Errorf("plan %+v", p)
	}
	plan := call[Plan](t, c, http.MethodGet, "/v1/snapshots/app/plan", nil)
	if len(plan.Regions) != p.ZeroRegions+p.ColdRegions+p.LoadingRegions {
		t.Errorf("%d regions, the summary has %+v", len(plan.Regions), p)
	}
	working := call[WorkingSet](t, c, http.MethodGet, "/v1/snapshots/app/working-set", nil)
	n := 0
	for _, g := range working.Groups {
		for _, r := range g {
			n += r[1] - r[0]
		}
	}
	if len(working.Groups) != p.Groups || n != p.WorkingPages {
		t.Errorf("%d pages in %d groups, the summary has %+v", n, len(working.Groups), p)
	}
	// It was written a moment ago.
	resident := call[Resident](t, c, http.MethodGet, "/v1/snapshots/app/resident", nil)
	if resident.Memory.Pages != p.Pages || resident.Loading.Pages != p.LoadingPages || len(resident.Memory.Ranges) == 0 {
		t.Errorf("resident: %d of %d pages of memory, %d of %d of the loading set", resident.Memory.Resident, resident.Memory.Pages, resident.Loading.Resident, resident.Loading.Pages)
	}
	if picture := call[[]byte](t, c, http.MethodGet, "/v1/snapshots/app/map.svg", nil); !strings.HasPrefix(string(picture), "<svg") {
		t.Errorf("picture %.60q", picture)
	}
	if v := call[Verified](t, c, http.MethodPost, "/v1/snapshots/app/verify", nil); v.Files != len(got.Files) || v.Bytes < got.MemoryBytes {
		t.Errorf("verified %+v", v)
	}
	if list := call[Snapshots](t, c, http.MethodGet, "/v1/snapshots", nil); len(list.Snapshots) != 1 || list.Snapshots[0].ID != got.ID {
		t.Errorf("list %+v", list)
	}
}

func monitorWaits(t *testing.T, c *Client) {
	const path = "/v1/snapshots/app/standby"
	fails(t, c, CodeInvalid, http.MethodPut, path, StandbyRequest{Count: 65})
	fails(t, c, CodeNotFound, http.MethodPut, "/v1/snapshots/none/standby", StandbyRequest{Count: 1})
	if got := call[Standby](t, c, http.MethodPut, path, StandbyRequest{Count: 1}); got != (Standby{Count: 1, Ready: 1}) {
		t.Errorf("it says %+v", got)
	}
	if got := call[Snapshot](t, c, http.MethodGet, "/v1/snapshots/app", nil); got.Standby == nil || got.Standby.Ready != 1 {
		t.Errorf("the snapshot has %+v", got.Standby)
	}
	vm := call[VM](t, c, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app"})
	if !vm.Standby {
		t.Errorf("machine %+v was not restored by the monitor that waits", vm)
	}
	if in := invoke(t, c, "/v1/vms/"+vm.ID+"/invocations", `{"n": 7}`); string(in.Payload) != `{"got": {"n": 7}}` {
		t.Errorf("it answers %s", in.Payload)
	}
	if err := c.Call(t.Context(), http.MethodDelete, "/v1/vms/"+vm.ID, nil, nil); err != nil {
		t.Error(err)
	}
	if got := call[Standby](t, c, http.MethodPut, path, StandbyRequest{}); got != (Standby{}) {
		t.Errorf("in the end it says %+v", got)
	}
}

func learns(t *testing.T, c *Client, made Snapshot) {
	learn := LearnRequest{Inputs: []json.RawMessage{[]byte(`{"a":3}`)}}
	got := call[Learned](t, c, http.MethodPost, "/v1/snapshots/app/learn", learn)
	if got.Snapshot.Name != "app" || got.Snapshot.ID == made.ID || got.Snapshot.Plan.LoadingPages < made.Plan.LoadingPages {
		t.Errorf("snapshot %+v; it was %+v", got.Snapshot, made)
	}
	if a := got.Accuracy; len(a) != 1 || a[0].LoadedPages != made.Plan.LoadingPages || a[0].HitPages == 0 || a[0].HitPages > a[0].UsedPages {
		t.Errorf("accuracy %+v", a)
	}
	learn.Inputs = append(learn.Inputs, []byte(`{"do":"fail"}`))
	fails(t, c, CodeFunction, http.MethodPost, "/v1/snapshots/app/learn", learn)
	learn.Network = &Network{Tap: "tap-of-nobody"}
	fails(t, c, CodeInvalid, http.MethodPost, "/v1/snapshots/app/learn", learn)
	if now := call[Snapshot](t, c, http.MethodGet, "/v1/snapshots/app", nil); now.ID != got.Snapshot.ID {
		t.Error("an input that the function fails on changed the snapshot")
	}
}

// joinsJob saves a machine on a network, and restores it there.
func joinsJob(t *testing.T, c *Client, places *sandboxtest.LoosePlaces) {
	loose := &Network{Job: sandboxtest.LooseNetwork}
	fails(t, c, CodeInvalid, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Network: &Network{Job: "other"}})
	fails(t, c, CodeInvalid, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Network: &Network{Job: sandboxtest.LooseNetwork, Tap: "t"}})
	fails(t, c, CodeInvalid, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Network: &Network{Job: sandboxtest.LooseNetwork, Address: "10.0.0.1"}})
	fails(t, c, CodeInvalid, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Network: loose}) // it was recorded on none
	booted := call[VM](t, c, http.MethodPost, "/v1/vms", StartRequest{Function: "app", Network: loose})
	if n := booted.Network; n == nil || n.Job != sandboxtest.LooseNetwork || n.Address != "10.77.0.2" || n.Tap != "tap7" {
		t.Errorf("the machine's network is %+v", n)
	}
	call[Snapshot](t, c, http.MethodPost, "/v1/snapshots", SnapshotRequest{Name: "joined", VM: booted.ID})
	// Its address is another's now.
	if in := invoke(t, c, "/v1/functions/app/invocations?snapshot=joined&job="+sandboxtest.LooseNetwork, `{"do": "addresses"}`); string(in.Payload) != `["10.77.0.3"]` || in.Mode != "faasnap" {
		t.Errorf("%+v: %s", in, in.Payload)
	}
	for _, path := range []string{"/v1/vms/" + booted.ID, "/v1/snapshots/joined"} {
		if err := c.Call(t.Context(), http.MethodDelete, path, nil, nil); err != nil {
			t.Error(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, taken := places.Count()
		if taken == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d places were not given back", taken)
		}
	}
}

func machineStays(t *testing.T, c *Client) {
	fails(t, c, CodeInvalid, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Network: &Network{Tap: "tap-of-nobody"}})
	vm := call[VM](t, c, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Paused: true})
	path := "/v1/vms/" + vm.ID
	if vm.State != "paused" || vm.Mode != "faasnap" || vm.Snapshot != "app" || vm.Times.StartMs <= 0 || vm.Host.PID == 0 {
		t.Errorf("machine %+v", vm)
	}
	fails(t, c, CodePaused, http.MethodPost, path+"/invocations", nil)
	if vm = call[VM](t, c, http.MethodPost, path+"/resume", nil); vm.State != "idle" {
		t.Errorf("resumed: %+v", vm)
	}
	for _, event := range []string{"", `{"do": "fail"}`, `{"x": "y"}`} {
		in := invoke(t, c, path+"/invocations", event)
		if (in.FunctionError != "") != strings.Contains(event, "fail") || in.Start != 0 {
			t.Errorf("%s: %+v: %s", event, in, in.Payload)
		}
	}
	call[VM](t, c, http.MethodPost, path+"/pause", nil)
	call[VM](t, c, http.MethodPost, path+"/pause", nil)
	call[VM](t, c, http.MethodPost, path+"/resume", nil)
	if e := fails(t, c, CodeBusy, http.MethodPost, "/v1/snapshots", SnapshotRequest{VM: vm.ID, Name: "again"}); !strings.Contains(e.Message, "booted") {
		t.Errorf("a restored machine: %v", e)
	}
	// A function that ends takes its machine along.
	if in := invoke(t, c, path+"/invocations", `{"do": "exit"}`); in.FunctionError != "Unhandled" {
		t.Errorf("a function that ends: %+v: %s", in, in.Payload)
	}
	fails(t, c, CodeNotFound, http.MethodGet, path, nil)

	vm = call[VM](t, c, http.MethodPost, "/v1/vms", StartRequest{Snapshot: "app", Mode: "full"})
	if err := c.Call(t.Context(), http.MethodDelete, "/v1/vms/"+vm.ID, nil, nil); err != nil {
		t.Error(err)
	}
	fails(t, c, CodeNotFound, http.MethodDelete, "/v1/vms/"+vm.ID, nil)
}

func damageIsTold(t *testing.T, c *Client, dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "snapshots", "app", "memory"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for method, path := range map[string]string{"verify": "/v1/snapshots/app/verify", "invoke": "/v1/functions/app/invocations"} {
		if e := fails(t, c, CodeDamaged, http.MethodPost, path, nil); !strings.Contains(e.Message, "memory: page group") {
			t.Errorf("%s: %v", method, e)
		}
	}
	if got := call[Collected](t, c, http.MethodPost, "/v1/gc", CollectRequest{DryRun: true}); len(got.Removed) != 1 || !strings.Contains(got.Removed[0].Reason, "damaged") {
		t.Errorf("would collect %+v", got)
	}
	if got := call[Collected](t, c, http.MethodPost, "/v1/gc", nil); len(got.Removed) != 1 || got.Removed[0].Name != "app" {
		t.Errorf("collected %+v", got)
	}
	fails(t, c, CodeNotFound, http.MethodGet, "/v1/snapshots/"+url.PathEscape("app"), nil)
	if err := c.Call(t.Context(), http.MethodDelete, "/v1/functions/app", nil, nil); err != nil {
		t.Error(err)
	}
}
