package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/spf13/cobra"
)

func newFunctionsCommand() *cobra.Command {
	var o clientOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "functions",
		Short: "List the functions of a server",
		Long: `List the functions that are deployed.

Exit statuses: 0 done, 2 wrong usage, 6 the server cannot be reached or refuses.`,
		Example: `  volley functions
  volley functions --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listFunctions(cmd.Context(), o, asJSON, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// functionRow is a function as `volley functions` shows it.
type functionRow struct {
	Name     string `json:"name"`
	Runtime  string `json:"runtime"`
	Handler  string `json:"handler,omitempty"`
	MemoryMB int32  `json:"memoryMB"`
	Timeout  int32  `json:"timeoutSeconds"`
	Size     int64  `json:"codeBytes"`
	Modified string `json:"modified"`
}

func listFunctions(ctx context.Context, o clientOptions, asJSON bool, w io.Writer) error {
	c, err := o.open(ctx)
	if err != nil {
		return err
	}
	rows := []functionRow{}
	for pages := lambda.NewListFunctionsPaginator(c, &lambda.ListFunctionsInput{}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return c.failed(err)
		}
		for _, f := range page.Functions {
			runtime := string(f.Runtime)
			if f.PackageType == types.PackageTypeImage {
				runtime = "image"
			}
			rows = append(rows, functionRow{aws.ToString(f.FunctionName), runtime, aws.ToString(f.Handler),
				aws.ToInt32(f.MemorySize), aws.ToInt32(f.Timeout), f.CodeSize, aws.ToString(f.LastModified)})
		}
	}
	if asJSON {
		return writeJSON(w, rows)
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, `No functions yet. Deploy one with "volley deploy NAME DIR".`)
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tRUNTIME\tHANDLER\tMEMORY\tTIMEOUT\tCODE\tCHANGED")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d MB\t%d s\t%s\t%s\n", r.Name, r.Runtime, r.Handler, r.MemoryMB, r.Timeout, byteCount(r.Size), r.Modified)
	}
	return t.Flush()
}

func newDeleteCommand() *cobra.Command {
	var o clientOptions
	cmd := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Delete functions",
		Long: `Delete functions and end their containers. Invocations that run are finished.

Exit statuses: 0 done, 2 wrong usage, 6 the server cannot be reached or refuses,
for instance because there is no such function.`,
		Example: `  volley delete hello`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			for _, name := range args {
				if _, err := c.DeleteFunction(cmd.Context(), &lambda.DeleteFunctionInput{FunctionName: &name}); err != nil {
					return fmt.Errorf("delete %s: %w", name, c.failed(err))
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Deleted %s.\n", name)
			}
			return nil
		},
	}
	o.register(cmd)
	return cmd
}
