package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// The capabilities that tests of networks ask for.
const (
	// NetAdmin is user id 0 and the right to make network namespaces, veth
	// pairs, bridges and VXLAN devices in them.
	NetAdmin Capability = "netadmin"
	// CgroupBPF is NetAdmin, a mounted cgroup v2 hierarchy in which groups can
	// be made, and a kernel with BPF.
	CgroupBPF Capability = "cgroupbpf"
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
	out, err := exec.Command("findmnt", "-n", "-o", "TARGET", "-t", "cgroup2").Output()
	if err != nil {
		return fmt.Errorf("find cgroup v2: %w", err)
	}
	root, _, _ := strings.Cut(string(out), "\n")
	if root == "" {
		return errors.New("cgroup v2 is not mounted")
	}
	dir, err := os.MkdirTemp(root, "volley-testenv-")
	if err != nil {
		return err
	}
	return os.Remove(dir)
}
