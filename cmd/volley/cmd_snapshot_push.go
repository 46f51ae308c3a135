package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

func newSnapshotPushCommand() *cobra.Command {
	var o vmOptions
	var how vmmOptions
	cmd := &cobra.Command{
		Use:   "push NAME URL",
		Short: "Copy a snapshot into an object store",
		Long: `Copy a snapshot into an object store: file:///directory, or s3://bucket/prefix with
the keys that the AWS SDK finds (the daemon's, if there is one) and, for servers
other than AWS, "?endpoint=http://host:port". Zero pages are left out, and no page
is sent twice. "volley snapshot pull" finds the snapshot when all of it is there,
and else what was there before. Nothing is ever removed from the store: what an
earlier snapshot under the address had may be in use.

It has all that the function had in memory: keep the bucket to those who may see
that.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such snapshot or it is
damaged, 6 the store fails, or the data directory is in use without a daemon, 130
interrupted.`,
		Example: `  volley snapshot push hello s3://snapshots/hello
  volley snapshot push hello "s3://volley/hello?endpoint=http://127.0.0.1:9000"`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			url, err := storeURL(args[1])
			if err != nil {
				return err
			}
			return o.use(cmd.Context(), needFiles, &how, func(c *api.Client) error {
				took, _, err := longSnapshot(cmd.Context(), c, snapshotPath(args[0])+"/push", api.PushRequest{URL: url}, cmd.ErrOrStderr())
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "Pushed %s to %s in %s.\n", args[0], args[1], shortDuration(took))
				}
				return err
			})
		},
	}
	o.register(cmd)
	return cmd
}

// storeURL returns what a daemon, which may be elsewhere, takes for an object
// store.
func storeURL(arg string) (string, error) {
	if strings.Contains(arg, "://") {
		return arg, nil
	}
	path, err := filepath.Abs(arg)
	if err != nil {
		return "", withStatus(exitInput, err)
	}
	return path, nil
}
