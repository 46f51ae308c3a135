package sprocket_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/media"
)

// film is an input of 25 frames a second and the given number of seconds.
func film(name string, seconds int64) sprocket.InputMedia {
	frames := make([]int64, seconds*25)
	for i := range frames {
		frames[i] = int64(i)
	}
	return sprocket.InputMedia{
		Name: name, EndPTS: seconds * 25, Index: media.NewIndex(frames[:min(1, len(frames))], frames), Audio: true,
		Pixels: sprocket.Pixels{Width: 64, Height: 36, Format: "yuv420p"},
		Clock:  sprocket.Clock{TimeBase: rational(1, 25), Rate: rational(25, 1), Constant: true},
	}
}

// spec makes a pipespec of nodes, "name stage [delivery [function]]", and
// streams, "a:x b:y [format]".
func spec(t *testing.T, nodes, streams string) *sprocket.Spec {
	t.Helper()
	s := &sprocket.Spec{}
	for line := range strings.SplitSeq(nodes, ";") {
		f := append(strings.Fields(line), "", "")
		n := sprocket.NodeSpec{Name: f[0], Stage: f[1], DeliveryFunction: strings.TrimPrefix(f[2], "-"), Function: f[3]}
		switch n.Stage {
		case "filter":
			n.Config = map[string]json.RawMessage{"vf": json.RawMessage(`"null"`)}
		case "exec":
			n.Config = map[string]json.RawMessage{"command": json.RawMessage(`["true"]`)}
		}
		s.Nodes = append(s.Nodes, n)
	}
	for line := range strings.SplitSeq(streams, ";") {
		f := strings.Fields(line)
		st := sprocket.StreamSpec{Src: sprocket.Endpoint(f[0]), Dst: sprocket.Endpoint(f[1])}
		if len(f) > 2 {
			st.Options = map[string]json.RawMessage{"frames.format": json.RawMessage(fmt.Sprintf("%q", f[2]))}
		}
		s.Streams = append(s.Streams, st)
	}
	return s
}

