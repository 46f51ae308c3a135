package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/sprocket"
)

func newValidateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "validate SPEC",
		Short: "Check a pipespec and list everything that is wrong with it",
		Long: `Check a pipespec file (or a built-in pipeline) and list every fault with its
line, column and JSON path. Exit status 0 means valid, 3 not valid, 2 that the
file cannot be read.`,
		Example: `  volley validate my-pipeline.json
  volley validate --json my-pipeline.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := loadSpec(args[0])
			if err == nil {
				err = spec.Validate(catalog())
			}
			var bad *sprocket.SpecError
			if err != nil && !errors.As(err, &bad) {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				report := struct {
					Valid    bool               `json:"valid"`
					Problems []sprocket.Problem `json:"problems"`
				}{Valid: err == nil, Problems: []sprocket.Problem{}}
				if bad != nil {
					report.Problems = bad.Problems
				}
				return errors.Join(writeJSON(out, report), err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s is valid: %s, %s, %s.\n", args[0], plural(len(spec.Nodes), "node"), plural(len(spec.Streams), "stream"), plural(spec.Inputs(), "input"))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
