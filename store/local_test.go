package store

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

func TestFullDiskIsErrNoSpaceAndLeavesNothing(t *testing.T) {
	dir := testenv.MountTmpfs(t, 1<<20)
	s, err := OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "kept", "old")
	for _, key := range []string{"kept", "a/b"} {
		if _, err := s.Put(t.Context(), key, io.LimitReader(zeros{}, 4<<20)); !errors.Is(err, ErrNoSpace) {
			t.Errorf("Put(%q): %v; want ErrNoSpace", key, err)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutFile(t.Context(), "a/b", path); !errors.Is(err, ErrNoSpace) {
		t.Errorf("PutFile: %v; want ErrNoSpace", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("PutFile has failed and removed the file: %v", err)
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"kept"}) || get(t, s, "kept", 0, -1) != "old" {
		t.Errorf("there are %v", got)
	}
	noLeftovers(t, filepath.Join(dir, tempDir))
}

func TestPutFileCopiesAcrossFileSystems(t *testing.T) {
	s, err := OpenLocal(testenv.MountTmpfs(t, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	testPutFileSmall(t, s)
}

func testPutFileSmall(t *testing.T, s Store) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := s.PutFile(t.Context(), "key", path); err != nil || n != 7 {
		t.Fatalf("PutFile = %d, %v", n, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if got := get(t, s, "key", 0, -1); got != "content" {
		t.Errorf("got %q", got)
	}
}

func TestErrnosBecomeSentinels(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "x")
	if _, err := s.Put(t.Context(), "a/b", strings.NewReader("x")); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Put below an object: %v", err)
	}
	if got := get(t, s, "a", 0, -1); got != "x" {
		t.Errorf("the object in the way holds %q now", got)
	}
	put(t, s, "f/g", "x")
	if _, err := s.Put(t.Context(), "f", strings.NewReader("x")); err == nil {
		t.Error("a folder is replaced")
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"a", "f/g"}) {
		t.Errorf("there are %v", got)
	}
	noLeftovers(t, filepath.Join(dir, tempDir))
	if os.Geteuid() == 0 {
		return // root may do anything
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if _, err := s.Put(t.Context(), "new/key", strings.NewReader("x")); !errors.Is(err, ErrPermission) {
		t.Errorf("Put in a read-only directory: %v; want ErrPermission", err)
	}
	if err := s.Delete(t.Context(), "a"); !errors.Is(err, ErrPermission) {
		t.Errorf("Delete in a read-only directory: %v; want ErrPermission", err)
	}
}

func TestOpenLocalRemovesOldLeftoversOnly(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "young": time.Hour} {
		path := filepath.Join(dir, tempDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	s, err := OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, tempDir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "young" {
		t.Errorf("left: %v, %v", entries, err)
	}
	if got := list(t, s, ""); len(got) > 0 {
		t.Errorf("listed: %v", got)
	}
}

func TestOpenSaysWhatIsWrongWithAnAddress(t *testing.T) {
	for _, c := range []struct{ address, want string }{
		{"", "not given"},
		{"gs://bucket", `unknown scheme "gs"`},
		{"http://host/x", "s3://bucket/prefix?endpoint=http://host"},
		{"file://host/x", "names the host"},
		{"file:x", "no absolute path"},
		{"file:///x?y=1", "no parameters"},
		{"s3://", "no bucket"},
		{"s3://key:hidden@bucket", "holds no credentials"},
		{"s3://bucket/a/../b", "bad object key"},
		{"s3://bucket?endpint=http://h", `unknown parameter "endpint"`},
		{"s3://bucket?endpoint=localhost:9000", "not an http or https URL"},
		{"s3://bucket?endpoint=http://key:hidden@h", "holds no credentials"},
		{"s3://key:hidden@bucket/%zz", "parse s3 address"},
	} {
		s, err := Open(t.Context(), c.address)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden") || s != nil {
			t.Errorf("Open(%q) = %v, %v; want %q", c.address, s, err, c.want)
		}
	}
}

func TestOpenTakesDirectories(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space", "new")
	for _, address := range []string{dir, "file://" + strings.ReplaceAll(dir, " ", "%20")} {
		s, err := Open(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "key", "x")
		if path := s.(LocalPather).LocalPath("key"); path != filepath.Join(dir, "key") {
			t.Errorf("%s keeps its objects at %s", address, path)
		}
	}
}
