package oci

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
	"github.com/volley-run/volley/sandbox/image"
)

const (
	hybridMounts = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:7 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
39 31 0:36 / /other/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
	unifiedMounts = `25 30 0:23 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
`
)

func TestTheLayoutOfControlGroupsIsRecognised(t *testing.T) {
	v1 := strings.ReplaceAll(hybridMounts, "cgroup2", "tmpfs")
	for _, tc := range []struct {
		name, mounts, controllers string
		unified                   bool
		memory                    string // file of the group /volley/a
		fails                     string
	}{
		{name: "hybrid", mounts: hybridMounts, memory: "/sys/fs/cgroup/memory/volley/a/v1"},
		{name: "v1", mounts: v1, memory: "/sys/fs/cgroup/memory/volley/a/v1"},
		{name: "v2", mounts: unifiedMounts, controllers: "cpuset cpu io memory pids\n", unified: true, memory: "/sys/fs/cgroup/volley/a/v2"},
		{name: "v2 without memory", mounts: unifiedMounts, controllers: "cpu pids", fails: "memory"},
		{name: "v1 without a freezer", mounts: strings.ReplaceAll(hybridMounts, "freezer", "other"), fails: "freezer"},
		{name: "none", mounts: "22 27 0:21 / /proc rw,relatime - proc proc rw\n", fails: "neither"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := fstest.MapFS{"sys/fs/cgroup/cgroup.controllers": {Data: []byte(tc.controllers)}}
			h, err := findHierarchy(sys.ParseMounts(tc.mounts), root)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("error %v; want one about %s", err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.unified != tc.unified || h.group("/volley/a").file("memory", "v1", "v2") != tc.memory {
				t.Errorf("%+v: memory in %s", h, h.group("/volley/a").file("memory", "v1", "v2"))
			}
		})
	}
}

