//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/bench"
)

const mega = 1e6

func (s faasnapSummary) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s, guests of %d MiB; snapshots on %s, read-ahead %d KB; %s, medians\n",
		s.Machine, s.VMM, s.MemoryMB, s.Disk, s.ReadAhead, plural(s.Rounds, "round"))
	for _, part := range []func(io.Writer) error{s.printTimes, s.printAnalysis, s.printFootprint, s.printRatios, s.printBursts, s.printRecords, s.printGoals} {
		if err := part(w); err != nil {
			return err
		}
	}
	for _, f := range s.Failures {
		fmt.Fprintf(w, "\nfailed: %s\n", f)
	}
	return nil
}

// of returns the cells of a part.
func (s faasnapSummary) of(part string) []faasnapCell {
	return slices.DeleteFunc(slices.Clone(s.Cells), func(c faasnapCell) bool { return c.Part != part })
}

func pair(c faasnapCell) string { return c.Recorded + "->" + c.Tested }

func (s faasnapSummary) printTimes(w io.Writer) error {
	for _, part := range []struct{ name, title string }{
		{figTimes, "From request to response (figures 5.1, 5.6, 5.7); A->B is recorded with A, tested with B"},
		{figSteps, "FaaSnap's steps (figure 5.9)"},
		{figRemote, "With reads throttled to " + s.Remote + " (figure 5.11)"},
	} {
		err := table(w, part.title, "function\tinputs\tmode\ttotal ms\t+-\tVMM ms\tinvocation ms\tmajor faults\tminor\tVMM read MB\thost read MB\t", s.of(part.name), func(c faasnapCell) string {
			return fmt.Sprintf("%s\t%s\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%d\t%.1f\t%.1f\t", c.Function, pair(c), c.Mode, c.Total, c.Deviation, c.VMM, c.Invocation,
				c.MajorFaults, c.MinorFaults, float64(c.VMMReadBytes)/mega, float64(c.HostReadBytes)/mega)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// printAnalysis prints table 5.3.
func (s faasnapSummary) printAnalysis(w io.Writer) error {
	rows := slices.DeleteFunc(s.of(figTimes), func(c faasnapCell) bool {
		return c.Mode != faasnap.REAP && c.Mode != faasnap.FaaSnap && c.Mode != faasnap.FaaSnapFaults ||
			c.Function != bench.Image && c.Function != bench.FFmpeg || c.Recorded != "A" || c.Tested != "B"
	})
	return table(w, "What they read, and wait for (table 5.3)", "mode, function\ttotal ms\tfetch ms\tfetched MB\tfaults handled outside\tcopied for them MB\tmajor faults\twaiting for faults ms\t", rows, func(c faasnapCell) string {
		waiting := "-"
		if o := s.cell(figTimes+" observed", c.Function, c.Recorded, c.Tested, c.Mode); o != nil {
			waiting = fmt.Sprintf("%.1f", o.FaultTime)
		}
		return fmt.Sprintf("%s, %s\t%.1f\t%.1f\t%.1f\t%d\t%.1f\t%d\t%s\t", c.Mode, c.Function, c.Total, c.Fetch, float64(c.FetchBytes)/mega, c.Handled,
			float64(c.CopiedBytes)/mega, c.MajorFaults, waiting)
	})
}

func (s faasnapSummary) printFootprint(w io.Writer) error {
	return table(w, "Memory after the response: the VMM's own, and the snapshot's files in the page cache (5.6.3)", "function\tinputs\tmode\tVMM MB\tpage cache MB\tboth MB\t",
		s.of(figTimes), func(c faasnapCell) string {
			return fmt.Sprintf("%s\t%s\t%s\t%.1f\t%.1f\t%.1f\t", c.Function, pair(c), c.Mode, float64(c.AnonymousBytes)/mega, float64(c.CachedBytes)/mega,
				float64(c.AnonymousBytes+c.CachedBytes)/mega)
		})
}

func (s faasnapSummary) printRatios(w io.Writer) error {
	return table(w, "Inputs of other sizes than A, which was recorded (figure 5.8)", "function\tsize\tmode\ttotal ms\t+-\t", s.of(figRatios), func(c faasnapCell) string {
		return fmt.Sprintf("%s\t%g\t%s\t%.1f\t%.1f\t", c.Function, c.Ratio, c.Mode, c.Total, c.Deviation)
	})
}

func (s faasnapSummary) printBursts(w io.Writer) error {
	return table(w, "Machines at once (figure 5.10)", "function\tsnapshots\tmachines\tmode\tmean ms\t+-\tlast ms\t", s.Bursts, func(b faasnapBursts) string {
		snapshots := "different"
		if b.Same {
			snapshots = "the same"
		}
		return fmt.Sprintf("%s\t%s\t%d\t%s\t%.1f\t%.1f\t%.1f\t", b.Function, snapshots, b.Machines, b.Mode, b.Mean, b.Deviation, b.Last)
	})
}

func (s faasnapSummary) printRecords(w io.Writer) error {
	return table(w, "Snapshots", "function\tinput\trecorded in s\tnot zero MB\tworking set MB\tloading set MB\tREAP's MB\t", s.Records, func(r faasnapRecord) string {
		return fmt.Sprintf("%s\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t", r.Function, r.Input, r.Took/1e3, float64(r.Memory)/mega, float64(r.Working)/mega,
			float64(r.Loading)/mega, float64(r.Reap)/mega)
	})
}

func (s faasnapSummary) printGoals(w io.Writer) error {
	return table(w, "Geometric means over functions and pairs of inputs", "of\twhat\tis\twanted\t\tif restored as fast as cached\t", s.Goals, func(g faasnapGoal) string {
		bound := ""
		if g.Bound > 0 {
			bound = fmt.Sprintf("%.3f", g.Bound)
		}
		return fmt.Sprintf("%d\t%s\t%.3f\t%s\t%s\t%s\t", g.Of, g.Name, g.Value, g.Want, g.Verdict, bound)
	})
}
