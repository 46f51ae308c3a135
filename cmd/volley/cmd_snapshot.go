package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/api"
	"github.com/volley-run/volley/faasnap/pages"
)

func newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Record and look at snapshots of functions' virtual machines",
		Long: `Record snapshots of functions that were built by "volley vm build", look at them,
copy them to and from object stores, and remove them. A snapshot has all that the
function had in memory: it is its owner's only.`,
		Example: `  volley snapshot record hello -d '{"name": "Ada"}'
  volley snapshot show hello --svg hello.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSnapshotRecordCommand(), newSnapshotLearnCommand(), newSnapshotLsCommand(), newSnapshotShowCommand(),
		newSnapshotVerifyCommand(), newSnapshotStandbyCommand(), newSnapshotRmCommand(), newSnapshotGCCommand(),
		newSnapshotPushCommand(), newSnapshotPullCommand())
	return cmd
}

func snapshotPath(name string) string { return "/v1/snapshots/" + pathName(name) }

// readFile reads a file that the user named.
func readFile(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, withStatus(exitInput, err)
	}
	return text, nil
}

// longSnapshot makes a request about a snapshot that takes long, shows its steps,
// and returns how long it took.
func longSnapshot(ctx context.Context, c *api.Client, path string, req any, stderr io.Writer) (time.Duration, *api.Snapshot, error) {
	begin := time.Now()
	s := newSteps(stderr)
	defer s.close()
	e, err := c.Long(ctx, http.MethodPost, path, req, s.show)
	if hasCode(err, api.CodeExists) {
		err = withStatus(exitOutput, fmt.Errorf("%w: --replace puts the new one in its place", err))
	}
	return time.Since(begin), e.Snapshot, err
}

func newSnapshotLsCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the snapshots",
		Long: `List the snapshots, and say of those that cannot be used why.

Exit statuses: 0 done, 2 wrong usage, 6 the data directory is in use without a
daemon.`,
		Example: `  volley snapshot ls
  volley snapshot ls --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				return listSnapshots(cmd.Context(), c, asJSON, cmd.OutOrStdout())
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func listSnapshots(ctx context.Context, c *api.Client, asJSON bool, w io.Writer) error {
	var list api.Snapshots
	if err := c.Call(ctx, http.MethodGet, "/v1/snapshots", nil, &list); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(w, list.Snapshots)
	}
	if len(list.Snapshots) == 0 {
		fmt.Fprintln(w, `No snapshots yet. Make one with "volley snapshot record FUNCTION".`)
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SNAPSHOT\tFUNCTION\tGUEST\tLOADING SET\tON DISK\tSTANDBY\tAGE")
	for _, s := range list.Snapshots {
		if s.Problem != "" {
			fmt.Fprintf(t, "%s\t\t\t\t\t\t\t%s\n", s.Name, s.Problem)
			continue
		}
		standby := "-"
		if s.Standby != nil {
			standby = fmt.Sprintf("%d of %d", s.Standby.Ready, s.Standby.Count)
		}
		lazy := ""
		if s.Remote != "" {
			lazy = "\tmemory in " + s.Remote
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s%s\n", s.Name, s.Function, byteCount(s.MemoryBytes), byteCount(int64(s.Plan.LoadingPages)*pages.Size),
			byteCount(diskBytes(&s)), standby, shortDuration(time.Since(s.Created)), lazy)
	}
	return t.Flush()
}

func diskBytes(s *api.Snapshot) int64 {
	var sum int64
	for _, f := range s.Files {
		sum += f.DiskBytes
	}
	return sum
}

func newSnapshotVerifyCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	cmd := &cobra.Command{
		Use:   "verify NAME...",
		Short: "Compare snapshots with their checksums",
		Long: `Read all of each snapshot and compare it with its checksums. A restore does that
by itself before a snapshot's first use. Of one whose memory is in an object store
it reads what is here, and looks whether the store has the rest.

Exit statuses: 0 all are in order, 2 wrong usage, 4 there is no such snapshot or
it is damaged (it is said where), 6 the data directory is in use without a daemon,
or the store fails.`,
		Example: `  volley snapshot verify hello`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				return eachOf(args, func(name string) error {
					var v api.Verified
					if err := c.Call(cmd.Context(), http.MethodPost, snapshotPath(name)+"/verify", nil, &v); err != nil {
						return err
					}
					rest := ""
					if v.Remote != "" {
						rest = "; the rest is in " + v.Remote + ", and was not read"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s is in order: %d files, %s%s.\n", name, v.Files, byteCount(v.Bytes), rest)
					return nil
				})
			})
		},
	}
	o.register(cmd)
	return cmd
}

func newSnapshotStandbyCommand() *cobra.Command {
	var o vmOptions
	var count int
	cmd := &cobra.Command{
		Use:   "standby NAME",
		Short: "Have virtual machine monitors wait for restores",
		Long: `Have a daemon keep virtual machine monitors started for restores of a snapshot by
the mode faasnap. Each has its devices restored and guest memory mapped, but has
loaded nothing, and takes a few tens of MB. A restore has only to let its guest
run, and the next is started after the first answer. --count 0 ends them, as does
the end of the daemon or of the snapshot.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such snapshot or it is damaged,
6 no daemon answers.`,
		Example: `  volley snapshot standby hello
  volley snapshot standby hello --count 0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 0 || count > faasnap.MaxStandby {
				return usagef("--count %d: must be 0 to %d", count, faasnap.MaxStandby)
			}
			return o.use(cmd.Context(), needFiles, nil, func(c *api.Client) error {
				var b api.Standby
				if err := c.Call(cmd.Context(), http.MethodPut, snapshotPath(args[0])+"/standby", api.StandbyRequest{Count: count}, &b); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%d wait for restores of %s.\n", b.Ready, args[0])
				return nil
			})
		},
	}
	o.register(cmd)
	cmd.Flags().IntVar(&count, "count", 1, "how many shall wait")
	return cmd
}

func newSnapshotRmCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove snapshots",
		Long: `Remove snapshots. Machines that were restored from them go on. What has been
pushed to an object store stays there.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such snapshot, 6 the data
directory is in use without a daemon.`,
		Example: `  volley snapshot rm hello`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				return eachOf(args, func(name string) error {
					return c.Call(cmd.Context(), http.MethodDelete, snapshotPath(name), nil, nil)
				})
			})
		},
	}
	o.register(cmd)
	return cmd
}

func newSnapshotGCCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	var req api.CollectRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove snapshots that nothing can use",
		Long: `Remove snapshots whose function is gone, that are damaged, or that were never
completed. All are read whole for that.

Exit statuses: 0 done, 2 wrong usage, 6 the data directory is in use without a
daemon.`,
		Example: `  volley snapshot gc --dry-run
  volley snapshot gc`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				var out api.Collected
				if err := c.Call(cmd.Context(), http.MethodPost, "/v1/gc", req, &out); err != nil {
					return err
				}
				return printCollected(cmd.OutOrStdout(), out, req.DryRun, asJSON)
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be removed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printCollected(w io.Writer, out api.Collected, dryRun, asJSON bool) error {
	if asJSON {
		return writeJSON(w, out)
	}
	verb := "Removed"
	if dryRun {
		verb = "Would remove"
	}
	for _, g := range out.Removed {
		if g.Name == "" {
			fmt.Fprintf(w, "%s %s.\n", verb, g.Reason)
			continue
		}
		fmt.Fprintf(w, "%s %s: %s.\n", verb, g.Name, g.Reason)
	}
	if len(out.Removed) == 0 {
		fmt.Fprintln(w, "Nothing to remove.")
	}
	return nil
}
