// Package testenv tells tests what the host they run on can do.
//
// A test that needs a program, a privilege or a file that not every machine has
// asks Need for it. Where the host lacks it, the test is skipped and the reason
// is printed. With VOLLEY_MUST_RUN=1 in the environment, a test that is on the
// must-run list (mustrun.txt beside this file) fails instead: that is how
// `make test` and CI notice that a test has silently stopped running.
//
// Every function may be called concurrently, each from the goroutine of the
// test that it is given.
package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// The environment variables that this package reads.
const (
	// EnvMustRun, when "1", turns the skips of tests on the must-run list into
	// failures.
	EnvMustRun = "VOLLEY_MUST_RUN"
	// EnvData names the directory of test data; unset means ../shared/data,
	// seen from the root of the repository.
	EnvData = "VOLLEY_TESTDATA"
)

// modulePath is the module whose tests this package serves.
const modulePath = "github.com/volley-run/volley"

// Capability is something that a host may or may not offer.
type Capability string

// The capabilities that Need knows.
const (
	// FFmpeg is the ffmpeg and ffprobe programs, found in PATH.
	FFmpeg Capability = "ffmpeg"
	// Chromium is a Chromium or Chrome browser, found in PATH.
	Chromium Capability = "chromium"
	// UI is the built page: web/ui/dist/app.js, which `make ui` makes.
	UI Capability = "ui"
	// Root is effective user id 0.
	Root Capability = "root"
	// Tmpfs is the right to mount a tmpfs; see MountTmpfs.
	Tmpfs Capability = "tmpfs"
	// Python3 is the python3 interpreter, found in PATH.
	Python3 Capability = "python3"
	// Node is the node interpreter, found in PATH.
	Node Capability = "node"
	// Runc is the runc program, found in PATH, and root and the control groups
	// that it needs.
	Runc Capability = "runc"
	// Runsc is gVisor's runsc program, found in PATH, with the same.
	Runsc Capability = "runsc"
	// Podman is podman of a version that speaks CNI (before 5), found in PATH,
	// with what Runc and NetAdmin are.
	Podman Capability = "podman"
	// Overlayfs is the right to mount an overlay of directories.
	Overlayfs Capability = "overlayfs"
	// QEMU is the qemu-system-x86_64 program, found in PATH. It need not have
	// KVM.
	QEMU Capability = "qemu"
	// GuestImages is what package faasnap/guest needs to make what virtual
	// machines boot: mmdebstrap, dpkg-deb and mke2fs, found in PATH, and root.
	GuestImages Capability = "guest images"
	// AWSCLI is the aws program, found in PATH.
	AWSCLI Capability = "awscli"
	// Boto3 is a Python with the module boto3; see Boto3Python.
	Boto3 Capability = "boto3"
	// DataFiles is the directory of test data; see Data.
	DataFiles Capability = "data"
)

// Need ends the test unless the host has every capability in caps. It skips
// the test, or fails it where VOLLEY_MUST_RUN=1 and the must-run list says
// that it has to run. The message lists all that is missing. An unknown
// capability fails the test.
func Need(t testing.TB, caps ...Capability) {
	t.Helper()
	var missing []error
	for _, c := range caps {
		if err := probe(t, c); err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", c, err))
		}
	}
	if len(missing) > 0 {
		lacks(t, errors.Join(missing...))
	}
}

// Data returns the path of a file or directory of test data, or of the whole
// data directory when elem is empty. It ends the test, as Need does, when
// there is nothing at that path. The data is shared and read-only.
func Data(t testing.TB, elem ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{dataDir(t)}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		lacks(t, fmt.Errorf("%s: %w (set %s to the directory of test data)", DataFiles, err, EnvData))
	}
	return path
}

// RepoRoot returns the absolute path of the repository's root: the directory
// with the module's go.mod at or above the working directory, or else above
// this source file. It fails the test when there is none.
func RepoRoot(t testing.TB) string {
	t.Helper()
	root, err := repoRoot()
	if err != nil {
		t.Fatalf("find repository root: %v", err)
	}
	return root
}

