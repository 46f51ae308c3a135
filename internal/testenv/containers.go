package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// probeRuntime looks for a container runtime and for what all of them need.
func probeRuntime(name string) error {
	if _, err := exec.LookPath(name); err != nil {
		return err
	}
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("containers need user id 0, have %d", uid)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.Contains(line, " - cgroup") {
			continue
		}
		// Containers often have them read-only; only trying tells.
		dir, err := os.MkdirTemp(fields[4], "volley-testenv-")
		if err != nil {
			return fmt.Errorf("make control group: %w", err)
		}
		return os.Remove(dir)
	}
	return fmt.Errorf("no control groups are mounted")
}

// probePodman looks for a podman that speaks CNI, and for what it needs.
func probePodman() error {
	out, err := exec.Command("podman", "--version").Output()
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(strings.TrimSpace(string(out)), "podman version ")
	major, err := strconv.Atoi(strings.Split(version, ".")[0])
	if err != nil {
		return fmt.Errorf("podman says that its version is %q", out)
	}
	if major > 4 {
		return fmt.Errorf("podman %s speaks no CNI: versions before 5 do", version)
	}
	if err := probeRuntime("runc"); err != nil {
		return err
	}
	return probeNetAdmin()
}

// probeOverlayfs mounts a small overlay and takes it away again.
func probeOverlayfs() error {
	dir, err := os.MkdirTemp("", "volley-testenv-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	target := filepath.Join(dir, "target")
	for _, d := range []string{"a", "b", "target"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("mounting needs user id 0, has %d", uid)
	}
	options := fmt.Sprintf("lowerdir=%s/a:%s/b", dir, dir)
	if err := run("mount", "-t", "overlay", "-o", options, "overlay", target); err != nil {
		return err
	}
	return unmount(target)
}
