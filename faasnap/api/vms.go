package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/vmm"
)

// device returns the network device that a request asks for.
func (n *Network) device() (*vmm.Network, error) {
	if n == nil {
		return nil, nil
	}
	if n.Tap == "" {
		return nil, invalid(errors.New("network: name a tap, which must be there already"))
	}
	d := &vmm.Network{Namespace: n.Namespace, Tap: n.Tap}
	if n.MAC != "" {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return nil, invalid(fmt.Errorf("network: %q is no address of one device, such as 02:00:00:00:00:01", n.MAC))
		}
		d.MAC = mac
	}
	return d, nil
}

// started makes a machine known here. It is closed when it has ended, or the
// Server ends.
func (s *Server) started(vm *faasnap.VM, paused bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(faasnap.ErrClosed, vm.Close())
	}
	s.machines[vm.ID()] = &machine{vm: vm, paused: paused}
	s.watchers.Go(func() {
		<-vm.Done()
		if err := vm.Close(); err != nil {
			s.cfg.Log.Warn("close machine", "id", vm.ID(), "err", err)
		}
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
	if m := s.machines[info.ID]; m != nil && m.paused {
		out.State = "paused"
	} else if m != nil && m.busy {
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
	vm, err := s.start(r.Context(), req)
	if err != nil {
		return err
	}
	if err := r.Context().Err(); err != nil {
		return errors.Join(err, vm.Close()) // nobody would know of it
	}
	if err := s.started(vm, req.Paused); err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/vms/"+vm.ID())
	s.write(w, http.StatusCreated, s.vmOf(vm))
	return nil
}

// start boots or restores a machine, which the caller closes.
func (s *Server) start(ctx context.Context, req StartRequest) (*faasnap.VM, error) {
	if (req.Function == "") == (req.Snapshot == "") {
		return nil, invalid(errors.New("name either a function to boot or a snapshot to restore"))
	}
	network, err := req.Network.device()
	if err != nil {
		return nil, err
	}
	o := faasnap.RestoreOptions{HugeZeros: req.HugeZeros, Populate: req.Populate, Paused: req.Paused}
	o.Network = network
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
