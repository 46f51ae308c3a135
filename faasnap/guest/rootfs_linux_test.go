package guest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox/image"
)

// debugfs runs a command on an image and returns what it prints.
func debugfs(t *testing.T, path, command string) string {
	t.Helper()
	program, err := lookPath("debugfs")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-R", command, path)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("debugfs %s: %v: %s", command, err, stderr.String())
	}
	return out.String()
}

func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCodeIsOnADriveThatIsNamedAfterIt(t *testing.T) {
	testenv.Need(t, testenv.GuestImages)
	b := &Builder{Dir: t.TempDir()}
	code := t.TempDir()
	big := strings.Repeat("0123456789abcdef", 1<<16) // what needs more than one extent's block
	writeTree(t, code, map[string]string{"app.py": "x = 1\n", "lib/big": big, "name with space": "y"})
	if err := os.Symlink("lib/big", filepath.Join(code, "link")); err != nil {
		t.Fatal(err)
	}
	first, err := b.Code(t.Context(), code)
	if err != nil {
		t.Fatal(err)
	}
	if got := debugfs(t, first, "cat /app.py"); got != "x = 1\n" {
		t.Errorf("app.py: %q", got)
	}
	if got := debugfs(t, first, "cat /lib/big"); got != big {
		t.Errorf("lib/big has %d bytes", len(got))
	}
	again, err := b.Code(t.Context(), code)
	if err != nil || again != first {
		t.Errorf("the same again: %s and %s, error %v", first, again, err)
	}
	writeTree(t, code, map[string]string{"app.py": "x = 2\n"})
	other, err := b.Code(t.Context(), code)
	if err != nil || other == first {
		t.Errorf("after a change: %s, error %v", other, err)
	}
	if _, err := b.Code(t.Context(), filepath.Join(code, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestEmptyAndCrowdedDirectoriesFitTheirDrives(t *testing.T) {
	testenv.Need(t, testenv.GuestImages)
	b := &Builder{Dir: t.TempDir()}
	if _, err := b.Code(t.Context(), t.TempDir()); err != nil {
		t.Errorf("empty: %v", err)
	}
	crowded := t.TempDir()
	files := map[string]string{}
	for i := range 5000 {
		files[filepath.Join("a", strings.Repeat("n", 1+i%200)+string(rune('a'+i%26)), "f"+strings.Repeat("x", i%50))] = "x"
	}
	writeTree(t, crowded, files)
	if _, err := b.Code(t.Context(), crowded); err != nil {
		t.Errorf("many small files: %v", err)
	}
}

func TestAnImagesLayersBecomeOneRoot(t *testing.T) {
	testenv.Need(t, testenv.GuestImages, testenv.Overlayfs)
	layers := t.TempDir()
	writeTree(t, layers, map[string]string{
		"lower/app/code": "old", "lower/app/kept": "kept", "lower/etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:100:200::/:/bin/sh", "lower/etc/group": "staff:x:50:",
		"upper/app/code": "new",
	})
	// An image's link must not lead what is written into its root elsewhere.
	if err := os.Symlink(filepath.Join(layers, "outside"), filepath.Join(layers, "upper", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(layers, "upper", "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(layers, "outside"), filepath.Join(layers, "upper", "etc", "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	b := &Builder{Dir: t.TempDir()}
	img := &image.Image{Key: "key", Dir: layers, Layers: []string{"upper", "lower"}}
	root, user, err := b.Image(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if want := (image.User{UID: FunctionID, GID: FunctionID}); user != want {
		t.Errorf("an image without a user runs as %+v, want %+v", user, want)
	}
	for name, want := range map[string]image.User{"app": {UID: 100, GID: 200}, "7:staff": {UID: 7, GID: 50}, "root": {UID: FunctionID, GID: FunctionID}} {
		img.Config.User = name
		if _, user, err := b.Image(t.Context(), img); err != nil || user != want {
			t.Errorf("an image whose user is %s runs as %+v, %v; want %+v", name, user, err, want)
		}
	}
	img.Config.User = "nobody-knows"
	if _, _, err := b.Image(t.Context(), img); function.CodeOf(err) != function.InvalidImage {
		t.Errorf("an image with a user that it does not know: %v", err)
	}
	for name, want := range map[string]string{
		"/app/code": "new", "/app/kept": "kept", "/etc/hostname": "sandbox\n",
		"/etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:100:200::/:/bin/sh\nfunction:x:993:993:function:/tmp:/sbin/nologin\n",
	} {
		if got := debugfs(t, root, "cat "+name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := debugfs(t, root, "ls -l /var/runtime"); !strings.Contains(got, "bootstrap.py") {
		t.Errorf("/var/runtime: %s", got)
	}
	if _, err := os.Lstat(filepath.Join(layers, "outside")); !os.IsNotExist(err) {
		t.Errorf("something was written outside: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(layers, "lower/etc/passwd")); err != nil || strings.Contains(string(text), "function") {
		t.Errorf("the layer has changed: %q, error %v", text, err)
	}

	if err := os.MkdirAll(filepath.Join(layers, "bad", "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(layers, "bad", "var", "task")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Image(t.Context(), &image.Image{Key: "bad", Dir: layers, Layers: []string{"bad"}}); err == nil {
		t.Error("an image whose mount points are links is taken")
	}
}
