package sprocket

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update accepts it):\n%s", file, diff)
	}
}

// listing21 is the thesis's listing 2.1 as printed, without the page break.
const listing21 = `{ "nodes":
  [ {
    "name": "decode_0",
    "stage": "decode"
  }, {
    "name": "decode_1",
    "stage": "decode"
  }, {
    "name": "blend",
    "stage": "blend",
    "delivery_function":
      "pair_delivery_func"
  }, {
    "name": "encode",
    "stage": "encode"
  }
],
"streams":
  [ {
    "src": "input_0:chunks",
    "dst": "decode_0:chunks"
  }, {
    "src": "input_1:chunks",
    "dst": "decode_1:chunks"
}, {
  "src": "decode_0:frames",
  "dst": "blend:frames_0"
}, {
  "src": "decode_1:frames",
  "dst": "blend:frames_1"
}, {
  "src": "blend:frames",
  "dst": "encode:frames"
}, {
  "src": "encode:chunks",
  "dst": "output_0:chunks"
}
]
}
`

func TestTheThesisListingParsesUnchanged(t *testing.T) {
	got, err := ParseSpec("blend.json", []byte(listing21))
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		Nodes: []NodeSpec{
			{Name: "decode_0", Stage: "decode"},
			{Name: "decode_1", Stage: "decode"},
			{Name: "blend", Stage: "blend", DeliveryFunction: "pair_delivery_func"},
			{Name: "encode", Stage: "encode"},
		},
		Streams: []StreamSpec{
			{Src: "input_0:chunks", Dst: "decode_0:chunks"},
			{Src: "input_1:chunks", Dst: "decode_1:chunks"},
			{Src: "decode_0:frames", Dst: "blend:frames_0"},
			{Src: "decode_1:frames", Dst: "blend:frames_1"},
			{Src: "blend:frames", Dst: "encode:frames"},
			{Src: "encode:chunks", Dst: "output_0:chunks"},
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Spec{})); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(testCatalog()); err != nil {
		t.Error(err)
	}
}

func TestParseSpecErrors(t *testing.T) {
	tests := []struct{ name, text string }{
		{"an empty file", ""},
		{"a file of spaces", " \n\t"},
		{"a file that is not JSON", "nodes:\n  - decode\n"},
		{"a spec that is a list", "[]"},
		{"text after the spec", "{}\n{}"},
		{"a comma too many in a list", `{"nodes": [{},]}`},
		{"a comma too many in an object", `{"nodes": [],}`},
		{"a missing comma", "{\"name\": \"a\"\n \"nodes\": []}"},
		{"a missing colon", `{"name" "a"}`},
		{"a missing value", `{"name": }`},
		{"a comment", "{\n  // the nodes\n  \"nodes\": []\n}"},
		{"single quotes", `{'nodes': []}`},
		{"a name without quotes", `{nodes: []}`},
		{"the wrong true", `{"nodes": True}`},
		{"a string that is not closed", "{\"name\": \"volley,\n \"nodes\": []}"},
		{"a string that the file ends in", `{"name": "volley`},
		{"a bad escape", `{"name": "C:\videos"}`},
		{"a bad unicode escape", `{"name": "\u12G4"}`},
		{"a tab in a string", "{\"name\": \"a\tb\"}"},
		{"text that is not UTF-8", "{\"name\": \"\xff\"}"},
		{"UTF-16", "\xff\xfe{\x00}\x00"},
		{"a malformed number", `{"nodes": 01}`},
		{"a list that is not closed", `{"nodes": [`},
		{"an object that is not closed", "{\n \"name\": \"a\"\n"},
		{"too many lists in each other", `{"nodes": ` + strings.Repeat("[", 5000)},
		{"columns counted in characters", `{"name": "äöü€😀", nodes}`},
		{"a fault after a byte order mark", "\uFEFF{nodes}"},
		{"wrong types everywhere", `{
  "name": 1, "description": null, "example": [],
  "nodes": [
    {"name": true, "stage": {}, "config": "vf", "delivery_function": 1, "function": false},
    "decode", null
  ],
  "streams": [{"src": ["a:frames"], "dst": 2, "options": []}, 7]
}`},
		{"lists that are not lists", `{"nodes": {}, "streams": null}`},
		{"unknown fields", `{
  "title": "x", "node": [], "Streams": [],
  "nodes": [{"name": "a", "stages": "decode", "delivery-function": "pair", "params": {}, "weird \"key\"": 1}],
  "streams": [{"source": "a:frames", "dest": "b:frames"}]
}`},
		{"fields given twice", `{
  "nodes": [{"name": "a", "name": "b", "stage": "filter", "config": {"vf": "x", "a.b": {"c": 1, "c": 2}, "vf": "y"}}],
  "streams": [],
  "nodes": []
}`},
		{"config and its synonym together", `{"nodes": [{"name": "a", "stage": "filter", "config": {"vf": "null"}, "parameters": {"vf": "null"}}]}`},
	}
	var all strings.Builder
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec, err := ParseSpec("spec.json", []byte(test.text))
			var specErr *SpecError
			if !errors.As(err, &specErr) || spec != nil {
				t.Fatalf("got %v and %v, want no spec and a *SpecError", spec, err)
			}
			for _, p := range specErr.Problems {
				if p.Line == 0 || p.Col == 0 {
					t.Errorf("no position: %+v", p)
				}
			}
			all.WriteString("# " + test.name + "\n" + err.Error() + "\n\n")
		})
	}
	golden(t, "parse_errors.txt", all.String())
}

