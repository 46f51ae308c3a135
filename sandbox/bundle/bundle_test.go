package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/volley-run/volley/function"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// item is an entry of a zip file.
type item struct {
	name, content string
	mode          fs.FileMode
	modified      time.Time
}

func zipOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, i := range items {
		h := &zip.FileHeader{Name: i.name, Method: zip.Deflate, Modified: i.modified}
		h.SetMode(i.mode)
		out, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, i.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func extract(t testing.TB, zipped []byte, limits Limits) (string, error) {
	t.Helper()
	dir := t.TempDir()
	_, err := Extract(t.Context(), bytes.NewReader(zipped), int64(len(zipped)), dir, limits)
	return dir, err
}

func TestExtractKeepsContentModesTimesAndLinks(t *testing.T) {
	modified := time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
	dir, err := extract(t, zipOf(t,
		item{"lib/", "", fs.ModeDir | 0o700, modified},
		item{"lib/a.py", "print()", 0o600, modified},
		item{"bootstrap", "#!/bin/sh\n", 0o755 | fs.ModeSetuid, modified},
		item{"deep/er/file", "x", 0o644, modified},
		item{"link", "lib/a.py", fs.ModeSymlink | 0o777, modified},
		item{"dangling", "not/there", fs.ModeSymlink | 0o777, modified},
		item{"lib/", "", fs.ModeDir | 0o700, modified}, // some tools repeat directories
	), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		"lib": fs.ModeDir | 0o755, "lib/a.py": 0o644, "bootstrap": 0o755, "deep/er/file": 0o644, "link": fs.ModeSymlink | 0o777,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
		if name != "link" && name != "deep" && !info.ModTime().Equal(modified) {
			t.Errorf("%s was changed %v", name, info.ModTime())
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "link")); err != nil || string(text) != "print()" {
		t.Errorf("through the link: %q, %v", text, err)
	}
}

func TestExtractRefusesWhatAPackageMustNotHold(t *testing.T) {
	link := fs.ModeSymlink | 0o777
	small := Limits{UnpackedBytes: 100, Entries: 5}
	for _, tc := range []struct {
		name  string
		items []item
		entry string
	}{
		{"a name that climbs out", []item{{name: "../evil", mode: 0o644}}, "../evil"},
		{"a name that climbs out from inside", []item{{name: "a/../../evil", mode: 0o644}}, "a/../../evil"},
		{"an absolute name", []item{{name: "/etc/passwd", mode: 0o644}}, "/etc/passwd"},
		{"a name with a backslash", []item{{name: `..\evil`, mode: 0o644}}, `..\\evil`},
		{"an empty name", []item{{name: "", mode: 0o644}}, `""`},
		{"a file twice", []item{{name: "a", mode: 0o644}, {name: "a", mode: 0o644}}, `"a"`},
		{"a file where a directory is", []item{{name: "a/b", mode: 0o644}, {name: "a", mode: 0o644}}, `"a"`},
		{"a file in a file", []item{{name: "a", mode: 0o644}, {name: "a/b", mode: 0o644}}, "a/b"},
		{"a file through a link", []item{{name: "a", content: ".", mode: link}, {name: "a/b", mode: 0o644}}, "a/b"},
		{"an absolute link", []item{{name: "l", content: "/etc/passwd", mode: link}}, `"l"`},
		{"a link that climbs out", []item{{name: "d/l", content: "../../x", mode: link}}, "d/l"},
		{"a link out through another", []item{{name: "a/b/up", content: "..", mode: link}, {name: "l", content: "a/b/up/../../x", mode: link}}, `"l"`},
		{"links in a circle", []item{{name: "l", content: "m", mode: link}, {name: "m", content: "l", mode: link}}, `"l"`},
		{"a link without a target", []item{{name: "l", mode: link}}, `"l"`},
		{"a link with an endless target", []item{{name: "l", content: strings.Repeat("a/", 3000), mode: link}}, `"l"`},
		{"a device", []item{{name: "null", mode: fs.ModeDevice | fs.ModeCharDevice | 0o666}}, "null"},
		{"a name too long for the file system", []item{{name: strings.Repeat("n", 300), mode: 0o644}}, "nnn"},
		{"too many bytes in one file", []item{{name: "big", content: strings.Repeat("0", 101), mode: 0o644}}, "big"},
		{"too many bytes together", []item{{name: "a", content: strings.Repeat("0", 60), mode: 0o644}, {name: "b", content: strings.Repeat("0", 60), mode: 0o644}}, `"b"`},
		{"too many entries", []item{{name: "1"}, {name: "2"}, {name: "3"}, {name: "4"}, {name: "5"}, {name: "6"}}, `"6"`},
		{"too many directories that are only implied", []item{{name: "a/b/c/d/e/f", mode: 0o644}}, "a/b/c/d/e/f"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := extract(t, zipOf(t, tc.items...), small)
			if function.CodeOf(err) != function.InvalidCode || !strings.Contains(err.Error(), tc.entry) {
				t.Errorf("error %v; want InvalidCode and %s", err, tc.entry)
			}
			around, err := os.ReadDir(filepath.Dir(dir))
			if err != nil || len(around) != 1 {
				t.Errorf("beside the directory: %v, %v", around, err)
			}
		})
	}
}

