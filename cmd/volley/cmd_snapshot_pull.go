package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

func newSnapshotPullCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	var req api.PullRequest
	cmd := &cobra.Command{
		Use:   "pull URL NAME",
		Short: "Copy a snapshot from an object store",
		Long: `Copy a snapshot that "volley snapshot push" has put into an object store, and
compare it with its checksums. Its function is added if there is none of its name;
it has to have been built here, of the same code, since the snapshot's machines
have its drives.

With --lazy, guest memory stays in the store: what an invocation is likely to want
(the loading set) is here, and what a machine touches beyond that is fetched when
it does, a mebibyte at a time, and kept. The modes faasnap and faasnap-uffd restore
that way; others fetch all of it first. The store has to stay as it is, and the
keys for it have to be there when machines run.

Exit statuses: 0 done, 2 wrong usage, 4 there is no snapshot under the address, it
is damaged, or its function's drives are not here, 5 there is a snapshot of that
name (see --replace), 6 the store fails, or the data directory is in use without a
daemon, 130 interrupted: there is no new snapshot then.`,
		Example: `  volley snapshot pull s3://snapshots/hello hello
  volley snapshot pull s3://snapshots/hello hello --lazy`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if req.URL, err = storeURL(args[0]); err != nil {
				return err
			}
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				took, s, err := longSnapshot(cmd.Context(), c, snapshotPath(args[1])+"/pull", req, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				rest := ""
				if s.Remote != "" {
					rest = "; its memory stays in " + s.Remote
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Pulled %s of %s in %s: %s%s.\n", s.Name, s.Function, shortDuration(took), byteCount(diskBytes(s)), rest)
				return nil
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&req.Lazy, "lazy", false, "leave guest memory in the store until it is wanted")
	cmd.Flags().BoolVar(&req.Replace, "replace", false, "take the place of a snapshot of that name once complete")
	return cmd
}
