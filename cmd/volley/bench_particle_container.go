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
// namespaces of its own, sees this machine's files, and does nothing.
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
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
		return 0, err
	}
	name := fmt.Sprint("volley-bench-", os.Getpid())
	config, err := json.Marshal(specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "/", Readonly: true},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
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
	if err := command(ctx, runc, "--root", filepath.Join(dir, "root"), "run", "--bundle", dir, name); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}
