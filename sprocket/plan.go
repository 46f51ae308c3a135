package sprocket

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// InputMedia is what planning must know of a probed input.
type InputMedia struct {
	// Name is for messages.
	Name   string
	Pixels Pixels
	Clock  Clock
	// EndPTS is the end of the last frame in the input's time base, as far as
	// the container tells.
	EndPTS int64
	Index  FrameIndex
	// Audio says that the input has sound.
	Audio bool
}

// PlanOptions steer BuildPlan.
type PlanOptions struct {
	// Chunk is the length of a chunk; 0 lets the plan choose lengths by the
	// inputs' key frames and the number of workers.
	Chunk time.Duration
	// Workers is how many tasks can run at once.
	Workers int
	// NoFuse gives every stage workers of its own.
	NoFuse bool
	// FramesFormat is the hand-over format of streams that name none.
	FramesFormat string
}

// Plan is the physical plan of one run: what tasks will be made of, and where
// the inputs are cut. It is plain data, stored with the run so that a resumed
// run does the same.
type Plan struct {
	// TimeBase is that of every Item.
	TimeBase Rational `json:"time_base"`
	// Clocks and Pixels describe the inputs, by index.
	Clocks []Clock  `json:"clocks"`
	Pixels []Pixels `json:"pixels"`
	// Chunks are the items that each input gives.
	Chunks [][]Item `json:"chunks"`
	// Start and End are the time that the output covers.
	Start int64 `json:"start"`
	End   int64 `json:"end"`
	// Nodes are in topological order.
	Nodes []Node `json:"nodes"`
	// Outputs are what leaves the graph, by index of output_N.
	Outputs []Output `json:"outputs"`
	// AudioInput is the input whose sound is carried over, -1 for none.
	AudioInput int `json:"audio_input"`
}

// Node is a vertex of the physical graph: one stage, or several in a row that
// share a worker.
type Node struct {
	// Name is the stages' node names joined by "+".
	Name   string     `json:"name"`
	Stages []StageUse `json:"stages"`
	// Delivery decides which items make a task.
	Delivery string `json:"delivery"`
	// FramesPerTask is the N of the delivery function "frames".
	FramesPerTask int `json:"frames_per_task,omitempty"`
	// Upstreams are what feeds the node, in port order.
	Upstreams []Upstream `json:"upstreams"`
	// Output is the type of what the node emits; Format how frames are handed
	// over.
	Output DataType `json:"output"`
	Format string   `json:"format,omitempty"`
	// OutputIndex is N if the node writes output_N, else -1.
	OutputIndex int `json:"output_index"`
	// Depth is the longest way from an input, for priorities.
	Depth int `json:"depth"`
	// Follows is the input whose clock the node's output follows.
	Follows  int    `json:"follows"`
	Function string `json:"function,omitempty"`
}

// StageUse is a stage with its resolved parameters.
type StageUse struct {
	Node   string `json:"node"`
	Stage  string `json:"stage"`
	Params Params `json:"params"`
}

// Upstream is one incoming stream of a Node.
type Upstream struct {
	// Port is the endpoint's identifier, "frames_0".
	Port string   `json:"port"`
	Type DataType `json:"type"`
	// Node is the index of the node that feeds it, or -1 for input Input.
	Node  int `json:"node"`
	Input int `json:"input"`
}

// Output is one external output.
type Output struct {
	Type DataType `json:"type"`
	Node int      `json:"node"`
}

// Task is one piece of work for a worker: one delivery at one node.
type Task struct {
	Node int   `json:"node"`
	Seq  int64 `json:"seq"`
	// Inputs are the items, one list per upstream.
	Inputs [][]Item `json:"inputs"`
}

// Range returns the time that the task covers on the output's timeline.
func (t Task) Range() (start, end int64) {
	first := true
	for _, items := range t.Inputs {
		for _, it := range items {
			if first || it.Start < start {
				start = it.Start
			}
			if first || it.End > end {
				end = it.End
			}
			first = false
		}
	}
	return start, end
}

// Chunk returns the lowest chunk that the task's input comes from.
func (t Task) Chunk() int64 {
	chunk, first := int64(0), true
	for _, items := range t.Inputs {
		for _, it := range items {
			if first || it.Chunk < chunk {
				chunk, first = it.Chunk, false
			}
		}
	}
	return chunk
}

