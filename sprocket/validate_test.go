package sprocket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// pipeline writes a pipespec in which every node and stream has a line of its
// own. A node is "name stage" or a JSON object; a stream is "src dst" or one.
func pipeline(nodes, streams []string) string {
	lines := func(items []string, first, second string) string {
		out := slices.Clone(items)
		for i, item := range items {
			if a, b, ok := strings.Cut(item, " "); ok && !strings.HasPrefix(item, "{") {
				out[i] = fmt.Sprintf("{%q: %q, %q: %q}", first, a, second, b)
			}
		}
		return strings.Join(out, ",\n")
	}
	return fmt.Sprintf("{\"nodes\": [\n%s\n], \"streams\": [\n%s\n]}", lines(nodes, "name", "stage"), lines(streams, "src", "dst"))
}

// transcodeWith is decode -> node "x" -> encode.
func transcodeWith(x string) string {
	return pipeline([]string{"decode decode", x, "encode encode"},
		[]string{"input_0:chunks decode:chunks", "decode:frames x:frames", "x:frames encode:frames", "encode:chunks output_0:chunks"})
}

// transcodeBy is decode -> encode with the given streams in place of its own.
func transcodeBy(streams ...string) string {
	return pipeline([]string{"decode decode", "encode encode"}, streams)
}

