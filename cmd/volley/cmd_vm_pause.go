package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

func newVMPauseCommand() *cobra.Command {
	return newVMSwitchCommand(&cobra.Command{
		Use:   "pause ID...",
		Short: "Stop virtual machines' processors",
		Long: `Stop the processors of a daemon's virtual machines, which keep their memory and
take no invocations until "volley vm resume". ID may be as much of the id as no
other has; one that is paused stays so.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such machine, 6 no daemon
answers or a machine is busy.`,
		Example: `  volley vm pause 6f1c0f0d`,
	}, "pause")
}

func newVMResumeCommand() *cobra.Command {
	return newVMSwitchCommand(&cobra.Command{
		Use:   "resume ID...",
		Short: "Let paused virtual machines go on",
		Long: `Let virtual machines of a daemon go on that were paused, or restored with
--paused. ID may be as much of the id as no other has; one that runs goes on.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such machine, 6 no daemon
answers or a machine is busy.`,
		Example: `  volley vm resume 6f1c0f0d`,
	}, "resume")
}

// newVMSwitchCommand makes cmd one that asks the API to do something to machines.
func newVMSwitchCommand(cmd *cobra.Command, do string) *cobra.Command {
	var o vmOptions
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		return o.use(ctx, needFiles, nil, func(c *api.Client) error {
			return eachOf(args, func(arg string) error {
				id, err := findVM(ctx, c, arg)
				if err == nil {
					err = c.Call(ctx, http.MethodPost, "/v1/vms/"+id+"/"+do, nil, nil)
				}
				return err
			})
		})
	}
	o.register(cmd)
	return cmd
}
