package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	runc "github.com/containerd/go-runc"

	"github.com/volley-run/volley/function"
)

// The runtimes.
const (
	Runc  = "runc"
	Runsc = "runsc"
)

// traits is what distinguishes a runtime.
type traits struct {
	isolation string
	// ownKernel says that functions do not reach the host's kernel, so that
	// a filter of system calls is for the runtime to make.
	ownKernel bool
	// pauses says that the runtime itself pauses containers. Otherwise the
	// control group does, which takes microseconds, while a runtime has to be
	// started. The kernel cannot freeze processes that gVisor traces.
	pauses bool
	// processes is how many processes and threads of its own the runtime needs
	// in a container's control group. It ends badly if it does not get them.
	processes int
	// leaves names the processes that the runtime leaves to whoever adopts
	// orphans, besides the first one of the container; empty if none.
	leaves string
	// flags returns the flags in front of the command, for a program that
	// knows the given ones.
	flags func(known map[string]string, platform string, network function.Network) []string
}

const isolatedAlways = "Own PID, mount, IPC, UTS and network namespaces (but for functions that use the host's network), " +
	"read-only root, limits on memory, CPU and processes, no capabilities and no gaining of privileges"

// traitsOf is the table of runtimes. It is constant.
var traitsOf = map[string]traits{
	Runc: {
		isolation: isolatedAlways + ", and a filter of system calls; the host's kernel is shared, and so is user id space: " +
			"a hole in the kernel is a way out.",
		flags: func(map[string]string, string, function.Network) []string { return nil },
	},
	Runsc: {
		isolation: isolatedAlways + ", and a kernel of its own in user space (gVisor): functions make no system call to the host's " +
			"kernel themselves; gVisor's own memory counts as the function's.",
		ownKernel: true,
		pauses:    true,
		processes: 256,
		leaves:    "exe", // it starts itself as /proc/self/exe
		flags: func(known map[string]string, platform string, network function.Network) []string {
			flags := []string{"--network=none"}
			if network == function.NetworkHost {
				flags[0] = "--network=host"
			}
			if platform != "" {
				flags = append(flags, "--platform="+platform)
			}
			if _, ok := known["overlay2"]; ok {
				// Roots are shared and read-only: no file for changes in them.
				flags = append(flags, "--overlay2=none")
			}
			return flags
		},
	},
}

// engine is a program that runs containers.
type engine struct {
	traits
	binary string
	// root is the directory of its state.
	root     string
	known    map[string]string
	platform string
}

// findEngine finds the program and what it can do.
func findEngine(ctx context.Context, name, binary, root, platform string) (engine, error) {
	t, ok := traitsOf[name]
	if !ok {
		return engine{}, fmt.Errorf("unknown container runtime %q: use %s or %s", name, Runc, Runsc)
	}
	if binary == "" {
		binary = name
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return engine{}, fmt.Errorf("find container runtime: %w (on Debian: apt-get install %s)", err, name)
	}
	if path, err = filepath.Abs(path); err != nil {
		return engine{}, fmt.Errorf("find container runtime: %w", err)
	}
	e := engine{traits: t, binary: path, root: root, platform: platform}
	if name == Runsc {
		// The exit status differs between versions; what it writes does not.
		out, _ := exec.CommandContext(ctx, path, "flags").CombinedOutput()
		if e.known = parseFlags(string(out)); len(e.known) == 0 {
			return engine{}, fmt.Errorf("ask %s for its flags: no flag in its output %.200q", path, out)
		}
		if platform == "" {
			e.platform = choosePlatform(e.known["platform"])
		}
	}
	return e, nil
}

// parseFlags reads what `runsc flags` writes: a line for each flag, and lines
// that begin with more space for what it means.
func parseFlags(text string) map[string]string {
	flags := map[string]string{}
	name := ""
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "  -"); ok {
			name, _, _ = strings.Cut(strings.TrimSpace(strings.TrimPrefix(rest, "-")), " ")
			flags[name] = ""
		} else if name != "" {
			flags[name] += strings.TrimSpace(line) + " "
		}
	}
	return flags
}

// choosePlatform chooses how gVisor intercepts system calls: systrap is the
// fastest that works everywhere, but old versions have only ptrace. kvm is left
// to the operator, because virtual machines in virtual machines are no gain.
func choosePlatform(description string) string {
	if strings.Contains(description, "systrap") {
		return "systrap"
	}
	return "ptrace"
}

// client returns the program as it runs for a container on that network.
func (e engine) client(network function.Network) *runc.Runc {
	return &runc.Runc{
		Command: e.binary,
		Root:    e.root,
		// A runtime without anybody who waits for it must not go on.
		PdeathSignal: syscall.SIGKILL,
		ExtraArgs:    e.flags(e.known, e.platform, network),
	}
}

// delete removes what the runtime has of a container and kills its processes.
// A container that it does not know is no error.
func (e engine) delete(ctx context.Context, id string) error {
	if !e.knows(id) {
		return nil
	}
	err := e.client(function.NetworkNone).Delete(ctx, id, &runc.DeleteOpts{Force: true})
	if err != nil && e.knows(id) {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

// pause stops a container's processes, or lets them go on.
func (e engine) pause(ctx context.Context, id string, pause bool) error {
	client := e.client(function.NetworkNone)
	if pause {
		return client.Pause(ctx, id)
	}
	return client.Resume(ctx, id)
}

// knows reports whether the runtime has files of a container.
func (e engine) knows(id string) bool {
	for _, path := range e.files(id) {
		if _, err := os.Lstat(path); err == nil {
			return true
		}
	}
	return false
}

// files returns the paths that a container's state may be at: a directory, or
// files whose names begin with it.
func (e engine) files(id string) []string {
	files, err := filepath.Glob(filepath.Join(e.root, id+"_sandbox:*"))
	if err != nil {
		files = nil // an id has no character that a pattern could be wrong with
	}
	return append(files, filepath.Join(e.root, id))
}

// forget removes the files of a container that the runtime cannot make sense
// of, as after having been killed while it wrote them.
func (e engine) forget(id string) error {
	var errs []error
	for _, path := range e.files(id) {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// ids returns the containers that the runtime has files of.
func (e engine) ids() ([]string, error) {
	entries, err := os.ReadDir(e.root)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		id, _, _ := strings.Cut(entry.Name(), "_sandbox:")
		ids = append(ids, id)
	}
	return ids, nil
}
