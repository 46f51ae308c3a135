package faasnap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// VM is a virtual machine with one function in it. Invoke is called by one
// goroutine at a time; the other methods may be called concurrently.
type VM struct {
	id       string
	function *Function
	mode     Mode
	snapshot string // the name of what it was restored from
	network  *vmm.Network
	created  time.Time
	service  *Service
	dir      string
	vm       vmm.VM
	agent    *agent.Agent
	// memory is the file that a booted machine shares its memory with.
	memory string
	loads  *loads // nil if nothing is loaded beside the guest
	times  Times
	// waited says that the VMM had waited; refill, if not nil, is called once, to
	// have another wait.
	waited   bool
	refill   func()
	refilled sync.Once

	closeOnce sync.Once
	closeErr  error
}

// Times are how long the parts of a start took. All of it before an invocation
// can begin is Start.
type Times struct {
	// Prepare is opening the snapshot and starting its loader, VMM until the
	// guest runs, Prefetch what a blocking prefetch took of that, and Agent
	// until the guest takes an invocation (a boot only).
	Prepare, VMM, Prefetch, Agent time.Duration
	Start                         time.Duration
}

// Info is what can be told of a machine.
type Info struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Mode     Mode   `json:"mode"`
	Snapshot string `json:"snapshot,omitempty"`
	// Standby says that its VMM had waited for it (Service.Standby).
	Standby bool `json:"standby,omitempty"`
	// Network is the tap that is its network device; nil is none.
	Network *vmm.Network `json:"-"`
	PID     int          `json:"pid"`
	Created time.Time    `json:"created"`
}

// Info tells what the machine is.
func (v *VM) Info() Info {
	return Info{ID: v.id, Function: v.function.Name, Mode: v.mode, Snapshot: v.snapshot, Standby: v.waited, Network: v.network, PID: v.vm.PID(), Created: v.created}
}

// Function is what is in the machine. It must not be changed.
func (v *VM) Function() *Function { return v.function }

// ID is the machine's own; no two have the same.
func (v *VM) ID() string { return v.id }

// Times tells how long the machine's start took.
func (v *VM) Times() Times { return v.times }

// LoadStats is what has been brought into a restored guest's memory from beside
// its VMM.
type LoadStats struct {
	// Took is how long all that is read ahead took, and Bytes how much that is
	// (the fetch time and size of thesis table 5.3); both are 0 until then.
	Took  time.Duration
	Bytes int64
	// FetchedBytes is how much of a lazy snapshot came from its store for this
	// machine.
	FetchedBytes int64
	// Faults is how page faults have been served, if that is done outside of the
	// VMM.
	Faults mem.GuestStats
}

// LoadStats tells what has been loaded so far.
func (v *VM) LoadStats() LoadStats {
	if v.loads == nil {
		return LoadStats{}
	}
	return v.loads.stats()
}

// Done is closed when the machine has ended.
func (v *VM) Done() <-chan struct{} { return v.vm.Done() }

// StartOptions are how a machine is started.
type StartOptions struct {
	// Log takes what the function writes; see sandbox.Spec. May be nil.
	Log func(function.LogLine)
	// Console takes what the guest's kernel prints. May be nil.
	Console io.Writer
	// CommandLine is added to what the kernel is booted with.
	CommandLine string
	// InitTimeout bounds the initialisation of the function at a boot, unless its
	// own timeout is longer. If 0, that is a minute more than on Lambda, since
	// guests may be emulated.
	InitTimeout time.Duration
	// MaxProcesses bounds processes and threads of the function in a machine that
	// is booted; 0 is 1024, as in containers.
	MaxProcesses int
	// Network is a tap that is there already, and becomes the machine's network
	// device; nil is none. A machine is restored with a network device just if
	// it was saved with one, and keeps its MAC address. Without MAC it gets one.
	Network *vmm.Network
	// Addresses, if not nil, are given to that device in the guest, where
	// volley-init sets it up then: as one end of a wire whose other end has the
	// same MAC address. A machine to be saved gets empty ones, and those that are
	// restored from it get theirs.
	Addresses *agent.Network
}

// newVM makes a machine's directory.
func (s *Service) newVM(f *Function, mode Mode) (*VM, error) {
	v := &VM{id: uuid.NewString(), function: f, mode: mode, created: time.Now(), service: s}
	v.dir = filepath.Join(s.cfg.Dir, vmsDir, v.id)
	// What is above is its owner's only; a VMM that runs as another user gets
	// this directory as a descriptor, and looks for its sockets there.
	if err := os.Mkdir(v.dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the machine's directory: %w", err)
	}
	return v, nil
}

// register makes a machine known, so that Close ends it.
func (s *Service) register(v *VM) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.vms[v.id] = v
	return nil
}

// VM returns the running machine of an id. The error wraps ErrNotFound if there
// is none.
func (s *Service) VM(id string) (*VM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vms[id]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("virtual machine %s: %w", id, ErrNotFound)
}

// VMs returns the running machines, in no order.
func (s *Service) VMs() []*VM {
	s.mu.Lock()
	defer s.mu.Unlock()
	var vms []*VM
	for _, v := range s.vms {
		vms = append(vms, v)
	}
	return vms
}

// Boot starts a function's machine from its kernel, and waits until the
// function is initialised. The error is a *sandbox.InitError if function code is
// to blame. The caller closes the machine.
func (s *Service) Boot(ctx context.Context, f *Function, o StartOptions) (*VM, error) {
	v, err := s.newVM(f, Boot)
	if err == nil {
		err = v.boot(ctx, o)
		if err == nil {
			err = s.register(v)
		}
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("boot function %s: %w", f.Name, err)
	}
	return v, nil
}

