package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
)

// Warm is a mode besides those of faasnap: a machine that is there, and has
// served the recorded input once (thesis 5.2.1). It was restored as by Cached.
const Warm faasnap.Mode = "warm"

// Standby is another: FaaSnap on a VMM that has waited for it
// (faasnap.Service.Standby).
const Standby faasnap.Mode = "faasnap-standby"

// Modes returns all that can be measured, from the best that there is.
func Modes() []faasnap.Mode {
	return append([]faasnap.Mode{Warm, Standby}, faasnap.Modes()...)
}

// Config is what a Bench has to know.
type Config struct {
	// Service runs the machines. Nobody else uses it meanwhile.
	Service *faasnap.Service
	// MemoryBytes is the guests' memory.
	MemoryBytes int64
	// SyntheticMB is how much memory the functions go over that go over much.
	SyntheticMB int
	// Timeout bounds an invocation.
	Timeout time.Duration
	// CodeDir is where the functions' code is written to, and is found again by
	// their next build.
	CodeDir string
	// Faults, if not nil, sees how long page faults take.
	Faults *FaultTimer
}

// Bench measures. Its methods are called by one goroutine at a time.
type Bench struct{ cfg Config }

// New returns a Bench.
func New(cfg Config) *Bench { return &Bench{cfg} }

// Build makes the workload's function.
func (b *Bench) Build(ctx context.Context, w Workload) (*faasnap.Function, error) {
	code, err := functions.ReadFile("functions/" + w.Name + ".py")
	if err != nil {
		return nil, fmt.Errorf("build workload: %w", err)
	}
	dir := filepath.Join(b.cfg.CodeDir, w.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("build workload %s: %w", w.Name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "app.py"), code, 0o644); err != nil {
		return nil, fmt.Errorf("build workload %s: %w", w.Name, err)
	}
	f := &faasnap.Function{
		Function: function.Function{
			Name: w.Name, Runtime: "python3.11", Handler: "app.handler", Timeout: b.cfg.Timeout,
			// What the kernel and volley-init leave of it.
			MemoryMB:    int(b.cfg.MemoryBytes>>20) * 7 / 8,
			Environment: map[string]string{"SYNTHETIC_MB": strconv.Itoa(b.cfg.SyntheticMB)},
		},
		GuestMemoryBytes: b.cfg.MemoryBytes,
	}
	var more []string
	if w.Installs {
		more = packages()
	}
	return f, b.cfg.Service.BuildZip(ctx, f, dir, more...)
}

// Recorded is a snapshot for tests.
type Recorded struct {
	Name, Function string
	// Input is what it was recorded with.
	Input Input
	// Took is how long recording took; the sizes are the snapshot's, in bytes.
	Took                                          time.Duration
	MemoryBytes, WorkingBytes, LoadingBytes, Reap int64
	dir                                           string
	event                                         []byte
}

// Record makes a snapshot for all modes.
func (b *Bench) Record(ctx context.Context, w Workload, f *faasnap.Function, in Input, name string) (Recorded, error) {
	r := Recorded{Name: name, Function: w.Name, Input: in}
	var err error
	if r.event, err = w.Event(in); err != nil {
		return r, err
	}
	begin := time.Now()
	snap, err := b.cfg.Service.Record(ctx, f, faasnap.RecordOptions{Name: name, Inputs: [][]byte{r.event}, Faults: true, Replace: true})
	if err != nil {
		return r, err
	}
	r.Took = time.Since(begin)
	r.dir = snap.Dir()
	for _, g := range snap.Working().Groups {
		for _, run := range g {
			r.WorkingBytes += int64(run.Len()) * pages.Size
		}
	}
	for _, region := range snap.Plan().Regions {
		if region.Source != pages.Zero {
			r.MemoryBytes += int64(region.Len()) * pages.Size
		}
	}
	r.LoadingBytes = int64(snap.Plan().LoadingPages) * pages.Size
	if info, err := os.Stat(snap.Path(reapFile)); err == nil {
		r.Reap = info.Size()
	}
	// What is read once to be found in order is not read again in tests.
	_, err = b.cfg.Service.Snapshot(ctx, name)
	return r, err
}

// reapFile is REAP's working-set file in a snapshot.
const reapFile = "reap"

