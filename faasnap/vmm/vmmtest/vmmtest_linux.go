package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/testenv"
)

// Kind is a kind of memory that a guest is restored with: a field of vmm.Memory.
type Kind string

// The kinds.
const (
	Shared  Kind = "shared"
	File    Kind = "file"
	Overlay Kind = "overlay"
	Faults  Kind = "faults"
)

// Config is a driver, and guests for it to run.
type Config struct {
	Driver vmm.Driver
	// Boot returns a guest with at least 4 MiB of memory. The suite sets Memory,
	// Console and Dir.
	Boot func(t *testing.T) vmm.Boot
	// Console is something that the guest prints while it boots.
	Console string
	// Stuck makes a guest one whose agent never answers. Nil is for drivers whose
	// Boot does not wait for the agent.
	Stuck func(*vmm.Boot)
	// Kinds are what the driver can restore; it has to say ErrUnsupported to the
	// others. A driver that can do Shared may share the memory of a booted guest.
	Kinds []Kind
	// Ask asks the guest's agent: "echo TEXT" is answered by TEXT, "fill N" puts
	// into some of its memory what depends on the number N, and "sum" is answered
	// by a digest of what is there. Nil asks in lines, and has the answer to
	// "fill" be "ok".
	Ask func(agent io.ReadWriter, request string) (answer string, err error)
	// MemorySum returns what the guest answers to "sum", of a memory file. Nil if
	// only the guest can tell.
	MemorySum func(memory io.Reader) (string, error)
	// Locate finds guest memory in the VMM's process, where it is in a row. Nil
	// is for VMMs whose memory nobody else can read.
	Locate func(pid int, sizeBytes int64) (address uint64, err error)
	// Patience is how long anything may take; 0 is a minute.
	Patience time.Duration
}

// Test runs the suite.
func Test(t *testing.T, c Config) {
	if c.Ask == nil {
		c.Ask = AskLine
	}
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	s := &suite{Config: c}
	s.saved = s.save(t)
	cases := []struct {
		name string
		run  func(*testing.T)
	}{
		{"a booted guest has an agent and a console", s.boots},
		{"a guest goes on when its console fails", s.consoleFails},
		{"a paused guest stands still until it is resumed", s.pauses},
		{"a guest can be saved twice", s.savesTwice},
		{"a restored guest has the memory that was saved", s.restores},
		{"guests restored from one state are apart", s.restoresTwice},
		{"files that are damaged or missing are refused", s.refusesDamage},
		{"what makes no sense is refused", s.refusesNonsense},
		{"a boot that is cancelled leaves nothing", s.cancelsBoot},
		{"a restore that is cancelled leaves nothing", s.cancelsRestore},
		{"a VMM that is killed is noticed", s.noticesKill},
		{"closing ends everything", s.closes},
	}
	for _, tc := range cases {
		t.Run(tc.name, tc.run)
	}
	if c.Locate != nil {
		t.Run("memory is what was saved before the guest runs", s.restoresMemory)
		t.Run("memory is what was saved by any plan", s.restoresPlans)
	}
}

type suite struct {
	Config
	saved *saved // by save
}

// saved is a guest that was saved, and what is needed to restore it.
type saved struct {
	machine       vmm.Machine
	state, memory string
	loading       string
	plan          *pages.Plan
	sum           string // the guest's answer
}

func (s *suite) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	t.Cleanup(cancel)
	return ctx
}