func plan(t *testing.T, s *sprocket.Spec, opts sprocket.PlanOptions, inputs ...sprocket.InputMedia) *sprocket.Plan {
	t.Helper()
	if err := s.Validate(realCatalog()); err != nil {
		t.Fatal(err)
	}
	p, err := sprocket.BuildPlan(s, realCatalog(), inputs, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func names(p *sprocket.Plan) []string {
	var out []string
	for _, n := range p.Nodes {
		out = append(out, n.Name)
	}
	return out
}

func TestStagesFuseWhereTheStepIsOneToOne(t *testing.T) {
	const chain = "input_0:chunks d:chunks; d:frames f:frames; f:frames e:frames; e:chunks output_0:chunks"
	for _, tc := range []struct {
		name           string
		nodes, streams string
		noFuse         bool
		inputs         int
		want           []string
	}{
		{"a chain becomes one node", "d decode; f filter; e encode", chain, false, 1, []string{"d+f+e"}},
		{"NoFuse keeps all apart", "d decode; f filter; e encode", chain, true, 1, []string{"d", "f", "e"}},
		{"text order does not matter", "e encode; f filter; d decode", chain, false, 1, []string{"d+f+e"}},
		{"the second stage regroups", "d decode; f filter frames; e encode", chain, false, 1, []string{"d", "f+e"}},
		{"the last stage regroups", "d decode; f filter; e encode scene", chain, false, 1, []string{"d+f", "e"}},
		{"the thesis's name of default", "d decode; f filter default_delivery_func; e encode", chain, false, 1, []string{"d+f+e"}},
		{"another function", "d decode - one; f filter - one; e encode - two", chain, false, 1, []string{"d+f", "e"}},
		{"a format is named on a stream", "d decode; f filter; e encode", strings.Replace(chain, "f:frames;", "f:frames ffv1;", 1), false, 1, []string{"d", "f+e"}},
		{"a stage is no FFmpeg filter", "d decode; f exec; e encode", chain, false, 1, []string{"d", "f", "e"}},
		{
			"two consumers (broadcast)", "d decode; e encode; n thumbnails",
			"input_0:chunks d:chunks; d:frames e:frames; d:frames n:frames; e:chunks output_0:chunks; n:images output_1:images",
			false, 1, []string{"d", "e", "n"},
		},
		{
			"a join is not fused with what feeds it", "a decode; b decode; j blend; e encode",
			"input_0:chunks a:chunks; input_1:chunks b:chunks; a:frames j:frames_0; b:frames j:frames_1; j:frames e:frames; e:chunks output_0:chunks",
			false, 2, []string{"a", "b", "j+e"},
		},
		{
			"frames that leave the pipeline and go on", "d decode; e encode",
			"input_0:chunks d:chunks; d:frames e:frames; d:frames output_1:frames; e:chunks output_0:chunks",
			false, 1, []string{"d", "e"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var inputs []sprocket.InputMedia
			for i := range tc.inputs {
				inputs = append(inputs, film(fmt.Sprint(i), 4))
			}
			s := spec(t, tc.nodes, tc.streams)
			p, err := sprocket.BuildPlan(s, realCatalog(), inputs, sprocket.PlanOptions{NoFuse: tc.noFuse, Workers: 2, FramesFormat: "raw"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, names(p)); diff != "" {
				t.Errorf("nodes (-want +got):\n%s", diff)
			}
			checkShape(t, s, p)
		})
	}
}

// checkShape fails unless nodes come after those that feed them, depths are the
// longest ways, outputs are where the plan says, and every stage is in exactly
// one node.
func checkShape(t *testing.T, s *sprocket.Spec, p *sprocket.Plan) {
	t.Helper()
	seen := map[string]int{}
	for i, n := range p.Nodes {
		depth, follows := 0, -1
		for _, up := range n.Upstreams {
			if up.Node >= i {
				t.Errorf("node %s (%d) is fed by node %d: not in topological order", n.Name, i, up.Node)
				continue
			}
			f := up.Input
			if up.Node >= 0 {
				depth = max(depth, p.Nodes[up.Node].Depth+1)
				f = p.Nodes[up.Node].Follows
			}
			if follows < 0 || f < follows {
				follows = f
			}
		}
		if n.Depth != depth || n.Follows != follows {
			t.Errorf("node %s has depth %d and follows input %d, want %d and %d", n.Name, n.Depth, n.Follows, depth, follows)
		}
		if n.OutputIndex >= 0 && p.Outputs[n.OutputIndex].Node != i {
			t.Errorf("node %s writes output %d, but that comes from node %d", n.Name, n.OutputIndex, p.Outputs[n.OutputIndex].Node)
		}
		var parts []string
		for _, u := range n.Stages {
			seen[u.Node]++
			parts = append(parts, u.Node)
		}
		if n.Name != strings.Join(parts, "+") {
			t.Errorf("node %s is made of %v", n.Name, parts)
		}
	}
	for _, n := range s.Nodes {
		if seen[n.Name] != 1 {
			t.Errorf("stage %s is in %d nodes", n.Name, seen[n.Name])
		}
	}
}

func TestAFusedNodeTakesItsInputFromTheFirstStage(t *testing.T) {
	s := spec(t, "a decode; j filter frames; e encode",
		"input_0:chunks a:chunks; a:frames j:frames png; j:frames e:frames; e:chunks output_0:chunks")
	s.Nodes[1].Config["frames_per_task"] = json.RawMessage("7")
	p := plan(t, s, sprocket.PlanOptions{Workers: 1, FramesFormat: "raw"}, film("a", 3))
	if n := p.Nodes[0]; n.Format != "png" || n.Output != sprocket.Frames || n.OutputIndex != -1 {
		t.Errorf("first node: format %q, output %q %d", n.Format, n.Output, n.OutputIndex)
	}
	n := p.Nodes[1]
	if n.Delivery != "frames" || n.FramesPerTask != 7 || n.Output != sprocket.Chunks || n.OutputIndex != 0 {
		t.Errorf("fused node: delivery %q of %d frames, output %q %d", n.Delivery, n.FramesPerTask, n.Output, n.OutputIndex)
	}
	if want := []sprocket.Upstream{{Port: "frames", Type: sprocket.Frames, Node: 0}}; !cmp.Equal(n.Upstreams, want) {
		t.Errorf("fused node is fed by %+v", n.Upstreams)
	}
	if p.AudioInput != 0 {
		t.Errorf("sound comes from input %d", p.AudioInput)
	}
}

const blended = "input_0:chunks a:chunks; input_1:chunks b:chunks; a:frames j:frames_0; b:frames j:frames_1; j:frames e:frames; e:chunks output_0:chunks"

func TestTheOutputEndsAsTheStageAsks(t *testing.T) {
	for _, tc := range []struct {
		name          string
		first, second int64
		rule          string
		seconds       float64
		whole         bool // the last chunk reads the first input to its end
	}{
		{"the shortest is the second", 8, 5, "", 5, false},
		{"the shortest is the first", 5, 8, "", 5, true},
		{"the first, though the second is shorter", 8, 5, "first", 8, true},
		{"the first, which is the shortest", 5, 8, "first", 5, true},
		{"both the same", 6, 6, "", 6, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec(t, "a decode; b decode; j blend; e encode", blended)
			if tc.rule != "" {
				s.Nodes[2].Config = map[string]json.RawMessage{"end": json.RawMessage(fmt.Sprintf("%q", tc.rule))}
			}
			a, b := film("a", tc.first), film("b", tc.second)
			a.Audio = false
			p := plan(t, s, sprocket.PlanOptions{Workers: 2}, a, b)
			if got := p.TimeBase.Seconds(p.End - p.Start); got != tc.seconds {
				t.Errorf("the output lasts %.3f s, want %.3f", got, tc.seconds)
			}
			last := p.Chunks[0][len(p.Chunks[0])-1].Source
			if last.Last != tc.whole {
				t.Errorf("the last chunk is %+v", last)
			}
			if got := p.Shortened(0, a.EndPTS); got != (tc.seconds < float64(tc.first)) {
				t.Errorf("input a is shortened: %v", got)
			}
			if p.AudioInput != 1 {
				t.Errorf("sound comes from input %d; only 1 has any", p.AudioInput)
			}
			if len(p.Chunks[0]) != len(p.Chunks[1]) {
				t.Errorf("%d and %d chunks", len(p.Chunks[0]), len(p.Chunks[1]))
			}
		})
	}
}

func TestTheFirstStreamOfAStageSetsTheClock(t *testing.T) {
	crossed := strings.NewReplacer("frames_0", "frames_1", "frames_1", "frames_0").Replace(blended)
	fast := film("fast", 4)
	fast.Clock.Rate = rational(50, 1)
	fast.Clock.TimeBase = rational(1, 50)
	fast.EndPTS *= 2
	p := plan(t, spec(t, "a decode; b decode; j blend; e encode", crossed), sprocket.PlanOptions{Workers: 2}, film("slow", 4), fast)
	if got := p.Nodes[p.Outputs[0].Node].Follows; got != 1 {
		t.Errorf("the output follows input %d, want 1, which feeds the first stream", got)
	}
	if step := p.Clocks[1].FrameTicks(p.TimeBase); p.TimeBase.Seconds(step) != 0.02 {
		t.Errorf("a frame of the output lasts %d ticks of %v s, want 0.02 s", step, p.TimeBase)
	}
	first := p.Chunks[1][0]
	if p.Chunks[0][0].Start != first.Start || p.Chunks[0][0].End != first.End {
		t.Errorf("the inputs are cut differently: %+v and %+v", p.Chunks[0][0], first)
	}
}

func TestInputsThatNeverMeetAreCutByThemselves(t *testing.T) {
	s := spec(t, "a decode; b decode; e encode; f encode",
		"input_0:chunks a:chunks; input_1:chunks b:chunks; a:frames e:frames; b:frames f:frames; e:chunks output_0:chunks; f:chunks output_1:chunks")
	p := plan(t, s, sprocket.PlanOptions{Workers: 2}, film("a", 3), film("b", 30))
	if len(p.Chunks[0]) >= len(p.Chunks[1]) {
		t.Errorf("%d chunks of 3 s, %d of 30 s", len(p.Chunks[0]), len(p.Chunks[1]))
	}
	for i, seconds := range []float64{3, 30} {
		items := p.Chunks[i]
		last := items[len(items)-1]
		if got := p.TimeBase.Seconds(last.End - items[0].Start); got != seconds || !last.Source.Last {
			t.Errorf("input %d is cut over %.3f s, to its end: %v", i, got, last.Source.Last)
		}
	}
	if got := names(p); !slices.Equal(got, []string{"a+e", "b+f"}) {
		t.Errorf("nodes %v", got)
	}
	if p.Nodes[0].Follows != 0 || p.Nodes[1].Follows != 1 {
		t.Errorf("nodes follow %d and %d", p.Nodes[0].Follows, p.Nodes[1].Follows)
	}
}

func TestPlanRefuses(t *testing.T) {
	simple := spec(t, "d decode; e encode", "input_0:chunks d:chunks; d:frames e:frames; e:chunks output_0:chunks")
	late := film("late", 2)
	late.Clock.OriginPTS = -250 // the picture comes ten seconds after the sound
	for _, tc := range []struct {
		name   string
		spec   *sprocket.Spec
		inputs []sprocket.InputMedia
		want   string
	}{
		{"too few inputs", simple, nil, "takes 1 inputs, 0 given"},
		{"too many inputs", simple, []sprocket.InputMedia{film("a", 1), film("b", 1)}, "takes 1 inputs, 2 given"},
		{"an input without frames", simple, []sprocket.InputMedia{film("void", 0)}, "input void has no frames"},
		{
			"a node with two kinds of output",
			spec(t, "d decode; x exec; e encode", "input_0:chunks d:chunks; d:frames x:frames; x:frames e:frames; x:images output_1:images; e:chunks output_0:chunks"),
			[]sprocket.InputMedia{film("a", 1)}, "node x: emits both",
		},
		{
			"a circle", spec(t, "f filter; g filter", "f:frames g:frames; g:frames f:frames"), nil, "cycle",
		},
		{
			"inputs that do not overlap", spec(t, "a decode; b decode; j blend; e encode", blended),
			[]sprocket.InputMedia{late, film("early", 2)}, "starts after another one has ended",
		},
		{
			"two joins that want different clocks",
			spec(t, "a decode; b decode; j blend; k blend; e encode; f encode",
				blended+"; a:frames k:frames_1; b:frames k:frames_0; k:frames f:frames; f:chunks output_1:chunks"),
			[]sprocket.InputMedia{film("a", 2), film("b", 2)}, "its first stream comes from b",
		},
		{
			"a parameter that is missing",
			&sprocket.Spec{Nodes: []sprocket.NodeSpec{{Name: "f", Stage: "filter"}}}, nil, "vf",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := sprocket.BuildPlan(tc.spec, realCatalog(), tc.inputs, sprocket.PlanOptions{Workers: 1})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("BuildPlan: %v; want an error with %q", err, tc.want)
			}
		})
	}
}

