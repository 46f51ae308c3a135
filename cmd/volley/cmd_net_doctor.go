//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/bpf"
	"github.com/volley-run/volley/particle/preload"
	"github.com/volley-run/volley/particle/rtnl"
	"github.com/volley-run/volley/particle/seccomp"
)

// finding is one line of what doctor says.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail is what it is for, or why it is missing.
	Detail string `json:"detail"`
	// Instead is what is used where it is missing; empty if nothing can be.
	Instead string `json:"instead,omitempty"`
}

// diagnosis is what networks can be on this host.
type diagnosis struct {
	Features   []finding           `json:"features"`
	Design     particle.Design     `json:"design"`
	Discipline particle.Discipline `json:"discipline"`
	Usable     bool                `json:"usable"`
}

func newNetDoctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this kernel offers to networks, and what is used instead",
		Long: `Try what networks need of this kernel, in namespaces that are removed again, and
say what each thing is for and what is used where it is missing.

Exit statuses: 0 networks can be made here, 1 they cannot.`,
		Example: "  volley net doctor\n  volley net doctor --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := diagnose(cmd.Context())
			print := printDiagnosis
			if asJSON {
				print = func(w io.Writer, d diagnosis) error { return writeJSON(w, d) }
			}
			if err := print(cmd.OutOrStdout(), d); err != nil {
				return err
			}
			if !d.Usable {
				return errors.New("networks cannot be made here: run as root, on Linux 5.8 or newer")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func diagnose(ctx context.Context) diagnosis {
	d := diagnosis{Design: particle.AnyIP, Discipline: particle.DisciplineNone, Usable: true}
	// Without these there is no network, or only one with another design.
	instead := map[string]string{
		rtnl.FeatureAnyIP:      "design consolidated",
		rtnl.FeatureAnyIP6:     "design consolidated, for networks with IPv6",
		rtnl.FeatureGroups:     "links are removed one by one",
		rtnl.FeatureNeighbours: "a network of designs baseline and direct ends there",
		rtnl.FeatureVXLAN:      "networks of one node",
	}
	for _, f := range rtnl.Probe(ctx) {
		finding := finding{Name: f.Name, OK: f.OK, Detail: f.Detail}
		if !f.OK {
			finding.Instead = instead[f.Name]
			if f.Name == rtnl.FeatureAnyIP {
				d.Design = particle.Consolidated
			}
			d.Usable = d.Usable && finding.Instead != ""
		}
		d.Features = append(d.Features, finding)
	}
	_, noPreload := preload.Find()
	for _, p := range []struct {
		name, purpose, instead string
		discipline             particle.Discipline
		err                    error
	}{
		{"cgroup BPF", "holds all programs to their addresses", "seccomp", particle.DisciplineBPF, bpf.Probe()},
		{"seccomp notification", "holds programs of volley net exec to their addresses", "preload", particle.DisciplineSeccomp, seccomp.Probe()},
		{"preload library", "holds programs that use the C library to their addresses", "none", particle.DisciplinePreload, noPreload},
	} {
		f := finding{Name: p.name, OK: p.err == nil, Detail: p.purpose}
		if p.err != nil {
			f.Detail, f.Instead = p.err.Error(), p.instead
		} else if d.Discipline == particle.DisciplineNone {
			d.Discipline = p.discipline
		}
		d.Features = append(d.Features, f)
	}
	landlock := finding{Name: "landlock scopes", OK: sys.LandlockABI() >= 6, Detail: "keeps programs from the abstract unix sockets of others"}
	if !landlock.OK {
		landlock.Detail = fmt.Sprintf("version 6 of Landlock is needed (Linux 6.12), there is %d", sys.LandlockABI())
		landlock.Instead = "all who share a namespace share abstract sockets"
	}
	d.Features = append(d.Features, landlock)
	return d
}

func printDiagnosis(w io.Writer, d diagnosis) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range d.Features {
		state, detail := "ok", f.Detail
		if !f.OK {
			state = "missing"
			if f.Instead != "" {
				detail += "; instead: " + f.Instead
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Name, state, detail)
	}
	fmt.Fprintf(t, "\nactive\tdesign\t%s\n\tdiscipline\t%s\n", d.Design, d.Discipline)
	return t.Flush()
}
