package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/sophon/controller"
)

type recordsOptions struct {
	clientOptions
	dead   bool
	remove bool
	limit  int
	json   bool
}

func newRecordsCommand() *cobra.Command {
	var o recordsOptions
	cmd := &cobra.Command{
		Use:   "records [REQUEST]",
		Short: "Show what became of asynchronous invocations",
		Long: `Show how asynchronous invocations ended: of one request, or of all in the last
day. What has not ended yet is not there.

With --dead it shows those that failed for good; they are kept until they are
removed with --remove and their request id.

Exit statuses: 0 done, 2 wrong usage, 6 the server cannot be reached or refuses,
for instance because there is no such record (yet).`,
		Example: `  volley records
  volley records 4b1f0c9e-6f6e-4a39-8a2b-5b1f3a0c7d11
  volley records --dead --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.limit < 1 {
				return usagef("--limit %d: must be at least 1", o.limit)
			}
			if o.remove && (!o.dead || len(args) == 0) {
				return usagef("--remove goes with --dead and a request id")
			}
			c, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			if o.remove {
				resp, err := c.do(cmd.Context(), http.MethodDelete, "/volley/v1/deadletters/"+url.PathEscape(args[0]), nil, nil)
				if err != nil {
					return err
				}
				return resp.Body.Close()
			}
			records, err := fetchRecords(cmd.Context(), c, o, args)
			if err != nil {
				return err
			}
			if o.json {
				return writeJSON(cmd.OutOrStdout(), records)
			}
			return printRecords(cmd.OutOrStdout(), records)
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.dead, "dead", false, "only what failed for good")
	f.BoolVar(&o.remove, "remove", false, "with --dead: forget this request")
	f.IntVar(&o.limit, "limit", 1000, "show at most so many")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func fetchRecords(ctx context.Context, c *client, o recordsOptions, args []string) ([]controller.Record, error) {
	if len(args) == 1 && !o.dead {
		var r controller.Record
		err := c.get(ctx, "/volley/v1/records/"+url.PathEscape(args[0]), nil, &r)
		return []controller.Record{r}, err
	}
	path := "/volley/v1/records"
	if o.dead {
		path = "/volley/v1/deadletters"
	}
	records := []controller.Record{}
	for marker := ""; ; {
		query := url.Values{"limit": {strconv.Itoa(min(o.limit-len(records), 1000))}}
		if marker != "" {
			query.Set("marker", marker)
		}
		var page struct {
			Records     []controller.Record     `json:"records"`
			DeadLetters []controller.DeadLetter `json:"deadLetters"`
			Next        string                  `json:"next"`
		}
		if err := c.get(ctx, path, query, &page); err != nil {
			return nil, err
		}
		for _, d := range page.DeadLetters {
			page.Records = append(page.Records, d.Record)
		}
		for _, r := range page.Records {
			if len(args) == 0 || r.RequestID == args[0] {
				records = append(records, r)
			}
		}
		if marker = page.Next; marker == "" || len(records) >= o.limit {
			return records, nil
		}
	}
}

func printRecords(w io.Writer, records []controller.Record) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "REQUEST\tFUNCTION\tSTATUS\tATTEMPTS\tACCEPTED\tTOOK\tWHY")
	for _, r := range records {
		why := string(r.Condition)
		if r.Error != nil {
			why += ": " + r.Error.Error()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.RequestID, r.Function, r.Status, r.Attempts,
			r.Received.Local().Format(time.DateTime), shortDuration(r.Ended.Sub(r.Received)), why)
	}
	return t.Flush()
}
