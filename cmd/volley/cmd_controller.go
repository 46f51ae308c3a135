package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// controllerCommand are the flags of `volley controller`.
type controllerCommand struct {
	services
	logs       logOptions
	controller controllerOptions
	nats       connectOptions
	natsListen string
}

func newControllerCommand() *cobra.Command {
	var o controllerCommand
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the controller of a platform of several machines",
		Long: `Run a controller with the API, for invokers on this and other machines that join
by "volley invoker --join".

Without --nats it runs a NATS server of its own, at --nats-listen. With --nats it
uses that server or cluster; several controllers on one are standbys of each
other: one leads, the others send it their requests, and take over within
seconds when it dies. All must accept the same keys (--credentials).

Exit statuses: 0 after Ctrl-C, 1 it cannot run, 2 wrong usage, 6 no NATS server
answers.`,
		Example: `  volley controller --nats-listen 10.0.0.1:4222
  volley controller --nats nats://10.0.0.1:4222,nats://10.0.0.2:4222 --listen 10.0.0.5:9400`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.controller.check(); err != nil {
				return err
			}
			if len(o.nats.urls) > 0 && cmd.Flags().Changed("nats-listen") {
				return usagef("--nats and --nats-listen exclude each other: use a NATS server or run one")
			}
			var err error
			if o.log, err = o.logs.open(cmd.ErrOrStderr()); err != nil {
				return err
			}
			if o.data, err = dataDir(o.data); err != nil {
				return err
			}
			o.registry = newRegistry()
			return runController(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	o.controller.register(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&o.nats.urls, "nats", nil, "NATS servers to use")
	f.IntVar(&o.nats.replicas, "nats-replicas", 1, "how many servers of a NATS cluster keep what must not be lost")
	f.StringVar(&o.natsListen, "nats-listen", defaultNATSAddress, "address of the NATS server of its own")
	f.StringVar(&o.controller.advertise, "advertise", "", "address at which other controllers reach this API (default: where it listens)")
	f.StringVar(&o.controller.s3, "s3", "", "address of an S3 server for packages that are named by bucket and key")
	o.nats.registerToken(cmd)
	registerData(cmd, &o.data)
	o.tracing.register(cmd)
	o.logs.register(cmd)
	return cmd
}

func runController(ctx context.Context, o controllerCommand, stdout io.Writer) (err error) {
	join := "volley invoker --join " + strings.Join(o.nats.urls, ",")
	if len(o.nats.urls) == 0 {
		n, startErr := startNATS(o.natsListen, o.data, o.log)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, n.close()) }()
		o.nats.urls, o.nats.tokenFile = []string{n.ClientURL()}, n.tokenFile
		join = n.howToJoin()
	}
	b, err := o.nats.connect(ctx, "volley-controller", o.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	c, err := startController(ctx, b, o.controller, o.services)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	fmt.Fprintf(stdout, "Volley serves functions at %s (Ctrl-C ends)\nInvokers join by: %s\n", c.api.URL(), join)
	select {
	case <-ctx.Done():
		return nil
	case err = <-c.failed:
	case <-c.api.Done():
		err = c.api.Err()
	}
	return err
}
