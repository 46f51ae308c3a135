//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// containerStart measures how long a container takes with runc that has
// namespaces of its own, sees this machine's programs, and does nothing.
func containerStart(ctx context.Context, dir string) (_ time.Duration, err error) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return 0, err
	}
	dir, err = os.MkdirTemp(dir, "tmp-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root := filepath.Join(dir, "rootfs")
	for _, name := range []string{"state", "rootfs", "rootfs/proc", "rootfs/usr"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return 0, err
		}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/usr", Type: "bind", Source: "/usr", Options: []string{"bind", "ro"}},
	}
	// Where programs and libraries are not all below /usr, these are no links.
	for _, name := range []string{"bin", "lib", "lib64"} {
		if to, err := os.Readlink("/" + name); err == nil {
			if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
				return 0, err
			}
		} else if _, err := os.Stat("/" + name); err == nil {
			mounts = append(mounts, specs.Mount{Destination: "/" + name, Type: "bind", Source: "/" + name, Options: []string{"bind", "ro"}})
		}
	}
	name := fmt.Sprint("volley-bench-", os.Getpid())
	config, err := json.Marshal(specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}},
		Mounts:  mounts,
		Linux: &specs.Linux{
			CgroupsPath: "/" + name,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}},
		},
	})
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := command(ctx, runc, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, name); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}
