package vmmtest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
)

func (s *suite) boots(t *testing.T) {
	version, err := s.Driver.Version(s.context(t))
	if err != nil || !strings.HasPrefix(version, s.Driver.Name()+" ") {
		t.Errorf("version %q, error %v; want one that begins with %q", version, err, s.Driver.Name())
	}
	b, out := s.newBoot(t)
	m := s.start(t, b)
	m.echo(t)
	if !eventually(s.Patience, func() bool { return strings.Contains(out.String(), s.Console) }) {
		t.Errorf("the console has not %q, but %q", s.Console, out)
	}
	if descendants, err := sys.Descendants(os.Getpid()); err != nil || !slices.Contains(descendants, m.vm.PID()) {
		t.Errorf("the VMM is process %d; want one of %v (%v)", m.vm.PID(), descendants, err)
	}
	select {
	case <-m.vm.Done():
		t.Error("the VM is done")
	default:
	}
	if err := m.vm.Err(); err != nil {
		t.Error(err)
	}
}

func (s *suite) consoleFails(t *testing.T) {
	b, _ := s.newBoot(t)
	broken := &brokenConsole{}
	b.Console = broken
	m := s.start(t, b)
	m.echo(t)
	if err := m.vm.Close(); err != nil {
		t.Error(err)
	}
	if broken.writes != 1 {
		t.Errorf("%d writes to a console that fails; want the first only", broken.writes)
	}
}

// brokenConsole fails, and counts how often.
type brokenConsole struct{ writes int }

// Write implements io.Writer.
func (c *brokenConsole) Write([]byte) (int, error) {
	c.writes++
	return 0, errors.New("nobody looks")
}

func (s *suite) pauses(t *testing.T) {
	b, _ := s.newBoot(t)
	m := s.start(t, b)
	m.pause(t)
	answers := m.asking("echo late")
	select {
	case a := <-answers:
		t.Errorf("a paused guest answers: %+v", a)
	case <-time.After(200 * time.Millisecond):
	}
	m.resume(t)
	select {
	case a := <-answers:
		if a.err != nil || a.text != "late" {
			t.Errorf("the resumed guest answers: %+v", a)
		}
	case <-time.After(s.Patience):
		t.Fatal("the resumed guest does not answer")
	}
	m.echo(t)
}

func (s *suite) savesTwice(t *testing.T) {
	s.leavesNothing(t)
	b, _ := s.newBoot(t)
	m := s.start(t, b)
	var all []*saved
	for i, memory := range []string{b.Memory, filepath.Join(newDir(t), "memory")} {
		m.fill(t, i)
		sum := m.ask(t, "sum")
		m.pause(t)
		v := m.saveTo(t, b.Machine, memory)
		if v.sum = s.memorySum(t, memory); v.sum != "" && v.sum != sum {
			t.Errorf("save %d: the memory file is not the guest's memory", i)
		}
		v.sum = sum
		all = append(all, v)
		m.resume(t)
		m.echo(t)
	}
	if err := m.vm.Close(); err != nil {
		t.Fatal(err)
	}
	for i, v := range all {
		// Where memory is shared, the guest has changed the first file since.
		if i == 1 || !slices.Contains(s.Kinds, Shared) {
			if got := s.restore(t, v, s.Kinds[0]).ask(t, "sum"); got != v.sum {
				t.Errorf("save %d: the restored guest has other memory", i)
			}
		}
	}
}

func (s *suite) restores(t *testing.T) {
	for _, k := range []Kind{Shared, File, Overlay, Faults} {
		t.Run(string(k), func(t *testing.T) {
			s.leavesNothing(t)
			if !slices.Contains(s.Kinds, k) {
				dir := newDir(t)
				vm, err := s.Driver.Restore(s.context(t), vmm.Restore{Machine: s.saved.machine, State: s.saved.state, Memory: s.memory(t, s.saved, k), Dir: dir})
				if err == nil {
					s.own(t, vm)
				}
				if !errors.Is(err, vmm.ErrUnsupported) {
					t.Errorf("error %v; want ErrUnsupported", err)
				}
				return
			}
			before := s.memorySum(t, s.saved.memory)
			m := s.restore(t, s.saved, k)
			m.echo(t)
			if got := m.ask(t, "sum"); got != s.saved.sum || before != "" && got != before {
				t.Errorf("the guest has memory %s, was saved with %s, and the file has %s", got, s.saved.sum, before)
			}
			m.fill(t, 99)
			changed := m.ask(t, "sum")
			if changed == s.saved.sum {
				t.Error("the guest cannot write to its memory")
			}
			if s.memorySum(t, s.saved.memory) != before {
				t.Error("the guest has written to the saved memory")
			}
			// A restored guest can be saved again, if the VMM can do that.
			m.pause(t)
			v, err := m.trySaveTo(t, s.saved.machine, filepath.Join(newDir(t), "memory"))
			if errors.Is(err, vmm.ErrUnsupported) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.memorySum(t, v.memory); got != "" && got != changed {
				t.Error("the memory file of the restored guest is not its memory")
			}
		})
	}
}

