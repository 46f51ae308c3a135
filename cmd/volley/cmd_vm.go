package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

func newVMCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Run functions in virtual machines that start from snapshots",
		Long: `Build functions, run them in virtual machines, and restore those from snapshots
(FaaSnap). A snapshot is recorded once; each restore then reads ahead just what
an invocation is likely to want, and is ready in a tenth of a second.

Functions, snapshots and machines are in the data directory. It belongs to one
process at a time: a daemon, which these commands find by its socket, or, where
none runs, the command itself. Machines that go on need the daemon.

These commands need Linux and root; QEMU 7.2 or later, with KVM or without; and
mmdebstrap to build functions.`,
		Example: `  volley vm build hello --from examples/hello --runtime python3 --handler hello.handler
  volley snapshot record hello -d '{"name": "Ada"}'
  volley vm invoke hello -d '{"name": "Grace"}' --times`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVMBuildCommand(), newVMBootCommand(), newVMRestoreCommand(), newVMInvokeCommand(), newVMSnapshotCommand(),
		newVMLsCommand(), newVMShowCommand(), newVMPauseCommand(), newVMResumeCommand(), newVMRmCommand(), newVMDaemonCommand())
	return cmd
}

func newVMLsCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List functions and running virtual machines",
		Long: `List the functions that have been built, and the virtual machines that a daemon
runs.

Exit statuses: 0 done, 2 wrong usage, 6 the data directory is in use without a
daemon.`,
		Example: `  volley vm ls
  volley vm ls --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				return listVMs(cmd.Context(), c, asJSON, cmd.OutOrStdout())
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func listVMs(ctx context.Context, c *api.Client, asJSON bool, w io.Writer) error {
	var list struct {
		api.Functions
		api.VMs
	}
	if err := c.Call(ctx, http.MethodGet, "/v1/functions", nil, &list.Functions); err != nil {
		return err
	}
	if err := c.Call(ctx, http.MethodGet, "/v1/vms", nil, &list.VMs); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(w, list)
	}
	if len(list.Functions.Functions) == 0 {
		fmt.Fprintln(w, `No functions yet. Build one with "volley vm build NAME --from DIR".`)
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FUNCTION\tRUNTIME\tHANDLER\tMEMORY\tGUEST\tTIMEOUT\tBUILT")
	for _, f := range list.Functions.Functions {
		runtime := f.Runtime
		if f.ImageRef != "" {
			runtime = f.ImageRef
		}
		memory, guestMemory := megabytes(f.MemoryMB), megabytes(f.GuestMemoryMB)
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d s\t%s ago\n", f.Name, runtime, f.Handler, &memory, &guestMemory, f.TimeoutSeconds, shortDuration(time.Since(f.Created)))
	}
	if len(list.VMs.VMs) > 0 {
		fmt.Fprintln(t, "\nVM\tFUNCTION\tMODE\tSTATE\tMEMORY\tPID\tAGE")
		for _, v := range list.VMs.VMs {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.ID, v.Function, v.Mode, v.State, byteCount(v.Host.ResidentBytes), v.Host.PID, shortDuration(time.Since(v.Created)))
		}
	}
	return t.Flush()
}

func newVMRmCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	var functions bool
	cmd := &cobra.Command{
		Use:   "rm ID...",
		Short: "End virtual machines, or remove functions",
		Long: `End virtual machines of a daemon: an id, or as much of it as no other has. With
--function, remove the functions of those names instead; their snapshots stay
until "volley snapshot gc".

Exit statuses: 0 done, 2 wrong usage, 4 there is no such machine or function,
6 no daemon answers.`,
		Example: `  volley vm rm 6f1c0f0d
  volley vm rm --function hello`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if !functions {
				return o.use(ctx, needFiles, nil, func(c *api.Client) error {
					return eachOf(args, func(arg string) error {
						id, err := findVM(ctx, c, arg)
						if err == nil {
							err = c.Call(ctx, http.MethodDelete, "/v1/vms/"+id, nil, nil)
						}
						return err
					})
				})
			}
			return o.use(ctx, needFiles, &how, func(c *api.Client) error {
				return eachOf(args, func(name string) error {
					return c.Call(ctx, http.MethodDelete, "/v1/functions/"+pathName(name), nil, nil)
				})
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&functions, "function", false, "remove functions, by their names")
	return cmd
}

// eachOf calls f for every argument, and returns what went wrong with any.
func eachOf(args []string, f func(string) error) error {
	var errs []error
	for _, arg := range args {
		errs = append(errs, f(arg))
	}
	return errors.Join(errs...)
}

// findVM returns the id that begins with what the user gave.
func findVM(ctx context.Context, c *api.Client, prefix string) (string, error) {
	var list api.VMs
	if err := c.Call(ctx, http.MethodGet, "/v1/vms", nil, &list); err != nil {
		return "", err
	}
	var found []string
	for _, v := range list.VMs {
		if strings.HasPrefix(v.ID, prefix) {
			found = append(found, v.ID)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", withStatus(exitInput, fmt.Errorf(`there is no virtual machine %s: "volley vm ls" lists them`, prefix))
	}
	return "", usagef("%s is the beginning of %d ids: give more of it", prefix, len(found))
}
