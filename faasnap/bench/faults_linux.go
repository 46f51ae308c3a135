package bench

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"github.com/volley-run/volley/internal/sys"
)

// FaultTimes is how long page faults took in the kernel, waiting for the disk or
// for a handler outside included.
type FaultTimes struct {
	// Counts[i] is how many took less than 2^i microseconds, and not less than
	// half of that; the last has all that took longer.
	Counts []int64
	Total  time.Duration
}

// FaultTimer sees how long page faults take (thesis 5.2.3), by eBPF programs at
// the tracepoints where they begin and at the kernel's counters of those that
// are done. It may miss some while there are more than 100,000 a second.
type FaultTimer struct{ starts, counts *ebpf.Map }

// faultClasses is how many there are in FaultTimes.Counts: up to 4 s.
const faultClasses = 24

// NewFaultTimer returns a FaultTimer. It needs root and Linux 5.15. The caller
// calls Close.
func NewFaultTimer() (*FaultTimer, error) {
	t, err := newFaultTimer()
	if err != nil {
		return nil, fmt.Errorf("time page faults: %w", err)
	}
	return t, nil
}

func newFaultTimer() (t *FaultTimer, err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	t = &FaultTimer{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
			t = nil
		}
	}()
	// When a thread's page fault began.
	t.starts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "fault_starts", Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1024})
	if err != nil {
		return t, err
	}
	// The counts, and the sum in nanoseconds.
	t.counts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "fault_counts", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: faultClasses + 1})
	if err != nil {
		return t, err
	}
	// Now it shows whether this kernel has what it needs.
	end, err := t.observe(1)
	if err == nil {
		_, err = end()
	}
	return t, err
}

// Close frees what the kernel keeps for it.
func (t *FaultTimer) Close() error {
	var errs []error
	for _, m := range []*ebpf.Map{t.starts, t.counts} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Observe begins to time the page faults of a process; what it returns ends
// that. One process is observed at a time.
func (t *FaultTimer) Observe(pid int) (end func() (*FaultTimes, error), err error) {
	if end, err = t.observe(pid); err != nil {
		return nil, fmt.Errorf("time page faults: %w", err)
	}
	return end, nil
}

func (t *FaultTimer) observe(pid int) (func() (*FaultTimes, error), error) {
	for i := range uint32(faultClasses + 1) {
		if err := t.counts.Put(i, uint64(0)); err != nil {
			return nil, err
		}
	}
	var links []io.Closer
	stop := func() error {
		var errs []error
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	fail := func(err error) (func() (*FaultTimes, error), error) { return nil, errors.Join(err, stop()) }
	begin, err := program(ebpf.RawTracepoint, t.begin(pid))
	if err != nil {
		return fail(err)
	}
	defer begin.Close()
	done, err := program(ebpf.PerfEvent, t.done(pid))
	if err != nil {
		return fail(err)
	}
	defer done.Close()
	for _, name := range []string{"page_fault_user", "page_fault_kernel"} {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: begin})
		if err != nil {
			return fail(err)
		}
		links = append(links, l)
	}
	events, err := sys.FaultEvents()
	if err != nil {
		return fail(err)
	}
	for _, e := range events {
		var l *link.RawLink
		if err == nil {
			l, err = link.AttachRawLink(link.RawLinkOptions{Target: int(e.Fd()), Program: done, Attach: ebpf.AttachPerfEvent})
		}
		if l != nil {
			links = append(links, l)
		}
		err = errors.Join(err, e.Close()) // the link holds it
	}
	if err != nil {
		return fail(err)
	}
	return func() (*FaultTimes, error) {
		if err := stop(); err != nil {
			return nil, err
		}
		times := &FaultTimes{Counts: make([]int64, faultClasses)}
		for i := range uint32(faultClasses + 1) {
			var n uint64
			if err := t.counts.Lookup(i, &n); err != nil {
				return nil, err
			}
			if i < faultClasses {
				times.Counts[i] = int64(n)
			} else {
				times.Total = time.Duration(n)
			}
		}
		return times, nil
	}, nil
}

// The places on the programs' stack.
const (
	stackThread = -4
	stackTime   = -16
	stackClass  = -4
)

func program(kind ebpf.ProgramType, p asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "volley_faults", Type: kind, License: "Dual MIT/GPL", Instructions: p})
}

// only goes to "out" unless the process is pid, and puts the thread's id on the
// stack.
func only(pid int) asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, stackThread, asm.R0, asm.Word),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(pid), "out"),
	}
}

// address puts a place on the stack into a register.
func address(r asm.Register, place int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Reg(r, asm.RFP), asm.Add.Imm(r, place)}
}

func out() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return()}
}

func (t *FaultTimer) begin(pid int) asm.Instructions {
	p := only(pid)
	p = append(p, asm.FnKtimeGetNs.Call(), asm.StoreMem(asm.RFP, stackTime, asm.R0, asm.DWord), asm.LoadMapPtr(asm.R1, t.starts.FD()))
	p = append(p, address(asm.R2, stackThread)...)
	p = append(p, address(asm.R3, stackTime)...)
	p = append(p, asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
	return append(p, out()...)
}

func (t *FaultTimer) done(pid int) asm.Instructions {
	p := only(pid)
	p = append(p, asm.LoadMapPtr(asm.R1, t.starts.FD()))
	p = append(p, address(asm.R2, stackThread)...)
	p = append(p,
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R6, asm.R0, 0, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.Sub.Reg(asm.R0, asm.R6),
		asm.Mov.Reg(asm.R6, asm.R0), // how long it took
		asm.LoadMapPtr(asm.R1, t.starts.FD()),
	)
	p = append(p, address(asm.R2, stackThread)...)
	p = append(p, asm.FnMapDeleteElem.Call())
	// The class is the number of bits of the microseconds.
	p = append(p, asm.Mov.Reg(asm.R7, asm.R6), asm.Div.Imm(asm.R7, 1000), asm.Mov.Imm(asm.R8, 0))
	for _, bits := range []int32{16, 8, 4, 2, 1} {
		next := fmt.Sprintf("below%d", bits)
		p = append(p, asm.JLT.Imm(asm.R7, 1<<bits, next), asm.Add.Imm(asm.R8, bits), asm.RSh.Imm(asm.R7, bits), asm.Mov.Reg(asm.R7, asm.R7).WithSymbol(next))
	}
	p = append(p,
		asm.Add.Reg(asm.R8, asm.R7), // 0 or 1 is left
		asm.JLT.Imm(asm.R8, faultClasses, "known"),
		asm.Mov.Imm(asm.R8, faultClasses-1),
		asm.StoreMem(asm.RFP, stackClass, asm.R8, asm.Word).WithSymbol("known"),
		asm.Mov.Imm(asm.R9, 1),
	)
	p = append(p, t.add(asm.R9)...)
	p = append(p, asm.StoreImm(asm.RFP, stackClass, faultClasses, asm.Word))
	p = append(p, t.add(asm.R6)...)
	return append(p, out()...)
}

// add adds a register to the count whose class is on the stack.
func (t *FaultTimer) add(r asm.Register) asm.Instructions {
	p := asm.Instructions{asm.LoadMapPtr(asm.R1, t.counts.FD())}
	p = append(p, address(asm.R2, stackClass)...)
	return append(p, asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "out"), asm.AddAtomic.Mem(asm.R0, r, asm.DWord, 0))
}