// BuildPlan turns a valid spec into a physical plan for these inputs (thesis
// 2.2.1, 2.2.5). The spec must have passed Validate with the same catalog, and
// len(inputs) must be s.Inputs(). Inputs that meet in one stage share a grid:
// that of the stage's first stream sets the clock and the others follow it; the
// output ends with the shortest unless the stage's parameter "end" is "first".
func BuildPlan(s *Spec, c *Catalog, inputs []InputMedia, opts PlanOptions) (*Plan, error) {
	if want := s.Inputs(); len(inputs) != want {
		return nil, fmt.Errorf("plan: the pipeline takes %d inputs, %d given", want, len(inputs))
	}
	p := &Plan{AudioInput: -1}
	if err := p.addNodes(s, c, opts); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if !opts.NoFuse {
		p.fuse(s, c)
	}
	p.markDepth()
	if err := p.cutInputs(inputs, opts); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	for i, out := range p.Outputs {
		if out.Type != Chunks || i > 0 {
			continue
		}
		// Sound goes with the picture it belongs to: the input whose clock the
		// first output follows, else the first one that has any.
		if follows := p.Nodes[out.Node].Follows; inputs[follows].Audio {
			p.AudioInput = follows
		} else {
			p.AudioInput = slices.IndexFunc(inputs, func(in InputMedia) bool { return in.Audio })
		}
	}
	return p, nil
}

// Inputs returns how many external inputs s has.
func (s *Spec) Inputs() int {
	n := 0
	for _, st := range s.Streams {
		if i, ok := st.Src.InputIndex(); ok {
			n = max(n, i+1)
		}
	}
	return n
}

// addNodes makes one Node per stage, in topological order.
func (p *Plan) addNodes(s *Spec, c *Catalog, opts PlanOptions) error {
	order, err := topological(s)
	if err != nil {
		return err
	}
	place := map[string]int{}
	for i, n := range order {
		place[n.Name] = i
	}
	for i, n := range order {
		info := c.Stages[n.Stage]
		params, problems := info.Resolve(n.Config)
		if len(problems) > 0 {
			return fmt.Errorf("node %s: %s", n.Name, problems[0].Message)
		}
		node := Node{
			Name:          n.Name,
			Stages:        []StageUse{{Node: n.Name, Stage: n.Stage, Params: params}},
			Delivery:      NormalizeDelivery(n.DeliveryFunction),
			FramesPerTask: int(params.Int("frames_per_task")),
			OutputIndex:   -1,
			Format:        opts.FramesFormat,
			Function:      n.Function,
		}
		if node.Delivery == "" {
			node.Delivery = info.Delivery
		}
		if node.Delivery == "" {
			node.Delivery = "default"
		}
		for _, st := range s.Streams {
			if st.Dst.Node() == n.Name {
				up := Upstream{Port: st.Dst.ID(), Type: st.Dst.Type(), Node: -1}
				if in, ok := st.Src.InputIndex(); ok {
					up.Input = in
				} else {
					up.Node = place[st.Src.Node()]
				}
				node.Upstreams = append(node.Upstreams, up)
			}
		}
		slices.SortFunc(node.Upstreams, func(a, b Upstream) int { return comparePorts(a.Port, b.Port) })
		if err := node.setOutput(s); err != nil {
			return err
		}
		if out := node.OutputIndex; out >= 0 {
			for len(p.Outputs) <= out {
				p.Outputs = append(p.Outputs, Output{Node: -1})
			}
			p.Outputs[out] = Output{Type: node.Output, Node: i}
		}
		p.Nodes = append(p.Nodes, node)
	}
	return nil
}

// setOutput finds what the node emits from the streams that leave it.
func (n *Node) setOutput(s *Spec) error {
	id := ""
	for _, st := range s.Streams {
		if st.Src.Node() != n.Name {
			continue
		}
		if id != "" && id != st.Src.ID() {
			return fmt.Errorf("node %s: emits both %q and %q; a node can use one kind of output at a time", n.Name, id, st.Src.ID())
		}
		id = st.Src.ID()
		n.Output = st.Src.Type()
		if out, ok := st.Dst.OutputIndex(); ok {
			n.OutputIndex = out
		}
		if f := Params(st.Options).String("frames.format"); f != "" {
			n.Format = f
		}
	}
	return nil
}

