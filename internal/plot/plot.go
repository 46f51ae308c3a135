// Package plot draws the figures of benchmarks: bar charts and line charts,
// each as an SVG and a PNG file of the same look.
//
// Colours are those of Okabe and Ito, which people with any kind of colour
// vision can tell apart; lines differ in their dashes and markers as well.
package plot

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"math"

	stdfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/volley-run/volley/internal/sys"
)

// Figure is what all charts have.
type Figure struct {
	Title string
	// XLabel and YLabel name what the axes show, with the unit: "latency, ms".
	XLabel, YLabel string
	// LogX makes the horizontal axis of Lines and Panels logarithmic; all X
	// must be positive then.
	LogX bool
	// LogY does the same with the vertical axis of Lines and Panels, which then
	// goes from one power of ten to another.
	LogY bool
	// YFrom is where the vertical axis of Lines and Panels starts when no line
	// goes below it, unless it is logarithmic.
	YFrom float64
}

const (
	width, height = 7.5 * vg.Inch, 4.2 * vg.Inch
	margin        = vg.Length(10) // points
	pngDPI        = 144
)

// Levels of grey, for gray.
const (
	ink   = 0x26
	muted = 0x8c
	rules = 0xe2
)

func gray(level uint8) color.Color { return color.Gray{Y: level} }

// seriesColor returns the colour of the i-th series. After eight they repeat.
func seriesColor(i int) color.Color {
	palette := [...]color.NRGBA{
		{0x00, 0x72, 0xb2, 0xff}, // blue
		{0xe6, 0x9f, 0x00, 0xff}, // orange
		{0x00, 0x9e, 0x73, 0xff}, // green
		{0xcc, 0x79, 0xa7, 0xff}, // purple
		{0x56, 0xb4, 0xe9, 0xff}, // sky blue
		{0xd5, 0x5e, 0x00, 0xff}, // vermilion
		{0x4d, 0x4d, 0x4d, 0xff}, // grey
		{0xf0, 0xe4, 0x42, 0xff}, // yellow
	}
	return palette[i%len(palette)]
}

func sans(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}

// newPlot returns an empty plot in the common look.
func newPlot(fig Figure) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text = fig.Title
	p.Title.TextStyle.Font = sans(13)
	p.Title.TextStyle.Font.Weight = stdfont.WeightBold
	p.Title.TextStyle.Color = gray(ink)
	p.Title.Padding = 10
	p.X.Label.Text, p.Y.Label.Text = fig.XLabel, fig.YLabel
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font = sans(11)
		axis.Label.TextStyle.Color = gray(ink)
		axis.Label.Padding = 6
		axis.Tick.Label.Font = sans(10)
		axis.Tick.Label.Color = gray(ink)
		axis.Color = gray(muted)
		axis.Tick.Color = gray(muted)
		axis.Padding = 0
	}
	p.Y.Width = 0 // the rules of the grid do its work
	p.Y.Tick.Length = 0
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	grid.Horizontal.Color = gray(rules)
	p.Add(grid)
	return p
}

func newLegend() plot.Legend {
	l := plot.NewLegend()
	l.Top = true
	l.Left = true
	l.TextStyle.Font = sans(10)
	l.TextStyle.Color = gray(ink)
	l.Padding = 5
	l.ThumbnailWidth = 18
	return l
}

// checkNumbers returns an error for an infinity, and for a NaN unless gaps are
// allowed.
func checkNumbers(what, series string, values []float64, gaps bool) error {
	for i, v := range values {
		if math.IsInf(v, 0) || (math.IsNaN(v) && !gaps) {
			return fmt.Errorf("%s %d of series %q is %v", what, i, series, v)
		}
	}
	return nil
}

// save draws p, with legend at its right unless legend is nil, into path.svg
// and path.png.
func save(path string, p *plot.Plot, legend *plot.Legend) error {
	return saveDrawing(path, height, func(c draw.Canvas) { paint(c, p, legend) })
}

// saveDrawing draws into path.svg and path.png.
func saveDrawing(path string, height vg.Length, drawOn func(draw.Canvas)) error {
	svg := vgsvg.New(width, height)
	drawOn(draw.New(svg))
	png := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(pngDPI))}
	drawOn(draw.New(png))
	for _, file := range []struct {
		ext    string
		figure io.WriterTo
	}{{".svg", svg}, {".png", png}} {
		var b bytes.Buffer
		if _, err := file.figure.WriteTo(&b); err != nil {
			return fmt.Errorf("draw %s: %w", path+file.ext, err)
		}
		// Browsers without this font would fall back to one with serifs.
		data := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"),
			[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
		if err := sys.ReplaceFile(path+file.ext, data, 0o644); err != nil {
			return fmt.Errorf("save figure: %w", err)
		}
	}
	return nil
}

func paint(c draw.Canvas, p *plot.Plot, legend *plot.Legend) {
	c.SetColor(color.White)
	c.Fill(c.Path())
	c = draw.Crop(c, margin, -margin, margin, -margin)
	if legend != nil {
		room := legend.Rectangle(c).Size().X
		top := p.Title.TextStyle.Height(p.Title.Text) + p.Title.Padding
		legend.Draw(draw.Crop(c, c.Size().X-room, 0, 0, -top))
		c = draw.Crop(c, 0, -room-margin, 0, 0)
	}
	p.Draw(c)
}
