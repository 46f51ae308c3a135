package sprocket

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// jsonKind is a JSON type as messages name it.
type jsonKind string

const (
	jsonObject jsonKind = "an object"
	jsonArray  jsonKind = "a list"
	jsonString jsonKind = "a string"
	jsonNumber jsonKind = "a number"
	jsonBool   jsonKind = "true or false"
	jsonNull   jsonKind = "null"
)

// jsonValue is a JSON value that knows where it stands. encoding/json forgets
// positions and takes the last of duplicate members, which would hide faults
// that the author of a pipespec has to be told of.
type jsonValue struct {
	kind     jsonKind
	at       Position
	raw      []byte
	text     string // of a string
	members  []jsonMember
	elements []jsonValue
}

type jsonMember struct {
	name  string
	at    Position
	value jsonValue
}

// maxJSONDepth is far beyond any pipespec and well within the stack.
const maxJSONDepth = 100

// jsonReader reads one JSON text from left to right.
type jsonReader struct {
	data   []byte
	offset int
	depth  int
	// marked and markedAt are the last place whose position was counted.
	marked   int
	markedAt Position
}

// syntaxError ends the reading of a JSON text.
type syntaxError struct {
	at            Position
	message, hint string
}

func (e *syntaxError) Error() string { return e.message }

// readJSON reads data as exactly one JSON value. The error is a *syntaxError.
func readJSON(data []byte) (jsonValue, error) {
	r := &jsonReader{data: data, markedAt: Position{Line: 1, Column: 1}}
	if len(bytes.TrimSpace(data)) == 0 {
		return jsonValue{}, r.fail("the file is empty", `a pipespec is a JSON object with "nodes" and "streams"`)
	}
	const byteOrderMark = "\uFEFF"
	if bytes.HasPrefix(data, []byte(byteOrderMark)) {
		r.offset, r.marked = len(byteOrderMark), len(byteOrderMark)
	}
	value, err := r.value()
	if err != nil {
		return jsonValue{}, err
	}
	if r.space(); r.offset < len(data) {
		return jsonValue{}, r.fail("expected nothing after the value that started at 1:1, found "+r.found(), r.hint())
	}
	return value, nil
}

// position returns the line and column of the reader's offset, which never
// goes back.
func (r *jsonReader) position() Position {
	for r.marked < r.offset {
		_, size := utf8.DecodeRune(r.data[r.marked:])
		if r.data[r.marked] == '\n' {
			r.markedAt = Position{Line: r.markedAt.Line + 1, Column: 1}
		} else {
			r.markedAt.Column++
		}
		r.marked += size
	}
	return r.markedAt
}

func (r *jsonReader) fail(message, hint string) *syntaxError {
	return &syntaxError{at: r.position(), message: message, hint: hint}
}

func (r *jsonReader) space() {
	for r.offset < len(r.data) {
		switch r.data[r.offset] {
		case ' ', '\t', '\r', '\n':
			r.offset++
		default:
			return
		}
	}
}

// next returns the byte at the offset, 0 at the end.
func (r *jsonReader) next() byte {
	if r.offset < len(r.data) {
		return r.data[r.offset]
	}
	return 0
}

// found describes what stands at the offset.
func (r *jsonReader) found() string {
	if r.offset >= len(r.data) {
		return "the end of the file"
	}
	if word := r.word(); len(word) > 0 {
		return fmt.Sprintf("%q", abbreviate(string(word), 24))
	}
	c, size := utf8.DecodeRune(r.data[r.offset:])
	switch {
	case c == utf8.RuneError && size <= 1:
		return "a byte that is not UTF-8"
	case c == '"':
		return "a string"
	}
	return fmt.Sprintf("%q", c)
}

// hint guesses what the author meant by what stands at the offset.
func (r *jsonReader) hint() string {
	switch r.next() {
	case '/', '#':
		return "JSON has no comments"
	case '\'':
		return "JSON strings stand in double quotes"
	}
	switch string(r.word()) {
	case "True", "False":
		return "JSON writes true and false"
	case "None", "nil", "undefined", "NaN", "Infinity":
		return "JSON has no such value"
	}
	return ""
}

// word returns the letters and digits at the offset.
func (r *jsonReader) word() []byte {
	rest := r.data[r.offset:]
	end := bytes.IndexFunc(rest, func(c rune) bool {
		return c == utf8.RuneError || !unicode.IsLetter(c) && !unicode.IsDigit(c) && c != '_'
	})
	if end < 0 {
		end = len(rest)
	}
	return rest[:end]
}

func (r *jsonReader) value() (jsonValue, error) {
	r.space()
	start := r.offset
	value := jsonValue{at: r.position()}
	var err error
	switch c := r.next(); {
	case c == '{':
		value.kind = jsonObject
		value.members, err = r.object()
	case c == '[':
		value.kind = jsonArray
		value.elements, err = r.array()
	case c == '"':
		value.kind = jsonString
		value.text, err = r.str()
	case c == '-' || c >= '0' && c <= '9':
		value.kind = jsonNumber
		err = r.number()
	default:
		value.kind, err = r.literal()
	}
	value.raw = r.data[start:r.offset]
	return value, err
}

func (r *jsonReader) literal() (jsonKind, error) {
	word := r.word()
	var kind jsonKind
	switch string(word) {
	case "true", "false":
		kind = jsonBool
	case "null":
		kind = jsonNull
	default:
		return "", r.fail("expected a value, found "+r.found(), r.hint())
	}
	r.offset += len(word)
	return kind, nil
}

