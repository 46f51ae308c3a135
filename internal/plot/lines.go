package plot

import (
	"errors"
	"fmt"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// XY is one line: the points (X[i], Y[i]), joined in this order.
type XY struct {
	// Name stands in the legend.
	Name string
	X, Y []float64
}

// maxMarked is the number of points up to which each gets a marker.
const maxMarked = 40

// Lines draws lines into path.svg and path.png, each replaced whole. The
// vertical axis starts at 0 unless a value is negative. It returns an error
// when there is nothing to draw, when a line's X and Y differ in length or hold
// numbers that are not finite, or when the files cannot be written.
func Lines(path string, fig Figure, lines []XY) error {
	if len(lines) == 0 {
		return fmt.Errorf("plot lines %q: there is nothing to draw", fig.Title)
	}
	p := newPlot(fig)
	legend := newLegend()
	for i, l := range lines {
		xys, err := l.points()
		if err != nil {
			return fmt.Errorf("plot lines %q: %w", fig.Title, err)
		}
		line, marks, err := plotter.NewLinePoints(xys)
		if err != nil {
			return fmt.Errorf("plot lines %q: %w", fig.Title, err)
		}
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
	p.Y.Min = min(p.Y.Min, 0)
	if p.Y.Min == p.Y.Max {
		p.Y.Max++
	}
	if len(lines) == 1 && lines[0].Name == "" {
		return save(path, p, nil)
	}
	return save(path, p, &legend)
}

func (l XY) points() (plotter.XYs, error) {
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
		xys[i] = plotter.XY{X: l.X[i], Y: l.Y[i]}
	}
	return xys, nil
}

func dashes(i int) []vg.Length {
	return [...][]vg.Length{nil, {7, 3}, {2, 2}, {8, 3, 2, 3}}[i%4]
}

func marker(i int) draw.GlyphDrawer {
	return [...]draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.BoxGlyph{}, draw.TriangleGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{},
	}[i%6]
}
