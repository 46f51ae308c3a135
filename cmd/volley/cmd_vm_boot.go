package main

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

// networkOptions are a machine's network device.
type networkOptions struct{ api.Network }

func (o *networkOptions) register(cmd *cobra.Command) {
	o.registerWithoutMAC(cmd)
	cmd.Flags().StringVar(&o.MAC, "mac", "", "address of the device (default: one of its own, or the snapshot's)")
}

func (o *networkOptions) registerWithoutMAC(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Tap, "tap", "", "tap that becomes the network device; it must be there (ip tuntap add)")
	f.StringVar(&o.Namespace, "netns", "", "path of the network namespace that the tap is in (default: the daemon's)")
	f.StringVar(&o.Job, "net", "", "network that the machine becomes an endpoint of, in place of a tap; volley net up declares it")
}

func (o *networkOptions) request() (*api.Network, error) {
	if o.Job != "" {
		if o.Tap != "" || o.Namespace != "" || o.MAC != "" {
			return nil, usagef("--net excludes --tap, --netns and --mac")
		}
		return &o.Network, nil
	}
	if o.Tap == "" {
		if o.Namespace != "" || o.MAC != "" {
			return nil, usagef("--netns and --mac are for --tap")
		}
		return nil, nil
	}
	return &o.Network, nil
}

type vmStartOptions struct {
	vmOptions
	network networkOptions
	req     api.StartRequest
	json    bool
}

func (o *vmStartOptions) register(cmd *cobra.Command) {
	o.vmOptions.register(cmd)
	o.network.register(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
}

func newVMBootCommand() *cobra.Command {
	var o vmStartOptions
	cmd := &cobra.Command{
		Use:   "boot FUNCTION",
		Short: "Boot a function's virtual machine",
		Long: `Boot a function's virtual machine in the daemon, wait until the function is
initialised, and print the machine's id.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such function, 6 no daemon
answers, 7 the function cannot be initialised.`,
		Example: `  volley vm boot hello
  volley vm boot hello --tap tap0 --netns /run/netns/job1
  volley vm boot hello --net job1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Function = args[0]
			return o.start(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	return cmd
}

func newVMRestoreCommand() *cobra.Command {
	var o vmStartOptions
	cmd := &cobra.Command{
		Use:   "restore SNAPSHOT",
		Short: "Restore a virtual machine from a snapshot",
		Long: `Restore a virtual machine from a snapshot in the daemon, and print its id. The
function in it is ready for an invocation. A machine that was recorded with a
network device needs --tap or --net, as it was recorded.

Modes: ` + modeList() + `.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such snapshot or it is
damaged, 6 no daemon answers.`,
		Example: `  volley vm restore hello
  volley vm restore hello --mode full`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Snapshot = args[0]
			return o.start(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.req.Mode, "mode", "", "how it is restored (default: the daemon's way)")
	f.BoolVar(&o.req.HugeZeros, "huge-zeros", false, "back long zero regions by huge pages")
	f.BoolVar(&o.req.Populate, "populate", false, "put the loading set into the page tables as it arrives")
	f.BoolVar(&o.req.Paused, "paused", false, "leave it paused")
	return cmd
}

func (o *vmStartOptions) start(ctx context.Context, stdout, stderr io.Writer) error {
	network, err := o.network.request()
	if err != nil {
		return err
	}
	o.req.Network = network
	return o.use(ctx, needVMM, nil, func(c *api.Client) error {
		s := newSteps(stderr)
		s.show("start")
		var vm api.VM
		err := c.Call(ctx, http.MethodPost, "/v1/vms", o.req, &vm)
		s.close()
		if err != nil {
			return err
		}
		if o.json {
			return writeJSON(stdout, vm)
		}
		fmt.Fprintln(stdout, vm.ID)
		return nil
	})
}

func newVMSnapshotCommand() *cobra.Command {
	var o vmOptions
	var replace, asJSON bool
	cmd := &cobra.Command{
		Use:   "snapshot ID [NAME]",
		Short: "Save a booted virtual machine as a snapshot",
		Long: `Save a booted virtual machine as it is between two invocations, and let it go on.
Such a snapshot has no working set: nothing is read ahead. "volley snapshot
record" makes one that has. NAME is the function's unless given.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such machine, 5 there is a
snapshot of that name, 6 no daemon answers or the machine is busy.`,
		Example: `  volley vm snapshot 6f1c0f0d hello-warm`,
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return o.use(ctx, needVMM, nil, func(c *api.Client) error {
				id, err := findVM(ctx, c, args[0])
				if err != nil {
					return err
				}
				req := api.SnapshotRequest{VM: id, Replace: replace}
				if len(args) == 2 {
					req.Name = args[1]
				}
				return makeSnapshot(ctx, c, req, asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&replace, "replace", false, "take the place of a snapshot of that name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