// fuse joins each stage with the next where the step is one to one: one edge,
// delivery "default", both stages able to share a process, and no hand-over
// format asked for (DESIGN: "consecutive one-to-one stages").
func (p *Plan) fuse(s *Spec, c *Catalog) {
	pinned := map[string]bool{}
	for _, st := range s.Streams {
		if Params(st.Options).Has("frames.format") {
			pinned[st.Src.Node()] = true
		}
	}
	fusable := func(u StageUse) bool { return c.Stages[u.Stage].Fusable }
	for i := 0; i < len(p.Nodes); i++ {
		down := p.Nodes[i]
		if len(down.Upstreams) != 1 || down.Upstreams[0].Node < 0 || down.Delivery != "default" {
			continue
		}
		j := down.Upstreams[0].Node
		up := p.Nodes[j]
		last := up.Stages[len(up.Stages)-1]
		if p.consumers(j) != 1 || up.OutputIndex >= 0 || pinned[last.Node] || !fusable(last) || !fusable(down.Stages[0]) || up.Function != down.Function {
			continue
		}
		down.Name = up.Name + "+" + down.Name
		down.Stages = append(slices.Clone(up.Stages), down.Stages...)
		down.Delivery, down.FramesPerTask, down.Upstreams = up.Delivery, up.FramesPerTask, up.Upstreams
		p.Nodes[i] = down
		p.removeNode(j)
		i--
	}
}

func (p *Plan) consumers(node int) int {
	n := 0
	for _, other := range p.Nodes {
		for _, up := range other.Upstreams {
			if up.Node == node {
				n++
			}
		}
	}
	return n
}

func (p *Plan) removeNode(gone int) {
	p.Nodes = slices.Delete(p.Nodes, gone, gone+1)
	for i := range p.Nodes {
		p.Nodes[i].Upstreams = slices.Clone(p.Nodes[i].Upstreams)
		for j, up := range p.Nodes[i].Upstreams {
			if up.Node > gone {
				p.Nodes[i].Upstreams[j].Node--
			}
		}
	}
	for i, out := range p.Outputs {
		if out.Node > gone {
			p.Outputs[i].Node--
		}
	}
}

func (p *Plan) markDepth() {
	for i := range p.Nodes {
		n := &p.Nodes[i]
		n.Follows = -1
		for port, up := range n.Upstreams {
			follows := up.Input
			if up.Node >= 0 {
				n.Depth = max(n.Depth, p.Nodes[up.Node].Depth+1)
				follows = p.Nodes[up.Node].Follows
			}
			if port == 0 {
				n.Follows = follows
			}
		}
	}
}

// cutInputs makes the chunk items of every input.
func (p *Plan) cutInputs(inputs []InputMedia, opts PlanOptions) error {
	if len(inputs) == 0 {
		return errors.New("the pipeline has no input")
	}
	leader, err := p.leaders(inputs)
	if err != nil {
		return err
	}
	first := p.Nodes[p.Outputs[0].Node].Follows
	p.TimeBase = timeBaseFor(inputs[first].Clock)
	p.Chunks = make([][]Item, len(inputs))
	for i, in := range inputs {
		p.Clocks = append(p.Clocks, in.Clock)
		p.Pixels = append(p.Pixels, in.Pixels)
		if leader[i] != i {
			continue
		}
		start := in.Clock.Tick(in.Clock.StartPTS, p.TimeBase)
		end := p.endOf(in)
		if end <= start {
			return fmt.Errorf("input %s has no frames", in.Name)
		}
		alone := p.endsWithFirst(i, leader)
		for j, other := range inputs {
			if leader[j] == i && j != i && !alone {
				end = min(end, p.endOf(other))
			}
		}
		whole := end == p.endOf(in)
		if !whole && in.Clock.Constant {
			end = grid{clock: in.Clock, tb: p.TimeBase, start: start}.onFrame(end)
		}
		if end <= start {
			return fmt.Errorf("input %s starts after another one has ended", in.Name)
		}
		cuts := cutTimes(in.Clock, in.Index, p.TimeBase, start, end, opts.Chunk, opts.Workers)
		for j, other := range inputs {
			if leader[j] == i {
				p.Chunks[j] = p.chunkItems(j, other, cuts, whole && j == i, j != i)
			}
		}
		if i == first {
			p.Start = start
		}
		p.End = max(p.End, end)
	}
	return nil
}

func (p *Plan) endOf(in InputMedia) int64 {
	end := in.Clock.TimeBase.Rescale(in.EndPTS-in.Clock.OriginPTS, p.TimeBase)
	if !in.Clock.Constant {
		return end
	}
	// Whole frames, counted from the first.
	start := in.Clock.Tick(in.Clock.StartPTS, p.TimeBase)
	return grid{clock: in.Clock, tb: p.TimeBase, start: start}.onFrame(end)
}

