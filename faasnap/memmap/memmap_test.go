package memmap

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/volley-run/volley/faasnap/pages"
)

var update = flag.Bool("update", false, "write golden files")

// plan makes a plan of memory with pages that are not zero, and groups.
func plan(t *testing.T, size int, nonZero []pages.Range, groups ...pages.Group) *pages.Plan {
	t.Helper()
	set := pages.NewSet(size)
	for _, r := range nonZero {
		set.AddRange(r)
	}
	p, err := pages.Make(set, pages.WorkingSet{Pages: size, Groups: groups}, pages.Options{MaxMappings: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is another; run the test with -update and look at the difference:\n%s", path, got)
	}
}

func TestMapsLookAsTheyDid(t *testing.T) {
	r := func(start, end int) pages.Range { return pages.Range{Start: start, End: end} }
	three := plan(t, 4096, []pages.Range{r(0, 300), r(1000, 1700), r(3000, 3100)},
		pages.Group{r(0, 40), r(1200, 1300)}, pages.Group{r(1300, 1400)}, pages.Group{r(50, 90), r(3000, 3100)})
	none := plan(t, 1024, []pages.Range{r(10, 500)})
	for name, got := range map[string][]byte{
		"groups.txt": []byte(Text(three, 32, 8, false)), "groups.ansi": []byte(Text(three, 32, 8, true)), "groups.svg": SVG(three, "a<b"),
		"none.txt": []byte(Text(none, 32, 8, false)), "none.svg": SVG(none, "none"),
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, got) })
	}
}

func TestEveryPageIsInOneCell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 5000).Draw(t, "pages")
		set := pages.NewSet(size)
		for _, at := range rapid.SliceOfN(rapid.IntRange(0, size-1), 0, 50).Draw(t, "not zero") {
			set.AddRange(pages.Range{Start: at, End: min(at+rapid.IntRange(1, 90).Draw(t, "length"), size)})
		}
		working := pages.WorkingSet{Pages: size}
		seen := pages.NewSet(size)
		for range rapid.IntRange(0, 5).Draw(t, "groups") {
			group := pages.NewSet(size)
			for _, at := range rapid.SliceOfN(rapid.IntRange(0, size-1), 0, 20).Draw(t, "group") {
				group.Add(at)
			}
			working.Add(seen, group)
		}
		p, err := pages.Make(set, working, pages.DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		n := rapid.IntRange(1, 300).Draw(t, "cells")
		cells := Cells(p, n)
		if len(cells) > n {
			t.Fatalf("%d cells, wanted %d", len(cells), n)
		}
		var at, zero, cold, loading int
		for _, c := range cells {
			if c.Start != at || c.Zero+c.Cold+c.Loading != c.Len() {
				t.Fatalf("cell %+v after page %d", c, at)
			}
			at = c.End
			zero, cold, loading = zero+c.Zero, cold+c.Cold, loading+c.Loading
		}
		wantZero, _ := p.Count(pages.Zero)
		wantCold, _ := p.Count(pages.Memory)
		wantLoading, _ := p.Count(pages.Loading)
		if at != size || zero != wantZero || cold != wantCold || loading != wantLoading {
			t.Fatalf("to page %d of %d: %d, %d, %d; the plan has %d, %d, %d", at, size, zero, cold, loading, wantZero, wantCold, wantLoading)
		}
		if text := Text(p, 16, 8, false); strings.Count(text, "\n") > 8+2 {
			t.Fatalf("too many lines:\n%s", text)
		}
		for d := xml.NewDecoder(bytes.NewReader(SVG(p, "x"))); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}
