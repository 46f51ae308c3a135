package pipelines

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/stage"
)

func TestTheBuiltInPipelinesAreThere(t *testing.T) {
	want := []string{"blend", "filter", "grayscale", "pip", "scale", "thumbnails", "transcode"}
	got := Names()
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("no pipeline %q in %q", name, got)
		}
	}
	if !slices.IsSorted(got) {
		t.Errorf("%q is not sorted", got)
	}
}

func TestEveryPipelineSaysWhatItIsFor(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			spec, text, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			if spec.Name != name {
				t.Errorf("its name is %q", spec.Name)
			}
			if !strings.HasSuffix(spec.Description, ".") {
				t.Errorf("its description %q is no sentence", spec.Description)
			}
			if !strings.HasPrefix(spec.Example, "volley run "+name+" ") {
				t.Errorf("its example is %q", spec.Example)
			}
			again, err := sprocket.ParseSpec(name, text)
			if err != nil || len(again.Nodes) != len(spec.Nodes) {
				t.Errorf("its text gives another spec, or %v", err)
			}
		})
	}
}

func TestEveryPipelineIsValid(t *testing.T) {
	c := stage.Catalog(delivery.Names())
	for _, name := range Names() {
		spec, _, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := spec.Validate(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The --set options of the examples must work, too.
func TestEveryExampleIsValid(t *testing.T) {
	c := stage.Catalog(delivery.Names())
	for _, name := range Names() {
		spec, _, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(spec.Example)
		for i, word := range words {
			if word != "--set" {
				continue
			}
			if err := sprocket.ParseSet(spec, c, words[i+1]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := spec.Validate(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnUnknownPipelineIsAnErrorThatListsTheOthers(t *testing.T) {
	for _, name := range []string{"sepia", "", ".", "../pipelines/blend", filepath.Join("x", "blend"), "blend.json"} {
		_, _, err := Load(name)
		if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "grayscale") {
			t.Errorf("Load(%q) gives %v", name, err)
		}
	}
}
