package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
	"github.com/volley-run/volley/internal/testenv"
)

const (
	memoryPages = 1500
	memoryBytes = memoryPages * pages.Size // 5.9 chunks
)

// guestMemory returns memory of which the pages from 200 to 500, from 600 to
// 620, and the last are not zero.
func guestMemory(seed uint64) []byte {
	b := make([]byte, memoryBytes)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, r := range []pages.Range{{Start: 200, End: 500}, {Start: 600, End: 620}, {Start: memoryPages - 1, End: memoryPages}} {
		for i := r.Start * pages.Size; i < r.End*pages.Size; i += 5 {
			b[i] = byte(rng.Uint32() | 1)
		}
	}
	return b
}

func contents() snapshot.Contents {
	return snapshot.Contents{
		MemoryBytes: memoryBytes,
		Working: pages.WorkingSet{Pages: memoryPages, Groups: []pages.Group{
			{{Start: 610, End: 700}}, {{Start: 0, End: 10}, {Start: 300, End: 400}},
		}},
		Options: pages.DefaultOptions(),
		Labels:  map[string]string{"function": "hello-world"},
	}
}

// draft begins a snapshot and writes what a VMM would.
func draft(t testing.TB, dir string, seed uint64) *snapshot.Draft {
	t.Helper()
	d, err := snapshot.Begin(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	})
	if err := writeGuest(d, seed); err != nil {
		t.Fatal(err)
	}
	return d
}

// writeGuest writes what a VMM would: memory, of which most of the zero pages
// are holes, and its state.
func writeGuest(d *snapshot.Draft, seed uint64) error {
	if err := os.WriteFile(d.Path("vmstate"), fmt.Append(nil, "registers of ", seed), 0o600); err != nil {
		return err
	}
	f, err := os.Create(d.Path(snapshot.MemoryFile))
	if err != nil {
		return err
	}
	b := guestMemory(seed)
	_, err = f.WriteAt(b[200*pages.Size:620*pages.Size], 200*pages.Size)
	if err == nil {
		_, err = f.WriteAt(b[len(b)-pages.Size:], int64(len(b)-pages.Size))
	}
	return errors.Join(err, f.Close())
}

func commit(t testing.TB, dir string, seed uint64) *snapshot.Snapshot {
	t.Helper()
	s, err := draft(t, dir, seed).Commit(context.Background(), contents())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestASnapshotGivesBackWhatItWasMadeOf(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "hello-world")
	commit(t, dir, 1)
	s, err := snapshot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Verify(context.Background()), s.Unchanged()); err != nil {
		t.Error(err)
	}
	want := guestMemory(1)
	if got, err := os.ReadFile(s.Path(snapshot.MemoryFile)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("memory differs (%v)", err)
	}
	if !reflect.DeepEqual(s.Working(), contents().Working) {
		t.Errorf("working set %v; want %v", s.Working(), contents().Working)
	}
	if got := s.Meta().Labels; !maps.Equal(got, contents().Labels) {
		t.Errorf("labels %v", got)
	}
	if got := s.Files(); !slices.Equal(got, []string{"vmstate"}) {
		t.Errorf("the VMM's files are %v", got)
	}
	loading, err := os.Open(s.Path(snapshot.LoadingFile))
	if err != nil {
		t.Fatal(err)
	}
	defer loading.Close()
	var l mem.Loader
	if err := l.Load(context.Background(), s.Meta().ID, s.Loading(loading)); err != nil {
		t.Error(err)
	}
	got := make([]byte, 110*pages.Size)
	if _, err := loading.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, slices.Concat(want[610*pages.Size:620*pages.Size], want[300*pages.Size:400*pages.Size])) {
		t.Error("the loading-set file does not hold group 0 and then group 1")
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
		t.Errorf("beside the snapshot there are %v (%v)", entries, err)
	}
}

func TestDamagedSnapshotsAreRefused(t *testing.T) {
	parent := t.TempDir()
	whole, other := filepath.Join(parent, "whole"), filepath.Join(parent, "other")
	s := commit(t, whole, 1)
	commit(t, other, 2)
	change := func(f func([]byte) []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			replace(t, path, f(b))
		}
	}
	flip := func(at func(n int) int) func(t *testing.T, path string) {
		return change(func(b []byte) []byte { b[at(len(b))] ^= 0x10; return b })
	}
	names := append([]string{snapshot.MetaFile}, s.Files()...)
	names = append(names, snapshot.MemoryFile, snapshot.LoadingFile, snapshot.PlanFile, snapshot.WorkingFile)
	for _, name := range names {
		for _, tc := range []struct {
			name   string
			damage func(t *testing.T, path string)
		}{
			{"missing", func(t *testing.T, path string) {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}},
			{"empty", change(func([]byte) []byte { return nil })},
			{"a byte short", change(func(b []byte) []byte { return b[:len(b)-1] })},
			{"a byte long", change(func(b []byte) []byte { return append(b, 0) })},
			{"first byte changed", flip(func(int) int { return 0 })},
			{"a byte in the middle changed", flip(func(n int) int { return n / 2 })},
			{"last byte changed", flip(func(n int) int { return n - 1 })},
			{"of another snapshot", func(t *testing.T, path string) {
				b, err := os.ReadFile(filepath.Join(other, filepath.Base(path)))
				if err != nil {
					t.Fatal(err)
				}
				replace(t, path, b)
			}},
			{"a directory", func(t *testing.T, path string) {
				if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
					t.Fatal(err)
				}
			}},
		} {
			t.Run(name+" "+tc.name, func(t *testing.T) {
				if tc.name == "of another snapshot" && (name == snapshot.PlanFile || name == snapshot.WorkingFile) {
					return // the same in both
				}
				dir := filepath.Join(t.TempDir(), "copy")
				if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
					t.Fatal(err)
				}
				tc.damage(t, filepath.Join(dir, name))
				s, err := snapshot.Open(dir)
				if err == nil {
					err = s.Verify(context.Background())
				}
				checkDamage(t, err, dir, name, tc.name)
			})
		}
	}
}

