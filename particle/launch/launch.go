// Package launch starts a program as one endpoint of a network: in its
// namespace and control group, under its discipline, and without the
// privileges to get out of them.
//
// It isolates the network and nothing else. The program keeps its user, sees
// the host's files and processes, and may signal those of its user. What it is
// kept from:
//
//   - It has none of the capabilities by which it could leave the network
//     namespace, change the network or sniff it (sys.DropNetworkPrivileges),
//     and gains none by executing something.
//   - It has a mount namespace in which control groups cannot be changed and
//     pinned BPF objects are not seen, so that it stays under the discipline of
//     its group also as user 0.
//   - By Landlock, where the kernel has version 6 of it (Linux 6.12), it does
//     not reach abstract unix sockets that others made, nor does it trace
//     others. Two programs that were started one by one are others, even of the
//     same endpoint. On older kernels abstract sockets are shared by all who
//     share a network namespace.
//
// As user 0 it can still remove the files by which a node knows its networks,
// and write to disks: a program that is not trusted belongs in a container, or
// has a user of its own (Options.UID). What is inherited is not looked at: a
// descriptor of a socket that was made elsewhere stays what it is.
//
// Starting a program needs Linux 5.12, CAP_SYS_ADMIN, and the right to write to
// the control group.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/volley-run/volley/particle/preload"
)

// Discipline is what holds a program to its address. The values are those of
// particle.Discipline.
type Discipline string

// The disciplines.
const (
	// BPF is that of the control group: nothing is to be done for a program.
	BPF Discipline = "bpf"
	// Seccomp needs a supervisor that stays: Run only.
	Seccomp Discipline = "seccomp"
	// Preload overrides functions of the C library.
	Preload Discipline = "preload"
	// None holds a program to nothing. It is also the meaning of "".
	None Discipline = "none"
)

const (
	envNetwork  = "VOLLEY_NETWORK"
	envEndpoint = "VOLLEY_ENDPOINT"
)

// Options is how a program is started.
type Options struct {
	// Network and Endpoint are names that the program finds in its environment
	// as VOLLEY_NETWORK and VOLLEY_ENDPOINT.
	Network, Endpoint string
	// Namespace is the path of a network namespace. Empty: it stays in this
	// process's.
	Namespace string
	// Cgroup is the absolute path of a cgroup v2 group. Empty: it stays in this
	// process's, and control groups are not protected from it.
	Cgroup string
	// Address and Address6 are the endpoint's, in the environment VOLLEY_ADDRESS
	// and VOLLEY_ADDRESS6. One of them may be invalid.
	Address, Address6 netip.Addr
	Discipline        Discipline
	// Library is the library of Preload. Empty: preload.Find.
	Library string
	// Dir is the working directory. Empty: this process's.
	Dir string
	// Env is the environment, to which the variables above are added. Nil: this
	// process's.
	Env []string
	// UID and GID are who runs it. Nil: who runs this process.
	UID, GID *int
	// KeepCapabilities leaves it all capabilities. With CAP_SYS_ADMIN or
	// CAP_NET_ADMIN nothing holds it to its address.
	KeepCapabilities bool
}

// Stdio is a program's standard streams. A nil one is the null device; one
// that is an *os.File is inherited, another one copied.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec makes this process the program. It returns only if that fails; this
// process may then be in the endpoint's control group and in Options.Dir, but
// has its namespaces and privileges still. The discipline Seccomp is refused: use Run.
//
// argv[0] is looked for as a shell does.
func Exec(o Options, argv []string) error {
	if err := execute(o, argv); err != nil {
		return fmt.Errorf("start program: %w", err)
	}
	return nil
}

// Run starts the program, waits for it, and returns its exit status: 128 and
// the number of the signal if one ended it. The signals SIGHUP, SIGINT,
// SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT and SIGWINCH that this process
// gets meanwhile are passed on, but not those of keys, which the terminal sends
// to the program itself. The program is killed when ctx ends, and when this
// process dies. Programs that it started and that outlive it can make no
// sockets any more under the discipline Seccomp.
//
// argv[0] is looked for as a shell does. An error means that it was not
// started, or that its supervisor failed; Status says which exit status
// stands for it.
func Run(ctx context.Context, o Options, argv []string, stdio Stdio) (int, error) {
	status, err := run(ctx, o, argv, stdio)
	if err != nil {
		return status, fmt.Errorf("start program: %w", err)
	}
	return status, nil
}

// Status returns the exit status by which shells and env(1) tell of a program
// that could not be started: 127 if there is none of that name, otherwise 126.
func Status(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return 127
	}
	return 126
}

// env returns the program's environment.
func (o Options) env() ([]string, error) {
	env := o.Env
	if env == nil {
		env = os.Environ()
	}
	// This process may be the program of an endpoint itself.
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == envNetwork || name == envEndpoint
	})
	if o.Network != "" {
		env = append(env, envNetwork+"="+o.Network)
	}
	if o.Endpoint != "" {
		env = append(env, envEndpoint+"="+o.Endpoint)
	}
	library := ""
	if o.Discipline == Preload {
		library = o.Library
		if library == "" {
			var err error
			if library, err = preload.Find(); err != nil {
				return nil, err
			}
		}
	}
	return preload.Env(library, env, o.Address, o.Address6), nil
}

// check returns the program's path.
func (o Options) check(argv []string) (string, error) {
	if len(argv) == 0 {
		return "", errors.New("no program is given")
	}
	switch o.Discipline {
	case BPF, Seccomp, Preload, None, "":
	default:
		return "", fmt.Errorf("discipline %q is unknown", o.Discipline)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return "", err
	}
	return path, nil
}