// MountTmpfs mounts a tmpfs of sizeBytes on a new directory and returns the
// directory's path; the mount goes away when the test ends. It ends the test,
// as Need does, where the host has no Tmpfs. It serves tests of what happens
// when a disk is full.
func MountTmpfs(t testing.TB, sizeBytes int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := mountTmpfs(dir, sizeBytes); err != nil {
		lacks(t, fmt.Errorf("%s: %w", Tmpfs, err))
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	return dir
}

// lacks ends the test because of what the host lacks.
func lacks(t testing.TB, reason error) {
	t.Helper()
	end(t, mustRun(), testedPackage(), os.Getenv(EnvMustRun), reason)
}

// end is lacks with all that it depends on.
func end(t testing.TB, l list, folder, mustRunEnv string, reason error) {
	t.Helper()
	if enabled(mustRunEnv) && l.has(folder, t.Name()) {
		t.Fatalf("this test must run, but the host lacks something that it needs:\n%v\n"+
			"remedy: run `scripts/setup test` and `make ui`; the list of tests that must run is internal/testenv/mustrun.txt", reason)
	}
	t.Skipf("the host lacks something that this test needs:\n%v", reason)
}

// probe returns nil if the host has c, or else what is missing.
func probe(t testing.TB, c Capability) error {
	t.Helper()
	switch c {
	case FFmpeg:
		return lookAll("ffmpeg", "ffprobe")
	case Chromium:
		return lookAny("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell")
	case UI:
		return haveUI()
	case Root:
		return probeRoot()
	case QEMU:
		return lookAll("qemu-system-x86_64")
	case GuestImages:
		return errors.Join(probeRoot(), lookAll("mmdebstrap", "dpkg-deb", "mke2fs"))
	case Python3:
		return lookAny("python3")
	case CC:
		return lookAny("cc")
	case Node:
		return lookAny("node")
	case Tmpfs:
		return probeTmpfs()
	case Runc, Runsc:
		return probeRuntime(string(c))
	case Podman:
		return probePodman()
	case Overlayfs:
		return probeOverlayfs()
	case NetAdmin:
		return probeNetAdmin()
	case CgroupBPF:
		return probeCgroupBPF()
	case IOURing:
		return probeIOURing()
	case SeccompNotify:
		return probeSeccompNotify()
	case Landlock:
		return probeLandlock()
	case Userfaultfd:
		return probeUserfaultfd()
	case Firecracker:
		return probeFirecracker()
	case AWSCLI:
		_, err := exec.LookPath("aws")
		return err
	case Boto3:
		_, err := Boto3Python()
		return err
	case DataFiles:
		_, err := os.Stat(dataDir(t))
		return err
	}
	t.Fatalf("testenv: unknown capability %q", c)
	return nil
}

// Boto3Python returns a Python interpreter that has the module boto3: the
// distribution's, which its packages are for, or else the one in PATH.
func Boto3Python() (string, error) {
	var errs []error
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		err := run(python, "-c", "import boto3")
		if err == nil {
			return python, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func probeRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("needs user id 0, has %d", uid)
	}
	return nil
}

// lookAll returns nil if all of the programs are in PATH.
func lookAll(names ...string) error {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			return err
		}
	}
	return nil
}

// lookAny returns nil if one of the programs is in PATH.
func lookAny(names ...string) error {
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			return nil
		}
	}
	return fmt.Errorf("none of %s is in PATH", strings.Join(names, ", "))
}

func haveUI() error {
	root, err := repoRoot()
	if err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(root, "web", "ui", "dist", "app.js"))
	if err != nil {
		return fmt.Errorf("%w (run `make ui`)", err)
	}
	if info.Size() == 0 {
		return errors.New("web/ui/dist/app.js is empty (run `make ui`)")
	}
	return nil
}

// probeTmpfs mounts a small tmpfs and takes it away again: a container's root
// user often lacks the right, and only trying tells.
func probeTmpfs() error {
	dir, err := os.MkdirTemp("", "volley-testenv-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := mountTmpfs(dir, 1<<20); err != nil {
		return err
	}
	return unmount(dir)
}

func mountTmpfs(dir string, sizeBytes int64) error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("mounting needs user id 0, has %d", uid)
	}
	return run("mount", "-t", "tmpfs", "-o", "size="+strconv.FormatInt(sizeBytes, 10), "tmpfs", dir)
}

func unmount(dir string) error {
	return run("umount", dir)
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// dataDir returns the directory of test data, which may not exist.
func dataDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(EnvData); dir != "" {
		return dir
	}
	return filepath.Join(filepath.Dir(RepoRoot(t)), "shared", "data")
}

// repoRoot looks above the working directory first, where `go test` runs a
// package's tests, and then above this file, for tests that change directory.
func repoRoot() (string, error) {
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	for _, start := range starts {
		for dir := start; ; dir = filepath.Dir(dir) {
			if isRoot(dir) {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("go.mod of %s: %w above %s", modulePath, fs.ErrNotExist, strings.Join(starts, " and "))
}

func isRoot(dir string) bool {
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mod)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "module" {
			return strings.Trim(fields[1], `"`) == modulePath
		}
	}
	return false
}

// testedPackage returns the folder of the package whose tests are running,
// seen from the root of the repository; "." is the root. A test binary's build
// information names its package, wherever the test has moved to since.
func testedPackage() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return packageFolder(info.Path)
}

// packageFolder turns the path of a test binary's main package into a folder:
// "github.com/volley-run/volley/store.test" is "store".
func packageFolder(mainPath string) string {
	path := strings.TrimSuffix(mainPath, ".test")
	if path == modulePath {
		return "."
	}
	return strings.TrimPrefix(path, modulePath+"/")
}

// enabled reports whether the value of a switch in the environment means yes.
func enabled(value string) bool {
	yes, err := strconv.ParseBool(value)
	return err == nil && yes
}
