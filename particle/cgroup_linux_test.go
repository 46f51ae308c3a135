//go:build linux

package particle

import (
	"errors"
	"testing"

	"github.com/volley-run/volley/internal/sys"
)

func TestTheRootOfCgroup2IsFoundAmongTheMounts(t *testing.T) {
	for name, tc := range map[string]struct{ mountinfo, want string }{
		"cgroup v2 only": {"30 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		"hybrid": {"30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
			"31 1 0:27 / /sys/fs/cgroup/unified rw shared:4 master:1 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		"a space in its name": {`31 1 0:27 / /mnt/a\040b rw - cgroup2 none rw`, "/mnt/a b"},
		"not mounted":         {"30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", ""},
		"nothing":             {"", ""},
		"no mountinfo":        {"what - cgroup2 is this\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := cgroup2Root(sys.ParseMounts(tc.mountinfo))
			if got != tc.want || (tc.want == "") != errors.Is(err, ErrUnsupported) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
