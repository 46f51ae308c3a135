//go:build linux

package particle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// cgroups is the node's tree of cgroup v2 groups, one for each endpoint that
// has something to run: <parent>/<network>/<endpoint>. The discipline of
// addresses is attached to the parent.
type cgroups struct {
	parent string // absolute
}

// endpointDepth is how many levels below the parent an endpoint's group is.
const endpointDepth = 2

// cgroup2Root returns where the cgroup v2 hierarchy is mounted.
func cgroup2Root(mounts []sys.Mount) (string, error) {
	root, ok := sys.Cgroup2(mounts)
	if !ok {
		return "", fmt.Errorf("find cgroup v2: %w: it is not mounted", ErrUnsupported)
	}
	return root, nil
}

// openCgroups returns the tree whose parent is named name, or is at that path
// if it is absolute. It makes nothing.
func openCgroups(name string) (cgroups, error) {
	if filepath.IsAbs(name) {
		return cgroups{name}, nil
	}
	mounts, err := sys.Mounts()
	if err != nil {
		return cgroups{}, fmt.Errorf("find cgroup v2: %w", err)
	}
	root, err := cgroup2Root(mounts)
	if err != nil {
		return cgroups{}, err
	}
	return cgroups{filepath.Join(root, name)}, nil
}

func (c cgroups) path(network, endpoint string) string {
	return filepath.Join(c.parent, network, endpoint)
}

// make makes an endpoint's group, and what is above it.
func (c cgroups) make(network, endpoint string) (string, error) {
	dir := c.path(network, endpoint)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make control group: %w", err)
	}
	return dir, nil
}

// processes returns the ids of all processes in a network's groups.
func (c cgroups) processes(network string) ([]int, error) {
	var pids []int
	err := walkCgroups(filepath.Join(c.parent, network), func(dir string) error {
		own, err := processesOf(dir)
		pids = append(pids, own...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", network, err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// processesOf returns the ids of the processes of one group, which may have been
// removed meanwhile.
func processesOf(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(text)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if pid > 0 { // 0: of another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// remove kills what runs in a network's groups and removes them. It is no
// error if there are none.
func (c cgroups) remove(ctx context.Context, network string) error {
	return removeCgroup(ctx, filepath.Join(c.parent, network))
}

func removeCgroup(ctx context.Context, top string) error {
	var dirs []string
	if err := walkCgroups(top, func(dir string) error {
		dirs = append(dirs, dir)
		return nil
	}); err != nil {
		return fmt.Errorf("remove control group: %w", err)
	}
	if len(dirs) == 0 {
		return nil
	}
	if err := killCgroup(top, dirs); err != nil {
		return fmt.Errorf("remove control group: %w", err)
	}
	// Children come after their parents in dirs. A group can be removed once
	// the kernel has let go of the last process, which nothing announces.
	for _, dir := range slices.Backward(dirs) {
		pause := time.Millisecond
		for {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, syscall.EBUSY) {
				return fmt.Errorf("remove control group: %w", err)
			}
			if err := killCgroup(top, dirs); err != nil {
				return fmt.Errorf("remove control group: %w", err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove control group %s: %w: something in it does not end", dir, ctx.Err())
			case <-time.After(pause):
			}
			pause = min(2*pause, 100*time.Millisecond)
		}
	}
	return nil
}

// killCgroup kills all in dirs, which are top and all below it.
func killCgroup(top string, dirs []string) error {
	err := os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0)
	if err == nil || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range dirs { // before Linux 5.14
		pids, err := processesOf(dir)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// walkCgroups calls f with top and every directory below it, parents first.
func walkCgroups(top string, f func(dir string) error) error {
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !d.IsDir() {
			return nil
		}
		return f(path)
	})
}
