package main

import (
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

func newVMShowCommand() *cobra.Command {
	var o vmOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a virtual machine and what it costs the host",
		Long: `Show what a daemon's virtual machine is, how long the parts of its start took, and
what memory and page faults it has cost the host so far. ID may be as much of the
id as no other has.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such machine, 6 no daemon
answers.`,
		Example: `  volley vm show 6f1c0f0d`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return o.use(ctx, needFiles, nil, func(c *api.Client) error {
				id, err := findVM(ctx, c, args[0])
				if err != nil {
					return err
				}
				var vm api.VM
				if err := c.Call(ctx, http.MethodGet, "/v1/vms/"+id, nil, &vm); err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), vm)
				}
				return printVM(cmd.OutOrStdout(), &vm)
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printVM(w io.Writer, vm *api.VM) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "id\t%s\nfunction\t%s\n", vm.ID, vm.Function)
	if vm.Snapshot != "" {
		fmt.Fprintf(t, "snapshot\t%s\n", vm.Snapshot)
	}
	fmt.Fprintf(t, "mode\t%s\nstate\t%s\ncreated\t%s\n", vm.Mode, vm.State, vm.Created.Local().Format(time.DateTime))
	if n := vm.Network; n != nil {
		fmt.Fprintf(t, "network device\t%s at tap %s", n.MAC, n.Tap)
		if n.Namespace != "" {
			fmt.Fprintf(t, " in %s", n.Namespace)
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "start\t%.1f ms\n", vm.Times.StartMs)
	for _, part := range []struct {
		name string
		ms   float64
	}{{"prepare", vm.Times.PrepareMs}, {"VMM", vm.Times.VMMMs}, {"prefetch in it", vm.Times.PrefetchMs}, {"agent", vm.Times.AgentMs}} {
		if part.ms > 0 {
			fmt.Fprintf(t, "  %s\t%.1f ms\n", part.name, part.ms)
		}
	}
	fmt.Fprintf(t, "process\t%d\nmemory in use\t%s\npage faults\t%d major, %d minor\n", vm.Host.PID, byteCount(vm.Host.ResidentBytes), vm.Host.MajorFaults, vm.Host.MinorFaults)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
