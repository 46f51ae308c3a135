package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/memmap"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
)

func (s *Server) snapshotOf(name string, snap *snapshot.Snapshot) Snapshot {
	meta, plan, working := snap.Meta(), snap.Plan(), snap.Working()
	out := Snapshot{
		Name: name, ID: meta.ID, Created: meta.Created, Function: faasnap.FunctionOf(snap), VMM: faasnap.VMMOf(snap), MAC: faasnap.MACOf(snap),
		Faults: faasnap.HasFaults(snap), Remote: snap.Remote(), MemoryBytes: meta.MemoryBytes, Plan: &PlanSummary{Pages: plan.Pages, WorkingPages: working.Set().Count(), Groups: len(working.Groups)},
	}
	p := out.Plan
	p.ZeroPages, p.ZeroRegions = plan.Count(pages.Zero)
	p.ColdPages, p.ColdRegions = plan.Count(pages.Memory)
	p.LoadingPages, p.LoadingRegions = plan.Count(pages.Loading)
	for _, f := range meta.Files {
		out.Files = append(out.Files, SnapshotFile{Name: f.Name, SizeBytes: f.SizeBytes, DiskBytes: snap.FileDiskBytes(f.Name)})
	}
	if b, ok := s.cfg.Service.Standbys()[name]; ok {
		out.Standby = &Standby{Count: b.Count, Ready: b.Ready}
	}
	return out
}

func (s *Server) listSnapshots(w http.ResponseWriter, _ *http.Request) error {
	names, err := s.cfg.Service.Snapshots()
	if err != nil {
		return err
	}
	list := Snapshots{Snapshots: []Snapshot{}}
	for _, name := range names {
		snap, err := s.cfg.Service.Inspect(name)
		switch {
		case err == nil:
			list.Snapshots = append(list.Snapshots, s.snapshotOf(name, snap))
		case errors.Is(err, faasnap.ErrNotFound): // removed meanwhile
		default:
			list.Snapshots = append(list.Snapshots, Snapshot{Name: name, Problem: err.Error()})
		}
	}
	return s.answer(w, list)
}

// snapshot returns the snapshot that a request is about.
func (s *Server) snapshot(r *http.Request) (string, *snapshot.Snapshot, error) {
	name := r.PathValue("name")
	snap, err := s.cfg.Service.Inspect(name)
	return name, snap, err
}

func (s *Server) getSnapshot(w http.ResponseWriter, r *http.Request) error {
	name, snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	return s.answer(w, s.snapshotOf(name, snap))
}

func (s *Server) deleteSnapshot(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Service.RemoveSnapshot(r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) putStandby(w http.ResponseWriter, r *http.Request) error {
	var request StandbyRequest
	if err := decode(r, &request); err != nil {
		return err
	}
	name := r.PathValue("name")
	if err := s.cfg.Service.Standby(r.Context(), name, request.Count); err != nil {
		return err
	}
	b := s.cfg.Service.Standbys()[name]
	return s.answer(w, Standby{Count: b.Count, Ready: b.Ready})
}

func (s *Server) getPlan(w http.ResponseWriter, r *http.Request) error {
	_, snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	plan := Plan{Pages: snap.Plan().Pages, Regions: make([]Region, 0, len(snap.Plan().Regions))}
	for _, region := range snap.Plan().Regions {
		plan.Regions = append(plan.Regions, Region{
			Start: region.Start, End: region.End, Source: region.Source.String(), Group: region.Group, Offset: region.Offset,
		})
	}
	return s.answer(w, plan)
}

func (s *Server) getWorkingSet(w http.ResponseWriter, r *http.Request) error {
	_, snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	working := snap.Working()
	out := WorkingSet{Pages: working.Pages, Groups: make([][]Range, 0, len(working.Groups))}
	for _, group := range working.Groups {
		ranges := make([]Range, 0, len(group))
		for _, g := range group {
			ranges = append(ranges, Range{g.Start, g.End})
		}
		out.Groups = append(out.Groups, ranges)
	}
	return s.answer(w, out)
}

func (s *Server) getMap(w http.ResponseWriter, r *http.Request) error {
	name, snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/svg+xml")
	// It is a picture only, also for a browser that is pointed at it.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_, _ = w.Write(memmap.SVG(snap.Plan(), name)) // the client may have gone
	return nil
}

func (s *Server) getResident(w http.ResponseWriter, r *http.Request) error {
	_, snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	var out Resident
	for _, f := range []struct {
		name string
		into *ResidentFile
	}{{snapshot.MemoryFile, &out.Memory}, {snapshot.LoadingFile, &out.Loading}} {
		*f.into, err = resident(snap.DiskPath(f.name))
		if errors.Is(err, os.ErrNotExist) && f.name == snapshot.MemoryFile && snap.Remote() != "" {
			err = nil // nothing has been fetched so far
		}
		if err != nil {
			return err
		}
	}
	return s.answer(w, out)
}

// resident tells which pages of a file are in the page cache.
func resident(path string) (ResidentFile, error) {
	out := ResidentFile{Ranges: []Range{}}
	f, err := os.Open(path)
	if err != nil {
		return out, fmt.Errorf("find resident pages: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return out, fmt.Errorf("find resident pages: %w", err)
	}
	set, err := mem.Resident(f, info.Size())
	if err != nil {
		return out, err
	}
	out.Pages, out.Resident = set.Pages(), set.Count()
	for r := range set.Ranges() {
		out.Ranges = append(out.Ranges, Range{r.Start, r.End})
	}
	return out, nil
}

func (s *Server) verifySnapshot(w http.ResponseWriter, r *http.Request) error {
	name, snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := s.cfg.Service.Verify(r.Context(), name)
	if err != nil {
		return err
	}
	return s.answer(w, Verified{Name: name, Files: len(snap.Meta().Files), Bytes: n, Remote: snap.Remote()})
}

func (s *Server) pushSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req PushRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	return s.long(w, r, func(step func(string)) (Event, error) {
		return s.made(s.cfg.Service.Push(r.Context(), r.PathValue("name"), req.URL, step))
	})
}

func (s *Server) pullSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req PullRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	return s.long(w, r, func(step func(string)) (Event, error) {
		o := faasnap.PullOptions{Lazy: req.Lazy, Replace: req.Replace, Progress: step}
		return s.made(s.cfg.Service.Pull(r.Context(), req.URL, r.PathValue("name"), o))
	})
}

