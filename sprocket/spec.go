package sprocket

import (
	"encoding/json"
	"strings"
)

// Spec is a pipeline specification ("pipespec", thesis 2.2.7): stages and the
// directed streams between them. docs/formats/pipespec.md describes its JSON
// form. A Spec that ParseSpec returned remembers where each part stood in the
// text, so that Validate can point there.
type Spec struct {
	// Name, Description and Example are for listings; Example is a command line.
	Name        string       `json:"name,omitempty"`
	Description string       `json:"description,omitempty"`
	Example     string       `json:"example,omitempty"`
	Nodes       []NodeSpec   `json:"nodes"`
	Streams     []StreamSpec `json:"streams"`

	file      string              // the name given to ParseSpec
	positions map[string]Position // by JSON path, "$.nodes[0].stage"
}

// NodeSpec is a vertex: one stage with its settings.
type NodeSpec struct {
	Name  string `json:"name"`
	Stage string `json:"stage"`
	// Config holds stage parameters. "parameters" is an accepted synonym.
	Config map[string]json.RawMessage `json:"config,omitempty"`
	// DeliveryFunction names how items become tasks; empty means the stage's
	// own default. The suffixes "_delivery_func" and "_deliver_func" are
	// ignored, so that the thesis's names work.
	DeliveryFunction string `json:"delivery_function,omitempty"`
	// Function names the serverless function that runs the stage, on platforms
	// that have more than one.
	Function string `json:"function,omitempty"`
}

// StreamSpec is an edge between two endpoints.
type StreamSpec struct {
	Src Endpoint `json:"src"`
	Dst Endpoint `json:"dst"`
	// Options are directives for this edge, such as "frames.format".
	Options map[string]json.RawMessage `json:"options,omitempty"`
}

// Endpoint is "node:identifier": one stream's connection to a node, or to the
// outside as "input_0:chunks" and "output_0:chunks".
type Endpoint string

// Split returns the two parts of e; ok is false unless both are there.
func (e Endpoint) Split() (node, id string, ok bool) {
	node, id, ok = strings.Cut(string(e), ":")
	return node, id, ok && node != "" && id != "" && !strings.Contains(id, ":")
}

// Node returns the part before the colon.
func (e Endpoint) Node() string { n, _, _ := e.Split(); return n }

// ID returns the part after the colon.
func (e Endpoint) ID() string { _, id, _ := e.Split(); return id }

// Type returns the data type that the identifier's prefix implies: all before
// a trailing "_" and digits.
func (e Endpoint) Type() DataType {
	return DataType(strings.TrimRight(trimIndex(e.ID()), "_"))
}

// InputIndex returns N if e is an endpoint of the external input "input_N".
func (e Endpoint) InputIndex() (int, bool) { return indexAfter(e.Node(), "input_") }

// OutputIndex returns N if e is an endpoint of the external output "output_N".
func (e Endpoint) OutputIndex() (int, bool) { return indexAfter(e.Node(), "output_") }

func trimIndex(id string) string {
	base := strings.TrimRight(id, "0123456789")
	if base != id && strings.HasSuffix(base, "_") {
		return base
	}
	return id
}

func indexAfter(s, prefix string) (int, bool) {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || digits == "" || len(digits) > 4 || (len(digits) > 1 && digits[0] == '0') {
		return 0, false
	}
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// Position is a place in the text of a pipespec, both counted from 1.
type Position struct {
	Line, Column int
}

// Problem is one fault of a pipespec.
type Problem struct {
	// Path is a JSON path, "$.streams[2].dst".
	Path string `json:"path"`
	Line int    `json:"line,omitempty"`
	Col  int    `json:"column,omitempty"`
	// Message says what is wrong; Hint what to do about it.
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// SpecError is all that is wrong with a pipespec, in the order of the text.
type SpecError struct {
	// File is the name that was parsed, for the messages.
	File     string
	Problems []Problem
}
