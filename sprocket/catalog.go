package sprocket

import "encoding/json"

// Catalog says which stages and delivery functions exist.
type Catalog struct {
	Stages map[string]StageInfo
	// Deliveries are the names of the delivery functions.
	Deliveries []string
	// CheckDelivery, when not nil, says what is wrong with giving a delivery
	// function so many streams.
	CheckDelivery func(name string, streams int) error
	// EdgeOptions are the options that a stream may have.
	EdgeOptions []Param
}

// StageInfo describes a stage to those who write pipespecs.
type StageInfo struct {
	Name string
	// Doc is one sentence.
	Doc     string
	Inputs  []Port
	Outputs []Port
	Params  []Param
	// Delivery is the delivery function used where a node names none.
	Delivery string
	// Fusable stages are FFmpeg filters, sources or sinks that can share one
	// process with their one-to-one neighbours.
	Fusable bool
	// Check, when not nil, looks at parameters together, after each was found
	// valid by itself. It returns a parameter's name ("" for the node) and what
	// is wrong with it, or an empty message. The message goes on from the name
	// of the parameter or stage: "needs a width or a height".
	Check func(Params) (param, message string)
}

// Port is an endpoint that a stage offers.
type Port struct {
	// Name is the endpoint's identifier: "frames".
	Name string
	Type DataType
	// Min and Max are how many endpoints of this port a node must and may have.
	// A port with Max above 1 is numbered: frames_0, frames_1, ... without
	// gaps; Max -1 means any number.
	Min, Max int
}

// ParamKind is the type of a parameter's value.
type ParamKind string

// The parameter kinds and their JSON forms.
const (
	KindString   ParamKind = "string"
	KindInt      ParamKind = "int"
	KindFloat    ParamKind = "float"
	KindBool     ParamKind = "bool"
	KindDuration ParamKind = "duration" // a number of seconds or a string such as "1.5s"
	KindEnum     ParamKind = "enum"     // one of Enum
	KindStrings  ParamKind = "strings"  // a list of strings
)

// Param describes one parameter of a stage or option of a stream.
type Param struct {
	Name string
	Kind ParamKind
	Doc  string
	// Default is the JSON text of the value used when none is given; empty
	// when there is none.
	Default  string
	Required bool
	Enum     []string
	// Min and Max bound numbers and durations (seconds) when not nil.
	Min, Max *float64
}

// Params are a node's parameters after defaults were filled in, by name.
type Params map[string]json.RawMessage
