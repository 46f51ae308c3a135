package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func newGraphCommand() *cobra.Command {
	var format, output string
	cmd := &cobra.Command{
		Use:   "graph SPEC",
		Short: "Draw a pipespec's graph as SVG or DOT",
		Example: `  volley graph blend -o blend.svg
  volley graph my-pipeline.json --format dot | dot -Tpng > my-pipeline.png`,
		Long: `Draw the graph of a pipespec file or a built-in pipeline, as SVG (the default)
or in Graphviz's DOT language. The pipespec must be valid: exit status 3 if not.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := loadSpec(args[0])
			if err != nil {
				return err
			}
			c := catalog()
			if err := spec.Validate(c); err != nil {
				return err
			}
			var text []byte
			switch format {
			case "svg":
				if text, err = spec.SVG(c); err != nil {
					return err
				}
			case "dot":
				text = []byte(spec.DOT(c))
			default:
				return usagef("--format %s: must be svg or dot", format)
			}
			if output == "" || output == "-" {
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			if err := os.WriteFile(output, text, 0o644); err != nil {
				return fmt.Errorf("write graph: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "svg", "svg or dot")
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write (default: standard output)")
	return cmd
}
