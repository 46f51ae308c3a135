package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/gateway/httpserver"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/bundle"
	"github.com/volley-run/volley/sandbox/image"
	"github.com/volley-run/volley/sandbox/microvm"
	"github.com/volley-run/volley/sandbox/oci"
	"github.com/volley-run/volley/sandbox/process"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/wire"
)

// The sandbox drivers by name.
const (
	driverRunc    = "runc"
	driverRunsc   = "runsc"
	driverProcess = "process"
	driverMicroVM = "microvm"
	driverStub    = "stub"
)

// invokerOptions are the flags of an invoker.
type invokerOptions struct {
	name       string
	driver     string
	memory     megabytes
	keepAlive  time.Duration
	pauseAfter time.Duration
	eviction   string
	init       string
	snapshots  megabytes
	standby    int
	stub       bool
	metrics    string
	netState   string
}

func (o *invokerOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "the invoker's name, unique among all (default: the machine's)")
	f.StringVar(&o.driver, "driver", "", "the sandboxes: runc, runsc, microvm, or process for no isolation at all (default: runc where it is installed)")
	f.Var(&o.memory, "memory", "memory for containers (default: three quarters of the machine's)")
	f.DurationVar(&o.keepAlive, "keep-alive", 10*time.Minute, "how long an idle container is kept")
	f.DurationVar(&o.pauseAfter, "pause-after", 0, "freeze containers that have been idle this long; 0 freezes none")
	f.StringVar(&o.netState, "net-state", "", "state directory of the networks that functions may use, as for volley net")
	o.snapshots = megabytes(microvm.DefaultPolicy().MaxBytes >> 20)
	f.Var(&o.snapshots, "snapshots", "disk for snapshots of functions, with --driver microvm")
	f.IntVar(&o.standby, "standby", 0, "virtual machine monitors that wait for restores of the functions invoked most, at some tens of MB each, with --driver microvm")
	f.StringVar(&o.init, "init", "", "the program volley-init (default: the one beside this program)")
}

// check finds wrong flags before anything is started, and fills in defaults.
func (o *invokerOptions) check() error {
	if o.name == "" {
		o.name = hostName()
	}
	if o.driver == "" {
		o.driver = driverRunc
		if _, err := exec.LookPath(driverRunc); err != nil || os.Geteuid() != 0 {
			return usagef("containers need runc and root; install it (scripts/setup test, or apt-get install runc) and start as root, or choose --driver %s, which isolates nothing", driverProcess)
		}
	}
	if o.stub {
		o.driver = driverStub
	}
	switch o.driver {
	case driverProcess, driverStub:
	case driverRunc, driverRunsc:
		if _, err := exec.LookPath(o.driver); err != nil {
			return usagef("--driver %s: %w; install it (apt-get install %s)", o.driver, err, o.driver)
		}
		if os.Geteuid() != 0 {
			return usagef("--driver %s needs root; or choose --driver %s, which isolates nothing", o.driver, driverProcess)
		}
	case driverMicroVM:
		if _, err := exec.LookPath(microVMProgram); err != nil {
			return usagef("--driver %s: %w; install it (apt-get install qemu-system-x86)", o.driver, err)
		}
		if os.Geteuid() != 0 {
			return usagef("--driver %s needs root, to make file systems", o.driver)
		}
	default:
		return usagef("--driver %q: must be %s, %s, %s or %s", o.driver, driverRunc, driverRunsc, driverMicroVM, driverProcess)
	}
	if o.standby < 0 || o.standby > 256 {
		return usagef("--standby %d: must be 0 to 256", o.standby)
	}
	if o.keepAlive < 0 || o.pauseAfter < 0 {
		return usagef("--keep-alive and --pause-after must not be negative")
	}
	if o.memory == 0 {
		total, err := sys.MemoryBytes()
		if err != nil {
			return usagef("%w: say how much containers may use with --memory", err)
		}
		o.memory = megabytes(total / 4 * 3 >> 20)
	}
	if o.init == "" && o.driver != driverStub {
		var err error
		if o.init, err = findProgram("", "--init", "volley-init"); err != nil {
			return err
		}
	}
	return nil
}

// invokerNode is a running invoker.
type invokerNode struct {
	driver sandbox.Driver
	closers
	failed chan error
}

// startInvoker starts an invoker on a bus, which stays the caller's.
func startInvoker(ctx context.Context, b bus.Bus, o invokerOptions, s services) (n *invokerNode, err error) {
	n = &invokerNode{failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	dir := filepath.Join(s.data, "invoker")
	lock, err := sys.LockFile(filepath.Join(dir, "lock"))
	if errors.Is(err, sys.ErrLocked) {
		return nil, usagef("another invoker uses %s: give this one a directory of its own with --data", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("start invoker: %w", err)
	}
	n.add(lock.Close)
	tracer, flush, err := s.tracing.open(ctx, "volley-invoker")
	if err != nil {
		return nil, err
	}
	n.add(func() error { return flushTraces(flush) })
	if err := n.openDriver(ctx, b, o, dir, s); err != nil {
		return nil, err
	}
	inv, err := invoker.New(invoker.Config{
		Name: o.name, Bus: b, Driver: n.driver, CapacityMB: int64(o.memory), KeepAlive: o.keepAlive, PauseAfter: o.pauseAfter,
		Eviction: o.eviction, Log: s.log, Registerer: s.registry, Tracer: tracer,
	})
	if err != nil {
		return nil, usagef("%w", err)
	}
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	running := make(chan struct{})
	go func() {
		defer close(running)
		if err := inv.Run(runCtx); err != nil {
			n.failed <- fmt.Errorf("run invoker: %w", err)
		}
	}()
	n.add(func() error {
		stop()
		<-running
		return nil
	})
	if o.metrics != "" {
		handler := promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})
		server, err := httpserver.Start(ctx, httpserver.Config{Addr: o.metrics, Handler: handler, Log: s.log})
		if err != nil {
			return nil, usagef("--metrics: %w", err)
		}
		n.add(server.Close)
	}
	return n, nil
}