func (p *Plan) chunkItems(input int, in InputMedia, cuts []int64, whole, follower bool) []Item {
	items := make([]Item, 0, len(cuts)-1)
	for k := range len(cuts) - 1 {
		last := k == len(cuts)-2
		items = append(items, Item{
			More: p.endOf(in) >= cuts[k+1],
			Type: Chunks, Seq: int64(k), Chunk: int64(k), Start: cuts[k], End: cuts[k+1],
			Source: sourceRange(input, in.Clock, in.Index, p.TimeBase, cuts[k], cuts[k+1], k == 0, last && whole, follower),
		})
	}
	return items
}

// leaders returns, for every input, the one whose grid it is cut on: among the
// inputs that meet in a stage, the one that the output follows, which is that
// of the stage's first stream.
func (p *Plan) leaders(inputs []InputMedia) ([]int, error) {
	group := p.groups(len(inputs))
	chosen := map[int]int{}
	for _, out := range p.Outputs {
		follows := p.Nodes[out.Node].Follows
		if _, ok := chosen[group[follows]]; !ok {
			chosen[group[follows]] = follows
		}
	}
	leader := make([]int, len(inputs))
	for i, g := range group {
		leader[i] = i
		if c, ok := chosen[g]; ok {
			leader[i] = c
		}
	}
	for _, n := range p.Nodes {
		if want := leader[n.Follows]; len(n.Upstreams) > 1 && n.Follows != want {
			return nil, fmt.Errorf("node %s: its first stream comes from %s, but the output follows the clock of %s; connect its streams the other way round",
				n.Name, inputs[n.Follows].Name, inputs[want].Name)
		}
	}
	return leader, nil
}

// groups returns a number for every input that is the same for inputs which
// meet in a stage.
func (p *Plan) groups(inputs int) []int {
	group := make([]int, inputs)
	for i := range group {
		group[i] = i
	}
	reach := make([][]int, len(p.Nodes)) // inputs that a node's output comes from
	for i, n := range p.Nodes {
		for _, up := range n.Upstreams {
			if up.Node >= 0 {
				reach[i] = append(reach[i], reach[up.Node]...)
			} else {
				reach[i] = append(reach[i], up.Input)
			}
		}
		for _, a := range reach[i] {
			for _, b := range reach[i] {
				low, high := min(group[a], group[b]), max(group[a], group[b])
				for k := range group {
					if group[k] == high {
						group[k] = low
					}
				}
			}
		}
	}
	return group
}

// endsWithFirst reports whether a stage that input i leads asks for the first
// input's length.
func (p *Plan) endsWithFirst(i int, leader []int) bool {
	for _, n := range p.Nodes {
		if n.Follows < 0 || leader[n.Follows] != i {
			continue
		}
		for _, st := range n.Stages {
			if st.Params.String("end") == "first" {
				return true
			}
		}
	}
	return false
}

// topological returns the nodes so that each comes after those that feed it,
// in the order of the text where that leaves a choice.
func topological(s *Spec) ([]NodeSpec, error) {
	done := map[string]bool{}
	var order []NodeSpec
	for len(order) < len(s.Nodes) {
		before := len(order)
		for _, n := range s.Nodes {
			waits := slices.ContainsFunc(s.Streams, func(st StreamSpec) bool {
				_, external := st.Src.InputIndex()
				return st.Dst.Node() == n.Name && !external && !done[st.Src.Node()]
			})
			if done[n.Name] || waits {
				continue
			}
			done[n.Name] = true
			order = append(order, n)
		}
		if len(order) == before {
			return nil, errors.New("the streams form a cycle")
		}
	}
	return order, nil
}

// comparePorts orders "frames_2" before "frames_10".
func comparePorts(a, b string) int {
	if d := len(a) - len(b); d != 0 && strings.TrimRight(a, "0123456789") == strings.TrimRight(b, "0123456789") {
		return d
	}
	return strings.Compare(a, b)
}

// Shortened reports whether the output ends before input i, whose last frame
// ends at endPTS: because it was joined with a shorter one.
func (p *Plan) Shortened(i int, endPTS int64) bool {
	c := p.Clocks[i]
	return p.End+c.FrameTicks(p.TimeBase) < c.TimeBase.Rescale(endPTS-c.OriginPTS, p.TimeBase)
}
