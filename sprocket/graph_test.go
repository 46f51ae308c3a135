package sprocket

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// checkXML fails unless data is well-formed XML.
func checkXML(t fataler, data []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(data))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// drawnSpec has what is hard to draw: a stream that passes layers, a broadcast,
// two inputs, long parameters and markup in them.
func drawnSpec() *Spec {
	return &Spec{
		Name: "drawn <&>", Description: "All that is hard to draw.",
		Nodes: []NodeSpec{
			{Name: "decode_0", Stage: "decode"},
			{Name: "decode_1", Stage: "decode"},
			{Name: "soften", Stage: "filter", Config: map[string]json.RawMessage{
				"vf": json.RawMessage(`"gblur=sigma=2,eq=contrast=1.1:brightness=0.05,format=yuv420p"`),
			}},
			{Name: "mix", Stage: "blend", DeliveryFunction: "anypair_delivery_func", Function: "volley-large"},
			{Name: "encode", Stage: "encode", Config: map[string]json.RawMessage{
				"crf": json.RawMessage("23"), "preset": json.RawMessage(`"slow"`), "codec": json.RawMessage(`"<av1> & \"more\""`),
			}},
			{Name: "stills", Stage: "thumbnails"},
		},
		Streams: []StreamSpec{
			{Src: "input_0:chunks", Dst: "decode_0:chunks"},
			{Src: "input_1:chunks", Dst: "decode_1:chunks"},
			{Src: "decode_0:frames", Dst: "soften:frames"},
			{Src: "soften:frames", Dst: "mix:frames_0"},
			{Src: "decode_1:frames", Dst: "mix:frames_1"},
			{Src: "mix:frames", Dst: "encode:frames"},
			{Src: "decode_0:frames", Dst: "stills:frames"},
			{Src: "encode:chunks", Dst: "output_0:chunks"},
			{Src: "stills:images", Dst: "output_1:images"},
		},
	}
}

func TestSVGIsWellFormedAndStaysTheSame(t *testing.T) {
	svg, err := drawnSpec().SVG(testCatalog())
	if err != nil {
		t.Fatal(err)
	}
	checkXML(t, svg)
	golden(t, "drawn.svg", string(svg))
}

func TestSVGOfAFaultySpecIsAnError(t *testing.T) {
	spec := drawnSpec()
	spec.Streams[0].Src = "nowhere:chunks"
	_, err := spec.SVG(testCatalog())
	var specErr *SpecError
	if !errors.As(err, &specErr) {
		t.Errorf("got %v, want a *SpecError", err)
	}
}

func TestBoxesDoNotOverlapAndWiresGoToTheRight(t *testing.T) {
	d := drawnSpec().sketch(testCatalog())
	width, height := d.place()
	for i, a := range d.boxes {
		if a.x < 0 || a.x+a.width > width || a.y-a.height/2 < 0 || a.y+a.height/2 > height {
			t.Errorf("%s lies outside the drawing", a.lines[0])
		}
		for _, b := range d.boxes[:i] {
			apartX := a.x >= b.x+b.width || b.x >= a.x+a.width
			apartY := a.y-a.height/2 >= b.y+b.height/2 || b.y-b.height/2 >= a.y+a.height/2
			if !apartX && !apartY {
				t.Errorf("%s lies on %s", a.lines[0], b.lines[0])
			}
		}
	}
	for _, w := range d.wires {
		if w.from.x+w.from.width >= w.to.x {
			t.Errorf("the wire %s goes back", w.tooltip)
		}
	}
	_, right := d.neighbours()
	if n := crossings(d.layers, right); n != 0 {
		t.Errorf("%d crossings in a drawing that needs none", n)
	}
}

func TestDOTShowsEveryNodeAndStream(t *testing.T) {
	dot := drawnSpec().DOT(testCatalog())
	golden(t, "drawn.dot", dot)
	program, err := exec.LookPath("dot")
	if err != nil {
		return // the golden file says enough
	}
	cmd := exec.CommandContext(t.Context(), program, "-Tplain")
	cmd.Stdin = strings.NewReader(dot)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("dot: %v\n%s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	count := func(kind string) int {
		return len(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l, kind+" ") }))
	}
	if nodes, edges := count("node"), count("edge"); nodes != 10 || edges != 9 {
		t.Errorf("Graphviz sees %d nodes and %d edges, want 10 and 9", nodes, edges)
	}
}

func TestDOTQuotesWhatGraphvizWouldReadAsAnEscape(t *testing.T) {
	if got, want := dotQuote("a\"b\\n\x00\nc"), `"a\"b\\n\nc"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
