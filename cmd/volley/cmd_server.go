package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/store"
)

// serverOptions are the flags of `volley server`.
type serverOptions struct {
	services
	logs       logOptions
	controller controllerOptions
	invoker    invokerOptions
	s3Listen   string
	natsListen string
}

func newServerCommand() *cobra.Command {
	var o serverOptions
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a whole function platform on this machine",
		Long: `Run a whole function platform in one process: the API, the controller, an
invoker, NATS and an S3 server, all on loopback unless told otherwise.

Clients of AWS Lambda work with it: point them at the address, with the keys in
the file that is printed. "volley deploy" and the commands beside it find both by
themselves.

With --nats-listen further machines can join by "volley invoker --join". Ctrl-C
lets running invocations end for 10 s. The data directory keeps functions, code,
objects and asynchronous invocations for the next start.

Exit statuses: 0 after Ctrl-C, 1 it cannot run, 2 wrong usage.`,
		Example: `  volley server
  volley server --memory 8GB --driver runsc
  volley server --driver microvm --snapshots 20GB
  volley server --listen 0.0.0.0:9400 --tls-cert cert.pem --tls-key key.pem --nats-listen 10.0.0.1:4222`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.controller.check(), o.invoker.check()); err != nil {
				return err
			}
			var err error
			if o.log, err = o.logs.open(cmd.ErrOrStderr()); err != nil {
				return err
			}
			if o.data, err = dataDir(o.data); err != nil {
				return err
			}
			o.registry = newRegistry()
			o.invoker.eviction = o.controller.eviction
			o.controller.alone = true
			return runServer(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	o.controller.register(cmd)
	o.invoker.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.s3Listen, "s3-listen", "127.0.0.1:9401", "address of the S3 server; empty for none")
	f.StringVar(&o.natsListen, "nats-listen", "", "address at which other machines' invokers can join (default: none can)")
	registerData(cmd, &o.data)
	o.tracing.register(cmd)
	o.logs.register(cmd)
	return cmd
}

func runServer(ctx context.Context, o serverOptions, stdout io.Writer) (err error) {
	nats, err := startNATS(o.natsListen, o.data, o.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nats.close()) }()
	// Invoker and controller have connections of their own, as if they were on
	// different machines. Where no other machine can join, messages between
	// them need not go through NATS.
	connect := func(name string) (bus.Bus, error) { return nats.connect(ctx, name, o.log) }
	if o.natsListen == "" {
		messages := bus.NewMemory(bus.WithLog(o.log))
		connect = func(name string) (bus.Bus, error) {
			stored, err := nats.connect(ctx, name, o.log)
			if err != nil {
				return nil, err
			}
			return bus.Local(messages.Connect(), stored), nil
		}
	}
	b, err := connect("volley-controller")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	own, err := connect("volley-invoker")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	s3, err := startS3(ctx, &o)
	if err != nil {
		return err
	}
	if s3 != nil {
		defer func() { err = errors.Join(err, s3.Close()) }()
		o.controller.s3 = s3.Endpoint()
	}
	c, err := startController(ctx, b, o.controller, o.services)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	i, err := startInvoker(ctx, own, o.invoker, o.services)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.close()) }()
	o.printReady(stdout, c, i, nats, s3)
	select {
	case <-ctx.Done():
		return nil
	case err = <-c.failed:
	case err = <-i.failed:
	case <-c.api.Done():
		err = c.api.Err()
	}
	return err
}

// startS3 starts the S3 server, which has the same keys as the API.
func startS3(ctx context.Context, o *serverOptions) (*store.Server, error) {
	if o.s3Listen == "" {
		return nil, nil
	}
	if o.controller.credentials == "" {
		o.controller.credentials = filepath.Join(o.data, "credentials")
	}
	keys, err := sigv4.OpenKeys(o.controller.credentials, o.log)
	if err != nil {
		return nil, usagef("--credentials %s: %w", o.controller.credentials, err)
	}
	key := keys.First()
	s, err := store.StartServer(ctx, store.ServerConfig{Dir: filepath.Join(o.data, "s3"), Addr: o.s3Listen, AccessKey: key.ID, SecretKey: key.Secret})
	if err != nil {
		return nil, usagef("%w; choose another address with --s3-listen", err)
	}
	return s, nil
}

func (o *serverOptions) printReady(w io.Writer, c *controllerNode, i *invokerNode, nats *natsNode, s3 *store.Server) {
	fmt.Fprintf(w, "Volley serves functions at %s (Ctrl-C ends)\n", c.api.URL())
	fmt.Fprintf(w, "  %s for containers of %s: %s\n", &o.invoker.memory, i.driver.Name(), i.driver.Isolation())
	if s3 != nil {
		fmt.Fprintf(w, "  S3 at %s\n", s3.Endpoint())
	}
	if o.natsListen != "" {
		fmt.Fprintf(w, "  other machines join by: %s\n", nats.howToJoin())
	}
	fmt.Fprintf(w, "AWS tools find it by:\n  export AWS_ENDPOINT_URL_LAMBDA=%s AWS_SHARED_CREDENTIALS_FILE=%s AWS_REGION=%s\n", c.api.URL(), o.controller.credentials, platformRegion)
	fmt.Fprintf(w, "First steps:\n  volley deploy hello examples/hello\n  volley invoke hello -d '{\"name\": \"Ada\"}'\n")
}
