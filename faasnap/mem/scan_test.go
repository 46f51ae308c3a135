package mem_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// newFile returns an empty file of n pages.
func newFile(t testing.TB, n int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(n) * pages.Size); err != nil {
		t.Fatal(err)
	}
	return f
}

func write(t testing.TB, f *os.File, b []byte, offset int64) {
	t.Helper()
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

func TestScanFindsEveryPageWithAByteOtherThanZero(t *testing.T) {
	const n = 1000
	f := newFile(t, n)
	rng := rand.New(rand.NewPCG(1, 1))
	want := pages.NewSet(n)
	for page := range n {
		switch rng.IntN(4) {
		case 0: // a hole
		case 1: // zeros that are data
			write(t, f, make([]byte, pages.Size), int64(page)*pages.Size)
		default: // one byte somewhere, often the first or the last
			at := []int{0, pages.Size - 1, rng.IntN(pages.Size)}[rng.IntN(3)]
			write(t, f, []byte{1 << rng.IntN(8)}, int64(page*pages.Size+at))
			want.Add(page)
		}
	}
	got, err := mem.Scan(f, n*pages.Size)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) {
		t.Errorf("got %d pages; want %d; too many %v, too few %v", got.Count(), want.Count(), got.Without(want), want.Without(got))
	}

	if err := mem.MakeSparse(f, got); err != nil {
		t.Fatal(err)
	}
	data, err := mem.Data(f, n*pages.Size)
	if err != nil {
		t.Fatal(err)
	}
	kept := pages.NewSet(n)
	for _, r := range data {
		kept.AddRange(r)
	}
	if left := want.Without(kept); left.Count() > 0 {
		t.Errorf("making the file sparse took pages %v that are not zero", left)
	}
	if again, err := mem.Scan(f, n*pages.Size); err != nil || !again.Equal(want) {
		t.Errorf("making the file sparse changed it (%v)", err)
	}
}

func TestScanOfHolesReadsNothing(t *testing.T) {
	const n = 1 << 24 // 64 GiB, which nobody waits for
	f := newFile(t, n)
	write(t, f, []byte{1}, 12345*pages.Size)
	got, err := mem.Scan(f, n*pages.Size)
	if err != nil {
		t.Fatal(err)
	}
	if got.Count() != 1 || !got.Has(12345) {
		t.Errorf("found %d pages; want page 12345 only", got.Count())
	}
}

func TestScanRefusesAFileThatIsTooShort(t *testing.T) {
	f := newFile(t, 10)
	if _, err := mem.Scan(f, 11*pages.Size); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v; want an unexpected end", err)
	}
	if _, err := mem.Scan(f, 100); err == nil {
		t.Error("took a size that is no number of pages")
	}
}
