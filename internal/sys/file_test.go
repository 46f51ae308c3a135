package sys

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestAFileIsReplacedAsAWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, want := range []struct {
		text string
		perm fs.FileMode
	}{{"first", 0o600}, {"second, and longer", 0o644}, {"", 0o600}} {
		if err := ReplaceFile(path, []byte(want.text), want.perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want.text {
			t.Errorf("content %q, error %v; want %q", got, err, want.text)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want.perm {
			t.Errorf("mode %v, error %v; want %v", info.Mode(), err, want.perm)
		}
	}
	// What cannot take its place leaves nothing behind.
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(filepath.Join(dir, "directory"), nil, 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("entries %v, error %v; want two", entries, err)
	}
}