func TestAPlanSurvivesJSON(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := anyClip(rt)
		p, err := sprocket.BuildPlan(builtin(t, "grayscale"), realCatalog(), []sprocket.InputMedia{c.media}, planOptions(rt))
		if err != nil {
			rt.Fatal(err)
		}
		text, err := json.Marshal(p)
		if err != nil {
			rt.Fatal(err)
		}
		var again sprocket.Plan
		if err := json.Unmarshal(text, &again); err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(*p, again, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("the plan changed (-was +is):\n%s", diff)
		}
	})
}

func TestATaskKnowsItsRangeAndFirstChunk(t *testing.T) {
	task := sprocket.Task{Inputs: [][]sprocket.Item{
		{{Chunk: 3, Start: 30, End: 40}, {Chunk: 2, Start: 20, End: 30}},
		{{Chunk: 5, Start: 25, End: 55, Frames: []sprocket.FrameRange{{PTS: []int64{1, 2}}, {PTS: []int64{3}}}}},
	}}
	if start, end := task.Range(); start != 20 || end != 55 {
		t.Errorf("Range = %d, %d", start, end)
	}
	if got := task.Chunk(); got != 2 {
		t.Errorf("Chunk = %d", got)
	}
	if got := task.Inputs[1][0].FrameCount(); got != 3 {
		t.Errorf("FrameCount = %d", got)
	}
	var none sprocket.Task
	if start, end := none.Range(); start != 0 || end != 0 || none.Chunk() != 0 {
		t.Error("a task without input has a range")
	}
}