func (s *suite) restoresTwice(t *testing.T) {
	s.leavesNothing(t)
	for _, k := range s.Kinds {
		one, two := s.restore(t, s.saved, k), s.restore(t, s.saved, k)
		one.fill(t, 1)
		changed := one.ask(t, "sum")
		if got := two.ask(t, "sum"); got != s.saved.sum {
			t.Errorf("%s: what one guest writes the other reads", k)
		}
		two.fill(t, 2)
		if got := one.ask(t, "sum"); got != changed || got == two.ask(t, "sum") {
			t.Errorf("%s: what one guest writes the other reads", k)
		}
	}
}

// refuses checks that a restore fails and leaves nothing.
func (s *suite) refuses(t *testing.T, name string, r vmm.Restore) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		s.leavesNothing(t)
		r.Dir = newDir(t)
		vm, err := s.Driver.Restore(s.context(t), r)
		if err == nil {
			s.own(t, vm)
			t.Fatal("no error")
		}
		if t.Context().Err() != nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v; want one before the time is over", err)
		}
		t.Log(err)
		noSockets(t, r.Dir)
	})
}

func (s *suite) refusesDamage(t *testing.T) {
	k := s.Kinds[len(s.Kinds)-1]
	for _, o := range s.Kinds {
		if o != Faults {
			k = o
		}
	}
	dir := newDir(t)
	good, err := os.ReadFile(s.saved.state)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"half a state": good[:len(good)/2], "an empty state": {}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s.refuses(t, name, vmm.Restore{Machine: s.saved.machine, State: path, Memory: s.memory(t, s.saved, k)})
	}
	missing := filepath.Join(dir, "missing")
	s.refuses(t, "no state", vmm.Restore{Machine: s.saved.machine, State: missing, Memory: s.memory(t, s.saved, k)})
	gone := *s.saved
	gone.memory = missing
	for _, k := range s.Kinds {
		m := vmm.Memory{File: missing}
		switch k {
		case Shared:
			m = vmm.Memory{Shared: missing}
		case Overlay:
			m = vmm.Memory{Overlay: &vmm.Overlay{Plan: s.saved.plan, Memory: missing, Loading: s.saved.loading}}
		case Faults:
			m = vmm.Memory{Faults: &vmm.Faults{Socket: missing}}
		}
		s.refuses(t, "no memory, "+string(k), vmm.Restore{Machine: s.saved.machine, State: s.saved.state, Memory: m})
	}
}

func (s *suite) refusesNonsense(t *testing.T) {
	good := s.saved.machine
	changed := func(f func(*vmm.Machine)) vmm.Machine {
		m := good
		f(&m)
		return m
	}
	for name, hardware := range map[string]vmm.Machine{
		"no memory":        changed(func(m *vmm.Machine) { m.MemoryBytes = 0 }),
		"less than none":   changed(func(m *vmm.Machine) { m.MemoryBytes = -2 << 20 }),
		"an odd size":      changed(func(m *vmm.Machine) { m.MemoryBytes += 4096 }),
		"no CPUs":          changed(func(m *vmm.Machine) { m.CPUs = 0 }),
		"less than none 2": changed(func(m *vmm.Machine) { m.CPUs = -1 }),
	} {
		t.Run("boot with "+name, func(t *testing.T) {
			s.leavesNothing(t)
			b, _ := s.newBoot(t)
			b.Machine = hardware
			vm, err := s.Driver.Boot(s.context(t), b)
			if err == nil {
				s.own(t, vm)
				t.Fatal("no error")
			}
			noSockets(t, b.Dir)
		})
		for _, k := range s.Kinds {
			if k != Faults {
				s.refuses(t, "restore with "+name+", "+string(k), vmm.Restore{Machine: hardware, State: s.saved.state, Memory: s.memory(t, s.saved, k)})
			}
		}
	}
	for _, k := range s.Kinds {
		if k != Faults { // whose handler would complain
			larger := changed(func(m *vmm.Machine) { m.MemoryBytes *= 2 })
			s.refuses(t, "restore with another size, "+string(k), vmm.Restore{Machine: larger, State: s.saved.state, Memory: s.memory(t, s.saved, k)})
		}
	}
	s.refuses(t, "restore without memory", vmm.Restore{Machine: good, State: s.saved.state})
	both := vmm.Memory{File: s.saved.memory, Shared: s.saved.memory}
	s.refuses(t, "restore with two kinds of memory", vmm.Restore{Machine: good, State: s.saved.state, Memory: both})
}

