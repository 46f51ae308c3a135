package oci

import (
	"bytes"
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
	"github.com/volley-run/volley/sandbox"
)

// hierarchy is how the host's control groups are laid out.
type hierarchy struct {
	// unified says that the controllers are those of cgroup v2. Otherwise they
	// are v1's, also on a hybrid host.
	unified bool
	// controllers maps a controller's name to where its hierarchy is mounted.
	controllers map[string]string
	// mounts is where a hierarchy is mounted, with or without controllers.
	mounts []string
}

// findHierarchy reads the layout out of the mounts. fsys is the root of the
// file system that the mounts are in.
func findHierarchy(mounts []sys.Mount, fsys fs.FS) (hierarchy, error) {
	h := hierarchy{controllers: map[string]string{}}
	v2 := ""
	for _, m := range mounts {
		switch m.FSType {
		case "cgroup":
			if slices.Contains(h.mounts, m.Point) {
				continue
			}
			h.mounts = append(h.mounts, m.Point)
			for _, name := range strings.Split(m.Options, ",") {
				// The first mount of a hierarchy is what the runtimes take.
				if h.controllers[name] == "" {
					h.controllers[name] = m.Point
				}
			}
		case "cgroup2":
			if v2 == "" {
				v2 = m.Point
				h.mounts = append(h.mounts, m.Point)
			}
		}
	}
	if h.controllers["memory"] != "" {
		for _, name := range []string{"cpu", "cpuacct", "pids", "freezer", "devices"} {
			if h.controllers[name] == "" {
				return hierarchy{}, fmt.Errorf("find control groups: controller %s is not mounted", name)
			}
		}
		return h, nil
	}
	if v2 == "" {
		return hierarchy{}, errors.New("find control groups: neither cgroup v1 with a memory controller nor cgroup v2 is mounted")
	}
	text, err := fs.ReadFile(fsys, strings.TrimPrefix(filepath.Join(v2, "cgroup.controllers"), "/"))
	if err != nil {
		return hierarchy{}, fmt.Errorf("find control groups: %w", err)
	}
	h = hierarchy{unified: true, controllers: map[string]string{}, mounts: []string{v2}}
	for _, name := range strings.Fields(string(text)) {
		h.controllers[name] = v2
	}
	for _, name := range []string{"memory", "cpu", "pids"} {
		if h.controllers[name] == "" {
			return hierarchy{}, fmt.Errorf("find control groups: %s offers no controller %s", v2, name)
		}
	}
	return h, nil
}

// group returns the control group of a path such as "/volley/a".
func (h *hierarchy) group(path string) *group {
	g := &group{h: h, path: path}
	if h.unified {
		g.unifiedDir = filepath.Join(h.mounts[0], path)
	}
	return g
}

// groupBelow returns the control group of that name below a directory of cgroup
// v2, which exists, and makes sure that it can have the controllers.
func (h *hierarchy) groupBelow(dir, name string) (*group, error) {
	for _, m := range h.mounts {
		path, ok := strings.CutPrefix(dir, m+"/")
		if !ok {
			continue
		}
		above := h.group("/" + path)
		if err := above.prepare(); err != nil {
			return nil, err
		}
		g := h.group(filepath.Join(above.path, name))
		g.keep = dir
		return g, nil
	}
	return nil, fmt.Errorf("find control group: %s is in no hierarchy of this host", dir)
}

// group is a control group: one directory in every hierarchy. Its methods may
// be called concurrently.
type group struct {
	h          *hierarchy
	path       string
	unifiedDir string
	// keep, if not empty, is the directory of a group above this one that
	// belongs to somebody else. Its twins in the hierarchies of cgroup v1,
	// which the runtime makes, go when they are empty.
	keep string
}

// file returns the path of a controller's file: v1 or v2, whichever the host
// has.
func (g *group) file(controller, v1, v2 string) string {
	if g.h.unified {
		return filepath.Join(g.unifiedDir, v2)
	}
	return filepath.Join(g.h.controllers[controller], g.path, v1)
}

