// Package pipelines holds the pipespecs that come with Volley, ready to run:
// "volley run grayscale in.mp4 -o out".
package pipelines

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/volley-run/volley/sprocket"
)

//go:embed *.json
var files embed.FS

// ErrUnknown is returned, wrapped, by Load for a name that no built-in pipeline
// has.
var ErrUnknown = errors.New("no built-in pipeline has this name")

// Names returns the names of the built-in pipelines, sorted.
func Names() []string {
	matches, err := fs.Glob(files, "*.json")
	if err != nil { // cannot happen: the pattern is well formed
		return nil
	}
	names := make([]string, len(matches))
	for i, m := range matches {
		names[i] = strings.TrimSuffix(m, ".json")
	}
	return names
}

// Load returns a built-in pipeline, parsed and as the text of its file. Both
// belong to the caller. The error wraps ErrUnknown if there is no such
// pipeline.
func Load(name string) (*sprocket.Spec, []byte, error) {
	file := path.Base(name) + ".json"
	data, err := files.ReadFile(file)
	if err != nil || path.Base(name) != name {
		return nil, nil, fmt.Errorf("load pipeline %q: %w (there are: %s)", name, ErrUnknown, strings.Join(Names(), ", "))
	}
	spec, err := sprocket.ParseSpec("builtin:"+file, data)
	if err != nil {
		return nil, nil, fmt.Errorf("load pipeline %q: %w", name, err)
	}
	return spec, data, nil
}
