package sys

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Mount is a line of a mountinfo file (proc_pid_mountinfo(5)).
type Mount struct {
	Point   string
	FSType  string
	Options string // of the file system
}

// Mounts returns the mounts that the calling thread sees, in the order in which
// they were made. It needs Linux.
func Mounts() ([]Mount, error) {
	// A thread may have a mount namespace of its own.
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return ParseMounts(string(text)), nil
}

// Cgroup2 returns where among mounts the cgroup v2 hierarchy is.
func Cgroup2(mounts []Mount) (root string, ok bool) {
	i := slices.IndexFunc(mounts, func(m Mount) bool { return m.FSType == "cgroup2" })
	if i < 0 {
		return "", false
	}
	return mounts[i].Point, true
}

// ParseMounts reads a mountinfo file. Lines that are none are left out.
func ParseMounts(text string) []Mount {
	var mounts []Mount
	// The kernel escapes what would break a line into fields.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !ok || len(before) < 6 || len(after) < 3 {
			continue
		}
		mounts = append(mounts, Mount{Point: unescape.Replace(before[4]), FSType: after[0], Options: after[2]})
	}
	return mounts
}
