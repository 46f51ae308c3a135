// Package vmm says what FaaSnap needs of a virtual machine monitor: that it
// boots a guest, writes down its state, and starts from that state with guest
// memory mapped as a restore plan says (thesis 5.4). The drivers are in the
// packages below it; none of them needs a VMM with a patch.
package vmm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"github.com/volley-run/volley/faasnap/pages"
)

// Driver starts the virtual machines of one kind of VMM. Its methods may be
// called concurrently.
type Driver interface {
	// Name is the driver's name in metadata and on the command line: "qemu",
	// "firecracker".
	Name() string
	// Version says which VMM this is, with all that a state file depends on:
	// its version, accelerator and machine type. A state is restored only by a
	// driver of the same version. The error says what is missing on the host.
	Version(ctx context.Context) (string, error)
	// Boot starts a guest from its kernel.
	Boot(ctx context.Context, b Boot) (VM, error)
	// Restore starts a guest from its state. The guest runs when Restore
	// returns, unless that is to leave it paused. The error wraps ErrUnsupported
	// if the driver cannot have memory served in this way.
	Restore(ctx context.Context, r Restore) (VM, error)
}

// Machine is a guest's hardware, which has to be the same at boot and restore.
type Machine struct {
	// MemoryBytes is a multiple of 2 MiB.
	MemoryBytes int64
	CPUs        int
	// Drives are block devices, in the order in which the guest sees them.
	Drives []Drive
	// Network is the guest's network device; nil is none.
	Network *Network
}

// Drive is a raw disk image.
type Drive struct {
	Path     string
	ReadOnly bool
}

// Network is a tap device as a guest's network device.
type Network struct {
	// Namespace is the path of the network namespace that the tap is in; empty
	// is that of this process.
	Namespace string
	Tap       string
	MAC       net.HardwareAddr
}

// Boot is a guest to be started from its kernel.
type Boot struct {
	Machine
	// Kernel and Initrd are paths; CommandLine is without what the driver has
	// to add, such as the console.
	Kernel, Initrd, CommandLine string
	// Memory is the path of the file that guest memory is kept in, shared: the
	// file has what the guest writes. It is MemoryBytes long and full of zeros.
	// A driver that cannot share memory leaves it alone until Save.
	Memory string
	// Console takes what the guest's kernel prints, in order. May be nil. Once
	// it fails it gets nothing more, and the guest goes on; see Patient.
	Console io.Writer
	// Dir is a directory for sockets and the like, which the caller removes.
	Dir string
}

// Restore is a guest to be started from its state.
type Restore struct {
	Machine
	// State is the path of what Save has written.
	State   string
	Memory  Memory
	Console io.Writer
	Dir     string
	// Paused leaves the guest's CPUs stopped until Resume.
	Paused bool
}

// Memory says where a restored guest's memory comes from. Exactly one of
// Shared, File, Overlay and Faults is set.
type Memory struct {
	// Shared is the path of a file that the guest reads and writes.
	Shared string
	// File is the path of a file that is mapped privately: the guest reads it
	// on demand, and what it writes stays in the VMM ("full", "cached").
	File string
	// NoReadAhead keeps the kernel from reading more of File than the guest
	// touches, for recording what that is. A driver may not be able to.
	NoReadAhead bool
	// Overlay lays a plan over two files.
	Overlay *Overlay
	// Faults hands the guest's page faults over to a handler ("reap", and
	// "faasnap" on VMMs that cannot map an overlay).
	Faults *Faults
}

// Overlay is guest memory mapped by a plan (thesis 5.3.8).
type Overlay struct {
	Plan *pages.Plan
	// Memory and Loading are the paths of the plan's files. Loading may be
	// empty if the plan loads nothing.
	Memory, Loading string
	// HugeZeros backs long zero regions by huge pages where the host has them.
	HugeZeros bool
	// Progress, if there is one, is the read end of a pipe, of which the VMM
	// gets a copy. Each byte in it says that the next mem.LoadChunk bytes of the
	// loading-set file are in the page cache. The VMM puts them into its page
	// tables, so that the guest takes no fault on them.
	Progress *os.File
}

// Faults is a handler of page faults that listens on a unix socket and speaks
// Firecracker's protocol (mem.Handshake). A VMM that runs as another user has to
// be let into the socket and the directory that it is in, not into those above.
type Faults struct {
	Socket string
}

// VM is a running guest. Its methods may be called concurrently, but Agent's
// stream belongs to one conversation.
type VM interface {
	// PID is the VMM's process.
	PID() int
	// Agent is the stream to the agent in the guest. Closing it does not end
	// the guest; Close does both. Where Save ends the stream, as Firecracker
	// does, Resume makes another: ask again after it.
	Agent() io.ReadWriteCloser
	// Pause stops the guest's CPUs, Resume lets them go on.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Save writes down a paused guest: its devices and CPUs to the file State,
	// its memory to the file Memory, as long as it is and with holes for zero
	// pages. Memory may be the file that the guest's memory is shared with, which
	// is then complete, but may have zero pages that are no holes. The guest has
	// to be resumed and paused before it can be saved again.
	// Files that are there are overwritten. After an error they are of no use.
	Save(ctx context.Context, f SaveFiles) error
	// Done is closed when the VMM has ended; Err tells why from then on: nil if
	// the guest has switched itself off or Close was called.
	Done() <-chan struct{}
	Err() error
	// Close ends the VMM at once, waits for it, and frees what it had. It is
	// idempotent.
	Close() error
}

// SaveFiles are the paths that Save writes to.
type SaveFiles struct{ State, Memory string }

// ErrUnsupported says, wrapped, that a VMM cannot do something at all.
var ErrUnsupported = errors.New("not supported by this virtual machine monitor")
