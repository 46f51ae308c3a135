// Package guest makes what FaaSnap's virtual machines boot: a kernel with an
// initrd, and file systems with runtimes and with functions' code. All come
// from Debian's packages and from what the caller has; nothing is downloaded
// that apt would not verify.
//
// What is made is kept in a directory and named after its content, so snapshots
// can go on using an image after a newer one has been made. Builds need Linux,
// user id 0, and the programs that the errors name.
package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// Image is what a virtual machine boots: paths of files that nobody may change.
// The drives are ext4 and are read only, so machines share them.
type Image struct {
	// Kernel is a bzImage, or an ELF file in an Image for Firecracker.
	Kernel string
	// Initrd has volley-init in it.
	Initrd string
	// Root is the first drive; Code is the second, with the function's code, or
	// empty.
	Root, Code string
	// CommandLine is the kernel's. The driver adds what its devices need, such
	// as the console.
	CommandLine string
}

// Drives returns the drives in the order in which the guest expects them.
func (i Image) Drives() []string {
	if i.Code == "" {
		return []string{i.Root}
	}
	return []string{i.Root, i.Code}
}

// Builder makes images. Its methods may be called concurrently, by several
// processes too. Each waits while another builds the same thing.
type Builder struct {
	// Dir is where images are kept; it is made if needed. See CacheDir.
	Dir string
	// Init is the path of volley-init, built statically for the guest.
	Init string
	// Suite is the Debian release that packages are taken from; empty is
	// DefaultSuite.
	Suite string
	// Mirrors are further arguments of mmdebstrap: addresses or files in the
	// manner of sources.list. Empty means Debian's own.
	Mirrors []string
	// Refresh makes the methods install packages anew, in the versions of today.
	// Without, what was once made of a list of packages stays as it is.
	Refresh bool
}

// DefaultSuite is the Debian release that guests are made of.
const DefaultSuite = "bookworm"

// EnvCache names the environment variable with the directory that CacheDir
// returns.
const EnvCache = "VOLLEY_CACHE"

// CacheDir returns the directory for what is costly to make and can be made
// again: that of EnvCache, or else "volley" in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv(EnvCache); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w (set %s)", err, EnvCache)
	}
	return filepath.Join(dir, "volley"), nil
}

func (b *Builder) suite() string {
	if b.Suite == "" {
		return DefaultSuite
	}
	return b.Suite
}

// MissingToolError says that a program is not installed.
type MissingToolError struct {
	// Program is its name, Package the Debian package that has it.
	Program, Package string
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s is not installed: install the package %s", e.Program, e.Package)
}

// endTime is what a program gets to clean up after itself.
const endTime = 10 * time.Second

// run runs a program to its end, and ends it when ctx does.
func run(ctx context.Context, pkg, name string, args ...string) error {
	path, err := lookPath(name)
	if err != nil {
		return &MissingToolError{Program: name, Package: pkg}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// With all that it starts, it ends with ctx, and with this process. The
	// latter goes by the thread, which must not end before.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	sys.DeathSignal(cmd.SysProcAttr)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = endTime
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", name, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, lastLines(string(out)))
	}
	return nil
}

// lookPath finds a program in PATH or where administrators' programs are.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, sbinErr := exec.LookPath(filepath.Join(dir, name)); sbinErr == nil {
			return path, nil
		}
	}
	return "", err
}

// maxLines is how much of a program's output goes into an error.
const maxLines = 8

func lastLines(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(len(lines)-maxLines, 0):], "\n")
}

// needRoot says, before anything is done, what would go wrong.
func needRoot(what string) error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("%s: %w", what, errNotRoot)
	}
	return nil
}

var errNotRoot = errors.New("needs user id 0, for files of every owner")
