package memmap

import (
	"bytes"
	"encoding/xml"
	"fmt"

	"github.com/volley-run/volley/faasnap/pages"
)

// The drawing's measures, in pixels.
const (
	svgColumns, svgRows = 128, 64
	cellWidth           = 7
	cellHeight          = 9
	svgLeft             = 76
	svgTop              = 58
	svgRight            = 16
	svgBottom           = 16
)

const (
	zeroColour = "#e8e8e8"
	coldColour = "#6b6b6b"
)

// groupColour goes from orange, for what is wanted first, to blue, which people
// with any kind of colour vision can tell apart.
func groupColour(group, last int) string {
	stops := [...][3]int{{0xd5, 0x5e, 0x00}, {0xf0, 0xc0, 0x40}, {0x56, 0xb4, 0xe9}, {0x00, 0x4c, 0x8c}}
	const steps = 1000
	at := group * (len(stops) - 1) * steps / max(last, 1)
	i := min(at/steps, len(stops)-2)
	mix := func(c int) int { return stops[i][c] + (stops[i+1][c]-stops[i][c])*(at-i*steps)/steps }
	return fmt.Sprintf("#%02x%02x%02x", mix(0), mix(1), mix(2))
}

func (c Cell) colour(last int) string {
	switch c.Source() {
	case pages.Zero:
		return zeroColour
	case pages.Memory:
		return coldColour
	}
	return groupColour(c.Group, last)
}

// SVG draws a plan as a picture with a legend. Each stretch tells more when it
// is pointed at. name is the snapshot's.
func SVG(p *pages.Plan, name string) []byte {
	cells := Cells(p, svgColumns*svgRows)
	last := groups(p) - 1
	rows := (len(cells) + svgColumns - 1) / svgColumns
	width := svgLeft + svgColumns*cellWidth + svgRight
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="%[2]d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="11" fill="#262626">`+"\n",
		width, svgTop+rows*cellHeight+svgBottom)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="14">%s: %s of guest memory</text>`+"\n", svgLeft, escape(name), size(int64(p.Pages)*pages.Size))
	legend(&b, p, last)
	for row := range rows {
		line := cells[row*svgColumns : min((row+1)*svgColumns, len(cells))]
		y := svgTop + row*cellHeight
		if row%8 == 0 {
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", svgLeft-8, y+cellHeight, size(int64(line[0].Start)*pages.Size))
		}
		for at := 0; at < len(line); {
			// What looks the same is one rectangle.
			end, all := at+1, line[at]
			for end < len(line) && line[end].colour(last) == line[at].colour(last) {
				all.End = line[end].End
				all.Zero += line[end].Zero
				all.Cold += line[end].Cold
				all.Loading += line[end].Loading
				if line[end].Loading > 0 && (all.Loading == line[end].Loading || line[end].Group < all.Group) {
					all.Group = line[end].Group
				}
				end++
			}
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>%s</title></rect>`+"\n",
				svgLeft+at*cellWidth, y, (end-at)*cellWidth, cellHeight-1, line[at].colour(last), all.title())
			at = end
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (c Cell) title() string {
	text := fmt.Sprintf("pages %d to %d: %d zero, %d cold, %d in the loading set", c.Start, c.End-1, c.Zero, c.Cold, c.Loading)
	if c.Loading > 0 {
		text += fmt.Sprintf(" (from group %d on)", c.Group)
	}
	return text
}

func legend(b *bytes.Buffer, p *pages.Plan, last int) {
	x := svgLeft
	entry := func(colours []string, source pages.Source, name string) {
		n, regions := p.Count(source)
		for _, c := range colours {
			fmt.Fprintf(b, `<rect x="%d" y="32" width="%d" height="11" fill="%s"/>`+"\n", x, 12, c)
			x += 12
		}
		fmt.Fprintf(b, `<text x="%d" y="42">%s: %s, %d regions</text>`+"\n", x+5, name, size(int64(n)*pages.Size), regions)
		x += 210
	}
	entry([]string{zeroColour}, pages.Zero, "zero")
	entry([]string{coldColour}, pages.Memory, "cold")
	name := "loading set"
	colours := []string{groupColour(0, last)}
	if last > 0 {
		name = fmt.Sprintf("loading set, groups 0 to %d", last)
		colours = nil
		for i := range min(last+1, 8) {
			colours = append(colours, groupColour(i*last/min(last, 7), last))
		}
	}
	entry(colours, pages.Loading, name)
}

func escape(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // writing to memory does not fail
	return b.String()
}
