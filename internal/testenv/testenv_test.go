package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorder stands in for a test: it remembers how it was ended.
type recorder struct {
	testing.TB
	name    string
	skipped string
	failed  string
}

func (r *recorder) Helper()      {}
func (r *recorder) Name() string { return r.name }

func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// watch runs f with a recorder on a goroutine of its own, since ending a test
// ends its goroutine.
func watch(t *testing.T, f func(t testing.TB)) *recorder {
	t.Helper()
	r := &recorder{TB: t, name: "TestOfARecorder"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestNeedLetsATestRunThatNeedsNothing(t *testing.T) {
	r := watch(t, func(t testing.TB) { Need(t) })
	if r.skipped != "" || r.failed != "" {
		t.Errorf("skipped %q, failed %q", r.skipped, r.failed)
	}
}

func TestNeedSkipsWithEveryReason(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(EnvMustRun, "1") // the recorder's test is not on the list
	r := watch(t, func(t testing.TB) { Need(t, FFmpeg, Chromium) })
	if r.failed != "" {
		t.Fatalf("failed: %s", r.failed)
	}
	for _, want := range []string{"ffmpeg", "chromium", "google-chrome"} {
		if !strings.Contains(r.skipped, want) {
			t.Errorf("reason %q does not name %s", r.skipped, want)
		}
	}
}

func TestNeedFailsOnAnUnknownCapability(t *testing.T) {
	r := watch(t, func(t testing.TB) { Need(t, "teleport") })
	if !strings.Contains(r.failed, "teleport") {
		t.Errorf("failed %q", r.failed)
	}
}

func TestNeedFindsProgramsInThePath(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"ffmpeg", "ffprobe", "chromium-browser"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	r := watch(t, func(t testing.TB) { Need(t, FFmpeg, Chromium) })
	if r.skipped != "" || r.failed != "" {
		t.Errorf("skipped %q, failed %q", r.skipped, r.failed)
	}
}

func TestDataReadsTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "video"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(EnvData, dir)
	if got, want := Data(t, "video"), filepath.Join(dir, "video"); got != want {
		t.Errorf("Data = %s, want %s", got, want)
	}
	if got := Data(t); got != dir {
		t.Errorf("Data = %s, want %s", got, dir)
	}
	r := watch(t, func(t testing.TB) { Data(t, "no", "such.mp4") })
	if !strings.Contains(r.skipped, filepath.Join("no", "such.mp4")) || !strings.Contains(r.skipped, EnvData) {
		t.Errorf("skipped %q: names neither the file nor the variable", r.skipped)
	}
}

func TestDataIsBesideTheRepositoryByDefault(t *testing.T) {
	t.Setenv(EnvData, "")
	want := filepath.Join(filepath.Dir(RepoRoot(t)), "shared", "data")
	if got := dataDir(t); got != want {
		t.Errorf("dataDir = %s, want %s", got, want)
	}
}

func TestRepoRootIsFoundFromAnywhere(t *testing.T) {
	want := RepoRoot(t)
	if _, err := os.Stat(filepath.Join(want, "internal", "testenv", "testenv_test.go")); err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, "go.mod"), []byte("module example.com/other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, file, _, _ := runtime.Caller(0); !filepath.IsAbs(file) {
		return // built with -trimpath: only the working directory can tell
	}
	t.Chdir(elsewhere)
	if got := RepoRoot(t); got != want {
		t.Errorf("RepoRoot = %s, want %s", got, want)
	}
}

func TestMountTmpfsIsSmallAndGoesAway(t *testing.T) {
	Need(t, Tmpfs)
	var dir string
	t.Run("mounted", func(t *testing.T) {
		dir = MountTmpfs(t, 64<<10)
		err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20), 0o644)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("writing 1 MiB to a tmpfs of 64 KiB: %v, want ENOSPC", err)
		}
	})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after the test: %v, want none", err)
	}
}

func TestTestedPackageIsThisFolder(t *testing.T) {
	if got, want := testedPackage(), "internal/testenv"; got != want {
		t.Errorf("testedPackage = %q, want %q", got, want)
	}
	if got := packageFolder(modulePath + ".test"); got != "." {
		t.Errorf("packageFolder of the root = %q, want \".\"", got)
	}
}

func TestAMustRunTestFailsWhereOthersSkip(t *testing.T) {
	l, err := parseList("# comment\n\n internal/testenv TestListed\n. TestRoot\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{{Package: "internal/testenv", Test: "TestListed", Line: 3}, {Package: ".", Test: "TestRoot", Line: 4}}
	if diff := cmp.Diff(want, l); diff != "" {
		t.Errorf("parseList (-want +got):\n%s", diff)
	}
	for _, tc := range []struct {
		name         string
		folder, test string
		env          string
		fails        bool
	}{
		{"a listed test", "internal/testenv", "TestListed", "1", true},
		{"a subtest of a listed test", "internal/testenv", "TestListed/deep/down", "1", true},
		{"a test whose name only begins alike", "internal/testenv", "TestListedToo", "1", false},
		{"a test of the same name elsewhere", "store", "TestListed", "1", false},
		{"a listed test without the switch", "internal/testenv", "TestListed", "", false},
		{"a listed test with the switch off", "internal/testenv", "TestListed", "0", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := watch(t, func(t testing.TB) {
				t.(*recorder).name = tc.test
				end(t, list(l), tc.folder, tc.env, errors.New("no such thing"))
			})
			if got := w.failed != ""; got != tc.fails {
				t.Errorf("failed %q, skipped %q; want a failure: %v", w.failed, w.skipped, tc.fails)
			}
			if !strings.Contains(w.failed+w.skipped, "no such thing") {
				t.Errorf("reason is missing: failed %q, skipped %q", w.failed, w.skipped)
			}
			if tc.fails && !strings.Contains(w.failed, "scripts/setup test") {
				t.Errorf("remedy is missing: %q", w.failed)
			}
		})
	}
}

func TestMustRunListIsWellFormed(t *testing.T) {
	if _, err := MustRun(); err != nil {
		t.Error(err)
	}
}

func TestParseListRejects(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"a lone word", "store\n", "line 1"},
		{"a third word", "# c\nstore TestA TestB\n", "line 2"},
		{"a subtest", "store TestA/b\n", "name of a test function"},
		{"something that is no test", "store BenchmarkA\n", "name of a test function"},
		{"an absolute package", "/store TestA\n", "not a folder"},
		{"a package above the root", "../store TestA\n", "not a folder"},
		{"a package not in its shortest form", "./store TestA\n", "not a folder"},
		{"a repeated line", "store TestA\nstore TestA\n", "line 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := parseList(tc.text); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("parseList = %v, want an error with %q", err, tc.want)
			}
		})
	}
}
