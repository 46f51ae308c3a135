package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/vmm"
)

// VM implements vmm.VM.
type VM struct {
	machine vmm.Machine
	dir     string
	console io.Writer
	// file is the memory file that the guest has been restored from, faults the
	// socket of who serves its page faults.
	file, faults string

	process *process
	api     *client

	mu    sync.Mutex
	agent net.Conn
	reset bool // the guest's vsock, when it goes on

	closing  sync.Once
	closeErr error
}

var _ vmm.VM = (*VM)(nil)

func (v *VM) path(name string) string { return filepath.Join(v.dir, name) }

// links are the names that Firecracker knows files by, and what they are. A
// state file holds names, and they are the same in every VM.
func (v *VM) links() map[string]string {
	links := map[string]string{}
	for i, d := range v.machine.Drives {
		links[driveID(i)] = d.Path
	}
	if v.faults != "" {
		links[faultSocket] = v.faults
	}
	return links
}

func (v *VM) link() error {
	for name, to := range v.links() {
		to, err := filepath.Abs(to)
		if err != nil {
			return err
		}
		if _, err := os.Stat(to); err != nil {
			return err
		}
		if err := os.Symlink(to, v.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// remove removes what this VM has in its directory.
func (v *VM) remove() error {
	var errs []error
	names := []string{apiSocket, agentSocket}
	for name := range v.links() {
		names = append(names, name)
	}
	for _, name := range names {
		if err := os.Remove(v.path(name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// connect makes the agent's stream.
func (v *VM) connect(ctx context.Context) error {
	return v.process.retry(ctx, func(ctx context.Context) error {
		conn, err := connectAgent(ctx, v.path(agentSocket))
		if err != nil {
			return err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.process.closing.Load() {
			return errors.Join(net.ErrClosed, conn.Close())
		}
		if v.agent != nil {
			_ = v.agent.Close() // it is dead anyway
		}
		v.agent, v.reset = conn, false
		return nil
	})
}

// PID implements vmm.VM.
func (v *VM) PID() int { return v.process.cmd.Process.Pid }

// Agent implements vmm.VM. Save ends the stream, as Firecracker resets the
// guest's vsock with every snapshot; the first Resume after it makes another,
// which Agent returns from then on.
func (v *VM) Agent() io.ReadWriteCloser {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.agent
}

// Pause implements vmm.VM.
func (v *VM) Pause(ctx context.Context) error {
	if err := v.api.patch(ctx, "/vm", vmState{"Paused"}); err != nil {
		return fmt.Errorf("pause: %w", v.process.because(err))
	}
	return nil
}

// Resume implements vmm.VM. After a Save it waits for the agent's new stream.
func (v *VM) Resume(ctx context.Context) error {
	if err := v.api.patch(ctx, "/vm", vmState{"Resumed"}); err != nil {
		return fmt.Errorf("resume: %w", v.process.because(err))
	}
	v.mu.Lock()
	reset := v.reset
	v.mu.Unlock()
	if !reset {
		return nil
	}
	if err := v.connect(ctx); err != nil {
		return fmt.Errorf("resume: %w", v.process.because(err))
	}
	return nil
}

// Save implements vmm.VM. It overwrites the file that the guest has been
// restored from under another inode, as others may run from it. After a Save
// whose context has ended the VM is of no use: Firecracker may still be
// writing.
func (v *VM) Save(ctx context.Context, f vmm.SaveFiles) error {
	if err := v.save(ctx, f); err != nil {
		return fmt.Errorf("save: %w", v.process.because(err))
	}
	return nil
}

func (v *VM) save(ctx context.Context, f vmm.SaveFiles) (err error) {
	create := snapshotCreate{Type: "Full"}
	if create.State, err = filepath.Abs(f.State); err != nil {
		return err
	}
	if create.Memory, err = filepath.Abs(f.Memory); err != nil {
		return err
	}
	if v.file != "" && sameFile(v.file, create.Memory) {
		if err := os.Remove(create.Memory); err != nil {
			return err
		}
	}
	v.mu.Lock()
	v.reset = true
	v.mu.Unlock()
	if err := v.api.put(ctx, "/snapshot/create", create); err != nil {
		return err
	}
	// Firecracker writes all of memory.
	file, err := os.OpenFile(create.Memory, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if info, err := file.Stat(); err != nil {
		return err
	} else if info.Size() != v.machine.MemoryBytes {
		return fmt.Errorf("firecracker has written %d bytes of memory: want %d", info.Size(), v.machine.MemoryBytes)
	}
	nonZero, err := mem.Scan(file, v.machine.MemoryBytes)
	if err != nil {
		return err
	}
	return mem.MakeSparse(file, nonZero)
}

func sameFile(a, b string) bool {
	ai, aerr := os.Stat(a)
	bi, berr := os.Stat(b)
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}

// Done implements vmm.VM.
func (v *VM) Done() <-chan struct{} { return v.process.done }

// Err implements vmm.VM.
func (v *VM) Err() error {
	select {
	case <-v.process.done:
		return v.process.err
	default:
		return nil
	}
}

// Close implements vmm.VM.
func (v *VM) Close() error {
	v.closing.Do(func() {
		err := v.process.kill()
		v.api.close()
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.agent != nil {
			if e := v.agent.Close(); !errors.Is(e, net.ErrClosed) {
				err = errors.Join(err, e)
			}
		}
		if err = errors.Join(err, v.remove()); err != nil {
			v.closeErr = fmt.Errorf("close firecracker: %w", err)
		}
	})
	return v.closeErr
}
