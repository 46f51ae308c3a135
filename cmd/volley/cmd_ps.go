package main

import (
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/sophon/controller"
)

func newPsCommand() *cobra.Command {
	var o clientOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps [NAME]",
		Short: "List the containers of a server",
		Long: `List the containers that run functions, of one function or of all: what they are
doing, how long they have existed, the memory reserved for each, and how many
invocations they were given.

Exit statuses: 0 done, 2 wrong usage, 6 the server cannot be reached or refuses.`,
		Example: `  volley ps
  volley ps hello --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			query := url.Values{}
			if len(args) == 1 {
				query.Set("function", args[0])
			}
			var answer struct {
				Containers []controller.Container `json:"containers"`
			}
			if err := c.get(cmd.Context(), "/volley/v1/containers", query, &answer); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), answer.Containers)
			}
			return printContainers(cmd.OutOrStdout(), answer.Containers)
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printContainers(w io.Writer, containers []controller.Container) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CONTAINER\tFUNCTION\tINVOKER\tSTATE\tAGE\tUNUSED\tMEMORY\tIN USE\tHITS")
	for _, c := range containers {
		used := "-"
		if c.RSSBytes > 0 {
			used = byteCount(c.RSSBytes)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d MB\t%s\t%d\n", c.ID, c.Function, c.Invoker, c.State,
			shortDuration(c.Age), shortDuration(c.Unused), c.MemoryMB, used, c.Uses)
	}
	return t.Flush()
}

func newNodesCommand() *cobra.Command {
	var o clientOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the invokers of a server",
		Long: `List the invokers: the memory that their containers use and how they isolate
functions.

Exit statuses: 0 done, 2 wrong usage, 6 the server cannot be reached or refuses.`,
		Example: `  volley nodes
  volley nodes --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			var answer struct {
				Nodes []controller.Node `json:"nodes"`
			}
			if err := c.get(cmd.Context(), "/volley/v1/nodes", nil, &answer); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), answer.Nodes)
			}
			return printNodes(cmd.OutOrStdout(), answer.Nodes)
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printNodes(w io.Writer, nodes []controller.Node) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "INVOKER\tSTATE\tHEARD\tCONTAINERS\tBUSY\tIDLE\tMEMORY\tDRIVER")
	for _, n := range nodes {
		state := "online"
		switch {
		case !n.Online:
			state = "offline"
		case n.Leaving:
			state = "leaving"
		}
		fmt.Fprintf(t, "%s\t%s\t%s ago\t%d\t%d MB\t%d MB\t%d MB\t%s\n", n.Name, state, shortDuration(n.Silent), n.Containers,
			n.BusyMB, n.IdleMB, n.CapacityMB, n.Driver)
	}
	return t.Flush()
}