// Copy makes another snapshot of what is in one: another function, as far as the
// page cache knows.
func (b *Bench) Copy(ctx context.Context, r Recorded, name string) (Recorded, error) {
	c := r
	c.Name, c.dir = name, filepath.Join(filepath.Dir(r.dir), name)
	if err := copyDir(ctx, r.dir, c.dir); err != nil {
		return c, errors.Join(fmt.Errorf("copy snapshot %s: %w", r.Name, err), os.RemoveAll(c.dir))
	}
	_, err := b.cfg.Service.Snapshot(ctx, name)
	return c, err
}

// Remove removes a snapshot.
func (b *Bench) Remove(r Recorded) error { return b.cfg.Service.RemoveSnapshot(r.Name) }

// Test is one invocation to measure.
type Test struct {
	Recorded Recorded
	Mode     faasnap.Mode
	Event    []byte
	// Populate is faasnap.RestoreOptions.Populate.
	Populate bool
	// Observe also counts how long each page fault takes, which costs time.
	Observe bool
}

// Measurement is one invocation on a machine of its own. Counts are of the time
// from the beginning until the response.
type Measurement struct {
	// Total is from the request to the response. VMM is the part until the VMM
	// could run the guest, Setup the part until the function was ready (with
	// VMM), Invocation the rest; Run is what of it the function took.
	Total, VMM, Setup, Invocation, Run time.Duration
	// MinorFaults and MajorFaults are the VMM's; InvocationMajor those during
	// the invocation.
	MinorFaults, MajorFaults, InvocationMajor int64
	// ReadBytes is what VMM and this process had read from disk.
	VMMReadBytes, HostReadBytes int64
	// Fetch and FetchBytes are of what was read ahead; Handled is how many page
	// faults were handled outside of the VMM, CopiedBytes what they brought.
	Fetch       time.Duration
	FetchBytes  int64
	Handled     int64
	CopiedBytes int64
	// AnonymousBytes of the VMM and CachedBytes of the snapshot's files are the
	// memory that it all takes (thesis 5.6.3).
	AnonymousBytes, CachedBytes int64
	// Faults is how long page faults took, if that was observed.
	Faults *FaultTimes
	// Answer is the function's.
	Answer string
}

// Test measures one invocation, with cold caches, or those of its mode.
func (b *Bench) Test(ctx context.Context, t Test) (Measurement, error) {
	m, err := b.test(ctx, t)
	if err != nil {
		return m, fmt.Errorf("invoke %s by mode %s: %w", t.Recorded.Name, t.Mode, err)
	}
	return m, nil
}

func (b *Bench) test(ctx context.Context, t Test) (m Measurement, err error) {
	if t.Mode == Standby {
		// What its start has read is cold again, but for pages that devices hold.
		if err := b.cfg.Service.Standby(ctx, t.Recorded.Name, 1); err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, b.cfg.Service.Standby(ctx, t.Recorded.Name, 0)) }()
	}
	if err := b.prepare(t.Recorded, t.Mode); err != nil {
		return m, err
	}
	var v *faasnap.VM
	if t.Mode == Warm {
		if v, err = b.cfg.Service.Restore(ctx, t.Recorded.Name, faasnap.Cached, faasnap.RestoreOptions{}); err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, v.Close()) }()
		if _, err := b.invoke(ctx, v, t.Recorded.event); err != nil {
			return m, err
		}
	}
	own, err := countersOf(os.Getpid())
	if err != nil {
		return m, err
	}
	var before counters // of the VMM
	begin := time.Now()
	switch t.Mode {
	case Warm:
		before, err = countersOf(v.Info().PID)
	case faasnap.Boot:
		var f *faasnap.Function
		if f, err = b.cfg.Service.Function(t.Recorded.Function); err == nil {
			v, err = b.cfg.Service.Boot(ctx, f, faasnap.StartOptions{})
		}
	case Standby:
		v, err = b.cfg.Service.Restore(ctx, t.Recorded.Name, faasnap.FaaSnap, faasnap.RestoreOptions{})
	default:
		v, err = b.cfg.Service.Restore(ctx, t.Recorded.Name, t.Mode, faasnap.RestoreOptions{Populate: t.Populate})
	}
	if err != nil {
		return m, err
	}
	if t.Mode != Warm {
		defer func() { err = errors.Join(err, v.Close()) }()
		m.Setup, m.VMM = time.Since(begin), v.Times().Prepare+v.Times().VMM
	}
	pid := v.Info().PID
	ready, err := countersOf(pid)
	if err != nil {
		return m, err
	}
	observed := func() (*FaultTimes, error) { return nil, nil }
	if t.Observe && b.cfg.Faults != nil {
		if observed, err = b.cfg.Faults.Observe(pid); err != nil {
			return m, err
		}
	}
	since := time.Now()
	resp, err := b.invoke(ctx, v, t.Event)
	if err != nil {
		return m, errors.Join(err, func() error { _, err := observed(); return err }())
	}
	m.Invocation = time.Since(since)
	m.Total = m.Setup + m.Invocation
	m.Run, m.Answer = resp.Run, string(resp.Payload)
	if m.Faults, err = observed(); err != nil {
		return m, err
	}
	return m, b.count(t.Recorded, v, before, ready, own, &m)
}

