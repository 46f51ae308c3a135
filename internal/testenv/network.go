package testenv

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/sys"
)

// The capabilities that tests of networks ask for.
const (
	// NetAdmin is user id 0 and the right to make network namespaces, veth
	// pairs, bridges and VXLAN devices in them.
	NetAdmin Capability = "netadmin"
	// CgroupBPF is NetAdmin, a mounted cgroup v2 hierarchy in which groups can
	// be made, and a kernel with BPF.
	CgroupBPF Capability = "cgroupbpf"
	// IOURing is Linux 6.11, whose io_uring binds sockets, with io_uring not
	// switched off.
	IOURing Capability = "iouring"
)

// probeNetAdmin makes one of each in a namespace that ends with the command.
func probeNetAdmin() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("needs user id 0, has %d", uid)
	}
	return run("unshare", "--net", "sh", "-ec", `
ip link add name br type bridge
ip link add name ve type veth peer name vp
ip link set ve master br
ip link add name vx type vxlan id 1 dstport 4789 local 127.0.0.1
ip link set vx master br`)
}

func probeCgroupBPF() error {
	if err := probeNetAdmin(); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/sys/kernel/unprivileged_bpf_disabled"); err != nil {
		return fmt.Errorf("the kernel has no BPF: %w", err)
	}
	root, err := cgroup2()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "volley-testenv-")
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

func probeIOURing() error {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("version of the kernel: %w", err)
	}
	if major < 6 || major == 6 && minor < 11 {
		return fmt.Errorf("needs Linux 6.11, has %d.%d", major, minor)
	}
	disabled, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
	if err != nil {
		return fmt.Errorf("the kernel has no io_uring: %w", err)
	}
	if value := strings.TrimSpace(string(disabled)); value == "2" {
		return fmt.Errorf("kernel.io_uring_disabled is %s", value)
	}
	return nil
}

func cgroup2() (string, error) {
	mounts, err := sys.Mounts()
	if err != nil {
		return "", err
	}
	root, ok := sys.Cgroup2(mounts)
	if !ok {
		return "", errors.New("cgroup v2 is not mounted")
	}
	return root, nil
}

// Cgroup2 returns where the cgroup v2 hierarchy is mounted. Ask for CgroupBPF
// first.
func Cgroup2(t testing.TB) string {
	t.Helper()
	root, err := cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// AnyIPNamespace makes a network namespace in which all addresses of
// 10.88.0.0/24 and fd88::/64 are local, removes it at the end of the test, and
// returns its path. The name begins with prefix. Ask for NetAdmin first.
func AnyIPNamespace(t testing.TB, prefix string) string {
	t.Helper()
	name := prefix + strconv.Itoa(os.Getpid())
	must := func(command string, args ...string) {
		t.Helper()
		if err := run(command, args...); err != nil {
			t.Fatal(err)
		}
	}
	must("ip", "netns", "add", name)
	t.Cleanup(func() { must("ip", "netns", "del", name) })
	path := "/run/netns/" + name
	must("nsenter", "--net="+path, "sh", "-ec", `
ip link set lo up
ip route add local 10.88.0.0/24 dev lo
ip -6 route add local fd88::/64 dev lo
sysctl -qw net.ipv6.ip_nonlocal_bind=1`)
	return path
}