func TestMountsAreReadWithTheirEscapes(t *testing.T) {
	got := sys.ParseMounts("1 2 0:1 / /a\\040b\\134c rw master:1 propagate_from:2 - ext4 /dev/sda rw\nnonsense\n3 2 0:1 / /x rw - tmpfs\n")
	want := []sys.Mount{{Point: `/a b\c`, FSType: "ext4", Options: "rw"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// fakeGroup makes the files of a control group.
func fakeGroup(t *testing.T, unified bool, files map[string]string) *group {
	t.Helper()
	root := t.TempDir()
	h := hierarchy{unified: unified, controllers: map[string]string{}, mounts: []string{root}}
	for _, name := range []string{"memory", "cpu", "cpuacct", "pids", "freezer"} {
		h.controllers[name] = root
	}
	g := h.group("/volley/a")
	if err := os.MkdirAll(filepath.Join(root, g.path), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, g.path, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestUsageIsReadInEitherVersion(t *testing.T) {
	for _, g := range []*group{
		fakeGroup(t, false, map[string]string{
			"memory.usage_in_bytes": "1000\n", "memory.max_usage_in_bytes": "2000\n", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
			"cpuacct.usage": "5000000\n", "pids.current": "7\n",
		}),
		fakeGroup(t, true, map[string]string{
			"memory.current": "1000\n", "memory.peak": "2000\n", "memory.events": "low 0\noom 1\noom_kill 3\n",
			"cpu.stat": "usage_usec 5000\nuser_usec 1\n", "pids.current": "7\n",
		}),
	} {
		u, err := g.usage()
		if err != nil || u.MemoryBytes != 1000 || u.MaxMemoryBytes != 2000 || u.CPU != 5e6 || u.Processes != 7 || g.oomKills() != 3 {
			t.Errorf("v2 %v: %+v, %d kills, %v", g.h.unified, u, g.oomKills(), err)
		}
	}
	old := fakeGroup(t, true, map[string]string{"memory.current": "1000\n", "cpu.stat": "usage_usec 1\n", "pids.current": "1\n"})
	if u, err := old.usage(); err != nil || u.MaxMemoryBytes != 1000 {
		t.Errorf("without memory.peak: %+v, %v", u, err)
	}
	if _, err := fakeGroup(t, false, nil).usage(); err == nil {
		t.Error("a group that is not there has a usage")
	}
}

func TestUnifiedGroupsHandOnTheirControllers(t *testing.T) {
	g := fakeGroup(t, true, map[string]string{"memory.swap.max": "max"})
	if err := g.prepare(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", "volley", "volley/a"} {
		// A file remembers the last write only.
		text, err := os.ReadFile(filepath.Join(g.h.mounts[0], dir, "cgroup.subtree_control"))
		if err != nil && dir != "" || !strings.HasPrefix(string(text), "+") {
			t.Errorf("in /%s: %q, %v", dir, text, err)
		}
	}
	if !g.boundsSwap() {
		t.Error("swap is not bounded")
	}
}

func TestTheRootControlGroupIsNeverDestroyed(t *testing.T) {
	for _, path := range []string{"", "/", "/a/..", "."} {
		if err := fakeGroup(t, false, nil).h.group(path).destroy(t.Context()); err == nil {
			t.Errorf("%q is destroyed", path)
		}
	}
}

func TestTheHostsRootHasProgramsAndNoSecrets(t *testing.T) {
	host, dir := t.TempDir(), t.TempDir()
	write := func(name, text string, perm fs.FileMode) {
		t.Helper()
		path := filepath.Join(host, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), perm); err != nil {
			t.Fatal(err)
		}
	}
	write("init", "volley-init", 0o755)
	write("usr/bin/python3", "", 0o755)
	write("lib64/ld.so", "", 0o755)
	write("etc/ld.so.cache", "cache", 0o644)
	write("etc/ssl/certs/ca.crt", "certificate", 0o644)
	write("etc/ssl/private/key.pem", "secret", 0o644)
	write("etc/ssl/certs/host.key", "secret", 0o640)
	write("etc/python3.11/sitecustomize.py", "site", 0o644)
	write("etc/shadow", "secret", 0o644)
	write("etc/passwd", "real:x:1000:1000::/:/bin/sh\n", 0o644)
	write("etc/ssh/ssh_host_key", "secret", 0o644)
	write("root/.ssh/id", "secret", 0o644)
	for name, to := range map[string]string{"bin": "usr/bin", "etc/localtime": "/usr/share/zoneinfo/UTC"} {
		if err := os.Symlink(to, filepath.Join(host, name)); err != nil {
			t.Fatal(err)
		}
	}
	mounts := []sys.Mount{{Point: host}, {Point: filepath.Join(host, "usr")}, {Point: filepath.Join(host, "usr/local")}, {Point: "/elsewhere"}}
	binds, err := buildHostRoot(dir, host, filepath.Join(host, "init"), mounts, 993, 990)
	if err != nil {
		t.Fatal(err)
	}
	want := []bind{{filepath.Join(host, "usr"), "/usr"}, {filepath.Join(host, "usr/local"), "/usr/local"}, {filepath.Join(host, "lib64"), "/lib64"}}
	if !slices.Equal(binds, want) {
		t.Errorf("binds %v, want %v", binds, want)
	}
	for name, text := range map[string]string{
		"etc/ld.so.cache": "cache", "etc/ssl/certs/ca.crt": "certificate", "etc/python3.11/sitecustomize.py": "site", ".volley/init": "volley-init",
		"etc/passwd": etcFiles(993, 990)["passwd"], "etc/hostname": "sandbox\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "secret") {
			t.Errorf("%s holds %q, %v", path, text, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for name, to := range map[string]string{"bin": "usr/bin", "etc/localtime": "/usr/share/zoneinfo/UTC"} {
		if got, err := os.Readlink(filepath.Join(dir, name)); got != to {
			t.Errorf("%s leads to %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "tmp")); err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("/tmp: %v, %v", info.Mode(), err)
	}
}

func TestLimitsFollowFromTheMemory(t *testing.T) {
	for _, tc := range []struct {
		memoryMB, tmpMB, wantTmpMB int
		quota                      int64
		shares                     uint64
	}{
		{128, 512, 64, 100_000, 74}, {1769, 512, 512, 100_000, 1024}, {1770, 512, 512, 200_000, 1024}, {10240, 10240, 5120, 600_000, 5927}, {1, 16, 1, 100_000, 2},
	} {
		f := &function.Function{MemoryMB: tc.memoryMB, TmpMB: tc.tmpMB}
		if q, s, tmp := quotaMicroseconds(tc.memoryMB), shares(tc.memoryMB), tmpMB(f); q != tc.quota || s != tc.shares || tmp != tc.wantTmpMB {
			t.Errorf("%d MB: quota %d, shares %d, /tmp %d", tc.memoryMB, q, s, tmp)
		}
	}
}

func TestEveryContainerIsConfined(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &function.Function{
			MemoryMB: rapid.IntRange(1, 10240).Draw(t, "memory"), TmpMB: rapid.IntRange(1, 10240).Draw(t, "tmp"),
			Network: rapid.SampledFrom([]function.Network{function.NetworkNone, function.NetworkHost, ""}).Draw(t, "network"),
		}
		c := containerSpec{function: f, root: "/r", binds: []bind{{"/usr", "/usr"}, {"/code", "/var/task"}}, cgroup: "/volley/a", boundSwap: true, maxProcesses: 100, seccomp: seccompProfile()}
		s := c.spec()
		if !s.Root.Readonly || !s.Process.NoNewPrivileges || s.Linux.CgroupsPath != "/volley/a" || *s.Linux.Resources.Pids.Limit != 100 {
			t.Fatalf("%+v", s)
		}
		if m := s.Linux.Resources.Memory; *m.Limit != int64(f.MemoryMB)<<20 || *m.Swap != *m.Limit {
			t.Fatalf("memory %d, swap %d", *m.Limit, *m.Swap)
		}
		has := func(kind specs.LinuxNamespaceType) bool {
			return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind && n.Path == "" })
		}
		for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace} {
			if !has(kind) {
				t.Fatalf("no %s namespace", kind)
			}
		}
		if has(specs.NetworkNamespace) == (f.Network == function.NetworkHost) {
			t.Fatalf("network %q: namespace %v", f.Network, has(specs.NetworkNamespace))
		}
		for _, m := range s.Mounts {
			switch {
			case m.Type == "bind" && !slices.Contains(m.Options, "ro"):
				t.Fatalf("%s can be written to", m.Destination)
			case m.Type == "tmpfs" && !slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "size=") }):
				t.Fatalf("%s has no bound", m.Destination)
			case m.Destination != "/dev" && !slices.Contains(m.Options, "nodev"), !slices.Contains(m.Options, "nosuid"):
				t.Fatalf("%s has options %v", m.Destination, m.Options)
			}
		}
		if caps := s.Process.Capabilities; len(caps.Bounding) != 3 || len(caps.Inheritable) != 0 || len(caps.Ambient) != 0 {
			t.Fatalf("capabilities %+v", caps)
		}
	})
}

