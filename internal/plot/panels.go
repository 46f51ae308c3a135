package plot

import (
	"fmt"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Panel is one chart of several that share a figure. The title of its Figure
// stands above it.
type Panel struct {
	Figure
	Lines []XY
}

const panelHeight = 2.5 * vg.Inch

// Panels draws line charts one below the other, as wide as each other, into
// path.svg and path.png, each replaced whole. It returns the errors of Lines.
func Panels(path string, panels []Panel) error {
	if len(panels) == 0 {
		return fmt.Errorf("plot panels %q: there is nothing to draw", path)
	}
	plots := make([][]*plot.Plot, len(panels))
	legends := make([]*plot.Legend, len(panels))
	for i, panel := range panels {
		if len(panel.Lines) == 0 {
			return fmt.Errorf("plot panels %q: there is nothing to draw", panel.Title)
		}
		p, legend, err := layLines(panel.Figure, panel.Lines)
		if err != nil {
			return fmt.Errorf("plot panels %q: %w", panel.Title, err)
		}
		plots[i], legends[i] = []*plot.Plot{p}, legend
	}
	return saveDrawing(path, panelHeight*vg.Length(len(panels)), func(c draw.Canvas) {
		c.SetColor(gray(0xff))
		c.Fill(c.Path())
		c = draw.Crop(c, margin, -margin, margin, -margin)
		room := vg.Length(0)
		for _, l := range legends {
			room = max(room, l.Rectangle(c).Size().X)
		}
		charts := draw.Crop(c, 0, -room-margin, 0, 0)
		tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadY: margin}
		canvases := plot.Align(plots, tiles, charts)
		for i, p := range plots {
			p[0].Draw(canvases[i][0])
			right := canvases[i][0]
			right.Min.X, right.Max.X = c.Max.X-room, c.Max.X
			legends[i].Draw(right)
		}
	})
}