func (v *VM) boot(ctx context.Context, o StartOptions) error {
	begin := time.Now()
	v.network = bootNetwork(o.Network)
	v.memory = filepath.Join(v.dir, "memory")
	if err := makeSparse(v.memory, v.function.GuestMemoryBytes); err != nil {
		return err
	}
	v.times.Prepare = time.Since(begin)
	mark := time.Now()
	machine, err := v.service.cfg.Driver.Boot(ctx, vmm.Boot{
		Machine: v.function.machine(v.network), Kernel: v.function.Image.Kernel, Initrd: v.function.Image.Initrd,
		CommandLine: v.function.Image.CommandLine + " " + o.CommandLine, Memory: v.memory, Console: o.Console, Dir: v.dir,
	})
	if err != nil {
		return err
	}
	v.vm = machine
	v.times.VMM = time.Since(mark)
	mark = time.Now()
	boot, err := agent.Command(&v.function.Function, v.id, agent.Layout{}, v.function.ImageDefaults)
	if err != nil {
		return err
	}
	boot.Credential = cmp.Or(v.function.User, &frame.Credential{UID: guest.FunctionID, GID: guest.FunctionID})
	boot.Limits = frame.Limits{OpenFiles: maxOpenFiles, Processes: uint64(cmp.Or(o.MaxProcesses, defaultProcesses)), NoCore: true}
	boot.Port = agent.RuntimePort
	boot.Network = o.Addresses
	if o.InitTimeout > 0 {
		boot.InitTimeout = max(o.InitTimeout, v.function.Timeout)
	} else {
		boot.InitTimeout += emulationTime
	}
	options := v.agentOptions(o)
	options.BootTime = bootTime
	if v.agent, err = agent.Start(ctx, conn(machine), boot, options); err != nil {
		return err
	}
	v.times.Agent = time.Since(mark)
	v.times.Start = time.Since(begin)
	return nil
}

const (
	// maxOpenFiles bounds the file descriptors of a process, as on AWS Lambda.
	maxOpenFiles = 1024
	// defaultProcesses bounds a function's processes and threads.
	defaultProcesses = 1024
)

// bootTime bounds how long a guest's kernel may take to start.
const bootTime = time.Minute

// emulationTime is how much longer a function may take to initialise where its
// processor may be emulated.
const emulationTime = time.Minute

// endTime is how long the end of a machine's stream may be known before that of
// its process.
const endTime = time.Second

// explain adds to an error of the machine's agent why the machine has ended, if
// it has.
func (v *VM) explain(err error) error {
	wait := time.NewTimer(endTime)
	defer wait.Stop()
	select {
	case <-v.agent.Done():
	default:
		return err
	}
	select {
	case <-v.vm.Done():
		if why := v.vm.Err(); why != nil {
			return fmt.Errorf("%w (%w)", err, why)
		}
	case <-wait.C:
	}
	return err
}

func (v *VM) agentOptions(o StartOptions) agent.Options {
	return agent.Options{Function: &v.function.Function, Container: v.id, Log: o.Log}
}

// conn returns the stream to a machine's agent.
func conn(m vmm.VM) agent.Conn {
	stream := m.Agent()
	return agent.Conn{Reader: stream, Writer: stream, Closer: stream}
}

// makeSparse makes a file of so many bytes, none of which take room.
func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make guest memory: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("make guest memory: %w", err)
	}
	return nil
}

// Invoke runs one invocation, as sandbox.Sandbox describes. An answer counts
// only once all that the guest may have read of the loading set has been found
// to be what was recorded: if it has not, the error wraps snapshot.ErrDamaged or
// tells of the disk, and the machine has ended. So it has if memory does not come
// from an object store: the error wraps remote.ErrStore.
func (v *VM) Invoke(ctx context.Context, req sandbox.Request) (sandbox.Response, error) {
	resp, err := v.agent.Invoke(ctx, req)
	v.answered()
	if v.loads != nil {
		if (err != nil || resp.Broken) && ctx.Err() == nil {
			v.loads.giveUp()
		}
		if lerr := v.loads.wait(ctx); lerr != nil {
			return sandbox.Response{Broken: true}, fmt.Errorf("invoke function %s: restore guest memory: %w", v.function.Name, lerr)
		}
	}
	if err != nil {
		return resp, v.explain(err)
	}
	return resp, nil
}

// answered says that the machine needs the processors less from now on.
func (v *VM) answered() {
	if v.refill != nil {
		v.refilled.Do(v.refill)
	}
}

// Pause stops the guest's CPUs.
func (v *VM) Pause(ctx context.Context) error { return v.vm.Pause(ctx) }

// Resume lets them go on.
func (v *VM) Resume(ctx context.Context) error { return v.vm.Resume(ctx) }

// Close ends the machine and removes what it had. It is idempotent.
func (v *VM) Close() error {
	v.closeOnce.Do(func() {
		v.service.mu.Lock()
		delete(v.service.vms, v.id)
		v.service.mu.Unlock()
		var errs []error
		if v.vm != nil {
			errs = append(errs, v.vm.Close())
		}
		if v.agent != nil {
			errs = append(errs, v.agent.Close())
		}
		if v.loads != nil {
			v.loads.close()
		}
		v.closeErr = errors.Join(append(errs, os.RemoveAll(v.dir))...)
		v.answered()
	})
	return v.closeErr
}

// Ended is closed when the agent in the machine has ended, or the machine.
func (v *VM) Ended() <-chan struct{} { return v.agent.Done() }

// Shutdown asks the function to end, and waits for that or for ctx to end.
func (v *VM) Shutdown(ctx context.Context) {
	// What does not end by itself is ended by Close.
	_ = v.agent.Shutdown(ctx)
}
