package plot

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"unicode/utf8"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Series is the bars of one colour: one in each group.
type Series struct {
	// Name stands in the legend.
	Name string
	// Values has one number for each group; NaN leaves a gap.
	Values []float64
	// Err, when not nil, is how far the error bar of each value reaches up and
	// down. NaN and 0 draw none.
	Err []float64
}

// groupWidth is the part of a group's room that its bars take.
const groupWidth = 0.76

// Bars draws groups of bars side by side into path.svg and path.png, each
// replaced whole. It returns an error when there is nothing to draw, when the
// lengths of a series do not fit groups, or when the files cannot be written.
func Bars(path string, fig Figure, groups []string, series []Series) error {
	if err := checkBars(groups, series); err != nil {
		return fmt.Errorf("plot bars %q: %w", fig.Title, err)
	}
	p := newPlot(fig)
	legend := newLegend()
	barWidth := min(groupWidth/float64(len(series)), groupWidth/2)
	for i, s := range series {
		center := (float64(i) - float64(len(series)-1)/2) * barWidth
		bars, tops, err := layBars(s, center, barWidth*0.94)
		if err != nil {
			return fmt.Errorf("plot bars %q: %w", fig.Title, err)
		}
		bars.Color = seriesColor(i)
		bars.Width = 0
		p.Add(bars)
		legend.Add(s.Name, bars)
		if len(tops.XYs) == 0 {
			continue
		}
		errorBars, err := plotter.NewYErrorBars(tops)
		if err != nil {
			return fmt.Errorf("plot bars %q: %w", fig.Title, err)
		}
		errorBars.Color = gray(ink)
		errorBars.Width = vg.Points(0.9)
		errorBars.CapWidth = vg.Points(5)
		p.Add(errorBars)
	}
	p.NominalX(groups...)
	p.X.Padding, p.X.Width = 0, vg.Points(0.5)
	p.X.Tick.Color, p.X.Tick.Width, p.X.Tick.Length = color.White, 0.1, 5 // no ticks, but their room
	p.X.Min, p.X.Max = -0.5, float64(len(groups))-0.5
	p.Y.Min, p.Y.Max = min(p.Y.Min, 0), max(p.Y.Max, 0)
	if p.Y.Min == p.Y.Max {
		p.Y.Max = 1
	}
	if crowded(groups) {
		p.X.Tick.Label.Rotation = math.Pi / 6
		p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YTop
	}
	if len(series) == 1 && series[0].Name == "" {
		return save(path, p, nil)
	}
	return save(path, p, &legend)
}

func checkBars(groups []string, series []Series) error {
	if len(groups) == 0 || len(series) == 0 {
		return errors.New("there is nothing to draw")
	}
	for _, s := range series {
		if len(s.Values) != len(groups) {
			return fmt.Errorf("series %q has %d values for %d groups", s.Name, len(s.Values), len(groups))
		}
		if s.Err != nil && len(s.Err) != len(groups) {
			return fmt.Errorf("series %q has %d errors for %d groups", s.Name, len(s.Err), len(groups))
		}
		if err := errors.Join(
			checkNumbers("value", s.Name, s.Values, true),
			checkNumbers("error", s.Name, s.Err, true),
		); err != nil {
			return err
		}
	}
	return nil
}

// points are the tops of bars that have an error bar.
type points struct {
	plotter.XYs
	plotter.YErrors
}

// layBars places the bars of s at center within each group.
func layBars(s Series, center, width float64) (*plotter.Polygon, points, error) {
	var rects []plotter.XYer
	var tops points
	for g, v := range s.Values {
		if math.IsNaN(v) {
			continue
		}
		x := float64(g) + center
		l, r := x-width/2, x+width/2
		rects = append(rects, plotter.XYs{{X: l, Y: 0}, {X: l, Y: v}, {X: r, Y: v}, {X: r, Y: 0}})
		if s.Err != nil && s.Err[g] != 0 && !math.IsNaN(s.Err[g]) {
			tops.XYs = append(tops.XYs, plotter.XY{X: x, Y: v})
			tops.YErrors = append(tops.YErrors, struct{ Low, High float64 }{s.Err[g], s.Err[g]})
		}
	}
	bars, err := plotter.NewPolygon(rects...)
	return bars, tops, err
}

// crowded reports whether the names of groups would run into each other.
func crowded(groups []string) bool {
	longest := 0
	for _, g := range groups {
		longest = max(longest, utf8.RuneCountInString(g))
	}
	const columns = 78 // of the tick font, about, in the width of a figure
	return longest*len(groups) > columns
}
