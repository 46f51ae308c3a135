package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

type snapshotRecordOptions struct {
	vmOptions
	vmmOptions
	network networkOptions
	req     api.SnapshotRequest
	data    []string
	json    bool
}

func newSnapshotRecordCommand() *cobra.Command {
	var o snapshotRecordOptions
	cmd := &cobra.Command{
		Use:   "record FUNCTION [@FILE]",
		Short: "Make a snapshot of a function, and record what an invocation needs",
		Long: `Boot a function's virtual machine, warm it up with the inputs, and save it; then
restore it once for each input and record which pages of its memory that makes
resident. A restore reads those ahead. Inputs that differ in what they need of
memory are worth giving all: -d may be repeated, and FILE has one event on each
line. Without, the input is {}.

Exit statuses: 0 done, 2 wrong usage, 4 an event cannot be read or there is no
such function, 5 there is a snapshot of that name (see --replace), 6 the data
directory is in use, 7 the function fails on an input, 130 interrupted: there is
no snapshot then.`,
		Example: `  volley snapshot record hello -d '{"name": "Ada"}'
  volley snapshot record resize @events.jsonl --replace
  volley snapshot record hello --name hello-reap --faults`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.prepare(args, cmd.InOrStdin()); err != nil {
				return err
			}
			return o.use(cmd.Context(), needVMM, &o.vmmOptions, func(c *api.Client) error {
				return makeSnapshot(cmd.Context(), c, o.req, o.json, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	o.vmOptions.register(cmd)
	o.vmmOptions.register(cmd)
	o.network.register(cmd)
	f := cmd.Flags()
	f.StringArrayVarP(&o.data, "data", "d", nil, "an input: JSON, @FILE, or - for standard input; may be repeated")
	f.StringVar(&o.req.Name, "name", "", "the snapshot's name (default: the function's)")
	f.BoolVar(&o.req.Faults, "faults", false, "record also what the modes reap, concurrent and groups need")
	f.BoolVar(&o.req.Replace, "replace", false, "take the place of a snapshot of that name once complete")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// prepare makes a request of arguments and flags.
func (o *snapshotRecordOptions) prepare(args []string, stdin io.Reader) error {
	o.req.Function = args[0]
	var err error
	if o.req.Inputs, err = readInputs(o.data, args[1:], stdin); err != nil {
		return err
	}
	o.req.Network, err = o.network.request()
	return err
}

// readInputs reads the events that -d gave, and those of files given as @FILE.
func readInputs(data, files []string, stdin io.Reader) ([]json.RawMessage, error) {
	var inputs []json.RawMessage
	for _, d := range data {
		event, err := readEvent(d, stdin)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, event)
	}
	for _, file := range files {
		events, err := readEvents(file)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, events...)
	}
	return inputs, nil
}

// readEvents reads a file with one event after the other.
func readEvents(arg string) ([]json.RawMessage, error) {
	if len(arg) < 2 || arg[0] != '@' {
		return nil, usagef("%q: a file with inputs is given as @FILE, an input by -d", arg)
	}
	text, err := readFile(arg[1:])
	if err != nil {
		return nil, err
	}
	var events []json.RawMessage
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		var event json.RawMessage
		if err := d.Decode(&event); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, withStatus(exitInput, fmt.Errorf("read the events in %s: number %d is not JSON: %w", arg[1:], len(events)+1, err))
		}
		events = append(events, event)
	}
	if len(events) == 0 {
		return nil, withStatus(exitInput, fmt.Errorf("there are no events in %s", arg[1:]))
	}
	return events, nil
}

// makeSnapshot makes a snapshot and prints what it is like.
func makeSnapshot(ctx context.Context, c *api.Client, req api.SnapshotRequest, asJSON bool, stdout, stderr io.Writer) error {
	took, s, err := longSnapshot(ctx, c, "/v1/snapshots", req, stderr)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(stdout, s)
	}
	fmt.Fprintf(stdout, "Made snapshot %s of %s in %s.\n", s.Name, s.Function, shortDuration(took))
	return printPlan(stdout, s)
}
