package sprocket

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Validate checks that s is a pipeline that the stages of c can run. The error
// is a *SpecError with every problem at once, in the order of the text.
// A fault that only follows from another one is left out: a stream with a
// mistyped node name does not also make its target unconnected.
func (s *Spec) Validate(c *Catalog) error {
	v := validator{spec: s, catalog: c, nodes: make(map[string]*vertex)}
	v.checkNodes()
	v.checkStreams()
	v.checkExternal("input_", "inputs", v.inputs)
	v.checkExternal("output_", "outputs", v.outputs)
	v.checkSources()
	v.checkGraph()
	if len(v.problems) == 0 {
		return nil
	}
	sortProblems(v.problems)
	return &SpecError{File: s.file, Problems: v.problems}
}

// NormalizeDelivery cuts the suffix "_delivery_func" or "_deliver_func" off the
// name of a delivery function, so that the thesis's names work.
func NormalizeDelivery(name string) string {
	for _, suffix := range []string{"_delivery_func", "_deliver_func"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && base != "" {
			return base
		}
	}
	return name
}

// InputPort returns the port of the stage that an endpoint's identifier names
// as a stream's destination, and the endpoint's number within a numbered port
// ("frames_1" is 1).
func (info StageInfo) InputPort(id string) (port Port, index int, ok bool) {
	return findPort(info.Inputs, id)
}

// OutputPort is InputPort for a stream's source.
func (info StageInfo) OutputPort(id string) (port Port, index int, ok bool) {
	return findPort(info.Outputs, id)
}

func findPort(ports []Port, id string) (Port, int, bool) {
	for _, p := range ports {
		if !p.numbered() {
			if p.Name == id {
				return p, 0, true
			}
			continue
		}
		if i, ok := indexAfter(id, p.Name+"_"); ok && (p.Max < 0 || i < p.Max) {
			return p, i, true
		}
	}
	return Port{}, 0, false
}

func (p Port) numbered() bool { return p.Max > 1 || p.Max < 0 }

// endpoint returns the identifier of the port's endpoint i.
func (p Port) endpoint(i int) string {
	if !p.numbered() {
		return p.Name
	}
	return fmt.Sprintf("%s_%d", p.Name, i)
}

// portIDs lists the identifiers that ports offer, for messages.
func portIDs(ports []Port) []string {
	const enough = 4
	var ids []string
	for _, p := range ports {
		n := p.Max
		if n < 0 || n > enough {
			n = 2
		}
		for i := range max(n, 1) {
			ids = append(ids, p.endpoint(i))
		}
		if p.Max < 0 || p.Max > enough {
			ids = append(ids, "...")
		}
	}
	return ids
}

// side is an end of a stream.
type side int

const (
	src side = iota
	dst
)

func (d side) String() string { return [...]string{"src", "dst"}[d] }

// ports returns the ports of a stage that can be the d end of a stream, and
// what they are called.
func (d side) ports(info StageInfo) ([]Port, string) {
	if d == src {
		return info.Outputs, "output"
	}
	return info.Inputs, "input"
}

// vertex is what the validator knows of a node.
type vertex struct {
	index int
	name  string
	info  StageInfo
	known bool // whether the stage is
	// used are the identifiers connected to, by side.
	used [2]map[string]bool
	// doubtful sides have an endpoint that is faulty but was meant for this
	// node. What is missing there cannot be told.
	doubtful [2]bool
	// fed nodes are the destination of a stream, wherever it comes from.
	fed bool
	// faulty nodes lack a required input, which explains what follows.
	faulty bool
}

// link is a stream whose ends are known, at least by guess. A nil end is an
// external input or output.
type link struct {
	stream   int
	from, to *vertex
}

// external is an input_N or output_N and the first stream that uses it.
type external struct{ index, stream int }

type validator struct {
	spec    *Spec
	catalog *Catalog
	// order and nodes are the nodes with usable names.
	order           []*vertex
	nodes           map[string]*vertex
	links           []link
	inputs, outputs []external
	problems        []Problem
}

