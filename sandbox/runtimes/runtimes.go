// Package runtimes holds the runtime clients: the programs that run handlers
// written in Python and JavaScript, and speak the Runtime API for them. Each is
// one file that needs nothing but its language.
package runtimes

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"

	"github.com/volley-run/volley/internal/sys"
)

// The names of the clients, in /var/runtime.
const (
	PythonFile = "bootstrap.py"
	NodeFile   = "bootstrap.mjs"
)

//go:embed bootstrap.py
var python []byte

//go:embed bootstrap.mjs
var node []byte

// Write writes the clients into dir, which it makes if need be. Files that are
// there and the same stay as they are, so that sandboxes which use them are not
// disturbed; others are replaced at once as a whole.
func Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write runtime clients: %w", err)
	}
	for name, content := range map[string][]byte{PythonFile: python, NodeFile: node} {
		path := filepath.Join(dir, name)
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
			continue
		}
		if err := sys.ReplaceFile(path, content, 0o644); err != nil {
			return fmt.Errorf("write runtime clients: %w", err)
		}
	}
	return nil
}