func TestExtractRefusesDamagedAndLyingZipFiles(t *testing.T) {
	good := zipOf(t, item{name: "file", content: strings.Repeat("some text ", 100), mode: 0o644})
	damaged := bytes.Clone(good)
	damaged[len("PK..")+26+len("file")+8] ^= 0xff
	for name, zipped := range map[string][]byte{
		"no zip file":      []byte("#!/bin/sh\n"),
		"empty":            nil,
		"truncated":        good[:len(good)-30],
		"damaged contents": damaged,
	} {
		if _, err := extract(t, zipped, Limits{}); function.CodeOf(err) != function.InvalidCode {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzExtract checks that whatever the bytes, all stays inside the directory
// and the limits, and that the package gets the blame.
func FuzzExtract(f *testing.F) {
	f.Add(zipOf(f, item{name: "a/b", content: "text", mode: 0o644}, item{name: "l", content: "a/b", mode: fs.ModeSymlink | 0o777}))
	f.Add(zipOf(f, item{name: "../a", mode: 0o644}))
	f.Add(zipOf(f, item{name: "d/l", content: "../..", mode: fs.ModeSymlink | 0o777}, item{name: "d/l/x", mode: 0o644}))
	f.Fuzz(func(t *testing.T, zipped []byte) {
		limits := Limits{UnpackedBytes: 1000, Entries: 20}
		dir, err := extract(t, zipped, limits)
		if err != nil && function.CodeOf(err) != function.InvalidCode {
			t.Fatalf("the platform is blamed: %v", err)
		}
		if around, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(around) != 1 {
			t.Fatalf("beside the directory: %v, %v", around, err)
		}
		if err != nil {
			return
		}
		entries, size := 0, int64(0)
		walked := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			entries++
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Mode().IsRegular() {
				size += info.Size()
			}
			if target, err := filepath.EvalSymlinks(name); err == nil && target != dir && !strings.HasPrefix(target, dir+"/") {
				t.Errorf("%s leads to %s", name, target)
			}
			return nil
		})
		if walked != nil || entries-1 > limits.Entries || size > limits.UnpackedBytes {
			t.Errorf("%d entries, %d bytes, %v", entries-1, size, walked)
		}
	})
}

// tree makes files from a map of name to content; "->x" makes a link to x.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, isLink := strings.CutPrefix(content, "->"); isLink {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(content), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPackIsDeterministicAndExtractGivesItBack(t *testing.T) {
	files := map[string]string{
		"main.py": "def handler(e, c): return e", "pkg/__init__.py": "", "pkg/data/a.bin": "\x00\x01", "link": "->pkg/data/a.bin", "pkg/up": "->../main.py",
	}
	noise := map[string]string{".git/config": "secret", "pkg/__pycache__/a.pyc": "old", ".DS_Store": ""}
	plain, noisy := tree(t, files), tree(t, files)
	for name, content := range noise {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(noisy, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(noisy, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{plain, noisy} {
		if err := os.Chmod(filepath.Join(dir, "pkg/data/a.bin"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var a, b bytes.Buffer
	if err := errors.Join(Pack(&a, plain, Limits{}), Pack(&b, noisy, Limits{})); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same content gave different zip files")
	}
	dir, err := extract(t, a.Bytes(), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if target, err := os.Readlink(name); err == nil {
			got[rel] = "->" + target
			return nil
		}
		text, err := os.ReadFile(name)
		got[rel] = string(text)
		return err
	})
	if diff := cmp.Diff(files, got); diff != "" || err != nil {
		t.Errorf("%v, difference (-packed +unpacked):\n%s", err, diff)
	}
	if info, err := os.Stat(filepath.Join(dir, "link")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the executable has %v, %v", info, err)
	}
}

func TestPackRefusesWhatExtractWould(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		names string
	}{
		{"an absolute link", map[string]string{"l": "->/etc/passwd"}, "l"},
		{"a link that climbs out", map[string]string{"d/l": "->../../x"}, "d/l"},
		{"a large file", map[string]string{"big": strings.Repeat("0", 101)}, "big"},
		{"many files", map[string]string{"1": "", "2": "", "3": "", "4": "", "5": "", "6": ""}, "6"},
		{"nothing", map[string]string{".git/config": ""}, "empty"},
	} {
		err := Pack(io.Discard, tree(t, tc.files), Limits{UnpackedBytes: 100, Entries: 5})
		if err == nil || !strings.Contains(err.Error(), tc.names) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := Pack(io.Discard, filepath.Join(t.TempDir(), "absent"), Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// objects is an object store in memory that counts what is fetched.
type objects struct {
	content map[string][]byte
	gets    atomic.Int32
}

func (o *objects) Get(_ context.Context, key string) (io.ReadCloser, error) {
	o.gets.Add(1)
	content, ok := o.content[key]
	if !ok {
		return nil, fmt.Errorf("object %s: %w", key, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestUnpackFetchesAPackageOnceForAllThatUseIt(t *testing.T) {
	zipped := zipOf(t, item{name: "bootstrap", content: "code", mode: 0o755})
	store := &objects{content: map[string][]byte{"key": zipped}}
	dir := t.TempDir()
	cache, err := Open(Config{Dir: dir, Objects: store})
	if err != nil {
		t.Fatal(err)
	}
	f := &function.Function{Name: "f", Code: function.Code{Object: "key", SHA256: digest(zipped)}}
	use := func() {
		p, err := cache.Unpack(t.Context(), f)
		if err != nil {
			t.Error(err)
			return
		}
		defer p.Release()
		if text, err := os.ReadFile(filepath.Join(p.Dir, "bootstrap")); err != nil || string(text) != "code" {
			t.Errorf("read %q, %v", text, err)
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(use)
	}
	wg.Wait()
	if err := cache.Close(); err != nil {
		t.Fatal(err)
	}
	if cache, err = Open(Config{Dir: dir, Objects: store}); err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	use()
	if n := store.gets.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestUnpackRefusesPackagesThatAreNotWhatWasDeployed(t *testing.T) {
	zipped := zipOf(t, item{name: "bootstrap", content: "code", mode: 0o755})
	cache, err := Open(Config{Dir: t.TempDir(), Objects: &objects{content: map[string][]byte{"key": zipped}}, Limits: Limits{PackageBytes: int64(len(zipped))}})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	small, err := Open(Config{Dir: t.TempDir(), Objects: &objects{content: map[string][]byte{"key": zipped}}, Limits: Limits{PackageBytes: int64(len(zipped)) - 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	for _, tc := range []struct {
		name  string
		cache *Cache
		code  function.Code
		want  function.ErrorCode
	}{
		{"another digest", cache, function.Code{Object: "key", SHA256: digest([]byte("other"))}, function.InvalidCode},
		{"no digest", cache, function.Code{Object: "key", SHA256: "../../x"}, function.InvalidCode},
		{"too large", small, function.Code{Object: "key", SHA256: digest(zipped)}, function.InvalidCode},
		{"not there", cache, function.Code{Object: "gone", SHA256: digest([]byte("gone"))}, function.Internal},
	} {
		_, err := tc.cache.Unpack(t.Context(), &function.Function{Name: "f", Code: tc.code})
		if function.CodeOf(err) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	left, err := os.ReadDir(cache.downloads)
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
