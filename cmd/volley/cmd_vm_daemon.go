package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
	"github.com/volley-run/volley/internal/sys"
)

type vmDaemonOptions struct {
	vmOptions
	vmmOptions
	logs   logOptions
	listen string
	log    *slog.Logger
}

func newVMDaemonCommand() *cobra.Command {
	var o vmDaemonOptions
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run virtual machines for other commands and programs",
		Long: `Serve FaaSnap's API (docs/faasnap.md) on a unix socket that only its owner can
use: whoever reaches it runs code here. The commands "volley vm" and "volley
snapshot" find it by that socket. With --listen it is on a TCP port of loopback
as well, for all users of this machine.

Ctrl-C ends requests and machines; functions and snapshots stay.

Exit statuses: 0 after Ctrl-C, 1 it cannot run, 2 wrong usage, 6 the data
directory is in use.`,
		Example: `  volley vm daemon
  volley vm daemon --accel tcg --listen 127.0.0.1:9402
  curl --unix-socket ~/.volley/vm.sock http://volley/v1/vms`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := o.checkListen()
			if err != nil {
				return err
			}
			if o.log, err = o.logs.open(cmd.ErrOrStderr()); err != nil {
				return err
			}
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	o.vmOptions.register(cmd)
	o.vmmOptions.register(cmd)
	o.logs.register(cmd)
	cmd.Flags().StringVar(&o.listen, "listen", "", "TCP address on loopback to serve the API at as well (default: none)")
	return cmd
}

// checkListen refuses addresses that other machines reach.
func (o *vmDaemonOptions) checkListen() error {
	if o.listen == "" {
		return nil
	}
	if address, err := netip.ParseAddrPort(o.listen); err != nil || !address.Addr().IsLoopback() {
		return usagef("--listen %q: must be an address of loopback with a port, such as 127.0.0.1:9402: the API asks nobody who they are", o.listen)
	}
	return nil
}

func (o *vmDaemonOptions) run(ctx context.Context, stdout io.Writer) (err error) {
	socket, data, err := o.path()
	if err != nil {
		return err
	}
	s, images, err := o.service(ctx, data, needAll)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	version, err := s.Version(ctx)
	if err != nil {
		return err
	}
	networks := &vmNetworks{state: o.netState, dir: data}
	defer func() { err = errors.Join(err, networks.Close()) }()
	server := api.New(api.Config{Service: s, Images: images, Mode: o.mode(), Networks: networks, Log: o.log})
	defer func() { err = errors.Join(err, server.Close()) }()
	listeners, err := o.listeners(ctx, socket)
	if err != nil {
		return err
	}
	// Requests end with base, which ends before the daemon does.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{Handler: keepPagesOut(server), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return base }}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- srv.Serve(l) }()
	}
	fmt.Fprintf(stdout, "Volley runs virtual machines on %s (Ctrl-C ends)\n", version)
	for _, l := range listeners {
		fmt.Fprintf(stdout, "  API at %s\n", l.Addr())
	}
	select {
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
		failed <- nil // it has ended, and is waited for below
	case <-ctx.Done():
	}
	cancel()
	stop, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancelStop()
	if shutdownErr := srv.Shutdown(stop); shutdownErr != nil {
		err = errors.Join(err, shutdownErr, srv.Close())
	}
	for range listeners {
		<-failed
	}
	return err
}

// listeners makes the sockets.
func (o *vmDaemonOptions) listeners(ctx context.Context, socket string) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	if answers(ctx, socket) == nil {
		return nil, withStatus(exitPlatform, fmt.Errorf("another daemon answers at %s", socket))
	}
	l, err := listenPrivately(socket)
	if err != nil {
		return nil, usagef("listen on %s: %w; choose another path with --socket", socket, err)
	}
	listeners = append(listeners, l)
	if o.listen == "" {
		return listeners, nil
	}
	var lc net.ListenConfig
	tcp, err := lc.Listen(ctx, "tcp", o.listen)
	if err != nil {
		return listeners, usagef("listen on %s: %w; choose another address with --listen", o.listen, err)
	}
	return append(listeners, tcp), nil
}

// privateListener listens on a unix socket that was moved to its path.
type privateListener struct {
	net.Listener
	path string
}

// listenPrivately listens on a unix socket that is never anybody's but its
// owner's, in the place of one that a daemon left that was killed.
func listenPrivately(path string) (l net.Listener, err error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("there is something else than a socket")
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".vm-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); removeErr != nil && err == nil {
			l, err = nil, errors.Join(removeErr, l.Close())
		}
	}()
	hidden := filepath.Join(dir, "s")
	made, err := sys.ListenUnix(hidden)
	if err != nil {
		return nil, err
	}
	if err = os.Chmod(hidden, 0o600); err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return nil, errors.Join(err, made.Close())
	}
	return &privateListener{Listener: made, path: path}, nil
}

// Addr implements net.Listener.
func (l *privateListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close implements net.Listener.
func (l *privateListener) Close() error {
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(l.Listener.Close(), err)
}

// keepPagesOut refuses what pages in a browser could have it send over TCP:
// requests from other origins, and under names that were made to lead here.
func keepPagesOut(h http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection().Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local == nil || local.Network() != "tcp" {
			h.ServeHTTP(w, r)
			return
		}
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if address, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !address.IsLoopback()) {
			http.Error(w, "the API answers to localhost and addresses of loopback only", http.StatusForbidden)
			return
		}
		crossOrigin.ServeHTTP(w, r)
	})
}