func TestPortsAreInTheOrderOfTheirNumbers(t *testing.T) {
	catalog := realCatalog()
	catalog.Stages["mosaic"] = sprocket.StageInfo{
		Name: "mosaic", Delivery: "pair", Inputs: []sprocket.Port{{Name: "frames", Type: sprocket.Frames, Min: 1, Max: -1}},
		Outputs: []sprocket.Port{{Name: "frames", Type: sprocket.Frames, Min: 1, Max: 1}},
	}
	nodes, streams := "m mosaic; e encode", "m:frames e:frames; e:chunks output_0:chunks"
	var inputs []sprocket.InputMedia
	for i := range 12 {
		nodes += fmt.Sprintf("; d%d decode", i)
		streams = fmt.Sprintf("input_%d:chunks d%d:chunks; d%d:frames m:frames_%d; ", i, i, i, i) + streams
		inputs = append(inputs, film(fmt.Sprint(i), 2))
	}
	p, err := sprocket.BuildPlan(spec(t, nodes, streams), catalog, inputs, sprocket.PlanOptions{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Nodes, func(n sprocket.Node) bool { return strings.HasPrefix(n.Name, "m") })
	for k, up := range p.Nodes[i].Upstreams {
		if up.Port != fmt.Sprintf("frames_%d", k) {
			t.Errorf("port %d is %s", k, up.Port)
		}
	}
}
