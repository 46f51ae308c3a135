package cni_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

// podman runs podman with all that it keeps in a directory of the test's.
type podman struct {
	*testing.T
	dir, group string
}

// newPodman makes containers of the image "reach" possible on a network with
// that configuration, and removes all of them at the end.
func newPodman(t *testing.T, conflist []byte) *podman {
	t.Helper()
	testenv.Need(t, testenv.Podman)
	dir, err := os.MkdirTemp("", "cni-") // podman wants it short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	p := &podman{T: t, dir: dir, group: "volley-cni-" + strconv.Itoa(os.Getpid())}
	networks := filepath.Join(p.dir, "networks")
	conf := fmt.Sprintf(`[network]
network_backend = "cni"
network_config_dir = %q
cni_plugin_dirs = [%q]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[containers]
log_driver = "k8s-file"
# podman asks for more than some hosts allow.
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
`, networks, bin)
	for path, text := range map[string][]byte{
		filepath.Join(networks, "10-test.conflist"): conflist,
		filepath.Join(p.dir, "containers.conf"):     []byte(conf),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := cgroups(t, "libpod_parent")
	t.Cleanup(func() {
		p.must("rm", "--force", "--time=0", "--all")
		p.must("rmi", "--force", "--all")
		left := cgroups(t, p.group)
		for path := range cgroups(t, "libpod_parent") {
			if !before[path] {
				left[path] = true
			}
		}
		for path := range left {
			if err := removeGroup(path); err != nil {
				t.Error(err)
			}
		}
	})
	image := filepath.Join(p.dir, "image.tar")
	if out, err := exec.Command("tar", "-C", bin, "-cf", image, "reach").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.must("import", image, "reach:latest")
	return p
}

// cgroups returns the groups of that name at the top of all hierarchies.
func cgroups(t *testing.T, name string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		paths, err := filepath.Glob(pattern + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			found[path] = true
		}
	}
	return found
}

// removeGroup removes a group, once the kernel has let go of its processes, and
// those below it.
func removeGroup(top string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		var errs []error
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != top {
				errs = append(errs, os.Remove(path))
			}
			return nil
		})
		if err = errors.Join(err, os.Remove(top)); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(append(errs, err)...)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *podman) run(args ...string) (string, error) {
	at := func(name string) string { return filepath.Join(p.dir, name) }
	cmd := exec.Command("podman", append([]string{"--root", at("root"), "--runroot", at("run"), "--tmpdir", at("tmp"), "--storage-driver", "vfs"}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+at("containers.conf"))
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", args[0], err, &problems)
	}
	return strings.TrimSpace(out.String()), nil
}

func (p *podman) must(args ...string) string {
	p.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.Error(err)
	}
	return out
}

// serve starts a container that answers, and returns its address.
func (p *podman) serve(name string) string {
	p.Helper()
	p.must("run", "--detach", "--name", name, "--network", "cnitest", "--cgroup-parent", "/"+p.group, "reach:latest", "/reach", "serve")
	var networks map[string]struct{ IPAddress string }
	if err := json.Unmarshal([]byte(p.must("inspect", "--format", "{{json .NetworkSettings.Networks}}", name)), &networks); err != nil {
		p.Fatal(err)
	}
	address := networks["cnitest"].IPAddress
	if address == "" {
		p.Fatalf("container %s has no address", name)
	}
	return address
}

func TestPodmansContainersReachEachOther(t *testing.T) {
	testenv.Need(t, testenv.Podman)
	r := newRuntime(t)
	network := both()
	network["endpoints"] = 2
	p := newPodman(t, r.list("1.0.0", object{"network": network}).Bytes)
	a, b := p.serve("a"), p.serve("b")
	for from, to := range map[string]string{"a": b, "b": a} {
		if got := p.must("exec", from, "/reach", to); got != to {
			t.Errorf("%s reached %q, want %s", from, got, to)
		}
	}
	if _, err := p.run("run", "--rm", "--network", "cnitest", "--cgroup-parent", "/"+p.group, "reach:latest", "/reach", a); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a third container on a network of two: %v", err)
	}
	p.must("rm", "--force", "--time=0", "a")
	if n := r.owners("cnitest"); n != 1 {
		t.Errorf("%d endpoints are in use after podman rm", n)
	}
	if got := p.serve("c"); got != a {
		t.Errorf("the next container has %s, not %s, which is free", got, a)
	}
	if got := p.must("exec", "c", "/reach", b); got != b {
		t.Errorf("c reached %q, want %s", got, b)
	}
	p.must("rm", "--force", "--time=0", "--all")
	if n := r.owners("cnitest"); n != -1 {
		t.Errorf("the network is left, with %d endpoints in use", n)
	}
}