// openDriver makes the driver with what it takes code and images from.
func (n *invokerNode) openDriver(ctx context.Context, b bus.Bus, o invokerOptions, dir string, s services) error {
	if o.driver == driverStub {
		n.driver = invoker.NewStub(invoker.ThesisModel())
		n.add(n.driver.Close)
		return nil
	}
	objects, err := b.Objects(ctx, wire.CodeBucket)
	if err != nil {
		return fmt.Errorf("open the store of packages: %w", err)
	}
	packages, err := bundle.Open(bundle.Config{Dir: filepath.Join(dir, "packages"), Objects: objects})
	if err != nil {
		return err
	}
	n.add(packages.Close)
	switch o.driver {
	case driverProcess:
		s.log.Warn("the sandboxes isolate nothing: functions run with this user's rights")
		n.driver, err = process.New(process.Config{Init: o.init, Dir: filepath.Join(dir, "process"), Unpacker: packages, Logger: s.log})
	default:
		images, err := image.Open(image.Config{Dir: filepath.Join(dir, "images"), Objects: objects})
		if err != nil {
			return err
		}
		n.add(images.Close)
		if o.driver == driverMicroVM {
			return n.openMicroVM(ctx, o, dir, packages, images, s)
		}
		// The runtime leaves its containers to whoever adopts orphans; process 1
		// may be slow to notice their end.
		if err := sys.AdoptOrphans(); err != nil {
			return err
		}
		networks, err := openJobNetworks(ctx, o.netState, dir, false)
		if err != nil {
			return err
		}
		n.add(networks.Close)
		n.driver, err = oci.New(ctx, oci.Config{Runtime: o.driver, Init: o.init, Dir: filepath.Join(dir, o.driver), Unpacker: packages, Images: images, Networks: networks, Log: s.log})
		if err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	n.add(n.driver.Close)
	return nil
}

func newInvokerCommand() *cobra.Command {
	var o invokerOptions
	var join connectOptions
	var logs logOptions
	var s services
	cmd := &cobra.Command{
		Use:   "invoker --join nats://HOST:PORT",
		Short: "Run functions for a controller",
		Long: `Run functions on this machine for the controllers on a NATS server.

Functions run in containers of runc (or of gVisor's runsc), or in virtual machines
that come from snapshots (microvm, which needs QEMU; see docs/operations.md): see
docs/functions.md for what that isolates. After a crash the next start removes what was left.
Ctrl-C lets running invocations end for 10 s.

Exit statuses: 0 after Ctrl-C, 1 it cannot run, 2 wrong usage, 6 no NATS server
answers.`,
		Example: `  volley invoker --join nats://127.0.0.1:4222
  volley invoker --join nats://10.0.0.1:4222 --token-file nats-token --memory 20GB --driver runsc
  volley invoker --join nats://127.0.0.1:4222 --driver microvm --snapshots 20GB
  volley invoker --join nats://127.0.0.1:4222 --name stub-1 --stub --memory 20GB`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(join.urls) == 0 {
				return usagef("--join is missing: the NATS server that the controller uses, such as nats://%s", defaultNATSAddress)
			}
			if err := o.check(); err != nil {
				return err
			}
			var err error
			if s.log, err = logs.open(cmd.ErrOrStderr()); err != nil {
				return err
			}
			if s.data, err = dataDir(s.data); err != nil {
				return err
			}
			s.registry = newRegistry()
			return runInvoker(cmd.Context(), join, o, s, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&join.urls, "join", nil, "NATS servers of the controller")
	f.StringVar(&o.eviction, "eviction", invoker.LRU, "which idle containers make room first: "+strings.Join(invoker.Evictions(), " or "))
	f.BoolVar(&o.stub, "stub", false, "emulate containers, for measurements: an event {\"runMs\": 5} takes 5 ms")
	f.StringVar(&o.metrics, "metrics", "", "address to serve Prometheus metrics at (default: nowhere)")
	join.registerToken(cmd)
	registerData(cmd, &s.data)
	s.tracing.register(cmd)
	logs.register(cmd)
	return cmd
}

func runInvoker(ctx context.Context, join connectOptions, o invokerOptions, s services, stdout io.Writer) (err error) {
	b, err := join.connect(ctx, "volley-invoker "+o.name, s.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	n, err := startInvoker(ctx, b, o, s)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Invoker %s has %s for containers of %s (Ctrl-C ends)\n%s\n", o.name, &o.memory, n.driver.Name(), n.driver.Isolation())
	select {
	case <-ctx.Done():
	case err = <-n.failed:
	}
	return errors.Join(err, n.close())
}
