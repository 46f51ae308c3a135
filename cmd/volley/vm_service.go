package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/api"
	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/firecracker"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
	"github.com/volley-run/volley/internal/progress"
	"github.com/volley-run/volley/internal/sys"
)

// vmOptions say where FaaSnap's daemon is, or else where its data is.
type vmOptions struct {
	home, socket string
}

func (o *vmOptions) register(cmd *cobra.Command) {
	// Not --data, which is an event's flag.
	cmd.Flags().StringVar(&o.home, "home", "", "directory for what must be kept (default: $"+envHome+", else ~/.volley)")
	cmd.Flags().StringVar(&o.socket, "socket", "", "the daemon's socket (default: vm.sock in the data directory)")
}

// vmmOptions say how virtual machines run, for commands that may run without a
// daemon.
type vmmOptions struct {
	driver, accel, binary, init string
	// netState is where the node keeps the networks that machines may join.
	netState string
}

func (o *vmmOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.driver, "driver", "qemu", "virtual machine monitor: qemu or firecracker (without a daemon)")
	f.StringVar(&o.accel, "accel", "", "what QEMU runs guests by: kvm or tcg (default: kvm where it works)")
	f.StringVar(&o.binary, "vmm", "", "path of the virtual machine monitor (default: as it is in PATH)")
	f.StringVar(&o.init, "init", "", "path of volley-init (default: beside this program)")
	f.StringVar(&o.netState, "net-state", "", "state directory of the networks that machines may join, as for volley net")
}

func (o *vmmOptions) check() error {
	if o.driver != "" && o.driver != "qemu" && o.driver != "firecracker" {
		return usagef("--driver %q: must be qemu or firecracker", o.driver)
	}
	if o.accel != "" && (o.accel != qemu.KVM && o.accel != qemu.TCG || o.driver == "firecracker") {
		return usagef("--accel %q: must be kvm or tcg, and is for QEMU", o.accel)
	}
	return nil
}

// need is what a command does with a Service.
type need int

const (
	needFiles   need = iota // look at what is there
	needBuilder             // build functions
	needVMM                 // run virtual machines
	needAll
)

// service opens the Service of a data directory, with what is needed only.
func (o *vmmOptions) service(ctx context.Context, data string, n need) (*faasnap.Service, string, error) {
	if err := o.check(); err != nil {
		return nil, "", err
	}
	cache, err := guest.CacheDir()
	if err != nil {
		return nil, "", err
	}
	builder := &guest.Builder{Dir: filepath.Join(cache, "guest")}
	if n == needBuilder || n == needAll {
		if builder.Init, err = findProgram(o.init, "--init", "volley-init"); err != nil {
			return nil, "", err
		}
	}
	var driver vmm.Driver
	if o.driver == "firecracker" {
		driver = firecracker.New(o.binary)
	} else {
		cfg := qemu.Config{Accel: o.accel, Binary: o.binary, Cache: filepath.Join(cache, "kvm")}
		if n == needVMM || n == needAll {
			if cfg.Shim, err = qemu.BuildShim(ctx, filepath.Join(cache, "shim")); err != nil {
				return nil, "", err
			}
		}
		driver = qemu.New(cfg)
	}
	dir := filepath.Join(data, "vm")
	s, err := faasnap.Open(faasnap.Config{Dir: dir, Driver: driver, Builder: builder})
	if errors.Is(err, faasnap.ErrBusy) {
		return nil, "", withStatus(exitPlatform, fmt.Errorf(`%s is in use by another command, or by a daemon with another socket: wait for it, or name the socket with --socket`, dir))
	}
	if err != nil {
		return nil, "", err
	}
	return s, filepath.Join(cache, "images"), nil
}

// mode is how snapshots are restored by default.
func (o *vmmOptions) mode() faasnap.Mode {
	if o.driver == "firecracker" {
		return faasnap.FaaSnapFaults // it cannot map a plan
	}
	return faasnap.FaaSnap
}