func replace(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func checkDamage(t *testing.T, err error, dir, file, how string) {
	t.Helper()
	if file == snapshot.MetaFile && (how == "a directory" || how == "of another snapshot") {
		if err == nil {
			t.Error("no error")
		}
		return // it says something else, rightly
	}
	var damage *snapshot.DamageError
	if !errors.Is(err, snapshot.ErrDamaged) || !errors.As(err, &damage) {
		t.Fatalf("error %v; want damage", err)
	}
	if damage.File != file {
		t.Errorf("damage found in %s; want %s", damage.File, file)
	}
	for _, part := range []string{filepath.Join(dir, file), "take it again"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if file == snapshot.MemoryFile && how == "a byte in the middle changed" && (damage.Chunk != 2 || damage.Offset != 2<<20) {
		t.Errorf("damage found in group %d at %d; want the third", damage.Chunk, damage.Offset)
	}
}

func TestNoByteOfTheMetadataMayBeAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	commit(t, dir, 1)
	path := filepath.Join(dir, snapshot.MetaFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 1 << (i % 8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := snapshot.Open(dir); !errors.Is(err, snapshot.ErrDamaged) && !errors.Is(err, snapshot.ErrVersion) {
			t.Errorf("bit %d of byte %d (now %q): error %v", i%8, i, b[i], err)
		}
		b[i] ^= 1 << (i % 8)
	}
}

func TestAFileThatDoesNotBelongIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	commit(t, dir, 1)
	if err := os.WriteFile(filepath.Join(dir, "extra"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := snapshot.Open(dir)
	checkDamage(t, err, dir, "extra", "")
}

func TestWhatIsNoSnapshotIsNotCalledDamaged(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "missing")} {
		if _, err := snapshot.Open(d); !errors.Is(err, snapshot.ErrNone) || errors.Is(err, snapshot.ErrDamaged) {
			t.Errorf("%s: error %v; want that it is none", d, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, snapshot.MetaFile), []byte(`{"format":"volley-snapshot","version":2,"more":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Open(dir); !errors.Is(err, snapshot.ErrVersion) {
		t.Errorf("error %v; want that of a version", err)
	}
}

func TestChangesAfterVerifyingAreNoticed(t *testing.T) {
	s := commit(t, filepath.Join(t.TempDir(), "s"), 1)
	replace(t, s.Path(snapshot.MemoryFile), guestMemory(1))
	checkDamage(t, s.Unchanged(), s.Dir(), snapshot.MemoryFile, "")
}

func TestTheLoaderRefusesADamagedLoadingSet(t *testing.T) {
	s := commit(t, filepath.Join(t.TempDir(), "s"), 1)
	b, err := os.ReadFile(s.Path(snapshot.LoadingFile))
	if err != nil {
		t.Fatal(err)
	}
	b[100] ^= 1
	replace(t, s.Path(snapshot.LoadingFile), b)
	f, err := os.Open(s.Path(snapshot.LoadingFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var l mem.Loader
	checkDamage(t, l.Load(context.Background(), "a", s.Loading(f)), s.Dir(), snapshot.LoadingFile, "")
}

func TestAFailedCommitLeavesNoSnapshot(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "s")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wrong := contents()
	wrong.MemoryBytes += pages.Size
	for _, tc := range []struct {
		name string
		ctx  context.Context
		c    snapshot.Contents
		want error
	}{
		{"cancelled", ctx, contents(), context.Canceled},
		{"memory of another size", context.Background(), wrong, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := draft(t, dir, 1)
			if _, err := d.Commit(tc.ctx, tc.c); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v; want %v", err, tc.want)
			}
			if err := errors.Join(d.Abort(), d.Abort()); err != nil {
				t.Error(err)
			}
			if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
				t.Errorf("left %v (%v)", entries, err)
			}
		})
	}
	late := draft(t, dir, 2)
	commit(t, dir, 1)
	if _, err := late.Commit(context.Background(), contents()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v; want that another was first", err)
	}
	if _, err := snapshot.Begin(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v; want that the snapshot exists", err)
	}
}

func TestAFullDiskLeavesNoHalfSnapshot(t *testing.T) {
	testenv.Need(t, testenv.Tmpfs)
	parent := testenv.MountTmpfs(t, 2<<20) // room for guest memory, not for its loading set too
	d := draft(t, filepath.Join(parent, "s"), 1)
	c := contents()
	c.Working.Groups = []pages.Group{{{Start: 0, End: memoryPages}}}
	if _, err := d.Commit(context.Background(), c); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("error %v; want that there is no room", err)
	}
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("left %v (%v)", entries, err)
	}
}
