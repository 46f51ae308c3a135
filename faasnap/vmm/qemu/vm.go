package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/tail"
)

// vm is a QEMU process.
type vm struct {
	process *os.Process
	agent   *net.UnixConn
	monitor *monitor
	machine vmm.Machine
	// memory is the file that guest memory is shared with; empty if it is not.
	memory string

	stderr  tail.Buffer
	console sync.WaitGroup
	// done is closed when the process has ended; err is fixed then.
	done chan struct{}
	err  error

	closing   chan struct{}
	closeOnce sync.Once
}

var _ vmm.VM = (*vm)(nil)

// start starts QEMU and waits for its monitor.
func (d *Driver) start(ctx context.Context, l *launch, m vmm.Machine, console io.Writer, commands ...command) (*vm, error) {
	defer l.close()
	v := &vm{machine: m, done: make(chan struct{}), closing: make(chan struct{})}
	agent, agentFD, err := l.socket("agent")
	if err != nil {
		return nil, err
	}
	control, controlFD, err := l.socket("monitor")
	if err != nil {
		return nil, errors.Join(err, agent.Close())
	}
	l.arg("-chardev", fmt.Sprintf("socket,id=agent,fd=%d", agentFD),
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", controlFD), "-mon", "chardev=monitor,mode=control")
	if err := v.attachConsole(l, console); err != nil {
		return nil, errors.Join(err, agent.Close(), control.Close())
	}
	v.agent, v.monitor = agent, newMonitor(control)
	if err := v.launch(l, d.command(l)); err != nil {
		return nil, errors.Join(err, agent.Close(), control.Close())
	}
	l.close()
	commands = append([]command{{Execute: "qmp_capabilities"}, {Execute: "migrate-set-capabilities", Arguments: map[string]any{
		"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}},
	}}}, commands...)
	if _, err := v.monitor.run(ctx, nil, commands...); err != nil {
		return nil, v.failed(err)
	}
	return v, nil
}

// failed ends a QEMU that has not come up, and adds to err what it had to say.
func (v *vm) failed(err error) error {
	if errors.Is(err, errEnded) {
		<-v.done
	}
	_ = v.Close() // the error is the other's
	if text := v.stderr.String(); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// attachConsole adds the serial port, which is there also if nobody listens.
func (v *vm) attachConsole(l *launch, console io.Writer) error {
	l.arg("-device", "isa-serial,chardev=console")
	if console == nil {
		l.arg("-chardev", "null,id=console")
		return nil
	}
	r, fd, err := l.socket("console")
	if err != nil {
		return err
	}
	l.arg("-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd))
	v.console.Go(func() {
		_, _ = io.Copy(vmm.Patient(console), r) // it ends with QEMU
		_ = r.Close()
	})
	return nil
}

// launch starts the process, and a goroutine that waits for it.
func (v *vm) launch(l *launch, cmd *exec.Cmd) error {
	cmd.Stderr = &v.stderr
	cmd.WaitDelay = time.Second
	started := make(chan error)
	go func() {
		defer sys.DieWithParent(cmd)()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("start QEMU: %w", err)
			return
		}
		v.process = cmd.Process
		started <- nil
		err := cmd.Wait()
		_ = v.agent.Close()
		_ = v.monitor.conn.Close()
		<-v.monitor.done
		v.console.Wait()
		if err != nil && !closed(v.closing) {
			v.err = fmt.Errorf("QEMU ended: %w", err)
			if text := v.stderr.String(); text != "" {
				v.err = fmt.Errorf("%w: %s", v.err, text)
			}
		}
		close(v.done)
	}()
	if err := <-started; err != nil {
		l.close() // the console's pipe, for one
		v.console.Wait()
		return err
	}
	return nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, b vmm.Boot) (vmm.VM, error) {
	v, err := d.boot(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("boot virtual machine: %w", err)
	}
	return v, nil
}

func (d *Driver) boot(ctx context.Context, b vmm.Boot) (*vm, error) {
	if _, err := d.Version(ctx); err != nil {
		return nil, err
	}
	if err := checkMachine(b.Machine); err != nil {
		return nil, err
	}
	l := &launch{}
	defer l.close()
	if err := d.memory(l, b.Memory, os.O_RDWR, b.MemoryBytes); err != nil {
		return nil, err
	}
	if err := l.machine(d.accel, b.Machine, true); err != nil {
		return nil, err
	}
	kernel, err := l.open(b.Kernel, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open kernel: %w", err)
	}
	initrd, err := l.open(b.Initrd, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open initrd: %w", err)
	}
	l.arg("-kernel", fmt.Sprintf("/proc/self/fd/%d", kernel), "-initrd", fmt.Sprintf("/proc/self/fd/%d", initrd),
		"-append", commandLine("console=ttyS0", b.CommandLine, emulated(d.accel)))
	v, err := d.start(ctx, l, b.Machine, b.Console)
	if err != nil {
		return nil, err
	}
	v.memory = b.Memory
	return v, nil
}

// memory makes QEMU inherit the file of guest memory.
func (d *Driver) memory(l *launch, path string, flags int, sizeBytes int64) error {
	fd, err := l.open(path, flags)
	if err != nil {
		return fmt.Errorf("open guest memory: %w", err)
	}
	info, err := l.own[len(l.own)-1].Stat()
	if err != nil {
		return fmt.Errorf("open guest memory: %w", err)
	}
	// Beyond the end of the file, the guest would be killed by a signal.
	if info.Size() != sizeBytes {
		return fmt.Errorf("open guest memory: %s has %d bytes: want %d", path, info.Size(), sizeBytes)
	}
	l.setting("MEMORY", fd)
	return l.shim(d.cfg.Shim)
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, r vmm.Restore) (vmm.VM, error) {
	v, err := d.restore(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("restore virtual machine: %w", err)
	}
	return v, nil
}

func (d *Driver) restore(ctx context.Context, r vmm.Restore) (*vm, error) {
	if _, err := d.Version(ctx); err != nil {
		return nil, err
	}
	if err := checkMachine(r.Machine); err != nil {
		return nil, err
	}
	l := &launch{}
	defer l.close()
	if err := d.restoreMemory(l, r); err != nil {
		return nil, err
	}
	if err := l.machine(d.accel, r.Machine, r.Memory.Shared != ""); err != nil {
		return nil, err
	}
	state, err := l.open(r.State, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	l.arg("-incoming", "defer")
	if r.Paused {
		l.arg("-S")
	}
	v, err := d.start(ctx, l, r.Machine, r.Console,
		command{Execute: "migrate-incoming", Arguments: map[string]any{"uri": fmt.Sprintf("fd:%d", state)}})
	if err != nil {
		return nil, err
	}
	v.memory = r.Memory.Shared
	// QEMU goes on by itself, or ends if it cannot read the state.
	loaded := func() error { return v.waitFor(ctx, "RESUME") }
	if r.Paused {
		loaded = func() error { return v.migrated(ctx) }
	}
	if err := loaded(); err != nil {
		return nil, v.failed(fmt.Errorf("load state: %w", err))
	}
	return v, nil
}

// waitFor waits for an event that comes once.
func (v *vm) waitFor(ctx context.Context, event string) error {
	came := v.monitor.event(event)
	if v.monitor.had(event) {
		return nil
	}
	select {
	case <-came:
		return nil
	case <-v.done:
		return errEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// restoreMemory makes QEMU map guest memory as r says.
func (d *Driver) restoreMemory(l *launch, r vmm.Restore) error {
	switch m := r.Memory; m {
	case vmm.Memory{}:
	case vmm.Memory{Shared: m.Shared}:
		return d.memory(l, m.Shared, os.O_RDWR, r.MemoryBytes)
	case vmm.Memory{File: m.File, NoReadAhead: m.NoReadAhead}:
		if m.NoReadAhead {
			l.setting("RANDOM", 1)
		}
		return d.memory(l, m.File, os.O_RDONLY, r.MemoryBytes)
	case vmm.Memory{Faults: m.Faults}:
		return d.handOver(l, *m.Faults, r.MemoryBytes)
	case vmm.Memory{Overlay: m.Overlay}:
		return d.overlay(l, *m.Overlay, r.MemoryBytes)
	}
	return errors.New("memory has to be one of Shared, File, Overlay and Faults")
}
