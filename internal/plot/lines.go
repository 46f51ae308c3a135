package plot

import (
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// XY is one line: the points (X[i], Y[i]), joined in this order.
type XY struct {
	// Name stands in the legend.
	Name string
	X, Y []float64
	// Thin draws a thin grey line that is not in the legend: one of many that
	// stand behind the others.
	Thin bool
}

// maxMarked is the number of points up to which each gets a marker.
const maxMarked = 40

// Lines draws lines into path.svg and path.png, each replaced whole. The
// vertical axis starts at fig.YFrom unless a value is less. It returns an error
// when there is nothing to draw, when a line's X and Y differ in length or hold
// numbers that are not finite, or when the files cannot be written.
func Lines(path string, fig Figure, lines []XY) error {
	if len(lines) == 0 {
		return fmt.Errorf("plot lines %q: there is nothing to draw", fig.Title)
	}
	p, legend, err := layLines(fig, lines)
	if err != nil {
		return fmt.Errorf("plot lines %q: %w", fig.Title, err)
	}
	if len(lines) == 1 && lines[0].Name == "" {
		return save(path, p, nil)
	}
	return save(path, p, legend)
}

// layLines puts lines and their legend together.
func layLines(fig Figure, lines []XY) (*plot.Plot, *plot.Legend, error) {
	p := newPlot(fig)
	legend := newLegend()
	styled := 0
	for _, l := range lines {
		xys, err := l.points(fig)
		if err != nil {
			return nil, nil, err
		}
		line, marks, err := plotter.NewLinePoints(xys)
		if err != nil {
			return nil, nil, err
		}
		if l.Thin {
			line.Color, line.Width = gray(muted), vg.Points(0.5)
			p.Add(line)
			continue
		}
		i := styled
		styled++
		line.Color, line.Width, line.Dashes = seriesColor(i), vg.Points(1.8), dashes(i)
		p.Add(line)
		if len(xys) > maxMarked {
			legend.Add(l.Name, line)
			continue
		}
		marks.Color, marks.Radius, marks.Shape = seriesColor(i), vg.Points(2.8), marker(i)
		p.Add(marks)
		legend.Add(l.Name, line, marks)
	}
	if fig.LogY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		low, high := math.Floor(math.Log10(p.Y.Min)), math.Ceil(math.Log10(p.Y.Max))
		p.Y.Min, p.Y.Max = math.Pow(10, low), math.Pow(10, max(high, low+1))
	} else {
		p.Y.Min = min(p.Y.Min, fig.YFrom)
		if p.Y.Min == p.Y.Max {
			p.Y.Max++
		}
	}
	if fig.LogX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		if p.X.Min == p.X.Max {
			p.X.Max *= 10
		}
	}
	return p, &legend, nil
}

func (l XY) points(fig Figure) (plotter.XYs, error) {
	if len(l.X) != len(l.Y) {
		return nil, fmt.Errorf("line %q has %d X but %d Y", l.Name, len(l.X), len(l.Y))
	}
	if len(l.X) == 0 {
		return nil, fmt.Errorf("line %q has no points", l.Name)
	}
	if err := errors.Join(checkNumbers("X", l.Name, l.X, false), checkNumbers("Y", l.Name, l.Y, false)); err != nil {
		return nil, err
	}
	xys := make(plotter.XYs, len(l.X))
	for i := range xys {
		if err := errors.Join(onLog(fig.LogX, "horizontal", l.Name, i, l.X[i]), onLog(fig.LogY, "vertical", l.Name, i, l.Y[i])); err != nil {
			return nil, err
		}
		xys[i] = plotter.XY{X: l.X[i], Y: l.Y[i]}
	}
	return xys, nil
}

// onLog returns an error for a value that a logarithmic axis cannot show.
func onLog(logarithmic bool, axis, line string, i int, v float64) error {
	if !logarithmic || v > 0 {
		return nil
	}
	return fmt.Errorf("value %d on the %s axis of line %q is %v, which has no place on a logarithmic axis", i, axis, line, v)
}

func dashes(i int) []vg.Length {
	return [...][]vg.Length{nil, {7, 3}, {2, 2}, {8, 3, 2, 3}}[(i+i/8)%4] // not as before where colours repeat
}

func marker(i int) draw.GlyphDrawer {
	return [...]draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.BoxGlyph{}, draw.TriangleGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{},
	}[i%6]
}
