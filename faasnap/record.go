package faasnap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/sandbox"
)

// The labels of a snapshot's metadata.
const (
	labelFunction = "function"
	labelVMM      = "vmm"
	// labelMAC is there if the machine had a network device.
	labelMAC = "mac"
)

// RecordOptions are how a snapshot is recorded.
type RecordOptions struct {
	StartOptions
	// Name is the snapshot's; empty is the function's.
	Name string
	// Inputs are the events that the function is warmed up with and recorded
	// at, one after the other. None is one empty object.
	Inputs [][]byte
	// Plain leaves recording out: the snapshot has no working set.
	Plain bool
	// Initialised leaves the inputs out too: the function has been initialised,
	// and has had no event.
	Initialised bool
	// Faults also records what the modes REAP, Concurrent and Groups need.
	Faults bool
	// Replace allows a snapshot of that name to be there: the new one takes its
	// place when it is complete.
	Replace bool
	// Plan is how pages are planned; zero is pages.DefaultOptions.
	Plan pages.Options
	// Progress is told what is being done. May be nil.
	Progress func(step string)
}

func (o RecordOptions) withDefaults(f *Function) RecordOptions {
	if o.Name == "" {
		o.Name = f.Name
	}
	if o.Initialised {
		o.Plain, o.Inputs = true, nil
	} else if len(o.Inputs) == 0 {
		o.Inputs = [][]byte{[]byte("{}")}
	}
	if o.Plan == (pages.Options{}) {
		o.Plan = pages.DefaultOptions()
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// Record makes a snapshot of a function: it boots, is warmed up with the inputs,
// and written down; then it is restored once for each input while the pages that
// become resident are recorded (thesis 5.3.8, figure 5.5). The working set is
// what any of the inputs wanted.
//
// A function that fails on an input is an error, since a snapshot of it would
// fail for good. After an error there is no new snapshot.
func (s *Service) Record(ctx context.Context, f *Function, o RecordOptions) (*snapshot.Snapshot, error) {
	o = o.withDefaults(f)
	snap, err := s.record(ctx, f, o)
	if err != nil {
		return nil, fmt.Errorf("record snapshot %s: %w", o.Name, err)
	}
	return snap, nil
}

func (s *Service) record(ctx context.Context, f *Function, o RecordOptions) (*snapshot.Snapshot, error) {
	return s.write(ctx, o.Name, o.Replace, func(d *snapshot.Draft) (snapshot.Contents, error) {
		c := snapshot.Contents{Options: o.Plan}
		o.Progress("boot")
		v, err := s.Boot(ctx, f, o.StartOptions)
		if err != nil {
			return c, err
		}
		defer v.Close()
		o.Progress("warm up")
		for _, input := range o.Inputs {
			if err := v.warmUp(ctx, input); err != nil {
				return c, err
			}
		}
		o.Progress("save")
		if c, err = v.save(ctx, d, c); err != nil {
			return c, err
		}
		if err := v.Close(); err != nil {
			return c, err
		}
		if o.Plain {
			return c, nil
		}
		src := &source{name: o.Name, dir: d.Path(""), function: f, mac: c.Labels[labelMAC]}
		runs, err := s.recordRuns(ctx, src, o.Inputs, o.StartOptions, o.Progress)
		if err != nil {
			return c, err
		}
		if c, err = putRuns(d, c, runs); err != nil {
			return c, err
		}
		if o.Faults {
			o.Progress("record page faults")
			if err := s.recordFaults(ctx, src, d, o); err != nil {
				return c, err
			}
		}
		o.Progress("plan")
		return c, nil
	})
}

// write makes a snapshot under a name of what fill puts into its draft.
func (s *Service) write(ctx context.Context, name string, replace bool, fill func(*snapshot.Draft) (snapshot.Contents, error)) (*snapshot.Snapshot, error) {
	return s.draft(name, replace, func(d *snapshot.Draft) (*snapshot.Snapshot, error) {
		c, err := fill(d)
		if err != nil {
			return nil, err
		}
		return d.Commit(ctx, c)
	})
}

// draft makes a snapshot under a name with what complete does to its draft.
func (s *Service) draft(name string, replace bool, complete func(*snapshot.Draft) (*snapshot.Snapshot, error)) (_ *snapshot.Snapshot, err error) {
	if err := checkName("snapshot", name); err != nil {
		return nil, err
	}
	begin := snapshot.Begin
	if replace {
		begin = snapshot.BeginReplacement
	}
	d, err := begin(s.snapshotPath(name))
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("snapshot %s: %w", name, ErrExists)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Abort()) }()
	defer s.forget(name) // what is known is of the one that was replaced
	return complete(d)
}

// warmUp runs one invocation before the machine is written down.
func (v *VM) warmUp(ctx context.Context, input []byte) error {
	resp, err := v.Invoke(ctx, v.request(input))
	if err != nil {
		return err
	}
	if resp.FunctionError != "" {
		return fmt.Errorf("%w on the input %.200s: %s", ErrFunction, input, resp.Payload)
	}
	return nil
}

func (v *VM) request(input []byte) sandbox.Request {
	return sandbox.Request{ID: uuid.NewString(), Payload: input, Deadline: time.Now().Add(v.function.Timeout)}
}