// newDir makes a directory with a path that is too long for a socket's.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newBoot returns a guest to be booted. Memory is what Save shall write to.
func (s *suite) newBoot(t *testing.T) (vmm.Boot, *testenv.Buffer) {
	t.Helper()
	b, out := s.Boot(t), new(testenv.Buffer)
	b.Dir, b.Console = newDir(t), out
	b.Memory = filepath.Join(newDir(t), "memory")
	f, err := os.Create(b.Memory)
	if err == nil {
		err = errors.Join(f.Truncate(b.MemoryBytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b, out
}

// machine is a guest that runs.
type machine struct {
	s  *suite
	vm vmm.VM
}

// own has a VM closed with the test.
func (s *suite) own(t *testing.T, vm vmm.VM) *machine {
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return &machine{s, vm}
}

func (s *suite) start(t *testing.T, b vmm.Boot) *machine {
	t.Helper()
	vm, err := s.Driver.Boot(s.context(t), b)
	if err != nil {
		t.Fatal(err)
	}
	return s.own(t, vm)
}

func (s *suite) restore(t *testing.T, v *saved, k Kind) *machine {
	t.Helper()
	vm, err := s.Driver.Restore(s.context(t), vmm.Restore{Machine: v.machine, State: v.state, Memory: s.memory(t, v, k), Dir: newDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s.own(t, vm)
}

// memory returns where memory of that kind comes from.
func (s *suite) memory(t *testing.T, v *saved, k Kind) vmm.Memory {
	t.Helper()
	switch k {
	case Shared:
		own := filepath.Join(newDir(t), "memory")
		if err := copyFile(own, v.memory); err != nil {
			t.Fatal(err)
		}
		return vmm.Memory{Shared: own}
	case File:
		return vmm.Memory{File: v.memory}
	case Overlay:
		return vmm.Memory{Overlay: &vmm.Overlay{Plan: v.plan, Memory: v.memory, Loading: v.loading}}
	default:
		return vmm.Memory{Faults: &vmm.Faults{Socket: handle(t, v)}}
	}
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// ask asks the agent, and ends the test if there is no answer.
func (m *machine) ask(t *testing.T, request string) string {
	t.Helper()
	select {
	case a := <-m.asking(request):
		if a.err != nil {
			t.Fatalf("%s: %v", request, a.err)
		}
		return a.text
	case <-time.After(m.s.Patience):
		t.Fatalf("%s: no answer", request)
		return ""
	}
}

type answer struct {
	text string
	err  error
}

// asking asks the agent. The answer comes at the latest when the VM is closed.
func (m *machine) asking(request string) <-chan answer {
	answers, agent := make(chan answer, 1), m.vm.Agent()
	go func() {
		text, err := m.s.Ask(agent, request)
		answers <- answer{text, err}
	}()
	return answers
}

func (m *machine) pause(t *testing.T) {
	t.Helper()
	if err := m.vm.Pause(m.s.context(t)); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) resume(t *testing.T) {
	t.Helper()
	if err := m.vm.Resume(m.s.context(t)); err != nil {
		t.Fatal(err)
	}
}

// echo checks that the agent answers.
func (m *machine) echo(t *testing.T) {
	t.Helper()
	if got := m.ask(t, "echo hello"); got != "hello" {
		t.Errorf("echo hello: %q; want hello", got)
	}
}

func (m *machine) fill(t *testing.T, seed int) {
	t.Helper()
	m.ask(t, fmt.Sprint("fill ", seed))
}

// saveTo saves a guest that is paused.
func (m *machine) saveTo(t *testing.T, hardware vmm.Machine, memory string) *saved {
	t.Helper()
	v, err := m.trySaveTo(t, hardware, memory)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// trySaveTo returns what Save says, and looks at the files.
func (m *machine) trySaveTo(t *testing.T, hardware vmm.Machine, memory string) (*saved, error) {
	t.Helper()
	_, err := os.Stat(memory)
	shared := err == nil && slices.Contains(m.s.Kinds, Shared)
	v := &saved{machine: hardware, state: filepath.Join(newDir(t), "state"), memory: memory}
	if err := m.vm.Save(m.s.context(t), vmm.SaveFiles{State: v.state, Memory: v.memory}); err != nil {
		return nil, err
	}
	if info, err := os.Stat(v.state); err != nil || info.Size() == 0 {
		t.Fatalf("there is no state (%v)", err)
	}
	f, err := os.Open(v.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != hardware.MemoryBytes {
		t.Fatalf("the memory file has %d bytes (%v); want %d", info.Size(), err, hardware.MemoryBytes)
	}
	nonZero, err := mem.Scan(f, hardware.MemoryBytes)
	if err != nil {
		t.Fatal(err)
	}
	data, err := mem.Data(f, hardware.MemoryBytes)
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	for _, r := range data {
		full += r.Len()
	}
	if zero := full - nonZero.Count(); zero > nonZero.Pages()/10 && !shared {
		t.Errorf("%d of %d pages of the memory file are zero but take room on disk", zero, nonZero.Pages())
	}
	// The working set is every tenth group of pages, backwards.
	working, seen := pages.WorkingSet{Pages: nonZero.Pages()}, pages.NewSet(nonZero.Pages())
	for at := nonZero.Pages() - 16; at >= 0; at -= 160 {
		resident := pages.NewSet(nonZero.Pages())
		resident.AddRange(pages.Range{Start: at, End: at + 16})
		working.Add(seen, resident)
	}
	v.lay(t, f, nonZero, working, pages.DefaultOptions())
	return v, nil
}

// lay makes a plan for saved memory, and its loading-set file.
func (v *saved) lay(t *testing.T, memory *os.File, nonZero pages.Set, working pages.WorkingSet, o pages.Options) {
	t.Helper()
	var err error
	if v.plan, err = pages.Make(nonZero, working, o); err != nil {
		t.Fatal(err)
	}
	v.loading = filepath.Join(newDir(t), "loading")
	loading, err := os.Create(v.loading)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mem.Gather(loading, v.plan, memory), loading.Close()); err != nil {
		t.Fatal(err)
	}
}

// save makes the saved guest that most cases restore.
func (s *suite) save(t *testing.T) *saved {
	t.Helper()
	b, _ := s.newBoot(t)
	m := s.start(t, b)
	m.fill(t, 7)
	sum := m.ask(t, "sum")
	m.pause(t)
	v := m.saveTo(t, b.Machine, b.Memory)
	v.sum = sum
	if err := m.vm.Close(); err != nil {
		t.Fatal(err)
	}
	return v
}

// memorySum returns what the guest of that memory would say, or "".
func (s *suite) memorySum(t *testing.T, path string) string {
	t.Helper()
	if s.MemorySum == nil {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, err := s.MemorySum(f)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// AskLine asks in lines, and reads no further than the answer.
func AskLine(agent io.ReadWriter, request string) (string, error) {
	if _, err := io.WriteString(agent, request+"\n"); err != nil {
		return "", err
	}
	var line []byte
	for b := []byte{0}; ; line = append(line, b[0]) {
		if _, err := io.ReadFull(agent, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
	}
}
