package sprocket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// ParseSpec reads the JSON form of a pipespec (docs/formats/pipespec.md). It is
// strict: unknown and duplicate fields, wrong types and anything after the end
// are faults. file is the name for the messages; nothing is opened.
//
// The error is a *SpecError: with one problem where data is not JSON, else with
// all of them. Whether the pipeline makes sense is left to Validate.
func ParseSpec(file string, data []byte) (*Spec, error) {
	root, err := readJSON(data)
	if syntax := (*syntaxError)(nil); errors.As(err, &syntax) {
		return nil, &SpecError{File: file, Problems: []Problem{{
			Line: syntax.at.Line, Col: syntax.at.Column, Message: syntax.message, Hint: syntax.hint,
		}}}
	}
	d := specDecoder{positions: make(map[string]Position)}
	spec := d.spec(root)
	if len(d.problems) > 0 {
		sortProblems(d.problems)
		return nil, &SpecError{File: file, Problems: d.problems}
	}
	spec.file, spec.positions = file, d.positions
	return spec, nil
}

// specDecoder turns a JSON tree into a Spec and collects what does not fit.
type specDecoder struct {
	positions map[string]Position
	problems  []Problem
}

// field is a member that an object may have.
type field struct {
	name string
	read func(v jsonValue, path string)
}

func (d *specDecoder) report(at Position, path, message, hint string) {
	d.problems = append(d.problems, Problem{Path: path, Line: at.Line, Col: at.Column, Message: message, Hint: hint})
}

// want notes where v stands and reports it if it is not of the kind.
func (d *specDecoder) want(kind jsonKind, v jsonValue, path string) bool {
	d.positions[path] = v.at
	if v.kind != kind {
		d.report(v.at, path, fmt.Sprintf("must be %s, not %s", kind, v.kind), "")
		return false
	}
	return true
}

// object reads the members of v by fields.
func (d *specDecoder) object(v jsonValue, path, what string, fields []field) {
	if !d.want(jsonObject, v, path) {
		return
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	d.unique(v, path)
	seen := make(map[string]bool, len(v.members))
members:
	for _, m := range v.members {
		if seen[m.name] {
			continue
		}
		seen[m.name] = true
		for _, f := range fields {
			if f.name == m.name {
				f.read(m.value, fieldPath(path, m.name))
				continue members
			}
		}
		d.report(m.at, fieldPath(path, m.name), fmt.Sprintf("%s has no field %q", what, m.name), suggest(m.name, names, "its fields are"))
	}
}

// unique reports the members of v that are given more than once.
func (d *specDecoder) unique(v jsonValue, path string) {
	first := make(map[string]Position, len(v.members))
	for _, m := range v.members {
		if at, ok := first[m.name]; ok {
			d.report(m.at, fieldPath(path, m.name), fmt.Sprintf("%q is given twice", m.name),
				fmt.Sprintf("the first is at %d:%d", at.Line, at.Column))
			continue
		}
		first[m.name] = m.at
	}
}

func (d *specDecoder) text(to *string) func(jsonValue, string) {
	return func(v jsonValue, path string) {
		if d.want(jsonString, v, path) {
			*to = v.text
		}
	}
}

func (d *specDecoder) spec(v jsonValue) *Spec {
	s := &Spec{Nodes: []NodeSpec{}, Streams: []StreamSpec{}}
	var schema string // editors want it in the file; nothing here does
	d.object(v, "$", "a pipespec", []field{
		{"name", d.text(&s.Name)},
		{"description", d.text(&s.Description)},
		{"example", d.text(&s.Example)},
		{"nodes", func(v jsonValue, path string) {
			if !d.want(jsonArray, v, path) {
				return
			}
			for i, e := range v.elements {
				s.Nodes = append(s.Nodes, d.node(e, indexPath(path, i)))
			}
		}},
		{"streams", func(v jsonValue, path string) {
			if !d.want(jsonArray, v, path) {
				return
			}
			for i, e := range v.elements {
				s.Streams = append(s.Streams, d.stream(e, indexPath(path, i)))
			}
		}},
		{"$schema", d.text(&schema)},
	})
	return s
}

func (d *specDecoder) node(v jsonValue, path string) NodeSpec {
	var n NodeSpec
	var configured string // the name under which config was given
	config := func(name, other string) func(jsonValue, string) {
		return func(v jsonValue, path string) {
			if configured != "" {
				d.report(v.at, path, fmt.Sprintf("the node has both %q and %q, which are two names of one field", other, name), "keep one of them")
				return
			}
			configured = name
			n.Config = d.values(v, path)
		}
	}
	d.object(v, path, "a node", []field{
		{"name", d.text(&n.Name)},
		{"stage", d.text(&n.Stage)},
		{"config", config("config", "parameters")},
		{"parameters", config("parameters", "config")},
		{"delivery_function", d.text(&n.DeliveryFunction)},
		{"function", d.text(&n.Function)},
	})
	return n
}

func (d *specDecoder) stream(v jsonValue, path string) StreamSpec {
	var st StreamSpec
	d.object(v, path, "a stream", []field{
		{"src", d.text((*string)(&st.Src))},
		{"dst", d.text((*string)(&st.Dst))},
		{"options", func(v jsonValue, path string) { st.Options = d.values(v, path) }},
	})
	return st
}

// values reads an object whose members are judged later, by the catalog.
func (d *specDecoder) values(v jsonValue, path string) map[string]json.RawMessage {
	if !d.want(jsonObject, v, path) || len(v.members) == 0 {
		return nil
	}
	values := make(map[string]json.RawMessage, len(v.members))
	for _, m := range v.members {
		if _, ok := values[m.name]; !ok {
			values[m.name] = compactJSON(m.value.raw)
		}
	}
	d.index(v, path)
	return values
}

// index notes the positions of all values below v and reports duplicates.
func (d *specDecoder) index(v jsonValue, path string) {
	if _, ok := d.positions[path]; !ok {
		d.positions[path] = v.at
	}
	d.unique(v, path)
	for _, m := range v.members {
		d.index(m.value, fieldPath(path, m.name))
	}
	for i, e := range v.elements {
		d.index(e, indexPath(path, i))
	}
}

func compactJSON(raw []byte) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil { // cannot happen: raw was read as JSON
		return json.RawMessage(raw)
	}
	return b.Bytes()
}
