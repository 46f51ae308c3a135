package sprocket

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// checkGraph looks at the pipeline as a whole: what is not connected, what
// leads nowhere and what goes round in circles.
func (v *validator) checkGraph() {
	if len(v.outputs) == 0 {
		v.report("$.streams", `the last stream's dst is usually "output_0:chunks"`, "the pipeline has no output")
	}
	for _, n := range v.order {
		if !n.known {
			continue
		}
		v.checkInputs(n)
		v.checkOutputs(n)
	}
	v.checkCycles()
	v.checkReachable()
}

func (v *validator) checkInputs(n *vertex) {
	if n.doubtful[dst] {
		return
	}
	for _, p := range n.info.Inputs {
		required, gaps := missingEndpoints(p, n.used[dst])
		for _, id := range required {
			n.faulty = true
			v.report(indexPath("$.nodes", n.index), fmt.Sprintf(`add a stream with "dst": "%s:%s"`, n.name, id),
				"nothing is connected to the input %s:%s", n.name, id)
		}
		if len(gaps) > 0 {
			n.faulty = true
			v.report(indexPath("$.nodes", n.index), "endpoints are numbered from 0 without gaps",
				"%s has later inputs, but none at %s", n.name, listed(gaps))
		}
	}
}

func (v *validator) checkOutputs(n *vertex) {
	if n.doubtful[src] {
		return
	}
	unused := len(n.used[src]) == 0 && len(n.info.Outputs) > 0
	for _, p := range n.info.Outputs {
		required, gaps := missingEndpoints(p, n.used[src])
		for _, id := range required {
			unused = false
			v.report(indexPath("$.nodes", n.index), fmt.Sprintf(`add a stream with "src": "%s:%s"`, n.name, id),
				"the output %s:%s goes nowhere", n.name, id)
		}
		if len(gaps) > 0 {
			v.report(indexPath("$.nodes", n.index), "endpoints are numbered from 0 without gaps",
				"%s has later outputs, but none at %s", n.name, listed(gaps))
		}
	}
	if unused {
		v.report(indexPath("$.nodes", n.index), "its outputs are: "+orNone(portIDs(n.info.Outputs)),
			"the output of %s goes nowhere", n.name)
	}
}

// missingEndpoints returns the identifiers that a port must have and has not,
// and the gaps beyond them.
func missingEndpoints(p Port, used map[string]bool) (required, gaps []string) {
	end := p.Min
	if p.numbered() {
		for id := range used {
			if i, ok := indexAfter(id, p.Name+"_"); ok {
				end = max(end, i+1)
			}
		}
	}
	for i := range end {
		switch id := p.endpoint(i); {
		case used[id]:
		case i < p.Min:
			required = append(required, id)
		default:
			gaps = append(gaps, id)
		}
	}
	return required, gaps
}

// checkReachable reports the nodes that get nothing from any input. Only where
// that starts is reported: not what lies behind, and not where something else
// that was reported is the reason.
func (v *validator) checkReachable() {
	for _, n := range v.order {
		isSource := n.known && len(n.info.Inputs) == 0
		if n.fed || n.faulty || n.doubtful[dst] || isSource {
			continue
		}
		hint := ""
		if n.known {
			hint = "its inputs are: " + orNone(portIDs(n.info.Inputs))
		}
		v.report(indexPath("$.nodes", n.index), hint, "no input of the pipeline leads to %s", n.name)
	}
}

// checkCycles reports a cycle for every knot of nodes that has one.
func (v *validator) checkCycles() {
	next := v.knots()
	reported := make(map[*vertex]bool)
	for _, n := range v.order {
		if reported[n] || len(next[n]) == 0 {
			continue
		}
		cycle := shortestCycle(n, next)
		if cycle == nil || slices.ContainsFunc(cycle, func(l link) bool { return reported[l.from] }) {
			continue
		}
		names := []string{n.name}
		first := cycle[0].stream
		for _, l := range cycle {
			reported[l.from] = true
			names = append(names, l.to.name)
			first = min(first, l.stream)
		}
		v.report(indexPath("$.streams", first), "a pipeline flows from its inputs to its outputs",
			"the streams go in a circle: %s", strings.Join(names, " -> "))
	}
}

// knots returns the links between nodes without those that cannot lie on a
// cycle because they come after all the cycles or before them.
func (v *validator) knots() map[*vertex][]link {
	links := make([]link, 0, len(v.links))
	for _, l := range v.links {
		if l.from != nil && l.to != nil {
			links = append(links, l)
		}
	}
	reverse := func(l link) link { return link{l.stream, l.to, l.from} }
	for range 2 { // once peeled from the start, once from the end
		links = peel(links)
		for i := range links {
			links[i] = reverse(links[i])
		}
	}
	next := make(map[*vertex][]link)
	for _, l := range links {
		next[l.from] = append(next[l.from], l)
	}
	return next
}

// peel takes away nodes that no link enters, with the links that leave them,
// until none is left.
func peel(links []link) []link {
	entering := make(map[*vertex]int)
	leaving := make(map[*vertex][]link)
	for _, l := range links {
		entering[l.from] += 0
		entering[l.to]++
		leaving[l.from] = append(leaving[l.from], l)
	}
	var free []*vertex
	for n, count := range entering {
		if count == 0 {
			free = append(free, n)
		}
	}
	gone := make(map[*vertex]bool)
	for len(free) > 0 {
		n := free[len(free)-1]
		free = free[:len(free)-1]
		gone[n] = true
		for _, l := range leaving[n] {
			if entering[l.to]--; entering[l.to] == 0 {
				free = append(free, l.to)
			}
		}
	}
	return slices.DeleteFunc(links, func(l link) bool { return gone[l.from] })
}

// shortestCycle returns the links of the shortest way from n back to n, nil if
// there is none.
func shortestCycle(n *vertex, next map[*vertex][]link) []link {
	via := make(map[*vertex]link)
	for queue := []*vertex{n}; len(queue) > 0; queue = queue[1:] {
		for _, l := range next[queue[0]] {
			if _, seen := via[l.to]; seen {
				continue
			}
			via[l.to] = l
			if l.to != n {
				queue = append(queue, l.to)
				continue
			}
			cycle := []link{l}
			for at := l.from; at != n; at = via[at].from {
				cycle = append(cycle, via[at])
			}
			slices.Reverse(cycle)
			return cycle
		}
	}
	return nil
}

// listed joins names for a message, cutting a long list short.
func listed(names []string) string {
	const enough = 5
	if len(names) <= enough {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:enough], ", "), len(names)-enough)
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
