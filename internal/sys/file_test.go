package sys

import (
	"errors"
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

func TestTwoDirectoriesAreExchanged(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, d := range []string{a, b} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "name"), []byte(filepath.Base(d)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Exchange(a, b); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[string]string{a: "b", b: "a"} {
		if got, err := os.ReadFile(filepath.Join(d, "name")); err != nil || string(got) != want {
			t.Errorf("%s is %q now, error %v; want %q", d, got, err, want)
		}
	}
	for _, pair := range [][2]string{{a, filepath.Join(dir, "none")}, {filepath.Join(dir, "none"), b}} {
		if err := Exchange(pair[0], pair[1]); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v; want that one does not exist", err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("entries %v, error %v; want two", entries, err)
	}
}
