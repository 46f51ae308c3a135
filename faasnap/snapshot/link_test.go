package snapshot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
)

// again begins a snapshot of what another holds.
func again(t *testing.T, s *snapshot.Snapshot) *snapshot.Draft {
	t.Helper()
	d, err := snapshot.Begin(s.Dir() + "-again")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func linkAll(t *testing.T, d *snapshot.Draft, s *snapshot.Snapshot) {
	t.Helper()
	for _, name := range append(s.Files(), snapshot.MemoryFile) {
		if err := d.Link(s, name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLinkedFilesArePlannedAnew(t *testing.T) {
	s := commit(t, filepath.Join(t.TempDir(), "s"), 1)
	c := contents()
	c.Working.Groups = []pages.Group{{{Start: 200, End: 210}}}
	d := again(t, s)
	linkAll(t, d, s)
	got, err := d.Commit(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	fresh, err := draft(t, s.Dir()+"-fresh", 1).Commit(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Plan(), fresh.Plan()) {
		t.Errorf("plan %+v; want %+v", got.Plan(), fresh.Plan())
	}
	for _, name := range []string{"vmstate", snapshot.MemoryFile} {
		a, aerr := os.Stat(s.Path(name))
		b, berr := os.Stat(got.Path(name))
		if aerr != nil || berr != nil || !os.SameFile(a, b) {
			t.Errorf("%s was copied (%v, %v)", name, aerr, berr)
		}
	}
}

// Whoever sums a file again makes what it holds by then the right thing.
func TestDamageIsNotLinkedAway(t *testing.T) {
	s := commit(t, filepath.Join(t.TempDir(), "s"), 1)
	path := s.Path(snapshot.MemoryFile)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("damage"), 300*pages.Size)
	if err := errors.Join(err, f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
	d := again(t, s)
	linkAll(t, d, s)
	got, err := d.Commit(context.Background(), contents())
	if err != nil {
		t.Fatal(err)
	}
	checkDamage(t, got.Verify(context.Background()), got.Dir(), snapshot.MemoryFile, "")
}

func TestAFileThatWasReplacedIsNotLinked(t *testing.T) {
	s := commit(t, filepath.Join(t.TempDir(), "s"), 1)
	replace(t, s.Path(snapshot.MemoryFile), guestMemory(1))
	checkDamage(t, again(t, s).Link(s, snapshot.MemoryFile), s.Dir(), snapshot.MemoryFile, "")
}
