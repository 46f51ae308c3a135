package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/volley-run/volley/faasnap/api"
	"github.com/volley-run/volley/faasnap/memmap"
	"github.com/volley-run/volley/faasnap/pages"
)

// Measures of the map on the terminal, in characters.
const (
	mapColumns = 64
	mapRows    = 32
)

type snapshotShowOptions struct {
	vmOptions
	how  vmmOptions
	svg  string
	json bool
}

func newSnapshotShowCommand() *cobra.Command {
	var o snapshotShowOptions
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a snapshot and how its memory is restored",
		Long: `Show what a snapshot is, its plan in numbers, and a map of guest memory: each
character is a stretch of it, '.' if all of it is zero, '#' if most of what is not
is read on demand, and else the number of the working-set group by which it is
read ahead. --svg also writes a picture that says more where it is pointed at.

Exit statuses: 0 done, 2 wrong usage, 4 there is no such snapshot or it is
damaged, 5 the picture cannot be written, 6 the data directory is in use without a
daemon.`,
		Example: `  volley snapshot show hello
  volley snapshot show hello --svg hello.svg`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.use(cmd.Context(), needFiles, &o.how, func(c *api.Client) error {
				return o.run(cmd.Context(), c, args[0], cmd.OutOrStdout())
			})
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&o.svg, "svg", "", "file to draw the map into")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (o *snapshotShowOptions) run(ctx context.Context, c *api.Client, name string, w io.Writer) error {
	var s api.Snapshot
	if err := c.Call(ctx, http.MethodGet, snapshotPath(name), nil, &s); err != nil {
		return err
	}
	if o.svg != "" {
		var picture []byte
		if err := c.Call(ctx, http.MethodGet, snapshotPath(name)+"/map.svg", nil, &picture); err != nil {
			return err
		}
		if err := os.WriteFile(o.svg, picture, 0o644); err != nil {
			return withStatus(exitOutput, err)
		}
	}
	if o.json {
		return writeJSON(w, s)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "snapshot\t%s\nid\t%s\nfunction\t%s\ncreated\t%s\nVMM\t%s\nguest memory\t%s\n", s.Name, s.ID, s.Function, s.Created.Local().Format(time.DateTime), s.VMM, byteCount(s.MemoryBytes))
	if s.MAC != "" {
		fmt.Fprintf(t, "network device\t%s\n", s.MAC)
	}
	if s.Remote != "" {
		fmt.Fprintf(t, "memory is in\t%s; what has been fetched is on disk\n", s.Remote)
	}
	var resident api.Resident
	if err := c.Call(ctx, http.MethodGet, snapshotPath(name)+"/resident", nil, &resident); err != nil && !hasCode(err, api.CodeUnsupported) {
		return err
	}
	cached := map[string]int{"memory": resident.Memory.Resident, "loading": resident.Loading.Resident}
	fmt.Fprintf(t, "recorded faults\t%t\nfiles\t\n", s.Faults)
	for _, f := range s.Files {
		fmt.Fprintf(t, "  %s\t%s, %s on disk", f.Name, byteCount(f.SizeBytes), byteCount(f.DiskBytes))
		if n := cached[f.Name]; n > 0 {
			fmt.Fprintf(t, ", %s in the page cache", byteCount(int64(n)*pages.Size))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintln(w)
	if err := printPlan(w, &s); err != nil {
		return err
	}
	var plan api.Plan
	if err := c.Call(ctx, http.MethodGet, snapshotPath(name)+"/plan", nil, &plan); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s", memmap.Text(planOf(plan), mapColumns, mapRows, takesColour(w)))
	return nil
}

// planOf returns what is drawn of a plan.
func planOf(in api.Plan) *pages.Plan {
	p := &pages.Plan{Pages: in.Pages}
	sources := map[string]pages.Source{}
	for _, s := range []pages.Source{pages.Zero, pages.Memory, pages.Loading} {
		sources[s.String()] = s
	}
	for _, r := range in.Regions {
		p.Regions = append(p.Regions, pages.Region{Range: pages.Range{Start: r.Start, End: r.End}, Source: sources[r.Source], Group: r.Group, Offset: r.Offset})
	}
	return p
}

func takesColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
}

// printPlan prints a plan in numbers.
func printPlan(w io.Writer, s *api.Snapshot) error {
	p := s.Plan
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tPAGES\tREGIONS\tSIZE\t")
	for _, row := range []struct {
		name       string
		n, regions int
	}{{"zero", p.ZeroPages, p.ZeroRegions}, {"cold", p.ColdPages, p.ColdRegions}, {"loading set", p.LoadingPages, p.LoadingRegions}} {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t\n", row.name, row.n, row.regions, byteCount(int64(row.n)*pages.Size))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintf(w, "working set: %d pages in %d groups\n", p.WorkingPages, p.Groups)
	return nil
}