func TestTheFilterLetsNothingThroughThatReachesTheHost(t *testing.T) {
	p := seccompProfile()
	if p.DefaultAction != specs.ActErrno {
		t.Errorf("what is not listed is %s", p.DefaultAction)
	}
	forbidden := []string{
		"mount", "umount2", "pivot_root", "chroot", "fsopen", "move_mount", "open_tree", "mount_setattr", "setns", "unshare", "bpf", "perf_event_open",
		"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "keyctl", "add_key", "request_key", "init_module", "finit_module",
		"delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "io_uring_setup", "io_uring_enter", "io_uring_register",
		"userfaultfd", "open_by_handle_at", "name_to_handle_at", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname",
		"setdomainname", "quotactl", "acct", "syslog", "iopl", "ioperm", "kcmp", "lookup_dcookie", "nfsservctl", "vhangup", "fanotify_init", "move_pages", "migrate_pages", "mbind",
	}
	seen := map[string]bool{}
	for _, rule := range p.Syscalls {
		for _, name := range rule.Names {
			if slices.Contains(forbidden, name) {
				t.Errorf("%s is allowed", name)
			}
			if seen[name] && len(rule.Args) == 0 {
				t.Errorf("%s is listed twice", name)
			}
			seen[name] = true
		}
	}
	for _, name := range []string{"execve", "futex", "read", "mmap", "clone", "openat", "epoll_pwait", "setresuid", "kill", "getrandom"} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestTheFlagsOfGVisorAreRead(t *testing.T) {
	const text = "  -overlay2 value\n    \twrap mounts with overlayfs.\n  -platform string\n    \tspecifies which platform to use: %s. (default \"x\")\nnoise\n"
	for description, want := range map[string]string{"systrap (default), ptrace, kvm": "systrap", "ptrace (default), kvm": "ptrace"} {
		flags := parseFlags(strings.Replace(text, "%s", description, 1))
		if got := choosePlatform(flags["platform"]); got != want {
			t.Errorf("%s: %s", description, got)
		}
		for network, flag := range map[function.Network]string{function.NetworkNone: "--network=none", function.NetworkHost: "--network=host"} {
			if got := traitsOf[Runsc].flags(flags, want, network); !slices.Equal(got, []string{flag, "--platform=" + want, "--overlay2=none"}) {
				t.Errorf("flags %v", got)
			}
		}
	}
	if got := traitsOf[Runsc].flags(parseFlags(""), "", function.NetworkNone); !slices.Equal(got, []string{"--network=none"}) {
		t.Errorf("flags of an old version: %v", got)
	}
}

func TestTheUserOfAnImageIsLookedUp(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": "root:x:0:0::/:/bin/sh\nbroken\napp:x:100:200::/:/bin/sh\n", "group": "staff:x:50:\n"} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fallback := frame.Credential{UID: 993, GID: 990}
	for user, want := range map[string]frame.Credential{
		"": fallback, "root": fallback, "0": fallback, "0:0": fallback,
		"app": {UID: 100, GID: 200}, "100": {UID: 100, GID: 200}, "app:staff": {UID: 100, GID: 50}, "app:7": {UID: 100, GID: 7},
		"1234": {UID: 1234, GID: 990}, "1234:5": {UID: 1234, GID: 5},
	} {
		if got, err := imageUser(root, image.RunConfig{User: user}, fallback); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", user, got, err, want)
		}
	}
	for _, user := range []string{"nobody", "app:nobody", "-1", "99999999999"} {
		if _, err := imageUser(root, image.RunConfig{User: user}, fallback); function.CodeOf(err) != function.InvalidImage {
			t.Errorf("%q: %v", user, err)
		}
	}
	// A link out of the image leads nowhere.
	if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := imageUser(root, image.RunConfig{User: "daemon"}, fallback); function.CodeOf(err) != function.InvalidImage {
		t.Errorf("through a link: %v", err)
	}
}

func TestIDsAreNamesOfFilesAndGroups(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "A-9": true, strings.Repeat("a", 64): true,
		"": false, "-a": false, "a/b": false, "..": false, "a.b": false, "a b": false, strings.Repeat("a", 65): false, "ä": false, "a*": false,
	} {
		if validID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}
