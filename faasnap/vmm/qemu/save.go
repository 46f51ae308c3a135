package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/internal/sys"
)

// overlay makes QEMU map guest memory by a plan.
func (d *Driver) overlay(l *launch, o vmm.Overlay, sizeBytes int64) error {
	if err := d.memory(l, o.Memory, os.O_RDONLY, sizeBytes); err != nil {
		return err
	}
	if got := int64(o.Plan.Pages) * pages.Size; got != sizeBytes {
		return fmt.Errorf("map plan: it is for guest memory of %d bytes: want %d", got, sizeBytes)
	}
	encoded, err := o.Plan.MarshalBinary()
	if err != nil {
		return err
	}
	plan, err := sys.MemFile("plan")
	if err != nil {
		return err
	}
	l.own = append(l.own, plan)
	if _, err := plan.Write(encoded); err != nil {
		return fmt.Errorf("map plan: %w", err)
	}
	l.setting("PLAN", l.inherit(plan))
	if o.Plan.LoadingPages > 0 {
		fd, err := l.open(o.Loading, os.O_RDONLY)
		if err != nil {
			return fmt.Errorf("open loading set: %w", err)
		}
		info, err := l.own[len(l.own)-1].Stat()
		if err != nil {
			return fmt.Errorf("open loading set: %w", err)
		}
		if want := int64(o.Plan.LoadingPages) * pages.Size; info.Size() != want {
			return fmt.Errorf("open loading set: %s has %d bytes: want %d", o.Loading, info.Size(), want)
		}
		l.setting("LOADING", fd)
		if o.Progress != nil {
			l.setting("PROGRESS", l.inherit(o.Progress))
		}
	}
	if o.HugeZeros {
		l.setting("HUGE", 1)
	}
	return nil
}

// handOver makes QEMU hand its guest's page faults to a handler.
func (d *Driver) handOver(l *launch, f vmm.Faults, sizeBytes int64) error {
	// QEMU wants a file to map, which is not what the shim maps.
	stand, err := sys.MemFile("guest")
	if err != nil {
		return err
	}
	l.own = append(l.own, stand)
	if err := stand.Truncate(sizeBytes); err != nil {
		return fmt.Errorf("stand in for guest memory: %w", err)
	}
	l.setting("MEMORY", l.inherit(stand))
	// QEMU's user may not reach the socket's directory by its path.
	dir, err := l.open(filepath.Dir(f.Socket), os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("find the handler of page faults: %w", err)
	}
	l.env = append(l.env, fmt.Sprintf("VOLLEY_SHIM_FAULTS=/proc/self/fd/%d/%s", dir, filepath.Base(f.Socket)))
	// Without it, only root may have a userfaultfd that serves system calls.
	if fd, err := l.open("/dev/userfaultfd", os.O_RDWR); err == nil {
		l.setting("UFFD", fd)
	}
	return l.shim(d.cfg.Shim)
}

func (v *vm) PID() int                  { return v.process.Pid }
func (v *vm) Agent() io.ReadWriteCloser { return v.agent }
func (v *vm) Done() <-chan struct{}     { return v.done }

func (v *vm) Err() error {
	if !closed(v.done) {
		return nil
	}
	return v.err
}

func (v *vm) Pause(ctx context.Context) error {
	if _, err := v.monitor.run(ctx, nil, command{Execute: "stop"}); err != nil {
		return fmt.Errorf("pause virtual machine: %w", err)
	}
	return nil
}

func (v *vm) Resume(ctx context.Context) error {
	if _, err := v.monitor.run(ctx, nil, command{Execute: "cont"}); err != nil {
		return fmt.Errorf("resume virtual machine: %w", err)
	}
	return nil
}

// pollEvery is how often QEMU is asked for what it does not tell by itself.
const pollEvery = 2 * time.Millisecond

// poll calls f until it is done or fails.
func poll(ctx context.Context, f func() (done bool, err error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if done, err := f(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (v *vm) Save(ctx context.Context, f vmm.SaveFiles) error {
	err := v.saveState(ctx, f.State)
	if err == nil {
		err = v.saveMemory(ctx, f.Memory)
	}
	if err != nil {
		return fmt.Errorf("save virtual machine: %w", err)
	}
	return nil
}

func (v *vm) saveState(ctx context.Context, path string) (err error) {
	if v.memory == "" {
		return fmt.Errorf("%w: its memory is not shared with a file", vmm.ErrUnsupported)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := v.monitor.run(ctx, syscall.UnixRights(int(file.Fd())),
		command{Execute: "getfd", Arguments: map[string]any{"fdname": "state"}}); err != nil {
		return err
	}
	if _, err := v.monitor.run(ctx, nil, command{Execute: "migrate", Arguments: map[string]any{"uri": "fd:state"}}); err != nil {
		return err
	}
	return v.migrated(ctx)
}

// migrated waits until the state has been written, or loaded.
func (v *vm) migrated(ctx context.Context) error {
	return poll(ctx, func() (bool, error) {
		answer, err := v.monitor.run(ctx, nil, command{Execute: "query-migrate"})
		if err != nil {
			return false, err
		}
		var is struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(answer, &is); err != nil {
			return false, fmt.Errorf("query-migrate: %w", err)
		}
		if is.Status == "failed" || is.Status == "cancelled" {
			return false, fmt.Errorf("state: %s %s", is.Status, is.Desc)
		}
		return is.Status == "completed", nil
	})
}

// saveMemory copies the file of guest memory, without its zero pages.
func (v *vm) saveMemory(ctx context.Context, path string) (err error) {
	if path == v.memory {
		return nil
	}
	from, err := os.Open(v.memory)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := to.Truncate(v.machine.MemoryBytes); err != nil {
		return err
	}
	nonZero, err := mem.Scan(from, v.machine.MemoryBytes)
	if err != nil {
		return err
	}
	for r := range nonZero.Ranges() {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, n := int64(r.Start)*pages.Size, int64(r.Len())*pages.Size
		if _, err := io.Copy(io.NewOffsetWriter(to, at), io.NewSectionReader(from, at, n)); err != nil {
			return err
		}
	}
	return nil
}

func (v *vm) Close() error {
	v.closeOnce.Do(func() {
		close(v.closing)
		_ = v.process.Kill() // it has ended already, if this fails
	})
	<-v.done
	return nil
}
