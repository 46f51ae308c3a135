package sys_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/sys"
)

func TestSocketsMayHaveLongPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "socket")
	if _, err := sys.DialUnix(t.Context(), path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v; want that there is no %s", err, path)
	}
	l, err := sys.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := sys.DialUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, err = there.Write([]byte("hello"))
	if err := errors.Join(err, there.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); err != nil || string(text) != "hello" {
		t.Errorf("read %q, %v", text, err)
	}
	if err := errors.Join(conn.Close(), os.Remove(path)); err != nil {
		t.Error(err)
	}
}
