package snapshot_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/faasnap/snapshot"
)

// Benchmark opens and verifies a snapshot of 2 GiB of guest memory, of which
// 128 MiB are not zero and in the page cache.
func Benchmark(b *testing.B) {
	const n = 2 << 30 / pages.Size
	d, err := snapshot.Begin(filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(d.Path(snapshot.MemoryFile))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(n * pages.Size); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	piece := make([]byte, 64*pages.Size)
	w := pages.WorkingSet{Pages: n, Groups: []pages.Group{nil}}
	for i := range 512 {
		for j := range piece {
			piece[j] = byte(rng.Uint32() | 1)
		}
		if _, err := f.WriteAt(piece, int64(i)*4<<20); err != nil {
			b.Fatal(err)
		}
		w.Groups[0] = append(w.Groups[0], pages.Range{Start: i * 1024, End: i*1024 + 8})
	}
	s, err := d.Commit(context.Background(), snapshot.Contents{MemoryBytes: n * pages.Size, Working: w, Options: pages.DefaultOptions()})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			if _, err := snapshot.Open(s.Dir()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Unchanged", func(b *testing.B) {
		for b.Loop() {
			if err := s.Unchanged(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Verify", func(b *testing.B) {
		for b.Loop() {
			if err := s.Verify(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