func TestAByteOrderMarkAndASchemaReferenceAreAccepted(t *testing.T) {
	spec, err := ParseSpec("", []byte("\uFEFF"+`{"$schema": "pipespec.schema.json", "name": "x", "nodes": []}`))
	if err != nil {
		t.Fatal(err)
	}
	if spec.Name != "x" {
		t.Errorf("name is %q", spec.Name)
	}
}

func TestParametersIsASynonymOfConfig(t *testing.T) {
	spec, err := ParseSpec("", []byte(`{"nodes": [{"name": "f", "stage": "filter", "parameters": { "vf" : "null" , "x": [1, 2] }}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]json.RawMessage{"vf": json.RawMessage(`"null"`), "x": json.RawMessage(`[1,2]`)}
	if diff := cmp.Diff(want, spec.Nodes[0].Config); diff != "" {
		t.Error(diff)
	}
	err = spec.Validate(testCatalog())
	if err == nil || !strings.Contains(err.Error(), "$.nodes[0].parameters.x") {
		t.Errorf("got %v, want a problem at parameters.x", err)
	}
}

func TestSpecErrorLeavesOutWhatIsNotKnown(t *testing.T) {
	err := &SpecError{Problems: []Problem{
		{Message: "bad"},
		{Line: 2, Col: 3, Path: "$.nodes", Message: "bad"},
		{Path: "$.nodes", Message: "bad", Hint: "do better"},
	}}
	want := "bad\nline 2:3: $.nodes: bad\n$.nodes: bad (do better)"
	if got := err.Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDidYouMeanFindsTypingMistakesOnly(t *testing.T) {
	known := []string{"decode", "encode", "filter", "scale"}
	tests := []struct{ word, want string }{
		{"decod", "decode"},
		{"encoed", "encode"},
		{"Filter", "filter"},
		{"sclae", "scale"},
		{"thumbnails", ""},
		{"x", ""},
		{"", ""},
		{strings.Repeat("decode", 100), ""},
	}
	for _, test := range tests {
		if got := closest(test.word, known); got != test.want {
			t.Errorf("closest(%q) = %q, want %q", test.word, got, test.want)
		}
	}
}

func TestPathsNameTheirParents(t *testing.T) {
	path := fieldPath(fieldPath(indexPath(fieldPath("$", "streams"), 3), "options"), `frames.["x"]`)
	var got []string
	for ; path != ""; path = parentPath(path) {
		got = append(got, path)
	}
	want := []string{`$.streams[3].options["frames.[\"x\"]"]`, "$.streams[3].options", "$.streams[3]", "$.streams", "$"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, seed := range []string{
		listing21, "", "{}", "[]", "{\"nodes\":[{\"name\":\"a\",\"stage\":\"filter\",\"config\":{\"vf\":\"\\u00e4\"}}]}",
		`{"nodes":[{"name":"a","stage":"exec","parameters":{"command":["x"]}},{"name":"b","stage":"exec"}],"streams":[{"src":"a:frames","dst":"b:frames"},{"src":"b:frames","dst":"a:frames"}]}`,
		`{"streams":[{"src":"input_0:frames","dst":"output_9:chunks","options":{"frames.format":"png"}}]}`,
		"{\"a\":\xff}", `{"nodes":[1,]}`, `{"a":1,"a":2}`, "\uFEFF{}",
	} {
		f.Add([]byte(seed))
	}
	c := testCatalog()
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := ParseSpec("fuzz.json", data)
		if err != nil {
			var specErr *SpecError
			if !errors.As(err, &specErr) || len(specErr.Problems) == 0 {
				t.Fatalf("error without problems: %v", err)
			}
			return
		}
		if !json.Valid([]byte(strings.TrimPrefix(string(data), "\uFEFF"))) {
			t.Fatal("accepted what is not JSON")
		}
		again := roundTrip(t, spec)
		// Marshal writes < and > in raw values another way, without changing them.
		if diff := cmp.Diff(spec, again, cmpopts.IgnoreUnexported(Spec{}), cmp.Comparer(sameJSON)); diff != "" {
			t.Fatal(diff)
		}
		_ = spec.DOT(c)
		svg, err := spec.SVG(c)
		if valid := spec.Validate(c) == nil; valid != (err == nil) {
			t.Fatalf("valid is %v, but SVG says %v", valid, err)
		}
		if err == nil {
			checkXML(t, svg)
		}
	})
}

// fataler is what *testing.T and *rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func roundTrip(t fataler, spec *Spec) *Spec {
	t.Helper()
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseSpec("again.json", data)
	if err != nil {
		t.Fatal(err)
	}
	return again
}
