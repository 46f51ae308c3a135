package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/volley-run/volley/faasnap"
)

// started makes a machine known here. It is closed when it has ended, or the
// Server ends.
func (s *Server) started(vm *faasnap.VM, n *attachment, paused bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(faasnap.ErrClosed, vm.Close())
	}
	s.machines[vm.ID()] = &machine{vm: vm, network: n, paused: paused}
	s.watchers.Go(func() {
		<-vm.Done()
		if err := vm.Close(); err != nil {
			s.cfg.Log.Warn("close machine", "id", vm.ID(), "err", err)
		}
		n.leave()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.machines, vm.ID())
	})
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func timesOf(t faasnap.Times) StartTimes {
	return StartTimes{
		PrepareMs: milliseconds(t.Prepare), VMMMs: milliseconds(t.VMM), PrefetchMs: milliseconds(t.Prefetch),
		AgentMs: milliseconds(t.Agent), StartMs: milliseconds(t.Start),
	}
}

func (s *Server) vmOf(vm *faasnap.VM) VM {
	info := vm.Info()
	out := VM{
		ID: info.ID, Function: info.Function, Snapshot: info.Snapshot, Mode: string(info.Mode), Standby: info.Standby, Created: info.Created,
		State: "idle", Times: timesOf(vm.Times()), Host: hostFigures(info.PID),
	}
	if n := info.Network; n != nil {
		out.Network = &Network{Namespace: n.Namespace, Tap: n.Tap, MAC: n.MAC.String()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[info.ID]
	if m == nil {
		return out
	}
	if m.network != nil {
		m.network.tell(out.Network)
	}
	if m.paused {
		out.State = "paused"
	} else if m.busy {
		out.State = "busy"
	}
	return out
}

func (s *Server) listVMs(w http.ResponseWriter, _ *http.Request) error {
	list := VMs{VMs: []VM{}}
	for _, vm := range s.cfg.Service.VMs() {
		list.VMs = append(list.VMs, s.vmOf(vm))
	}
	slices.SortFunc(list.VMs, func(a, b VM) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return s.answer(w, list)
}

func (s *Server) getVM(w http.ResponseWriter, r *http.Request) error {
	vm, err := s.cfg.Service.VM(r.PathValue("id"))
	if err != nil {
		return err
	}
	return s.answer(w, s.vmOf(vm))
}

func (s *Server) deleteVM(w http.ResponseWriter, r *http.Request) error {
	vm, err := s.cfg.Service.VM(r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := vm.Close(); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) postVM(w http.ResponseWriter, r *http.Request) error {
	var req StartRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	n, err := s.attach(r.Context(), req.Network)
	if err != nil {
		return err
	}
	vm, err := s.start(r.Context(), req, n)
	if err != nil {
		n.leave()
		return err
	}
	if err := r.Context().Err(); err != nil {
		err = errors.Join(err, vm.Close()) // nobody would know of it
		n.leave()
		return err
	}
	if err := s.started(vm, n, req.Paused); err != nil {
		n.leave()
		return err
	}
	w.Header().Set("Location", "/v1/vms/"+vm.ID())
	s.write(w, http.StatusCreated, s.vmOf(vm))
	return nil
}

// start boots or restores a machine, which the caller closes.
func (s *Server) start(ctx context.Context, req StartRequest, n *attachment) (*faasnap.VM, error) {
	if (req.Function == "") == (req.Snapshot == "") {
		return nil, invalid(errors.New("name either a function to boot or a snapshot to restore"))
	}
	o := faasnap.RestoreOptions{HugeZeros: req.HugeZeros, Populate: req.Populate, Paused: req.Paused}
	n.use(&o.StartOptions)
	if req.Function != "" {
		if req.Paused || req.HugeZeros || req.Populate || req.Mode != "" && req.Mode != string(faasnap.Boot) {
			return nil, invalid(errors.New("mode, hugeZeros, populate and paused are for restores"))
		}
		f, err := s.cfg.Service.Function(req.Function)
		if err != nil {
			return nil, err
		}
		return s.cfg.Service.Boot(ctx, f, o.StartOptions)
	}
	mode := s.cfg.Mode
	if req.Mode != "" {
		var err error
		if mode, err = faasnap.ParseMode(req.Mode); err != nil {
			return nil, invalid(err)
		}
	}
	if mode == faasnap.Boot {
		return nil, invalid(errors.New("mode boot restores nothing: name the function"))
	}
	return s.cfg.Service.Restore(ctx, req.Snapshot, mode, o)
}

// machine returns a running machine, held for the caller, who gives it back by
// release. One that something is under way in is an error, not a wait.
func (s *Server) machine(id string) (m *machine, release func(), err error) {
	vm, err := s.cfg.Service.VM(id)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m = s.machines[id]
	if m == nil {
		return nil, nil, conflict(CodeBusy, fmt.Errorf("virtual machine %s belongs to a request that is under way", vm.ID()))
	}
	if !m.mu.TryLock() {
		return nil, nil, conflict(CodeBusy, fmt.Errorf("virtual machine %s is busy: it runs one invocation at a time", id))
	}
	return m, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		m.busy = false
		m.mu.Unlock()
	}, nil
}

// running is machine for one that is not paused.
func (s *Server) running(id string) (*machine, func(), error) {
	m, release, err := s.machine(id)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	paused := m.paused
	m.busy = !paused
	s.mu.Unlock()
	if paused {
		release()
		return nil, nil, conflict(CodePaused, fmt.Errorf("virtual machine %s is paused: resume it first", id))
	}
	return m, release, nil
}

func (s *Server) pauseVM(w http.ResponseWriter, r *http.Request) error {
	return s.switchVM(w, r, true, (*faasnap.VM).Pause)
}

func (s *Server) resumeVM(w http.ResponseWriter, r *http.Request) error {
	return s.switchVM(w, r, false, (*faasnap.VM).Resume)
}

func (s *Server) switchVM(w http.ResponseWriter, r *http.Request, paused bool, do func(*faasnap.VM, context.Context) error) error {
	m, release, err := s.machine(r.PathValue("id"))
	if err != nil {
		return err
	}
	defer release()
	s.mu.Lock()
	already := m.paused == paused
	s.mu.Unlock()
	if !already {
		if err := do(m.vm, r.Context()); err != nil {
			return err
		}
		s.mu.Lock()
		m.paused = paused
		s.mu.Unlock()
	}
	return s.answer(w, s.vmOf(m.vm))
}