// prepare makes the group and hands it the controllers that its children need.
// cgroup v1 needs no such thing: there the runtime makes what is missing.
func (g *group) prepare() error {
	if !g.h.unified {
		return nil
	}
	if err := os.MkdirAll(g.unifiedDir, 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	dir := g.h.mounts[0]
	for _, name := range append([]string{""}, strings.Split(strings.Trim(g.path, "/"), "/")...) {
		dir = filepath.Join(dir, name)
		for _, controller := range []string{"memory", "cpu", "pids"} {
			err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			if errors.Is(err, syscall.EBUSY) {
				return fmt.Errorf("enable controller %s: processes are in the control group %s itself: move them into a child of it, or start volley in one: %w", controller, dir, err)
			}
			if err != nil {
				return fmt.Errorf("enable controller %s: %w", controller, err)
			}
		}
	}
	return nil
}

// boundsSwap reports whether the kernel keeps account of swap. On a v2 host the
// group must be there.
func (g *group) boundsSwap() bool {
	name := filepath.Join(g.h.controllers["memory"], "memory.memsw.limit_in_bytes")
	if g.h.unified {
		name = filepath.Join(g.unifiedDir, "memory.swap.max")
	}
	_, err := os.Stat(name)
	return err == nil
}

// usage reads what the group uses. Numbers that the kernel does not keep are 0.
func (g *group) usage() (sandbox.Usage, error) {
	memory, err := readNumber(g.file("memory", "memory.usage_in_bytes", "memory.current"))
	if err != nil {
		return sandbox.Usage{}, err
	}
	processes, err := readNumber(g.file("pids", "pids.current", "pids.current"))
	if err != nil {
		return sandbox.Usage{}, err
	}
	u := sandbox.Usage{MemoryBytes: memory, MaxMemoryBytes: max(memory, g.peak()), Processes: int(processes)}
	if !g.h.unified {
		ns, err := readNumber(g.file("cpuacct", "cpuacct.usage", ""))
		u.CPU = time.Duration(ns)
		return u, err
	}
	us, err := readField(filepath.Join(g.unifiedDir, "cpu.stat"), "usage_usec")
	u.CPU = time.Duration(us) * time.Microsecond
	return u, err
}

// peak returns the most memory used so far in bytes, 0 if unknown.
func (g *group) peak() int64 {
	n, err := readNumber(g.file("memory", "memory.max_usage_in_bytes", "memory.peak"))
	if err != nil {
		return 0 // memory.peak is there from Linux 5.19 on
	}
	return n
}

// oomKills returns how many processes of the group the kernel has killed for
// want of memory.
func (g *group) oomKills() int64 {
	n, err := readField(g.file("memory", "memory.oom_control", "memory.events"), "oom_kill")
	if err != nil {
		return 0
	}
	return n
}

// freeze stops all processes of the group, or lets them go on, and waits until
// the kernel has done so.
func (g *group) freeze(ctx context.Context, frozen bool) error {
	want := "THAWED"
	if frozen {
		want = "FROZEN"
	}
	value, state := want, g.file("freezer", "freezer.state", "cgroup.events")
	if g.h.unified {
		value = map[bool]string{true: "1", false: "0"}[frozen]
		want = "frozen " + value
	}
	if err := os.WriteFile(g.file("freezer", "freezer.state", "cgroup.freeze"), []byte(value), 0); err != nil {
		return fmt.Errorf("set control group to %s: %w", want, err)
	}
	return poll(ctx, func() (bool, error) {
		text, err := os.ReadFile(state)
		return bytes.Contains(text, []byte(want)), err
	})
}

// destroy kills all processes of the group and of those in it, and removes the
// groups. One that is not there is no error.
func (g *group) destroy(ctx context.Context) error {
	if filepath.Clean("/"+g.path) == "/" {
		return errors.New("remove control group: the root is not ours")
	}
	return poll(ctx, func() (bool, error) {
		gone := true
		for _, m := range g.h.mounts {
			done, err := destroyDir(filepath.Join(m, g.path))
			if err != nil {
				return false, fmt.Errorf("remove control group %s: %w", g.path, err)
			}
			gone = gone && done
			if twin := filepath.Join(m, filepath.Dir(g.path)); g.keep != "" && twin != g.keep {
				removeEmpty(m, twin)
			}
		}
		return gone, nil
	})
}

// removeEmpty removes dir and the directories above it, as far as they are
// empty, up to mount.
func removeEmpty(mount, dir string) {
	for dir != mount && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
}

// processes returns the processes of the group, those of groups in it not
// included.
func (g *group) processes() []int {
	text, err := os.ReadFile(g.file("memory", "cgroup.procs", "cgroup.procs"))
	if err != nil {
		return nil // not there
	}
	return parseProcesses(text)
}

// parseProcesses reads a list of process numbers. Those that do not stand for a
// single process of this namespace are left out: to kill, 0 and -1 are groups
// of them, and 1 is what we run under.
func parseProcesses(text []byte) []int {
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// destroyDir kills what is in a control group's directory and removes it where
// that is empty. It reports whether it is gone.
func destroyDir(dir string) (gone bool, err error) {
	children, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, c := range children {
		if c.IsDir() {
			if _, err := destroyDir(filepath.Join(dir, c.Name())); err != nil {
				return false, err
			}
		}
	}
	// Frozen processes of v1 do not die before they are thawed. The files are
	// there in one version each.
	for name, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			_ = os.WriteFile(filepath.Join(dir, name), []byte(value), 0)
		}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		return false, err
	}
	for _, pid := range parseProcesses(procs) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	err = os.Remove(dir)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.ENOTEMPTY) {
		return false, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return err == nil, err
}

// children returns the names of the groups in the group, in any hierarchy.
func (g *group) children() []string {
	var names []string
	for _, m := range g.h.mounts {
		entries, err := os.ReadDir(filepath.Join(m, g.path))
		if err != nil {
			continue // not there
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// poll calls f, more and more rarely, until it returns true or an error, or
// ctx ends.
func poll(ctx context.Context, f func() (bool, error)) error {
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// readNumber reads a file that holds one number.
func readNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read usage: %w", err)
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read usage from %s: %w", path, err)
	}
	return n, nil
}

// readField reads the number after a name from a file of such lines.
func readField(path, name string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read usage: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == name {
			return strconv.ParseInt(fields[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("read usage from %s: no line %q", path, name)
}