func (s *Server) collect(w http.ResponseWriter, r *http.Request) error {
	var req CollectRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	garbage, err := s.cfg.Service.Collect(r.Context(), req.DryRun)
	if err != nil {
		return err
	}
	out := Collected{Removed: []Garbage{}}
	for _, g := range garbage {
		out.Removed = append(out.Removed, Garbage{Name: g.Name, Reason: g.Reason})
	}
	return s.answer(w, out)
}

func (s *Server) postSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req SnapshotRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	if (req.Function == "") == (req.VM == "") {
		return invalid(errors.New("name either a function to record or a virtual machine to save"))
	}
	if req.VM != "" {
		return s.saveVM(w, r, req)
	}
	f, err := s.cfg.Service.Function(req.Function)
	if err != nil {
		return err
	}
	n, err := s.attach(r.Context(), req.Network)
	if err != nil {
		return err
	}
	defer n.leave()
	o := faasnap.RecordOptions{Name: req.Name, Faults: req.Faults, Replace: req.Replace}
	n.use(&o.StartOptions)
	o.Inputs = events(req.Inputs)
	return s.long(w, r, func(step func(string)) (Event, error) {
		o.Progress = step
		return s.made(s.cfg.Service.Record(r.Context(), f, o))
	})
}

func events(inputs []json.RawMessage) [][]byte {
	var events [][]byte
	for _, input := range inputs {
		events = append(events, input)
	}
	return events
}

func (s *Server) learnSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req LearnRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	if len(req.Inputs) == 0 {
		return invalid(errors.New("there are no inputs to learn from"))
	}
	name, _, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := s.attach(r.Context(), req.Network)
	if err != nil {
		return err
	}
	defer n.leave()
	o := faasnap.LearnOptions{Inputs: events(req.Inputs)}
	n.use(&o.StartOptions)
	return s.long(w, r, func(step func(string)) (Event, error) {
		o.Progress = step
		snap, accuracy, err := s.cfg.Service.Learn(r.Context(), name, o)
		if err != nil {
			return Event{}, err
		}
		out := Learned{Snapshot: s.snapshotOf(name, snap), Accuracy: make([]Accuracy, 0, len(accuracy))}
		for _, a := range accuracy {
			out.Accuracy = append(out.Accuracy, Accuracy(a))
		}
		return Event{Learned: &out}, nil
	})
}

func (s *Server) saveVM(w http.ResponseWriter, r *http.Request, req SnapshotRequest) error {
	if len(req.Inputs) > 0 || req.Faults || req.Network != nil {
		return invalid(errors.New("inputs, faults and network are for recording a function: a machine is saved as it is"))
	}
	m, release, err := s.running(req.VM)
	if err != nil {
		return err
	}
	defer release()
	if mode := m.vm.Info().Mode; mode != faasnap.Boot {
		return conflict(CodeBusy, fmt.Errorf("virtual machine %s was restored (%s): only one that was booted can be saved", req.VM, mode))
	}
	if req.Name == "" {
		req.Name = m.vm.Function().Name
	}
	return s.long(w, r, func(step func(string)) (Event, error) {
		step("save")
		// A machine that stops half way is of no use, so this goes on to its end.
		return s.made(m.vm.Snapshot(context.WithoutCancel(r.Context()), req.Name, req.Replace))
	})
}

func (s *Server) made(snap *snapshot.Snapshot, err error) (Event, error) {
	if err != nil {
		return Event{}, err
	}
	out := s.snapshotOf(filepath.Base(snap.Dir()), snap)
	return Event{Snapshot: &out}, nil
}