// count reads what there is to count after an invocation.
func (b *Bench) count(r Recorded, v *faasnap.VM, before, ready, own counters, m *Measurement) error {
	after, err := countersOf(v.Info().PID)
	if err != nil {
		return err
	}
	host, err := countersOf(os.Getpid())
	if err != nil {
		return err
	}
	all := after.sub(before)
	m.MinorFaults, m.MajorFaults, m.VMMReadBytes = all.minor, all.major, all.read
	m.InvocationMajor, m.HostReadBytes = after.sub(ready).major, host.sub(own).read
	loads := v.LoadStats()
	m.Fetch, m.FetchBytes = loads.Took, loads.Bytes
	m.Handled, m.CopiedBytes = loads.Faults.Faults, (loads.Faults.CopiedPages-loads.Faults.AheadPages)*pages.Size
	if m.AnonymousBytes, err = anonymousBytes(v.Info().PID); err != nil {
		return err
	}
	m.CachedBytes, err = b.cachedBytes(r)
	return err
}

func (b *Bench) invoke(ctx context.Context, v *faasnap.VM, event []byte) (sandbox.Response, error) {
	resp, err := v.Invoke(ctx, sandbox.Request{ID: uuid.NewString(), Payload: event, Deadline: time.Now().Add(b.cfg.Timeout)})
	if err == nil && resp.FunctionError != "" {
		err = fmt.Errorf("the function failed: %.300s", resp.Payload)
	}
	return resp, err
}

// prepare makes caches cold, or warm for the modes that are about that.
func (b *Bench) prepare(r Recorded, mode faasnap.Mode) error {
	return eachFile(r.dir, func(f *os.File) error {
		if err := mem.Evict(f); err != nil {
			return err
		}
		if mode != faasnap.Cached && mode != Warm {
			return nil
		}
		_, err := io.Copy(io.Discard, f)
		return err
	})
}

// cachedBytes is how much of the snapshot's big files is in the page cache.
func (b *Bench) cachedBytes(r Recorded) (int64, error) {
	var sum int64
	for _, name := range []string{snapshot.MemoryFile, snapshot.LoadingFile, reapFile} {
		f, err := os.OpenFile(filepath.Join(r.dir, name), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		info, err := f.Stat()
		if err == nil && info.Size() > 0 {
			var resident pages.Set
			if resident, err = mem.Resident(f, info.Size()/pages.Size*pages.Size); err == nil {
				sum += int64(resident.Count()) * pages.Size
			}
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// eachFile opens the files of a directory in turn.
func eachFile(dir string, do func(f *os.File) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(do(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Burst restores a machine from each of the snapshots at once, runs one
// invocation on each, and returns how long each took, from the beginning of all.
// A snapshot may come several times.
func (b *Bench) Burst(ctx context.Context, snapshots []Recorded, mode faasnap.Mode, event []byte) ([]time.Duration, error) {
	seen := map[string]bool{}
	for _, r := range snapshots {
		if !seen[r.Name] {
			seen[r.Name] = true
			if err := b.prepare(r, mode); err != nil {
				return nil, fmt.Errorf("burst of %s: %w", r.Name, err)
			}
		}
	}
	took, errs := make([]time.Duration, len(snapshots)), make([]error, len(snapshots))
	var wg sync.WaitGroup
	var ended sync.WaitGroup // all stay until the last has answered
	ended.Add(len(snapshots))
	begin := time.Now()
	for i, r := range snapshots {
		wg.Go(func() {
			v, err := b.cfg.Service.Restore(ctx, r.Name, mode, faasnap.RestoreOptions{})
			if err == nil {
				_, err = b.invoke(ctx, v, event)
			}
			took[i], errs[i] = time.Since(begin), err
			ended.Done()
			ended.Wait()
			if v != nil {
				errs[i] = errors.Join(errs[i], v.Close())
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("burst of %d by mode %s: %w", len(snapshots), mode, err)
	}
	return took, nil
}
