package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap/snapshot"
)

// lazyCopy makes a copy of a snapshot whose memory is elsewhere.
func lazyCopy(t *testing.T, s *snapshot.Snapshot) *snapshot.Draft {
	t.Helper()
	d, err := snapshot.Begin(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	})
	for _, f := range s.Meta().Files {
		if f.Name == snapshot.MemoryFile {
			continue
		}
		if err := os.Link(s.Path(f.Name), d.Path(f.Name)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// committed returns a snapshot, and its metadata as it is written.
func committed(t *testing.T) (*snapshot.Snapshot, []byte) {
	t.Helper()
	s, err := draft(t, filepath.Join(t.TempDir(), "original"), 1).Commit(t.Context(), contents())
	if err != nil {
		t.Fatal(err)
	}
	meta, err := os.ReadFile(s.Path(snapshot.MetaFile))
	if err != nil {
		t.Fatal(err)
	}
	return s, meta
}

func TestACopyLacksItsMemoryUntilThatIsComplete(t *testing.T) {
	original, meta := committed(t)
	d := lazyCopy(t, original)
	if _, err := d.Adopt(t.Context(), meta, "file:///elsewhere"); err != nil {
		t.Fatal(err)
	}
	s, err := d.Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Remote() != "file:///elsewhere" || s.Meta().ID != original.Meta().ID {
		t.Errorf("memory is in %q, the id %s", s.Remote(), s.Meta().ID)
	}
	if err := errors.Join(s.Verify(t.Context()), s.Unchanged()); err != nil {
		t.Error(err)
	}
	memory := guestMemory(1)
	if err := s.CheckMemory(1, memory[snapshot.ChunkSize:2*snapshot.ChunkSize]); err != nil {
		t.Error(err)
	}
	if err := s.CheckMemory(0, memory[snapshot.ChunkSize:2*snapshot.ChunkSize]); !errors.Is(err, snapshot.ErrDamaged) {
		t.Errorf("another chunk: error %v", err)
	}
	if err := os.WriteFile(s.Path(snapshot.PartFile), memory, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path(snapshot.PresentFile), []byte{255}, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = snapshot.Open(s.Dir()); err != nil || s.Remote() == "" {
		t.Errorf("what is there in part is taken for all: %v", err)
	}
	if err := s.CompleteMemory(opened(t, s.Path(snapshot.PresentFile))); err == nil {
		t.Error("another file became its memory")
	}
	if err := s.CompleteMemory(opened(t, s.Path(snapshot.PartFile))); err != nil {
		t.Fatal(err)
	}
	whole, err := snapshot.Open(s.Dir())
	if err == nil {
		err = whole.Verify(t.Context())
	}
	if err != nil || whole.Remote() != "" {
		t.Errorf("memory is still in %q: %v", whole.Remote(), err)
	}
}

func opened(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestCopiesThatAreNotWhatTheMetadataSaysAreRefused(t *testing.T) {
	original, meta := committed(t)
	for _, tc := range []struct {
		name, file, content string
		want                string
	}{
		{"a file is another", "vmstate", "registers of 2", "vmstate"},
		{"a file is longer", "vmstate", "registers of 1 and more", "vmstate"},
		{"a file is too many", "extra", "", "extra"},
		{"the loading set is another", snapshot.LoadingFile, strings.Repeat("x", int(original.FileDiskBytes(snapshot.LoadingFile))), snapshot.LoadingFile},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := lazyCopy(t, original)
			if err := os.RemoveAll(d.Path(tc.file)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.Path(tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Adopt(t.Context(), meta, "file:///elsewhere"); !errors.Is(err, snapshot.ErrDamaged) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v; want one that names %s", err, tc.want)
			}
		})
	}
	t.Run("the address cannot be read", func(t *testing.T) {
		d := lazyCopy(t, original)
		s, err := d.Adopt(t.Context(), meta, "file:///elsewhere")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"", "{}", `{"url": 3}`, `{"url": "file:///x", "more": 1}`} {
			if err := os.Remove(s.Path(snapshot.RemoteFile)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.Path(snapshot.RemoteFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := snapshot.Open(s.Dir()); !errors.Is(err, snapshot.ErrDamaged) {
				t.Errorf("%q: error %v; want that the snapshot is damaged", text, err)
			}
		}
	})
	t.Run("a snapshot has the file of a copy", func(t *testing.T) {
		d := draft(t, filepath.Join(t.TempDir(), "one"), 1)
		if err := os.WriteFile(d.Path(snapshot.RemoteFile), []byte(`{"url": "file:///x"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Commit(t.Context(), contents()); err == nil {
			t.Error("it was written")
		}
	})
}
