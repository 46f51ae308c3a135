package sprocket

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// jsonSchema is the part of a JSON Schema that these tests look at.
type jsonSchema struct {
	Schema               string                `json:"$schema"`
	Type                 json.RawMessage       `json:"type"`
	Pattern              string                `json:"pattern"`
	Ref                  string                `json:"$ref"`
	AdditionalProperties json.RawMessage       `json:"additionalProperties"`
	Properties           map[string]jsonSchema `json:"properties"`
	Items                *jsonSchema           `json:"items"`
	Not                  *jsonSchema           `json:"not"`
	Defs                 map[string]jsonSchema `json:"$defs"`
}

func readSchema(t *testing.T) jsonSchema {
	t.Helper()
	data, err := os.ReadFile("../docs/formats/pipespec.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readJSON(data); err != nil {
		t.Fatal(err)
	}
	var schema jsonSchema
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

func TestTheSchemaNamesTheFieldsOfTheGoTypes(t *testing.T) {
	schema := readSchema(t)
	if schema.Schema != "https://json-schema.org/draft/2020-12/schema" {
		t.Errorf("it is written in %q", schema.Schema)
	}
	tests := []struct {
		name   string
		goType reflect.Type
		schema jsonSchema
		// extra are the fields that ParseSpec reads and no Go field holds.
		extra []string
	}{
		{"the spec", reflect.TypeFor[Spec](), schema, []string{"$schema"}},
		{"a node", reflect.TypeFor[NodeSpec](), schema.Defs["node"], []string{"parameters"}},
		{"a stream", reflect.TypeFor[StreamSpec](), schema.Defs["stream"], nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := slices.Clone(test.extra)
			for i := range test.goType.NumField() {
				if f := test.goType.Field(i); f.IsExported() {
					name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
					want = append(want, name)
				}
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, sortedKeys(test.schema.Properties)); diff != "" {
				t.Error(diff)
			}
			if string(test.schema.AdditionalProperties) != "false" {
				t.Error("it lets unknown fields pass")
			}
		})
	}
}

func TestTheSchemaHasTheParsersPatterns(t *testing.T) {
	schema := readSchema(t)
	name := schema.Defs["node"].Properties["name"]
	if name.Pattern != nodeName.String() || name.Not.Pattern != externalName.String() {
		t.Errorf("node names match %q and not %q", name.Pattern, name.Not.Pattern)
	}
	endpoint := regexp.MustCompile(schema.Defs["endpoint"].Pattern)
	spec, err := ParseSpec("", []byte(listing21))
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range spec.Streams {
		for _, e := range []Endpoint{st.Src, st.Dst} {
			if !endpoint.MatchString(string(e)) {
				t.Errorf("the schema refuses %q", e)
			}
		}
	}
}

// The manual's example is a whole pipespec and has to be right.
func TestTheExampleInTheManualParses(t *testing.T) {
	data, err := os.ReadFile("../docs/formats/pipespec.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(data, -1)
	if len(examples) == 0 {
		t.Fatal("no example")
	}
	for _, example := range examples {
		spec, err := ParseSpec("pipespec.md", example[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := spec.Validate(testCatalog()); err != nil {
			t.Error(err)
		}
	}
}
