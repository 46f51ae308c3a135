package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/function"
)

type logsOptions struct {
	clientOptions
	follow bool
	since  time.Duration
	json   bool
}

func newLogsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Print what a function wrote",
		Long: `Print the lines that a function wrote to standard output and standard error, and
the platform's own about its invocations. Servers keep them for a day.

Exit statuses: 0 done, also after Ctrl-C with --follow; 2 wrong usage, 6 the
server cannot be reached or refuses.`,
		Example: `  volley logs hello
  volley logs hello -f
  volley logs hello --since 10m --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.since < 0 {
				return usagef("--since %s: must not be negative", o.since)
			}
			err := printLogs(cmd.Context(), o, args[0], cmd.OutOrStdout())
			if o.follow && errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new lines until Ctrl-C")
	f.DurationVar(&o.since, "since", time.Hour, "how far back to begin")
	f.BoolVar(&o.json, "json", false, "print a JSON object for each line")
	return cmd
}

func printLogs(ctx context.Context, o logsOptions, name string, w io.Writer) error {
	c, err := o.open(ctx)
	if err != nil {
		return err
	}
	_, unknown := c.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &name})
	if o.follow && unknown != nil {
		return c.failed(unknown)
	}
	query := url.Values{
		"function": {name},
		"since":    {time.Now().Add(-o.since).UTC().Format(time.RFC3339Nano)},
		"follow":   {fmt.Sprint(o.follow)},
	}
	resp, err := c.do(ctx, http.MethodGet, "/volley/v1/logs", query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	empty := true
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		empty = false
		text := string(lines.Bytes())
		if !o.json {
			var l function.LogLine
			if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
				return c.failed(fmt.Errorf("read the log: %w", err))
			}
			text = l.Time.Local().Format("15:04:05.000") + " " + l.Text
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return fmt.Errorf("print the log: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := lines.Err(); err != nil {
		return c.failed(err)
	}
	// The log of a function that was deleted is still there.
	if empty {
		return c.failed(unknown)
	}
	return nil
}
