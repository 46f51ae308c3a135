package sprocket

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ParamProblem is one fault of a stage's parameters or a stream's options.
type ParamProblem struct {
	// Param is the parameter's name; empty when the fault is of the whole.
	Param string
	// Message says what is wrong; Hint what to do about it.
	Message, Hint string
}

// Has reports whether the parameter has a value, given or default.
func (p Params) Has(name string) bool { return len(p[name]) > 0 }

// String returns a string or enum parameter, "" when it has no value.
func (p Params) String(name string) string {
	s, _ := stringValue(p[name])
	return s
}

// Int returns an int parameter, 0 when it has no value.
func (p Params) Int(name string) int64 {
	n, _ := intValue(p[name])
	return n
}

// Float returns a float or int parameter, 0 when it has no value.
func (p Params) Float(name string) float64 {
	f, _ := floatValue(p[name])
	return f
}

// Bool returns a bool parameter, false when it has no value.
func (p Params) Bool(name string) bool {
	b, _ := boolValue(p[name])
	return b
}

// Duration returns a duration parameter, 0 when it has no value.
func (p Params) Duration(name string) time.Duration {
	d, _ := durationValue(p[name])
	return d
}

// Strings returns a strings parameter, nil when it has no value. The caller
// owns the slice.
func (p Params) Strings(name string) []string {
	list, _ := stringsValue(p[name])
	return list
}

// Resolve fills in the defaults of a node's parameters and checks them, each by
// itself and then, with StageInfo.Check, together. The Params are complete only
// if there are no problems. Problems with given values come first, by name, then
// the required parameters that are missing.
func (info StageInfo) Resolve(config map[string]json.RawMessage) (Params, []ParamProblem) {
	params, problems := resolveParams(info.Params, config, "parameter", info.Name)
	if len(problems) > 0 || info.Check == nil {
		return params, problems
	}
	if name, message := info.Check(params); message != "" {
		problems = append(problems, ParamProblem{Param: name, Message: cmp.Or(name, info.Name) + " " + message})
	}
	return params, problems
}

// resolveParams checks the given values against params and fills in defaults.
// noun ("parameter") and owner ("encode") are for the messages.
func resolveParams(params []Param, given map[string]json.RawMessage, noun, owner string) (Params, []ParamProblem) {
	resolved := make(Params, len(params))
	var problems []ParamProblem
	for _, name := range slices.Sorted(maps.Keys(given)) {
		i := slices.IndexFunc(params, func(p Param) bool { return p.Name == name })
		if i < 0 {
			problems = append(problems, ParamProblem{
				Param:   name,
				Message: fmt.Sprintf("%s has no %s %q", owner, noun, name),
				Hint:    suggest(name, paramNames(params), "its "+noun+"s are"),
			})
			continue
		}
		if message, hint := params[i].check(given[name]); message != "" {
			problems = append(problems, ParamProblem{Param: name, Message: message, Hint: hint})
			continue
		}
		resolved[name] = given[name]
	}
	for _, p := range params {
		switch _, ok := given[p.Name]; {
		case ok:
		case p.Required:
			problems = append(problems, ParamProblem{
				Param:   p.Name,
				Message: fmt.Sprintf("%s needs the %s %q", owner, noun, p.Name),
				Hint:    strings.TrimSuffix(p.Doc, "."),
			})
		case p.Default != "":
			resolved[p.Name] = json.RawMessage(p.Default)
		}
	}
	return resolved, problems
}

// ParseSet carries out one override from the command line, "node.param=value",
// by changing spec. The value is plain text that is read as the parameter's
// kind: strings and enums need no quotes, a list of strings is either a JSON
// array or separated by commas. The error says which nodes or parameters there
// are when the text names none of them. Whether all parameters of the node go
// together is left to Validate.
func ParseSet(spec *Spec, c *Catalog, override string) error {
	target, text, found := strings.Cut(override, "=")
	nodeName, paramName, dotted := strings.Cut(target, ".")
	if !found || !dotted || nodeName == "" || paramName == "" {
		return fmt.Errorf("set %q: write node.parameter=value", override)
	}
	n := slices.IndexFunc(spec.Nodes, func(n NodeSpec) bool { return n.Name == nodeName })
	if n < 0 {
		names := make([]string, len(spec.Nodes))
		for i, node := range spec.Nodes {
			names[i] = node.Name
		}
		return fmt.Errorf("set %q: no node is named %q%s", override, nodeName, parenthesised(suggest(nodeName, names, "the nodes are")))
	}
	node := &spec.Nodes[n]
	info, ok := c.Stages[node.Stage]
	if !ok {
		return fmt.Errorf("set %q: node %s has the unknown stage %q", override, nodeName, node.Stage)
	}
	i := slices.IndexFunc(info.Params, func(p Param) bool { return p.Name == paramName })
	if i < 0 {
		return fmt.Errorf("set %q: node %s (stage %s) has no parameter %q%s", override, nodeName, node.Stage, paramName,
			parenthesised(suggest(paramName, paramNames(info.Params), "its parameters are")))
	}
	value := info.Params[i].fromText(text)
	if message, hint := info.Params[i].check(value); message != "" {
		return fmt.Errorf("set %q: %s%s", override, message, parenthesised(hint))
	}
	if node.Config = maps.Clone(node.Config); node.Config == nil {
		node.Config = make(map[string]json.RawMessage, 1)
	}
	node.Config[paramName] = value
	// The value no longer stands in the text.
	delete(spec.positions, fieldPath(spec.configPath(n), paramName))
	return nil
}

