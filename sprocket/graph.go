package sprocket

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// DOT returns s in Graphviz's language, for "dot -Tsvg". It draws any Spec,
// valid or not, so that a faulty one can be looked at.
func (s *Spec) DOT(c *Catalog) string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %s {\n", dotQuote(cmp.Or(s.Name, "pipeline")))
	b.WriteString("\trankdir=LR;\n\tnode [shape=box, style=rounded, fontname=\"sans-serif\"];\n\tedge [fontname=\"sans-serif\", fontsize=10];\n")
	for i := range s.Nodes {
		fmt.Fprintf(&b, "\t%s [label=%s];\n", dotQuote(s.Nodes[i].Name), dotQuote(strings.Join(s.nodeText(c, i, maxShownParams), "\n")))
	}
	external := make(map[string]bool)
	for _, st := range s.Streams {
		for _, e := range []Endpoint{st.Src, st.Dst} {
			if isExternal(e) && !external[e.Node()] {
				external[e.Node()] = true
				fmt.Fprintf(&b, "\t%s [shape=oval, style=solid];\n", dotQuote(e.Node()))
			}
		}
	}
	for _, st := range s.Streams {
		fmt.Fprintf(&b, "\t%s -> %s [label=%s];\n", dotQuote(st.Src.Node()), dotQuote(st.Dst.Node()), dotQuote(st.label()))
	}
	b.WriteString("}\n")
	return b.String()
}

// SVG returns a drawing of s: inputs at the left, outputs at the right, in
// colours that suit a light and a dark page. It needs no font and no script and
// can be put into an HTML page as it is. The error is Validate's, for a Spec
// that is not valid.
func (s *Spec) SVG(c *Catalog) ([]byte, error) {
	if err := s.Validate(c); err != nil {
		return nil, err
	}
	d := s.sketch(c)
	width, height := d.place()
	var b bytes.Buffer
	title := cmp.Or(s.Name, "pipeline")
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" class="pipespec" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", escapeXML(title))
	if s.Description != "" {
		fmt.Fprintf(&b, "<desc>%s</desc>\n", escapeXML(s.Description))
	}
	b.WriteString(svgStyle)
	// A ground of its own keeps the drawing legible on a page that does not
	// follow the system's choice of light or dark.
	b.WriteString(`<rect class="page" width="100%" height="100%" rx="8"/>` + "\n")
	for _, w := range d.wires {
		w.draw(&b)
	}
	for _, w := range d.wires {
		w.drawLabel(&b)
	}
	for _, box := range d.boxes {
		box.draw(&b)
	}
	b.WriteString("</svg>\n")
	return b.Bytes(), nil
}

const (
	maxShownParams = 6
	maxShownRunes  = 34
	lineHeight     = 17.0
	boxPadding     = 12.0
	// charWidth is a generous mean for 13 px sans-serif text, whose real width
	// is not known here.
	charWidth = 7.4
)

const svgStyle = `<style>
.pipespec { --ink: #1f2328; --muted: #59636e; --line: #6e7781; --box: #ffffff; --edge: #8c959f; --end: #ddf4ff; --end-edge: #0969da; --page: #ffffff;
  font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
@media (prefers-color-scheme: dark) {
  .pipespec { --ink: #e6edf3; --muted: #9198a1; --line: #9198a1; --box: #212830; --edge: #656c76; --end: #0c2d4f; --end-edge: #4493f8; --page: #0d1117; }
}
.pipespec .page { fill: var(--page); }
.pipespec text { fill: var(--ink); }
.pipespec .name { font-weight: 600; }
.pipespec .detail { fill: var(--muted); font-size: 12px; }
.pipespec .box { fill: var(--box); stroke: var(--edge); }
.pipespec .end { fill: var(--end); stroke: var(--end-edge); }
.pipespec .wire { fill: none; stroke: var(--line); stroke-width: 1.5; }
.pipespec .tip { fill: var(--line); }
.pipespec .label { fill: var(--muted); font-size: 11px; text-anchor: middle; paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
</style>
`

// nodeText returns the lines in a node's box: its name, then the details.
func (s *Spec) nodeText(c *Catalog, i, maxParams int) []string {
	n := s.Nodes[i]
	lines := []string{n.Name}
	if n.Stage != n.Name {
		lines = append(lines, "stage "+n.Stage)
	}
	names := slices.Sorted(maps.Keys(n.Config))
	for k, name := range names {
		if k == maxParams {
			lines = append(lines, fmt.Sprintf("and %d more", len(names)-maxParams))
			break
		}
		value := string(n.Config[name])
		if text, ok := stringValue(n.Config[name]); ok {
			value = text
		}
		lines = append(lines, name+" = "+value)
	}
	delivery := NormalizeDelivery(n.DeliveryFunction)
	if delivery == "" {
		delivery = c.Stages[n.Stage].Delivery
	}
	if delivery != "" && delivery != "default" {
		lines = append(lines, "delivery: "+delivery)
	}
	if n.Function != "" {
		lines = append(lines, "function: "+n.Function)
	}
	return lines
}

// label is what stands at the stream's line: its type, by the numbered endpoint
// where it enters one.
func (st StreamSpec) label() string {
	switch {
	case strings.HasPrefix(st.Dst.ID(), string(st.Src.Type())+"_"):
		return st.Dst.ID()
	case isExternal(st.Dst):
		return st.Dst.ID()
	}
	return st.Src.ID()
}

