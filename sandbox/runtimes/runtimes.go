// Package runtimes holds the runtime clients: the programs that run handlers
// written in Python and JavaScript, and speak the Runtime API for them. Each is
// one file that needs nothing but its language.
package runtimes

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
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
		if err := writeFile(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("write runtime clients: %w", err)
		}
	}
	return nil
}

func writeFile(path string, content []byte) (err error) {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(content) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