// report adds a problem; one whose path is not in the text stands where the
// nearest thing around it does.
func (v *validator) report(path, hint, format string, args ...any) {
	at, ok := v.spec.positions[path]
	for outer := path; !ok && outer != ""; at, ok = v.spec.positions[outer] {
		outer = parentPath(outer)
	}
	v.problems = append(v.problems, Problem{Path: path, Line: at.Line, Col: at.Column, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// configPath is where the parameters of a node stand, by the name of the field
// that its author chose.
func (s *Spec) configPath(node int) string {
	path := indexPath("$.nodes", node)
	if _, ok := s.positions[path+".parameters"]; ok {
		return path + ".parameters"
	}
	return path + ".config"
}

var (
	nodeName     = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	externalName = regexp.MustCompile(`^(input|output)_[0-9]+$`)
)

func (v *validator) checkNodes() {
	if len(v.spec.Nodes) == 0 {
		v.report("$.nodes", "", "the pipeline has no nodes")
	}
	stages := sortedKeys(v.catalog.Stages)
	for i, n := range v.spec.Nodes {
		path := indexPath("$.nodes", i)
		node := &vertex{index: i, name: n.Name}
		node.used = [2]map[string]bool{{}, {}}
		node.info, node.known = v.catalog.Stages[n.Stage]
		v.checkName(node, path)
		switch {
		case n.Stage == "":
			v.report(path+".stage", "the stages are: "+strings.Join(stages, ", "), "the node has no stage")
		case !node.known:
			v.report(path+".stage", suggest(n.Stage, stages, "the stages are"), "there is no stage %q", n.Stage)
		default:
			v.checkParams(i, node.info)
		}
		delivery := NormalizeDelivery(n.DeliveryFunction)
		if delivery != "" && !slices.Contains(v.catalog.Deliveries, delivery) {
			v.report(path+".delivery_function", suggest(delivery, v.catalog.Deliveries, "there are"), "there is no delivery function %q", n.DeliveryFunction)
		} else if delivery != "" && v.catalog.CheckDelivery != nil {
			v.checkDelivery(path, n, delivery)
		}
	}
}

// checkName enters the node under its name if nothing hinders that.
func (v *validator) checkName(node *vertex, path string) {
	path += ".name"
	switch other := v.nodes[node.name]; {
	case node.name == "":
		v.report(path, "", "the node has no name")
		return
	case externalName.MatchString(node.name):
		v.report(path, "these names are for the pipeline's own inputs and outputs", "a node cannot be named %q", node.name)
		return
	case other != nil:
		v.report(path, "", "a node named %q is already there, %s", node.name, indexPath("$.nodes", other.index))
		return
	case !nodeName.MatchString(node.name):
		v.report(path, "letters, digits, _ and - are allowed", "%q cannot be a node's name", node.name)
	}
	v.nodes[node.name] = node
	v.order = append(v.order, node)
}

func (v *validator) checkParams(i int, info StageInfo) {
	_, problems := info.Resolve(v.spec.Nodes[i].Config)
	for _, p := range problems {
		path := indexPath("$.nodes", i)
		if p.Param != "" {
			path = fieldPath(v.spec.configPath(i), p.Param)
		}
		v.report(path, p.Hint, "%s", p.Message)
	}
}

func (v *validator) checkStreams() {
	writers := make(map[string]int)
	for i, st := range v.spec.Streams {
		path := indexPath("$.streams", i)
		from := v.resolve(st.Src, src, i)
		to := v.resolve(st.Dst, dst, i)
		if from.ok && to.ok && from.node == nil && to.node == nil {
			v.report(path, "put a node between them", "the stream goes straight from an input to an output")
		}
		if from.typ != "" && to.typ != "" && from.typ != to.typ {
			v.report(path, typeHint(from.typ, to.typ), "%q carries %s, but %q takes %s", st.Src, from.typ, st.Dst, to.typ)
		}
		if to.node != nil {
			to.node.fed = true
		}
		if from.ok && to.ok {
			v.links = append(v.links, link{stream: i, from: from.node, to: to.node})
		}
		_, problems := resolveParams(v.catalog.EdgeOptions, st.Options, "option", "a stream")
		for _, p := range problems {
			v.report(fieldPath(path+".options", p.Param), p.Hint, "%s", p.Message)
		}
		if st.Dst == "" {
			continue
		}
		sink := string(st.Dst)
		if _, ok := st.Dst.OutputIndex(); ok {
			sink = st.Dst.Node() // one output is one thing, whatever its type
		}
		first, taken := writers[sink]
		switch {
		case !taken:
			writers[sink] = i
		case v.spec.Streams[first].Src == st.Src && v.spec.Streams[first].Dst == st.Dst:
			v.report(path, "", "the stream from %q to %q is already there, %s", st.Src, st.Dst, indexPath("$.streams", first))
		default:
			v.report(path+".dst", "a source may have several destinations, but a destination only one source",
				"%q is already written by %q, %s", sink, v.spec.Streams[first].Src, indexPath("$.streams", first))
		}
	}
}

func typeHint(from, to DataType) string {
	switch {
	case from == Chunks && to == Frames:
		return "a decode stage between them makes frames of chunks"
	case from == Frames && to == Chunks:
		return "an encode stage between them makes chunks of frames"
	}
	return ""
}

// end is one end of a stream. ok tells that what it belongs to is known, if
// only by guess: a node, or an input or output when node is nil. typ is empty
// when the type cannot be told.
type end struct {
	node *vertex
	typ  DataType
	ok   bool
}

// resolve finds what endpoint e of a stream means and reports what is wrong.
func (v *validator) resolve(e Endpoint, d side, stream int) end {
	path := indexPath("$.streams", stream) + "." + d.String()
	name, id, ok := e.Split()
	if e == "" {
		v.report(path, "", "the stream has no %s", d)
		return end{}
	}
	if !ok {
		name, _, _ = strings.Cut(string(e), ":")
		v.report(path, fmt.Sprintf("write node:identifier, such as %q", v.example(name, d)), "%q is not an endpoint", e)
		return v.guess(name, d, stream)
	}
	if n, ok := e.InputIndex(); ok {
		return v.resolveInput(e, n, d, stream, path)
	}
	if n, ok := e.OutputIndex(); ok {
		return v.resolveOutput(e, n, d, stream, path)
	}
	node, ok := v.nodes[name]
	if !ok {
		v.report(path, v.unknownNodeHint(name, d), "there is no node %q", name)
		return v.guess(name, d, stream)
	}
	ports, noun := d.ports(node.info)
	if port, _, ok := findPort(ports, id); ok {
		node.used[d][id] = true
		return end{node: node, typ: port.Type, ok: true}
	}
	node.doubtful[d] = true
	known := []DataType{Chunks, Frames, Images}
	if !slices.Contains(known, e.Type()) {
		names := []string{string(Chunks), string(Frames), string(Images)}
		v.report(path, suggest(string(e.Type()), names, "the data types are"), "%q has the unknown data type %q", e, e.Type())
		return end{node: node, ok: true}
	}
	if !node.known {
		return end{node: node, typ: e.Type(), ok: true}
	}
	hint := fmt.Sprintf("its %ss are: %s", noun, orNone(portIDs(ports)))
	otherPorts, otherNoun := (1 - d).ports(node.info)
	if _, _, ok := findPort(otherPorts, id); ok {
		v.report(path, hint, "%q is an %s of %s, but %s must be an %s", e, otherNoun, name, d, noun)
	} else {
		v.report(path, hint, "%s (stage %s) has no %s %q", name, node.info.Name, noun, id)
	}
	return end{node: node, ok: true}
}

// candidates are the names that may stand before the colon.
func (v *validator) candidates(d side) []string {
	names := make([]string, 0, len(v.order)+1)
	for _, n := range v.order {
		names = append(names, n.name)
	}
	if d == src {
		return append(names, "input_0")
	}
	return append(names, "output_0")
}

func (v *validator) unknownNodeHint(name string, d side) string {
	candidates := v.candidates(d)
	if hint := didYouMean(name, candidates); hint != "" && !externalName.MatchString(name) {
		return hint
	}
	if strings.HasPrefix(name, "input") || strings.HasPrefix(name, "output") {
		return "inputs are written input_0, input_1 and so on, outputs output_0, output_1"
	}
	return "the nodes are: " + orNone(candidates[:len(candidates)-1])
}

// guess finds what a faulty endpoint that starts with name was probably meant
// for.
func (v *validator) guess(name string, d side, stream int) end {
	if v.nodes[name] == nil && !isExternal(Endpoint(name+":")) {
		name = closest(name, v.candidates(d))
	}
	if n, ok := indexAfter(name, "input_"); ok && d == src {
		v.inputs = append(v.inputs, external{n, stream})
		return end{ok: true}
	}
	if n, ok := indexAfter(name, "output_"); ok && d == dst {
		v.outputs = append(v.outputs, external{n, stream})
		return end{ok: true}
	}
	node := v.nodes[name]
	if node == nil {
		return end{}
	}
	node.doubtful[d] = true
	return end{node: node, ok: true}
}

// example is an endpoint that could stand at end d of a stream, preferably one
// of the named node.
func (v *validator) example(name string, d side) string {
	if isExternal(Endpoint(name + ":")) {
		return name + ":chunks"
	}
	if node := v.nodes[name]; node != nil {
		if ports, _ := d.ports(node.info); len(ports) > 0 {
			return name + ":" + ports[0].endpoint(0)
		}
	}
	return "decode:frames"
}

func (v *validator) resolveInput(e Endpoint, n int, d side, stream int, path string) end {
	if d == dst {
		v.report(path, "", "%q is an input of the pipeline and cannot be a dst", e.Node())
		return end{}
	}
	v.inputs = append(v.inputs, external{n, stream})
	if e.ID() != string(Chunks) {
		v.report(path, fmt.Sprintf(`write "%s:chunks"; a decode stage makes frames of them`, e.Node()), "inputs give chunks only, not %q", e.ID())
		return end{ok: true}
	}
	return end{typ: Chunks, ok: true}
}

func (v *validator) resolveOutput(e Endpoint, n int, d side, stream int, path string) end {
	if d == src {
		v.report(path, "", "%q is an output of the pipeline and cannot be a src", e.Node())
		return end{}
	}
	v.outputs = append(v.outputs, external{n, stream})
	if id := DataType(e.ID()); id == Chunks || id == Images {
		return end{typ: id, ok: true}
	}
	hint := ""
	if e.Type() == Frames {
		hint = "an encode stage makes chunks of frames"
	}
	v.report(path, hint, "outputs take chunks or images only, not %q", e.ID())
	return end{ok: true}
}

// checkExternal reports gaps in the numbering of the inputs or outputs.
func (v *validator) checkExternal(prefix, plural string, used []external) {
	if len(used) == 0 {
		return
	}
	highest := used[0]
	taken := make(map[int]bool, len(used))
	for _, u := range used {
		taken[u.index] = true
		if u.index > highest.index {
			highest = u
		}
	}
	var missing []string
	for i := range highest.index {
		if !taken[i] {
			missing = append(missing, fmt.Sprintf("%s%d", prefix, i))
		}
	}
	if len(missing) > 0 {
		v.report(indexPath("$.streams", highest.stream), plural+" are numbered from 0 without gaps",
			"%s%d is used, but not %s", prefix, highest.index, listed(missing))
	}
}

// checkDelivery reports a delivery function that cannot take as many streams as
// lead to the node.
func (v *validator) checkDelivery(path string, n NodeSpec, delivery string) {
	streams := 0
	for _, st := range v.spec.Streams {
		if st.Dst.Node() == n.Name {
			streams++
		}
	}
	if streams == 0 {
		return // reported as an unconnected port
	}
	if err := v.catalog.CheckDelivery(delivery, streams); err != nil {
		v.report(path+".delivery_function", "", "%v", err)
	}
}

// checkSources reports nodes that would have to emit two kinds of items, or fill
// two outputs of the pipeline: a task has one result.
func (v *validator) checkSources() {
	type use struct{ id, output string }
	uses := map[string]use{}
	for i, st := range v.spec.Streams {
		node, id, ok := st.Src.Split()
		n := v.nodes[node]
		if !ok || n == nil || !n.known {
			continue
		}
		if _, _, isOutput := n.info.OutputPort(id); !isOutput {
			continue // reported already
		}
		u := uses[node]
		if u.id != "" && u.id != id {
			v.report(indexPath("$.streams", i)+".src", "use one, or a second node of the same stage",
				"node %q emits %s already; it cannot emit %s as well", node, u.id, id)
		} else if u.id == "" {
			u.id = id
		}
		if _, external := st.Dst.OutputIndex(); external {
			if u.output != "" && u.output != st.Dst.Node() {
				v.report(indexPath("$.streams", i)+".dst", "", "node %q fills %s already; each output needs a node of its own", node, u.output)
			}
			u.output = st.Dst.Node()
		}
		uses[node] = u
	}
}