// save writes a booted machine into a draft. The machine is paused afterwards.
func (v *VM) save(ctx context.Context, d *snapshot.Draft, c snapshot.Contents) (snapshot.Contents, error) {
	version, err := v.service.Version(ctx)
	if err != nil {
		return c, err
	}
	if err := v.agent.Quiesce(ctx); err != nil {
		return c, v.explain(err)
	}
	if err := v.vm.Pause(ctx); err != nil {
		return c, err
	}
	if err := v.vm.Save(ctx, vmm.SaveFiles{State: d.Path(stateFile), Memory: d.Path(snapshot.MemoryFile)}); err != nil {
		return c, err
	}
	text, err := json.MarshalIndent(v.function, "", "  ")
	if err != nil {
		return c, err
	}
	if err := os.WriteFile(d.Path(functionFile), text, 0o600); err != nil {
		return c, err
	}
	c.MemoryBytes = v.function.GuestMemoryBytes
	c.Labels = map[string]string{labelFunction: v.function.Name, labelVMM: version}
	if v.network != nil {
		c.Labels[labelMAC] = v.network.MAC.String()
	}
	return c, nil
}

// Snapshot writes a booted machine down as it is between two invocations,
// without a recorded working set, and lets it go on.
func (v *VM) Snapshot(ctx context.Context, name string, replace bool) (*snapshot.Snapshot, error) {
	snap, err := v.service.write(ctx, name, replace, func(d *snapshot.Draft) (snapshot.Contents, error) {
		c, err := v.save(ctx, d, snapshot.Contents{Options: pages.DefaultOptions()})
		return c, errors.Join(err, v.vm.Resume(ctx))
	})
	if err != nil {
		return nil, fmt.Errorf("write snapshot %s of machine %s: %w", name, v.id, err)
	}
	return snap, nil
}

// rssInterval is how often recording looks at how much memory the VMM has in
// use.
const rssInterval = time.Millisecond

// recordResident restores src, runs one invocation, and returns which pages of
// the memory file became resident meanwhile (thesis 5.3.4). Without the kernel's
// read-ahead: what the device happens to be set to, which may be megabytes, does
// not make working sets. The planner's merge gap does what read-ahead is good
// for here.
func (s *Service) recordResident(ctx context.Context, src *source, input []byte, o StartOptions) (w pages.WorkingSet, err error) {
	memory, err := os.Open(src.path(snapshot.MemoryFile))
	if err != nil {
		return w, err
	}
	defer memory.Close()
	if err := mem.Evict(memory); err != nil {
		return w, err
	}
	rec, err := mem.NewRecorder(memory, src.function.GuestMemoryBytes)
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, rec.Close()) }()
	v, err := s.restore(ctx, src, Full, RestoreOptions{StartOptions: o, Paused: true, noReadAhead: true}, time.Now())
	if err != nil {
		return w, err
	}
	defer v.Close()
	recording, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var recErr error
	wg.Go(func() {
		recErr = rec.Run(recording, pages.GroupPages, rssInterval, func() (int, error) { return mem.RSS(v.vm.PID()) })
	})
	err = v.Resume(ctx)
	if err == nil {
		err = v.warmUp(ctx, input)
	}
	stop()
	wg.Wait()
	if err := errors.Join(err, recErr); err != nil {
		return w, err
	}
	return rec.WorkingSet(), nil
}

// recordFaults restores src, runs one invocation, and writes down which pages
// the guest faulted on and what they hold, as REAP does.
func (s *Service) recordFaults(ctx context.Context, src *source, d *snapshot.Draft, o RecordOptions) error {
	faults := &faultRecorder{seen: pages.NewSet(int(src.function.GuestMemoryBytes / pages.Size))}
	v, err := s.restore(ctx, src, recordingFaults, RestoreOptions{StartOptions: o.StartOptions, faulted: faults.add}, time.Now())
	if err != nil {
		return err
	}
	defer v.Close()
	if err := v.warmUp(ctx, o.Inputs[0]); err != nil {
		return err
	}
	if err := v.Close(); err != nil {
		return err
	}
	w := faults.workingSet()
	encoded, err := w.MarshalBinary()
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.Path(faultsFile), encoded, 0o600); err != nil {
		return err
	}
	plan, err := reapPlan(w)
	if err != nil {
		return err
	}
	memory, err := os.Open(src.path(snapshot.MemoryFile))
	if err != nil {
		return err
	}
	defer memory.Close()
	loading, err := os.Create(d.Path(reapFile))
	if err != nil {
		return err
	}
	return errors.Join(mem.Gather(loading, plan, memory), loading.Close())
}

// faultRecorder makes groups of faults in the order in which they come. add is
// the handler's; all else comes when that has ended.
type faultRecorder struct {
	order []int
	seen  pages.Set
}

func (r *faultRecorder) add(page int) {
	if !r.seen.Has(page) {
		r.seen.Add(page)
		r.order = append(r.order, page)
	}
}

func (r *faultRecorder) workingSet() pages.WorkingSet {
	w := pages.WorkingSet{Pages: r.seen.Pages()}
	seen := pages.NewSet(w.Pages)
	for at := 0; at < len(r.order); at += pages.GroupPages {
		group := pages.NewSet(w.Pages)
		for _, page := range r.order[at:min(at+pages.GroupPages, len(r.order))] {
			group.Add(page)
		}
		w.Add(seen, group)
	}
	return w
}