func TestValidateReportsEveryProblem(t *testing.T) {
	const (
		in      = "input_0:chunks decode:chunks"
		between = "decode:frames encode:frames"
		out     = "encode:chunks output_0:chunks"
	)
	twoDecodes := []string{"d0 decode", "d1 decode", "mix blend", "encode encode"}
	tests := []struct{ name, text string }{
		{"no nodes", pipeline(nil, nil)},
		{"nothing at all", "{}"},
		{"a node without a name or a stage", transcodeWith(`{"config": {}}`)},
		{"a node name with a space", pipeline([]string{`{"name": "de code", "stage": "decode"}`, "encode encode"},
			[]string{`{"src": "input_0:chunks", "dst": "de code:chunks"}`, `{"src": "de code:frames", "dst": "encode:frames"}`, out})},
		{"a node named like an input", pipeline([]string{"input_0 decode", "output_12 encode", "encode encode", "decode decode"}, []string{in, between, out})},
		{"two nodes of one name", pipeline([]string{"decode decode", "encode encode", "decode decode"}, []string{in, between, out})},
		{"one node for two outputs of the pipeline", transcodeBy(in, between, out, "encode:chunks output_1:chunks")},
		{"a node that emits two kinds of items", pipeline([]string{"decode decode", `{"name": "x", "stage": "exec", "config": {"command": ["true"]}}`, "encode encode"},
			[]string{in, "decode:frames x:frames", "x:frames encode:frames", "x:images output_1:images", out})},
		{"an unknown stage", transcodeWith("x fliter")},
		{"a stage that is nothing like any", transcodeWith("x transmogrify")},
		{"an unknown delivery function", transcodeWith(`{"name": "x", "stage": "scale", "config": {"width": 2}, "delivery_function": "pairs_delivery_func"}`)},
		{"an unknown parameter", transcodeWith(`{"name": "x", "stage": "filter", "config": {"vf": "null", "vfx": "null", "size": 2}}`)},
		{"a missing parameter", transcodeWith("x filter")},
		{"parameters of the wrong type", pipeline([]string{
			"decode decode",
			`{"name": "s", "stage": "scale", "config": {"width": "640", "height": 1.5}}`,
			`{"name": "f", "stage": "filter", "config": {"vf": ["null"]}}`,
			`{"name": "x", "stage": "exec", "config": {"command": "ffmpeg"}}`,
			`{"name": "encode", "stage": "encode", "config": {"crf": "high", "closed_gop": 1, "preset": "slo", "codec": null}}`,
			`{"name": "stills", "stage": "thumbnails", "config": {"interval": "10"}}`,
		}, []string{
			in, "decode:frames s:frames", "s:frames f:frames", "f:frames x:frames", "x:frames encode:frames", out,
			"decode:frames stills:frames", "stills:images output_1:images",
		})},
		{"parameters out of range", pipeline([]string{
			"decode decode",
			`{"name": "s", "stage": "scale", "config": {"width": 70000, "height": -3}}`,
			`{"name": "encode", "stage": "encode", "parameters": {"crf": 51.5, "preset": "placebo"}}`,
			`{"name": "stills", "stage": "thumbnails", "config": {"interval": "1ms"}}`,
		}, []string{in, "decode:frames s:frames", "s:frames encode:frames", out, "decode:frames stills:frames", "stills:images output_1:images"})},
		{"parameters that do not go together", transcodeWith(`{"name": "x", "stage": "scale", "config": {"height": -2}}`)},
		{"a parameter that only the stage can judge", transcodeWith(`{"name": "x", "stage": "scale", "config": {"width": 2, "height": 0}}`)},
		{"malformed endpoints", transcodeBy("input_0 decode:chunks", "decode:frames:0 encode:frames", "encode:chunks output_0:", ":frames encode:frames")},
		{"streams without ends", transcodeBy(in, between, out, "{}")},
		{"unknown nodes with a likely meaning", transcodeBy("input0:chunks decode:chunks", "decoed:frames encode:frames", "encode:chunks output0:chunks")},
		{"unknown nodes without one", transcodeBy(in, between, out, "somewhere:frames elsewhere:frames", "input_00:chunks encode:frames")},
		{"an unknown data type", transcodeBy(in, "decode:frame encode:pictures", out)},
		{"endpoints that a stage does not have", transcodeBy(in, "decode:frames encode:frames_0", "encode:images output_0:images")},
		{"an input port as a source", transcodeBy(in, "encode:frames decode:chunks", out)},
		{"an input as a destination and an output as a source", transcodeBy(in, between, out, "output_0:chunks decode:chunks", "encode:chunks input_1:chunks")},
		{"a type mismatch", transcodeBy(in, "input_0:chunks encode:frames", "decode:frames output_0:chunks")},
		{"two writers on one endpoint", pipeline([]string{"a decode", "b decode", "encode encode"},
			[]string{"input_0:chunks a:chunks", "input_1:chunks b:chunks", "a:frames encode:frames", "b:frames encode:frames", out})},
		{"two writers on one output", pipeline([]string{"decode decode", "encode encode", "stills thumbnails"},
			[]string{in, between, out, "decode:frames stills:frames", "stills:images output_0:images"})},
		{"the same stream twice", transcodeBy(in, between, between, out)},
		{"a required port left open", pipeline(twoDecodes, []string{
			"input_0:chunks d0:chunks", "input_1:chunks d1:chunks", "mix:frames encode:frames", out,
		})},
		{"a second port left open", pipeline(twoDecodes, []string{
			"input_0:chunks d0:chunks", "input_1:chunks d1:chunks", "d1:frames mix:frames_1", "mix:frames encode:frames", out,
			"d0:frames mix:frames_2",
		})},
		{"a gap in a repeated port", pipeline([]string{"decode decode", "mosaic mosaic", "encode encode"}, []string{
			in, "decode:frames mosaic:frames_0", "decode:frames mosaic:frames_9", "decode:frames mosaic:frames_2", "mosaic:frames encode:frames", out,
		})},
		{"a gap in the inputs and the outputs", transcodeBy("input_1:chunks decode:chunks", between, "encode:chunks output_3:chunks")},
		{"no output", transcodeBy(in, between)},
		{"frames for an output and frames from an input", transcodeBy("input_0:frames encode:frames", "decode:frames output_0:frames")},
		{"a node whose output goes nowhere", pipeline([]string{"decode decode", "encode encode", "side thumbnails",
			`{"name": "x", "stage": "exec", "config": {"command": ["true"]}}`},
			[]string{in, between, out, "decode:frames side:frames", "decode:frames x:frames"})},
		{"a node that no input leads to", pipeline([]string{"decode decode", "encode encode",
			`{"name": "x", "stage": "exec", "config": {"command": ["true"]}}`, "more encode"},
			[]string{in, between, out, "x:frames more:frames", "more:chunks output_1:chunks"})},
		{"a straight way from input to output", transcodeBy(in, between, out, "input_1:chunks output_1:chunks")},
		{"a node that feeds itself", pipeline([]string{"decode decode", "mix blend", "encode encode"},
			[]string{in, "decode:frames mix:frames_0", "mix:frames mix:frames_1", "mix:frames encode:frames", out})},
		{"two circles", pipeline([]string{"decode decode", "a blend", "b overlay", "encode encode", `{"name": "c", "stage": "filter", "config": {"vf": "null"}}`,
			`{"name": "d", "stage": "filter", "config": {"vf": "null"}}`, "stills thumbnails"},
			[]string{in, "decode:frames a:frames_0", "decode:frames b:frames_0", "a:frames b:frames_1", "b:frames a:frames_1", "b:frames encode:frames", out,
				"c:frames d:frames", "d:frames c:frames", "d:frames stills:frames", "stills:images output_1:images"})},
		{"wrong stream options", transcodeBy(in, `{"src": "decode:frames", "dst": "encode:frames", "options": {"frame.format": "png", "frames.format": "gif", "keep": "yes"}}`, out)},
	}
	var all strings.Builder
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec, err := ParseSpec("spec.json", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			err = spec.Validate(testCatalog())
			var specErr *SpecError
			if !errors.As(err, &specErr) {
				t.Fatalf("got %v, want a *SpecError", err)
			}
			if !slices.IsSortedFunc(specErr.Problems, func(a, b Problem) int { return 1000*(a.Line-b.Line) + a.Col - b.Col }) {
				t.Error("the problems are not in the order of the text")
			}
			all.WriteString("# " + test.name + "\n" + err.Error() + "\n\n")
		})
	}
	golden(t, "validate_errors.txt", all.String())
}

