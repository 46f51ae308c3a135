//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/testenv"
)

// refusing is an http.RoundTripper that answers nothing.
type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }

func tryUnpack(t testing.TB, layer []byte, limits Limits) (string, error) {
	t.Helper()
	dir := t.TempDir()
	_, err := unpack(t.Context(), bytes.NewReader(layer), "sha256:"+digestOf(layer), dir, newBudget(limits.withDefaults()))
	return dir, err
}

func TestSymbolicLinksInALayerLeadNowhereElse(t *testing.T) {
	testenv.Need(t, testenv.Root)
	outside := t.TempDir()
	for _, tc := range []struct {
		name  string
		items []item
		want  string // where the file ends up
	}{
		{"a name that climbs out", []item{file("../../x", "x")}, "x"},
		{"an absolute name", []item{file("/x", "x")}, "x"},
		{"an absolute link as a directory", []item{link("l", outside), file("l/x", "x")}, filepath.Join(outside, "x")},
		{"a link that climbs out", []item{link("l", "../../../.."), file("l/x", "x")}, "x"},
		{"a link through links", []item{dir("a"), link("a/b", ".."), link("c", "a/b/../.."), file("c/x", "x")}, "x"},
		{"a link to a directory of the layer", []item{dir("usr/lib"), link("lib", "usr/lib"), file("lib/x", "x")}, "usr/lib/x"},
		{"a file in place of a link", []item{link("x", outside+"/x"), file("x", "x")}, "x"},
		{"a hard link through a link", []item{file("a", "x"), link("l", "/"), hard("x", "l/a")}, "x"},
		{"a whiteout behind a link", []item{link("l", outside), file("l/.wh.keep", ""), file("x", "x")}, "x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := tryUnpack(t, tarOf(tc.items...), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, dir, tc.want, "x")
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("outside: %v, %v", left, err)
			}
		})
	}
}

func TestLayersThatMustNotBeUnpackedAreRefused(t *testing.T) {
	testenv.Need(t, testenv.Root)
	small := Limits{UnpackedBytes: 100, Entries: 5}
	good := tarOf(file("a", strings.Repeat("0", 90)))
	many := make([]item, 6)
	for i := range many {
		many[i] = file(fmt.Sprint(i), "")
	}
	for name, layer := range map[string][]byte{
		"links in a circle":                tarOf(link("a", "b"), link("b", "a"), file("a/x", "")),
		"a hard link out":                  tarOf(hard("x", "../../etc/passwd")),
		"a hard link to a directory":       tarOf(dir("d"), hard("x", "d")),
		"a hard link to itself":            tarOf(file("x", ""), hard("x", "x")),
		"a whiteout of nothing":            tarOf(file(".wh.", "")),
		"a whiteout of the directory":      tarOf(file("d/.wh..", "")),
		"a large file":                     tarOf(file("a", strings.Repeat("0", 101))),
		"files that are large together":    tarOf(file("a", strings.Repeat("0", 60)), file("b", strings.Repeat("0", 60))),
		"many files":                       tarOf(many...),
		"many directories, only implied":   tarOf(file("a/b/c/d/e/f", "")),
		"a truncated file":                 good[:550],
		"a truncated header":               good[:100],
		"no tar":                           []byte(strings.Repeat("no tar ", 100)),
		"an unknown type":                  tarOf(item{name: "a", kind: 'Q', mode: 0o644}),
		"a name that is too long to exist": tarOf(file(strings.Repeat("n", 300), "")),
	} {
		if _, err := tryUnpack(t, layer, small); function.CodeOf(err) != function.InvalidImage {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := unpack(t.Context(), bytes.NewReader(good), "sha256:"+strings.Repeat("0", 64), t.TempDir(), newBudget(small.withDefaults()))
	if function.CodeOf(err) != function.InvalidImage || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("another digest: %v", err)
	}
}

func TestDevicesAndSpecialBitsAreLeftOut(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir, err := tryUnpack(t, tarOf(
		item{name: "su", content: "x", kind: tar.TypeReg, mode: 0o4755},
		item{name: "tmp", kind: tar.TypeDir, mode: 0o1777},
		item{name: "null", kind: tar.TypeChar, mode: 0o666},
		item{name: "pipe", kind: tar.TypeFifo, mode: 0o666},
	), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"su": 0o755, "tmp": fs.ModeDir | fs.ModeSticky | 0o777} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	wantAbsent(t, dir, "null")
	wantAbsent(t, dir, "pipe")
}

func TestUploadedImagesThatAreDamagedAreRefused(t *testing.T) {
	testenv.Need(t, testenv.Root)
	img := imageOf(t, layerOf(t, file("a", strings.Repeat("some text", 500))))
	whole := saved(t, img)
	layoutDir := laidOut(t, img)
	blobs, err := filepath.Glob(filepath.Join(layoutDir, "blobs", "sha256", "*"))
	if err != nil || len(blobs) != 3 {
		t.Fatalf("blobs %v, %v", blobs, err)
	}
	archives := map[string][]byte{
		"no tar":                []byte("#!/bin/sh\n"),
		"empty":                 {},
		"some tar":              tarOf(file("a", "b")),
		"truncated":             whole[:len(whole)/2],
		"no layers":             saved(t, mutate.MediaType(imageOf(t), "application/vnd.docker.distribution.manifest.v2+json")),
		"a layer that explodes": saved(t, imageOf(t, layerOf(t, file("bomb", strings.Repeat("0", 2<<20))))),
	}
	// Every blob of the layout is damaged in its turn.
	for i, blob := range blobs {
		text, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Clone(text)
		damaged[len(damaged)/2] ^= 1
		if err := os.WriteFile(blob, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		archives[fmt.Sprintf("a damaged blob, %d", i)] = tarDir(t, layoutDir)
		if err := os.WriteFile(blob, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, archive := range archives {
		t.Run(name, func(t *testing.T) {
			f, store := uploaded(archive)
			s := openStore(t, Config{Objects: store, Limits: Limits{UnpackedBytes: 1 << 20}})
			if _, err := s.Open(t.Context(), f); function.CodeOf(err) != function.InvalidImage {
				t.Errorf("error %v", err)
			}
		})
	}
	f, store := uploaded(whole)
	f.Code.SHA256 = strings.Repeat("0", 64)
	if _, err := openStore(t, Config{Objects: store}).Open(t.Context(), f); function.CodeOf(err) != function.InvalidImage {
		t.Errorf("an upload that is not the one that was deployed: %v", err)
	}
}

// FuzzUnpack checks that whatever the bytes, nothing outside is touched and the
// image gets the blame.
func FuzzUnpack(f *testing.F) {
	testenv.Need(f, testenv.Root)
	f.Add(tarOf(file("a/b", "text"), link("l", "/a"), file("l/c", "x"), hard("h", "a/b"), file("a/.wh.x", ""), file("a/.wh..wh..opq", "")))
	f.Add(tarOf(link("l", "../.."), file("l/x", "")))
	f.Fuzz(func(t *testing.T, layer []byte) {
		dir, err := tryUnpack(t, layer, Limits{UnpackedBytes: 1 << 16, Entries: 50})
		if err != nil && function.CodeOf(err) != function.InvalidImage {
			t.Fatalf("the platform is blamed: %v", err)
		}
		if around, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(around) != 1 {
			t.Fatalf("beside the directory: %v, %v", around, err)
		}
	})
}
