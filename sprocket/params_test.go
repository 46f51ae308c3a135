package sprocket

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParamsReadByKind(t *testing.T) {
	p := Params{
		"string": json.RawMessage(`"a\u00e4"`), "int": json.RawMessage(`-3`), "whole": json.RawMessage(`1e3`), "float": json.RawMessage(`0.5`),
		"bool": json.RawMessage(`true`), "seconds": json.RawMessage(`1.5`), "duration": json.RawMessage(`"200ms"`), "list": json.RawMessage(`["a", "b"]`),
	}
	got := []any{
		p.String("string"), p.Int("int"), p.Int("whole"), p.Float("float"), p.Float("int"), p.Bool("bool"),
		p.Duration("seconds"), p.Duration("duration"), p.Strings("list"), p.Has("list"),
	}
	want := []any{"aä", int64(-3), int64(1000), 0.5, -3.0, true, 1500 * time.Millisecond, 200 * time.Millisecond, []string{"a", "b"}, true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParamsWithoutAValueAreZero(t *testing.T) {
	var p Params
	got := []any{p.String("x"), p.Int("x"), p.Float("x"), p.Bool("x"), p.Duration("x"), p.Strings("x"), p.Has("x")}
	want := []any{"", int64(0), 0.0, false, time.Duration(0), []string(nil), false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestResolveFillsInDefaults(t *testing.T) {
	info := testCatalog().Stages["encode"]
	given := map[string]json.RawMessage{"crf": json.RawMessage("20")}
	got, problems := info.Resolve(given)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := Params{
		"codec": json.RawMessage(`"h264"`), "preset": json.RawMessage(`"medium"`), "crf": json.RawMessage("20"), "closed_gop": json.RawMessage("true"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(given) != 1 {
		t.Error("Resolve changed what it was given")
	}
}

func TestDefaultsOfTheTestCatalogAreValid(t *testing.T) {
	for _, info := range testCatalog().Stages {
		for _, p := range info.Params {
			if p.Default == "" {
				continue
			}
			if message, _ := p.check(json.RawMessage(p.Default)); message != "" {
				t.Errorf("%s: %s", info.Name, message)
			}
		}
	}
}

func setSpec(t *testing.T) *Spec {
	t.Helper()
	spec, err := ParseSpec("spec.json", []byte(pipeline([]string{
		"decode decode", "filter filter", "scale scale", `{"name": "encode", "stage": "encode", "config": {"crf": 23}}`,
		"stills thumbnails", "exec exec", "odd transmogrify",
	}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestParseSetReadsTextByKind(t *testing.T) {
	tests := []struct{ override, node, param, want string }{
		{"filter.vf=hue=s=0", "filter", "vf", `"hue=s=0"`},
		{"filter.vf=drawtext=text='a \"b\"'", "filter", "vf", `"drawtext=text='a \"b\"'"`},
		{"filter.vf=", "filter", "vf", `""`},
		{"filter.vf=5", "filter", "vf", `"5"`},
		{"scale.width=640", "scale", "width", `640`},
		{"scale.height=-2", "scale", "height", `-2`},
		{"encode.crf=18.5", "encode", "crf", `18.5`},
		{"encode.preset=slow", "encode", "preset", `"slow"`},
		{"encode.closed_gop=false", "encode", "closed_gop", `false`},
		{"stills.interval=2", "stills", "interval", `2`},
		{"stills.interval=1m30s", "stills", "interval", `"1m30s"`},
		{"exec.command=tr,a,b", "exec", "command", `["tr","a","b"]`},
		{`exec.command=["echo", "a,b"]`, "exec", "command", `["echo", "a,b"]`},
		{"exec.command=", "exec", "command", `[]`},
	}
	for _, test := range tests {
		t.Run(test.override, func(t *testing.T) {
			spec := setSpec(t)
			if err := ParseSet(spec, testCatalog(), test.override); err != nil {
				t.Fatal(err)
			}
			for _, n := range spec.Nodes {
				if n.Name == test.node && string(n.Config[test.param]) != test.want {
					t.Errorf("got %s, want %s", n.Config[test.param], test.want)
				}
			}
		})
	}
}

func TestParseSetErrorsSayWhatThereIs(t *testing.T) {
	var all strings.Builder
	for _, override := range []string{
		"", "filter", "filter=null", "vf=null", ".vf=null", "filter.=null",
		"fliter.vf=null", "nobody.vf=null", "encode.csf=20", "encode.bitrate=20", "odd.vf=null", "decode.x=1",
		"scale.width=wide", "scale.width=1.5", "scale.width=", "scale.width=99999", `scale.width="640"`,
		"encode.crf=-1", "encode.preset=slwo", "encode.closed_gop=yes", "stills.interval=soon", "stills.interval=1ms", "exec.command=[1]",
	} {
		spec := setSpec(t)
		err := ParseSet(spec, testCatalog(), override)
		if err == nil {
			t.Errorf("%q was accepted", override)
			continue
		}
		if diff := cmp.Diff(setSpec(t).Nodes, spec.Nodes); diff != "" {
			t.Errorf("%q was refused, but changed the spec:\n%s", override, diff)
		}
		all.WriteString(err.Error() + "\n")
	}
	golden(t, "set_errors.txt", all.String())
}

func TestParseSetLeavesCopiesOfTheSpecAlone(t *testing.T) {
	spec := setSpec(t)
	before := spec.Nodes[3].Config
	if err := ParseSet(spec, testCatalog(), "encode.crf=30"); err != nil {
		t.Fatal(err)
	}
	if string(before["crf"]) != "23" || string(spec.Nodes[3].Config["crf"]) != "30" {
		t.Errorf("the old config has %s, the new one %s", before["crf"], spec.Nodes[3].Config["crf"])
	}
}