func (r *jsonReader) number() error {
	end := r.offset
	for end < len(r.data) && bytes.IndexByte([]byte("0123456789+-.eE"), r.data[end]) >= 0 {
		end++
	}
	text := r.data[r.offset:end]
	if !json.Valid(text) {
		return r.fail(fmt.Sprintf("expected a number, found %q", abbreviate(string(text), 24)), "JSON numbers look like 0.5, -2 and 1e3")
	}
	r.offset = end
	return nil
}

// str reads a string. Escapes are checked here, so that the message can point
// at them, and decoded by encoding/json.
func (r *jsonReader) str() (string, error) {
	start := r.offset
	unfinished := func() error {
		return r.fail(`expected a closing '"' before the end of the line`, "the string starts here")
	}
	for i := start + 1; i < len(r.data); {
		c, size := utf8.DecodeRune(r.data[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			r.offset = i
			return "", r.fail("expected UTF-8 text, found the byte "+fmt.Sprintf("0x%02x", r.data[i]), "")
		case c == '"':
			r.offset = i + 1
			var s string
			if err := json.Unmarshal(r.data[start:r.offset], &s); err != nil {
				r.offset = i
				return "", r.fail("expected a string: "+err.Error(), "")
			}
			return s, nil
		case c == '\n':
			return "", unfinished()
		case c < ' ':
			r.offset = i
			return "", r.fail(fmt.Sprintf("expected no control character in a string, found %q", c), `tabs are written \t`)
		case c == '\\':
			escape := escapeLen(r.data[i:])
			if escape == 0 {
				r.offset = i
				return "", r.fail(`expected one of \" \\ \/ \b \f \n \r \t \uXXXX, found `+firstRunes(r.data[i:], 2), `a backslash is written \\`)
			}
			i += escape
		default:
			i += size
		}
	}
	return "", unfinished()
}

// escapeLen returns how long the escape at the start of s is, 0 if it is none.
func escapeLen(s []byte) int {
	if len(s) < 2 {
		return 0
	}
	if s[1] != 'u' {
		if bytes.IndexByte([]byte(`"\/bfnrt`), s[1]) < 0 {
			return 0
		}
		return 2
	}
	if len(s) < 6 {
		return 0
	}
	for _, c := range s[2:6] {
		if bytes.IndexByte([]byte("0123456789abcdefABCDEF"), c) < 0 {
			return 0
		}
	}
	return 6
}

func firstRunes(s []byte, n int) string {
	runes := []rune(string(s[:min(len(s), n*utf8.UTFMax)]))
	return string(runes[:min(len(runes), n)])
}

func (r *jsonReader) enter() error {
	if r.depth++; r.depth > maxJSONDepth {
		return r.fail(fmt.Sprintf("expected at most %d objects and lists inside each other", maxJSONDepth), "")
	}
	r.offset++
	r.space()
	return nil
}

func (r *jsonReader) object() ([]jsonMember, error) {
	opened := r.position()
	if err := r.enter(); err != nil {
		return nil, err
	}
	var members []jsonMember
	for first := true; ; first = false {
		if r.space(); r.next() == '}' && first {
			break
		}
		if r.next() != '"' {
			return members, r.failInside("a name in double quotes", "object", opened, first)
		}
		member := jsonMember{at: r.position()}
		var err error
		if member.name, err = r.str(); err != nil {
			return members, err
		}
		if r.space(); r.next() != ':' {
			return members, r.fail(fmt.Sprintf("expected ':' after the name %q, found %s", abbreviate(member.name, 24), r.found()), r.hint())
		}
		r.offset++
		if member.value, err = r.value(); err != nil {
			return members, err
		}
		members = append(members, member)
		if r.space(); r.next() != ',' {
			break
		}
		r.offset++
	}
	if r.next() != '}' {
		return members, r.failInside("',' or '}'", "object", opened, true)
	}
	r.offset++
	r.depth--
	return members, nil
}

func (r *jsonReader) array() ([]jsonValue, error) {
	opened := r.position()
	if err := r.enter(); err != nil {
		return nil, err
	}
	var elements []jsonValue
	for first := true; ; first = false {
		if r.space(); r.next() == ']' {
			if !first {
				return elements, r.failInside("a value", "list", opened, false)
			}
			break
		}
		element, err := r.value()
		if err != nil {
			return elements, err
		}
		elements = append(elements, element)
		if r.space(); r.next() != ',' {
			break
		}
		r.offset++
	}
	if r.next() != ']' {
		return elements, r.failInside("',' or ']'", "list", opened, true)
	}
	r.offset++
	r.depth--
	return elements, nil
}

// failInside reports what was expected within an object or list. afterComma is
// told by first being false.
func (r *jsonReader) failInside(want, container string, opened Position, first bool) error {
	hint := r.hint()
	if c := r.next(); !first && (c == '}' || c == ']') {
		hint = "take the comma before it away"
	} else if first && (c == '"' || c == '{') && want != "a name in double quotes" {
		hint = "is there a comma missing before it?"
	}
	return r.fail(fmt.Sprintf("expected %s in the %s that started at %d:%d, found %s", want, container, opened.Line, opened.Column, r.found()), hint)
}
