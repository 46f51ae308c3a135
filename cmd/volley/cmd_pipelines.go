package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/pipelines"
)

func newPipelinesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pipelines [NAME]",
		Short: "List the built-in pipelines, or print one's pipespec",
		Long: `List the built-in pipelines with their inputs, parameters and an example each.
With a NAME, print that pipeline's pipespec: a file to copy and change.`,
		Example: `  volley pipelines
  volley pipelines blend > my-blend.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				_, text, err := pipelines.Load(args[0])
				if err != nil {
					return &usageError{err}
				}
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			return listPipelines(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

type listedPipeline struct {
	Name        string        `json:"name"`
	Description string        `json:"description"`
	Inputs      int           `json:"inputs"`
	Example     string        `json:"example"`
	Parameters  []listedParam `json:"parameters"`
}

type listedParam struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	Value   string   `json:"value,omitempty"`
	Choices []string `json:"choices,omitempty"`
	Doc     string   `json:"doc"`
}

func listPipelines(w io.Writer, asJSON bool) error {
	var list []listedPipeline
	for _, name := range pipelines.Names() {
		spec, _, err := pipelines.Load(name)
		if err != nil {
			return err
		}
		list = append(list, listedPipeline{
			Name: name, Description: spec.Description, Inputs: spec.Inputs(), Example: spec.Example, Parameters: parameters(spec),
		})
	}
	if asJSON {
		return writeJSON(w, list)
	}
	for _, p := range list {
		fmt.Fprintf(w, "%s\n  %s\n  Takes %s. Example: %s\n", p.Name, p.Description, plural(p.Inputs, "input"), p.Example)
		for _, prm := range p.Parameters {
			value := ""
			if prm.Value != "" {
				value = " = " + prm.Value
			}
			fmt.Fprintf(w, "    %s%s\n        %s", prm.Name, value, prm.Doc)
			if len(prm.Choices) > 0 && len(prm.Choices) <= 10 {
				fmt.Fprintf(w, " (%s)", strings.Join(prm.Choices, ", "))
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// parameters lists what --set can set, with the values that apply otherwise.
func parameters(spec *sprocket.Spec) []listedParam {
	c := catalog()
	var out []listedParam
	for _, n := range spec.Nodes {
		for _, prm := range c.Stages[n.Stage].Params {
			if prm.Name == "frames_per_task" && n.DeliveryFunction != "frames" {
				continue
			}
			value := prm.Default
			if given, ok := n.Config[prm.Name]; ok {
				value = string(given)
			}
			out = append(out, listedParam{Name: n.Name + "." + prm.Name, Kind: string(prm.Kind), Value: value, Choices: slices.Clone(prm.Enum), Doc: prm.Doc})
		}
	}
	return out
}