// fromText returns the JSON form of a value typed on a command line. It does
// not judge the value: check does.
func (p Param) fromText(text string) json.RawMessage {
	trimmed := strings.TrimSpace(text)
	switch p.Kind {
	case KindInt, KindFloat, KindBool:
		if json.Valid([]byte(trimmed)) {
			return json.RawMessage(trimmed)
		}
	case KindDuration:
		if _, ok := floatValue(json.RawMessage(trimmed)); ok {
			return json.RawMessage(trimmed)
		}
		return quoteJSON(trimmed)
	case KindStrings:
		if strings.HasPrefix(trimmed, "[") && json.Valid([]byte(trimmed)) {
			return json.RawMessage(trimmed)
		}
		list := []string{}
		if text != "" {
			list = strings.Split(text, ",")
		}
		data, err := json.Marshal(list)
		if err != nil {
			return quoteJSON(text)
		}
		return data
	}
	return quoteJSON(text)
}

// check returns what is wrong with a value, "" when nothing is.
func (p Param) check(raw json.RawMessage) (message, hint string) {
	wrongKind := func(want, hint string) (string, string) {
		return fmt.Sprintf("%s must be %s, not %s", p.Name, want, abbreviate(string(raw), 60)), hint
	}
	switch p.Kind {
	case KindString:
		if _, ok := stringValue(raw); !ok {
			return wrongKind("a string", "")
		}
	case KindInt:
		n, ok := intValue(raw)
		if !ok {
			return wrongKind("a whole number", p.quotedNumberHint(raw))
		}
		return p.checkRange(float64(n), raw)
	case KindFloat:
		f, ok := floatValue(raw)
		if !ok {
			return wrongKind("a number", p.quotedNumberHint(raw))
		}
		return p.checkRange(f, raw)
	case KindBool:
		if _, ok := boolValue(raw); !ok {
			return wrongKind("true or false", "")
		}
	case KindDuration:
		d, ok := durationValue(raw)
		if !ok {
			return wrongKind("a duration", `a number of seconds, or a string such as "1.5s" or "200ms"`)
		}
		return p.checkRange(d.Seconds(), raw)
	case KindEnum:
		s, ok := stringValue(raw)
		if !ok || !slices.Contains(p.Enum, s) {
			return wrongKind("one of "+strings.Join(p.Enum, ", "), didYouMean(s, p.Enum))
		}
	case KindStrings:
		if _, ok := stringsValue(raw); !ok {
			return wrongKind("a list of strings", "")
		}
	default:
		return fmt.Sprintf("%s has the unknown kind %q", p.Name, p.Kind), "this is a mistake in the catalog"
	}
	return "", ""
}

func (p Param) checkRange(value float64, raw json.RawMessage) (message, hint string) {
	unit := ""
	if p.Kind == KindDuration {
		unit = " s"
	}
	tooLow := p.Min != nil && value < *p.Min
	tooHigh := p.Max != nil && value > *p.Max
	switch {
	case !tooLow && !tooHigh:
		return "", ""
	case p.Min != nil && p.Max != nil:
		return fmt.Sprintf("%s must be from %g to %g%s, not %s", p.Name, *p.Min, *p.Max, unit, raw), ""
	case tooLow:
		return fmt.Sprintf("%s must be at least %g%s, not %s", p.Name, *p.Min, unit, raw), ""
	default:
		return fmt.Sprintf("%s must be at most %g%s, not %s", p.Name, *p.Max, unit, raw), ""
	}
}

func (p Param) quotedNumberHint(raw json.RawMessage) string {
	if s, ok := stringValue(raw); ok {
		if _, ok := floatValue(json.RawMessage(s)); ok {
			return "take the quotes away"
		}
	}
	return ""
}

func paramNames(params []Param) []string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.Name
	}
	return names
}

// The readers below are strict about the JSON type, and so are both the check
// of a value and its use.

func stringValue(raw json.RawMessage) (string, bool) {
	var s *string
	if json.Unmarshal(raw, &s) != nil || s == nil {
		return "", false
	}
	return *s, true
}

func boolValue(raw json.RawMessage) (value, ok bool) {
	switch strings.TrimSpace(string(raw)) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

func floatValue(raw json.RawMessage) (float64, bool) {
	var f *float64
	if json.Unmarshal(raw, &f) != nil || f == nil {
		return 0, false
	}
	return *f, true
}

// intValue also takes whole numbers written with a fraction or an exponent, as
// JSON Schema does: 2.0 and 1e3.
func intValue(raw json.RawMessage) (int64, bool) {
	if n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && json.Valid(raw) {
		return n, true
	}
	const exact = 1 << 53
	f, ok := floatValue(raw)
	if !ok || f != math.Trunc(f) || math.Abs(f) > exact {
		return 0, false
	}
	return int64(f), true
}

func durationValue(raw json.RawMessage) (time.Duration, bool) {
	if s, ok := stringValue(raw); ok {
		d, err := time.ParseDuration(s)
		return d, err == nil
	}
	const longest = float64(math.MaxInt64) / float64(time.Second)
	f, ok := floatValue(raw)
	if !ok || math.Abs(f) >= longest {
		return 0, false
	}
	return time.Duration(math.Round(f * float64(time.Second))), true
}

func stringsValue(raw json.RawMessage) ([]string, bool) {
	var pointers []*string
	if json.Unmarshal(raw, &pointers) != nil || pointers == nil {
		return nil, false
	}
	list := make([]string, len(pointers))
	for i, s := range pointers {
		if s == nil {
			return nil, false
		}
		list[i] = *s
	}
	return list, true
}

func quoteJSON(s string) json.RawMessage {
	data, err := json.Marshal(s)
	if err != nil { // cannot happen: every string has a JSON form
		return json.RawMessage(`""`)
	}
	return data
}
