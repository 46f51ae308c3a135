package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volley-run/volley/internal/sys"
)

// mount is a line of a mountinfo file (proc(5)).
type mount struct {
	point   string
	fsType  string
	options string // of the file system
}

// readMounts returns the mounts that this process sees, in the order in which
// they were made.
func readMounts() ([]mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return parseMounts(string(text)), nil
}

// parseMounts reads a mountinfo file. Lines that are none are left out.
func parseMounts(text string) []mount {
	var mounts []mount
	// The kernel escapes what would break a line into fields.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !ok || len(before) < 6 || len(after) < 3 {
			continue
		}
		mounts = append(mounts, mount{point: unescape.Replace(before[4]), fsType: after[0], options: after[2]})
	}
	return mounts
}

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// unmountBelow unmounts all that is mounted on dir and below.
func unmountBelow(dir string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	// The last mount made is the first to go.
	for _, m := range slices.Backward(mounts) {
		if below(m.point, dir) {
			if err := sys.Unmount(m.point); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeTree removes a directory and all in it, but first takes away what is
// mounted there, and removes nothing while something still is: a mount may
// lead to the host's own files.
func removeTree(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if below(m.point, dir) {
			return fmt.Errorf("remove %s: %s is still mounted", dir, m.point)
		}
	}
	return os.RemoveAll(dir)
}