func (s *suite) cancelsBoot(t *testing.T) {
	s.leavesNothing(t)
	times := []time.Duration{0, 5 * time.Millisecond}
	if s.Stuck != nil {
		times = append(times, 500*time.Millisecond)
	}
	for _, after := range times {
		b, _ := s.newBoot(t)
		if s.Stuck != nil {
			s.Stuck(&b)
		}
		ctx, cancel := context.WithTimeout(t.Context(), after)
		vm, err := s.Driver.Boot(ctx, b)
		cancel()
		if err == nil {
			s.own(t, vm)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: error %v; want that the time is over", after, err)
		}
		noSockets(t, b.Dir)
	}
}

func (s *suite) cancelsRestore(t *testing.T) {
	s.leavesNothing(t)
	for _, k := range s.Kinds {
		memory, after := vmm.Memory{}, time.Duration(0)
		if k == Faults {
			// The guest waits for memory for good.
			after = 500 * time.Millisecond
			memory.Faults = &vmm.Faults{Socket: listen(t, func(ctx context.Context, _ *net.UnixConn) error {
				<-ctx.Done()
				return nil
			})}
		} else {
			memory = s.memory(t, s.saved, k)
		}
		dir := newDir(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		vm, err := s.Driver.Restore(ctx, vmm.Restore{Machine: s.saved.machine, State: s.saved.state, Memory: memory, Dir: dir})
		cancel()
		if err == nil {
			s.own(t, vm)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v; want that the time is over", k, err)
		}
		noSockets(t, dir)
	}
}

func (s *suite) noticesKill(t *testing.T) {
	s.leavesNothing(t)
	b, _ := s.newBoot(t)
	m := s.start(t, b)
	process, err := os.FindProcess(m.vm.PID())
	if err != nil {
		t.Fatal(err)
	}
	answers := m.asking("echo hello")
	<-answers
	if err := errors.Join(process.Kill(), process.Release()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.vm.Done():
	case <-time.After(s.Patience):
		t.Fatal("nobody has noticed")
	}
	if err := m.vm.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error %v; want that it was killed", err)
	}
	if a := <-m.asking("echo hello"); a.err == nil {
		t.Errorf("a dead guest answers %q", a.text)
	}
	if err := m.vm.Pause(s.context(t)); err == nil {
		t.Error("a dead guest can be paused")
	}
	if err := m.vm.Close(); err != nil {
		t.Error(err)
	}
	if err := m.vm.Err(); err == nil {
		t.Error("Close has changed what Err says")
	}
	noSockets(t, b.Dir)
}

func (s *suite) closes(t *testing.T) {
	s.leavesNothing(t)
	b, _ := s.newBoot(t)
	m := s.start(t, b)
	pid := m.vm.PID()
	if err := m.vm.Agent().Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-m.vm.Done():
		t.Error("closing the agent's stream ends the guest")
	case <-time.After(50 * time.Millisecond):
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := m.vm.Close(); err != nil {
				t.Error(err)
			}
			select {
			case <-m.vm.Done():
			default:
				t.Error("the VM is closed but not done")
			}
		})
	}
	wg.Wait()
	if err := m.vm.Err(); err != nil {
		t.Errorf("error %v; want none after Close", err)
	}
	if p, err := sys.OpenProcess(pid); err == nil {
		t.Errorf("process %d is there", pid)
		_ = p.Close() // it was not to be there
	}
	noSockets(t, b.Dir)
}
