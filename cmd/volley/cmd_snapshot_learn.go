package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
	"github.com/volley-run/volley/faasnap/pages"
)

type snapshotLearnOptions struct {
	vmOptions
	vmmOptions
	network networkOptions
	req     api.LearnRequest
	data    []string
	json    bool
}

func newSnapshotLearnCommand() *cobra.Command {
	var o snapshotLearnOptions
	cmd := &cobra.Command{
		Use:   "learn NAME [@FILE]",
		Short: "Record what further inputs need of a snapshot's memory",
		Long: `Restore a snapshot once for each input, record which pages of its memory that
makes resident, and plan anew what restores read ahead: what any of the latest
eight inputs wanted. -d may be repeated, and FILE has one event on each line. How
good the plan was before is printed for each input: the part of what it wanted
that would have been read ahead, and the part of what was read ahead that it
wanted. Machines that were restored from the snapshot go on.

Exit statuses: 0 done, 2 wrong usage, 4 an event cannot be read, there is no such
snapshot, or it is damaged, 6 the data directory is in use, 7 the function fails
on an input, 130 interrupted: the snapshot is as it was then.`,
		Example: `  volley snapshot learn hello -d '{"name": "Edsger"}'
  volley snapshot learn resize @events.jsonl`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.req.Inputs, err = readInputs(o.data, args[1:], cmd.InOrStdin()); err != nil {
				return err
			}
			if len(o.req.Inputs) == 0 {
				return usagef("there is nothing to learn from: give inputs with -d or as @FILE")
			}
			if o.req.Network, err = o.network.request(); err != nil {
				return err
			}
			return o.use(cmd.Context(), needVMM, &o.vmmOptions, func(c *api.Client) error {
				return o.run(cmd.Context(), c, args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	o.vmOptions.register(cmd)
	o.vmmOptions.register(cmd)
	o.network.register(cmd)
	cmd.Flags().StringArrayVarP(&o.data, "data", "d", nil, "an input: JSON, @FILE, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (o *snapshotLearnOptions) run(ctx context.Context, c *api.Client, name string, stdout, stderr io.Writer) error {
	s := newSteps(stderr)
	e, err := c.Long(ctx, http.MethodPost, snapshotPath(name)+"/learn", o.req, s.show)
	s.close()
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, e.Learned)
	}
	t := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "INPUT\tWANTED\tREAD AHEAD\tOF WHAT IT WANTED\tOF WHAT WAS READ\t")
	for i, in := range e.Learned.Accuracy {
		a := pages.Accuracy(in)
		fmt.Fprintf(t, "%d\t%s\t%s\t%.0f%%\t%.0f%%\t\n", i+1, byteCount(int64(a.UsedPages)*pages.Size), byteCount(int64(a.HitPages)*pages.Size), 100*a.Recall(), 100*a.Precision())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintln(stdout)
	return printPlan(stdout, &e.Learned.Snapshot)
}
