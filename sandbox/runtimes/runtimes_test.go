package runtimes

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteReplacesOnlyWhatDiffers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "runtime")
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	python, node := filepath.Join(dir, PythonFile), filepath.Join(dir, NodeFile)
	before, err := os.Stat(python)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(node, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(python); err != nil || !os.SameFile(before, after) {
		t.Errorf("a file that was right is replaced (error %v)", err)
	}
	text, err := os.ReadFile(node)
	if err != nil || len(text) < 1000 {
		t.Errorf("a file that was wrong has %d bytes, error %v", len(text), err)
	}
	if info, err := os.Stat(node); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files %v, error %v", entries, err)
	}
}

func TestWriteTellsWhereItCannot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(file); err == nil {
		t.Error("a file is written into")
	}
}