// path returns the daemon's socket, and the data directory.
func (o *vmOptions) path() (socket, data string, err error) {
	if data, err = makeDataDir(o.home, "--home"); err != nil {
		return "", "", err
	}
	if o.socket != "" {
		return o.socket, data, nil
	}
	return filepath.Join(data, "vm.sock"), data, nil
}

// use calls f with a client of the daemon, or, where there is none and how is
// not nil, of a Service in this process.
func (o *vmOptions) use(ctx context.Context, n need, how *vmmOptions, f func(*api.Client) error) (err error) {
	socket, data, err := o.path()
	if err != nil {
		return err
	}
	dialErr := answers(ctx, socket)
	if dialErr == nil {
		c := api.NewClient(socket)
		defer c.Close()
		return vmStatus(f(c))
	}
	if how == nil || o.socket != "" {
		return withStatus(exitPlatform, fmt.Errorf(`no daemon answers at %s (%w): start one with "volley vm daemon"`, socket, dialErr))
	}
	s, images, err := how.service(ctx, data, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	networks := &vmNetworks{state: how.netState, dir: data}
	defer func() { err = errors.Join(err, networks.Close()) }()
	server := api.New(api.Config{Service: s, Images: images, Mode: how.mode(), Networks: networks})
	defer func() { err = errors.Join(err, server.Close()) }()
	c, closeClient := api.Local(server)
	defer func() { err = errors.Join(err, closeClient()) }()
	return vmStatus(f(c))
}

// answers returns why nobody listens at a socket, or nil.
func answers(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := sys.DialUnix(ctx, socket)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return op.Err
		}
		return err
	}
	return conn.Close()
}

// vmStatus gives the errors of the API their exit statuses.
func vmStatus(err error) error {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		return err
	}
	switch e.Code {
	case api.CodeInvalid:
		return usagef("%w", err)
	case api.CodeNotFound, api.CodeDamaged, api.CodeVersion, api.CodeImage:
		return withStatus(exitInput, err)
	case api.CodeExists:
		return withStatus(exitOutput, err)
	case api.CodeInit, api.CodeFunction:
		return withStatus(exitFunction, err)
	case api.CodeBusy, api.CodePaused, api.CodeClosed, api.CodeUnsupported, api.CodeStore:
		return withStatus(exitPlatform, err)
	}
	return err
}

// hasCode reports whether err is the API's, of that code.
func hasCode(err error, code string) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code == code
}

// steps shows what a command that takes long does, and for how long it has.
type steps struct {
	display *progress.Display
	next    chan string
	ended   chan struct{}
}

func newSteps(stderr io.Writer) *steps {
	s := &steps{display: progress.New(stderr, progress.Options{}), next: make(chan string), ended: make(chan struct{})}
	go s.run()
	return s
}

func (s *steps) run() {
	defer close(s.ended)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	step, begin := "", time.Now()
	for {
		select {
		case name, more := <-s.next:
			if !more {
				return
			}
			step = name
		case <-tick.C:
		}
		if d := time.Since(begin); step != "" && d >= 2*time.Second {
			s.display.Update(progress.Snapshot{Line: fmt.Sprintf("%s, %s", strings.ToLower(step), shortDuration(d))})
		}
	}
}

// show says what begins now.
func (s *steps) show(step string) { s.next <- step }

func (s *steps) close() {
	close(s.next)
	<-s.ended
	s.display.Close()
}

// relativeToHost makes paths absolute for a daemon, which may be elsewhere.
func relativeToHost(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", withStatus(exitInput, err)
	}
	if _, err := os.Stat(absolute); err != nil {
		return "", withStatus(exitInput, fmt.Errorf("read the code: %w", err))
	}
	return absolute, nil
}

// pathName returns a name as a part of a path, even one such as "..".
func pathName(name string) string { return strings.ReplaceAll(url.PathEscape(name), ".", "%2E") }