func isExternal(e Endpoint) bool {
	_, in := e.InputIndex()
	_, out := e.OutputIndex()
	return in || out
}

// box is a node, or an input or output, in a drawing. Boxes without lines are
// the bends of wires that pass a layer.
type box struct {
	lines    []string
	tooltip  string
	external bool
	layer    int
	// x and y are the middle of the left side.
	x, y, width, height float64
}

// wire is a stream in a drawing.
type wire struct {
	from, to       *box
	label, tooltip string
	// source groups the wires that leave from one endpoint.
	source string
	bends  []*box
	// startY and endY are where the wire meets the boxes.
	startY, endY float64
}

type sketch struct {
	boxes []*box
	wires []*wire
	// layers hold boxes and bends, from left to right and top to bottom.
	layers [][]*box
}

// sketch makes the boxes and wires of s, not yet placed.
func (s *Spec) sketch(c *Catalog) *sketch {
	d := &sketch{}
	byName := make(map[string]*box)
	add := func(name string, external bool, lines []string, tooltip string) {
		b := &box{lines: lines, external: external, tooltip: tooltip}
		longest := 0
		for i, line := range b.lines {
			b.lines[i] = abbreviate(line, maxShownRunes)
			longest = max(longest, len([]rune(b.lines[i])))
		}
		b.width = max(float64(longest)*charWidth+2*boxPadding, 84)
		b.height = float64(len(lines))*lineHeight + boxPadding
		d.boxes = append(d.boxes, b)
		byName[name] = b
	}
	addExternal := func(e Endpoint) {
		if isExternal(e) && byName[e.Node()] == nil {
			add(e.Node(), true, []string{e.Node()}, "")
		}
	}
	for _, st := range s.Streams {
		addExternal(st.Src)
	}
	for i, n := range s.Nodes {
		tooltip := strings.Join(s.nodeText(c, i, len(n.Config)), "\n")
		if doc := c.Stages[n.Stage].Doc; doc != "" {
			tooltip += "\n" + doc
		}
		add(n.Name, false, s.nodeText(c, i, maxShownParams), tooltip)
	}
	for _, st := range s.Streams {
		addExternal(st.Dst)
		d.wires = append(d.wires, &wire{
			from: byName[st.Src.Node()], to: byName[st.Dst.Node()],
			label: st.label(), source: string(st.Src),
			tooltip: fmt.Sprintf("%s to %s", st.Src, st.Dst),
		})
	}
	return d
}

func (b *box) draw(to *bytes.Buffer) {
	class, radius := "box", 6.0
	if b.external {
		class, radius = "end", b.height/2
	}
	to.WriteString("<g>\n")
	if b.tooltip != "" {
		fmt.Fprintf(to, "<title>%s</title>\n", escapeXML(b.tooltip))
	}
	top := b.y - b.height/2
	fmt.Fprintf(to, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%.1f"/>`+"\n", class, b.x, top, b.width, b.height, radius)
	for i, line := range b.lines {
		x, anchor, style := b.x+boxPadding, "start", "detail"
		if i == 0 {
			style = "name"
		}
		if b.external {
			x, anchor = b.x+b.width/2, "middle"
		}
		fmt.Fprintf(to, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n",
			style, x, top+boxPadding/2+lineHeight*(float64(i)+0.75), anchor, escapeXML(line))
	}
	to.WriteString("</g>\n")
}

const tipLength = 8.0

func (w *wire) draw(to *bytes.Buffer) {
	x, y := w.from.x+w.from.width, w.startY
	fmt.Fprintf(to, `<path class="wire" d="M%.1f %.1f`, x, y)
	curve := func(toX, toY float64) {
		middle := (x + toX) / 2
		fmt.Fprintf(to, " C%.1f %.1f %.1f %.1f %.1f %.1f", middle, y, middle, toY, toX, toY)
		x, y = toX, toY
	}
	for _, bend := range w.bends {
		curve(bend.x, bend.y)
		x = bend.x + bend.width
		fmt.Fprintf(to, " H%.1f", x)
	}
	curve(w.to.x-tipLength, w.endY)
	fmt.Fprintf(to, `"><title>%s</title></path>`+"\n", escapeXML(w.tooltip))
	fmt.Fprintf(to, `<path class="tip" d="M%.1f %.1f l-%.1f -4 v8 z"/>`+"\n", w.to.x, w.endY, tipLength+1)
}

// drawLabel writes the label at the start of the wire, where wires that go to
// different places have not met yet.
func (w *wire) drawLabel(to *bytes.Buffer) {
	startX := w.from.x + w.from.width
	endX, endY := w.to.x, w.endY
	if len(w.bends) > 0 {
		endX, endY = w.bends[0].x, w.bends[0].y
	}
	const t = 0.45
	along := 3*t*t - 2*t*t*t // of the curve's height, where t of its length is
	fmt.Fprintf(to, `<text class="label" x="%.1f" y="%.1f">%s</text>`+"\n",
		startX+(endX-startX)*t, w.startY+(endY-w.startY)*along-5, escapeXML(w.label))
}

// escapeXML makes any text fit for XML; what XML cannot hold becomes U+FFFD.
func escapeXML(s string) string {
	var b bytes.Buffer
	if err := xml.EscapeText(&b, []byte(s)); err != nil { // a Buffer takes everything
		return ""
	}
	return b.String()
}

// dotQuote writes s as a DOT string, in which a backslash would start an escape.
func dotQuote(s string) string {
	s = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) && c != '\n' {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