func TestValidateAcceptsWhatIsUnusualButRight(t *testing.T) {
	tests := []struct{ name, text string }{
		{"a source with several destinations", pipeline([]string{"decode decode", "mix blend", "encode encode", "stills thumbnails"}, []string{
			"input_0:chunks decode:chunks", "decode:frames mix:frames_0", "decode:frames mix:frames_1", "mix:frames encode:frames",
			"decode:frames stills:frames", "encode:chunks output_0:chunks", "stills:images output_1:images",
		})},
		{"the inputs in any order", pipeline([]string{"a decode", "b decode", "mix blend", "encode encode"}, []string{
			"input_1:chunks a:chunks", "input_0:chunks b:chunks", "b:frames mix:frames_1", "a:frames mix:frames_0", "mix:frames encode:frames", "encode:chunks output_0:chunks",
		})},
		{"a stage that works on chunks", pipeline([]string{`{"name": "x", "stage": "exec", "config": {"command": ["cat"]}}`}, []string{
			"input_0:chunks x:chunks", "x:chunks output_0:chunks",
		})},
		{"a port with any number of endpoints", pipeline([]string{"decode decode", "mosaic mosaic", "encode encode"}, []string{
			"input_0:chunks decode:chunks", "decode:frames mosaic:frames_1", "decode:frames mosaic:frames_0", "decode:frames mosaic:frames_2",
			"mosaic:frames encode:frames", "encode:chunks output_0:chunks",
		})},
		{"numbers that are whole in another form", transcodeWith(`{"name": "x", "stage": "scale", "config": {"width": 6.4e2, "height": 480.0}}`)},
		{"stream options", transcodeBy("input_0:chunks decode:chunks",
			`{"src": "decode:frames", "dst": "encode:frames", "options": {"frames.format": "png", "keep": true}}`, "encode:chunks output_0:chunks")},
		{"a delivery function by its short name", transcodeWith(`{"name": "x", "stage": "scale", "config": {"width": 2}, "delivery_function": "frames"}`)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec, err := ParseSpec("spec.json", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if err := spec.Validate(testCatalog()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNormalizeDeliveryCutsTheSuffixes(t *testing.T) {
	for name, want := range map[string]string{
		"pair_delivery_func": "pair", "pair_deliver_func": "pair", "pair": "pair", "": "", "_delivery_func": "_delivery_func",
	} {
		if got := NormalizeDelivery(name); got != want {
			t.Errorf("NormalizeDelivery(%q) = %q, want %q", name, got, want)
		}
	}
}

// randomPipeline builds a valid pipeline: every node takes the frames of nodes
// before it, and what nobody took is encoded.
func randomPipeline(t *rapid.T) *Spec {
	s := &Spec{Name: rapid.String().Draw(t, "name"), Nodes: []NodeSpec{}, Streams: []StreamSpec{}}
	connect := func(from, to string) {
		s.Streams = append(s.Streams, StreamSpec{Src: Endpoint(from), Dst: Endpoint(to)})
	}
	var sources []string
	unused := map[string]bool{}
	add := func(stage string, config map[string]json.RawMessage) string {
		name := fmt.Sprintf("%s-%d", stage, len(s.Nodes))
		s.Nodes = append(s.Nodes, NodeSpec{Name: name, Stage: stage, Config: config})
		if stage != "encode" {
			sources = append(sources, name+":frames")
			unused[name+":frames"] = true
		}
		return name
	}
	take := func() string {
		source := rapid.SampledFrom(sources).Draw(t, "source")
		delete(unused, source)
		return source
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "inputs") {
		connect(fmt.Sprintf("input_%d:chunks", i), add("decode", nil)+":chunks")
	}
	for range rapid.IntRange(0, 8).Draw(t, "nodes") {
		switch stage := rapid.SampledFrom([]string{"filter", "scale", "blend", "mosaic"}).Draw(t, "stage"); stage {
		case "filter":
			from := take()
			vf, err := json.Marshal(rapid.String().Draw(t, "vf"))
			if err != nil {
				t.Fatal(err)
			}
			connect(from, add(stage, map[string]json.RawMessage{"vf": vf})+":frames")
		case "scale":
			from := take()
			width := rapid.IntRange(1, 16384).Draw(t, "width")
			connect(from, add(stage, map[string]json.RawMessage{"width": json.RawMessage(fmt.Sprint(width))})+":frames")
		default:
			n := 2
			if stage == "mosaic" {
				n = rapid.IntRange(1, 4).Draw(t, "tiles")
			}
			var from []string
			for range n {
				from = append(from, take())
			}
			name := add(stage, nil)
			for i, source := range from {
				connect(source, fmt.Sprintf("%s:frames_%d", name, i))
			}
		}
	}
	for i, source := range sortedKeys(unused) {
		encode := add("encode", nil)
		connect(source, encode+":frames")
		connect(encode+":chunks", fmt.Sprintf("output_%d:chunks", i))
	}
	return s
}

func TestRandomPipelinesAreValidAndSurviveTheirJSONForm(t *testing.T) {
	c := testCatalog()
	rapid.Check(t, func(t *rapid.T) {
		spec := randomPipeline(t)
		spec.Streams = rapid.Permutation(spec.Streams).Draw(t, "streams")
		if err := spec.Validate(c); err != nil {
			t.Fatal(err)
		}
		again := roundTrip(t, spec)
		if diff := cmp.Diff(spec, again, cmpopts.IgnoreUnexported(Spec{}), cmp.Comparer(sameJSON)); diff != "" {
			t.Fatal(diff)
		}
		if err := again.Validate(c); err != nil {
			t.Fatal(err)
		}
		svg, err := spec.SVG(c)
		if err != nil {
			t.Fatal(err)
		}
		checkXML(t, svg)
	})
}

// sameJSON compares values, numbers by their digits.
func sameJSON(a, b json.RawMessage) bool {
	var values [2]any
	for i, raw := range []json.RawMessage{a, b} {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if d.Decode(&values[i]) != nil {
			return false
		}
	}
	return cmp.Equal(values[0], values[1])
}

func TestAnyBrokenStreamMakesAPipelineInvalid(t *testing.T) {
	c := testCatalog()
	rapid.Check(t, func(t *rapid.T) {
		spec := randomPipeline(t)
		st := &spec.Streams[rapid.IntRange(0, len(spec.Streams)-1).Draw(t, "stream")]
		e := &st.Src
		if rapid.Bool().Draw(t, "dst") {
			e = &st.Dst
		}
		*e = Endpoint(rapid.SampledFrom([]string{
			"", "nobody:frames", string(*e) + ":", "x" + string(*e), e.Node(), e.Node() + ":sounds", e.Node() + ":frames_77",
		}).Draw(t, "endpoint"))
		if e.ID() == "frames_77" && strings.HasPrefix(e.Node(), "mosaic") {
			return // a gap, or nothing wrong at all
		}
		if err := spec.Validate(c); err == nil {
			t.Fatalf("a stream from %q to %q was accepted", st.Src, st.Dst)
		}
	})
}

func TestRandomSpecsNeverPanic(t *testing.T) {
	c := testCatalog()
	word := rapid.SampledFrom([]string{"", "a", "b", "decode", "encode", "mosaic", "blend", "exec", "input_0", "output_0", "input_9999", "frames", "chunks", "x y", ":"})
	id := rapid.SampledFrom([]string{"frames", "chunks", "images", "frames_0", "frames_1", "frames_9999", "frames_", "_0", "", "a:b"})
	value := rapid.SampledFrom([]string{`1`, `"x"`, `null`, `[]`, `["a", null]`, `{}`, `1e999`, `-0`, `true`, ``})
	config := rapid.MapOfN(rapid.SampledFrom([]string{"vf", "width", "crf", "command", "interval", "frames.format", ""}),
		rapid.Map(value, func(s string) json.RawMessage { return json.RawMessage(s) }), 0, 3)
	endpoint := rapid.Custom(func(t *rapid.T) Endpoint {
		return Endpoint(word.Draw(t, "node") + ":" + id.Draw(t, "id"))
	})
	rapid.Check(t, func(t *rapid.T) {
		spec := &Spec{
			Nodes: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) NodeSpec {
				return NodeSpec{Name: word.Draw(t, "name"), Stage: word.Draw(t, "stage"), Config: config.Draw(t, "config"), DeliveryFunction: word.Draw(t, "delivery")}
			}), 0, 6).Draw(t, "nodes"),
			Streams: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) StreamSpec {
				return StreamSpec{Src: endpoint.Draw(t, "src"), Dst: endpoint.Draw(t, "dst"), Options: config.Draw(t, "options")}
			}), 0, 8).Draw(t, "streams"),
		}
		err := spec.Validate(c)
		var specErr *SpecError
		if err != nil && (!errors.As(err, &specErr) || len(specErr.Problems) == 0) {
			t.Fatalf("error without problems: %v", err)
		}
		_ = spec.DOT(c)
		if svg, err := spec.SVG(c); err == nil {
			checkXML(t, svg)
		}
	})
}
