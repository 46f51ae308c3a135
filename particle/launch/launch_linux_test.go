package launch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/testenv"
)

// part, in the environment, makes the test binary play a part.
const part = "VOLLEY_LAUNCH_TEST_PART"

func TestMain(m *testing.M) {
	switch what, arg, _ := strings.Cut(os.Getenv(part), ":"); what {
	case "exec":
		// Like volley net exec: the arguments are namespace, group, program.
		os.Unsetenv(part)
		o := Options{Network: "job1", Endpoint: "e0", Namespace: os.Args[1], Cgroup: os.Args[2], Address: address, Discipline: Discipline(arg)}
		err := Exec(o, os.Args[3:])
		fmt.Println(err)
		os.Exit(Status(err))
	case "run":
		os.Unsetenv(part)
		o := Options{Network: "job1", Endpoint: "e0", Namespace: os.Args[1], Cgroup: os.Args[2], Address: address, Discipline: Discipline(arg)}
		status, err := Run(context.Background(), o, os.Args[3:], Stdio{os.Stdin, os.Stdout, os.Stderr})
		if err != nil {
			fmt.Println(err)
			status = Status(err)
		}
		os.Exit(status)
	case "dial":
		c, err := net.Dial("unix", arg)
		if err == nil {
			c.Close()
		}
		fmt.Println(outcome(err))
		os.Exit(0)
	case "attack":
		fmt.Println(outcome(attack(arg)))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func outcome(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}

// attack tries to get out; arg is what and a path.
func attack(arg string) error {
	what, path, _ := strings.Cut(arg, ":")
	switch what {
	case "write":
		return os.WriteFile(path, []byte("0"), 0)
	case "remount":
		return syscall.Mount("", path, "", syscall.MS_REMOUNT|syscall.MS_BIND, "")
	case "unmount":
		return syscall.Unmount(path, 0)
	case "mount cgroup2":
		return syscall.Mount("none", path, "cgroup2", 0, "")
	case "enter":
		return sys.OnThread(func() error { return sys.EnterNetwork(path) })
	case "packet":
		_, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0x0300)
		return err
	}
	return fmt.Errorf("unknown attack %q", what)
}

var address = netip.MustParseAddr("10.88.0.2")

// place is a network namespace and a control group of a test's own.
type place struct {
	namespace, group string
	other            string // another group
}

// newPlace makes a place, in whose network an endpoint's addresses are.
func newPlace(t *testing.T) place {
	t.Helper()
	testenv.Need(t, testenv.CgroupBPF, testenv.SeccompNotify)
	root := testenv.Cgroup2(t)
	name := fmt.Sprintf("vlla%d", os.Getpid())
	p := place{namespace: testenv.AnyIPNamespace(t, "vlla"), group: filepath.Join(root, name, "e0"), other: filepath.Join(root, name, "e1")}
	t.Cleanup(func() {
		for _, dir := range []string{p.group, p.other, filepath.Dir(p.group)} {
			removeGroup(t, dir)
		}
	})
	for _, dir := range []string{p.group, p.other} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// removeGroup waits for the kernel, which tells nobody when a group is empty
// of processes that have ended.
func removeGroup(t *testing.T, dir string) {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	for range 500 {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s is not empty", dir)
}

// play makes a command of the test binary that plays a part, at p.
func (p place) play(t *testing.T, what string, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{p.namespace, p.group}, argv...)...)
	cmd.Env = append(os.Environ(), part+"="+what, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// ways are the ways to start a program.
var ways = []string{"exec:bpf", "run:bpf", "run:seccomp"}

func TestAProgramIsWhereItBelongs(t *testing.T) {
	p := newPlace(t)
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			const script = `
readlink /proc/self/ns/net
sed -n 's/^0:://p' /proc/self/cgroup
echo $VOLLEY_NETWORK $VOLLEY_ENDPOINT $VOLLEY_ADDRESS
`
			cmd := p.play(t, way, "sh", "-c", script)
			cmd.Env = append(cmd.Env, "VOLLEY_NETWORK=outer", "VOLLEY_ADDRESS=10.0.0.1")
			lines := strings.Split(output(t, cmd), "\n")
			var st syscall.Stat_t
			if err := syscall.Stat(p.namespace, &st); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("net:[%d]", st.Ino); lines[0] != want {
				t.Errorf("network namespace: got %q, want %q", lines[0], want)
			}
			if !strings.HasSuffix(p.group, lines[1]) || lines[1] == "/" {
				t.Errorf("control group: got %q, want %q", lines[1], p.group)
			}
			if want := "job1 e0 10.88.0.2"; lines[2] != want {
				t.Errorf("environment: got %q, want %q", lines[2], want)
			}
		})
	}
}

func TestAProgramHasNotTheCapabilitiesToGetOut(t *testing.T) {
	p := newPlace(t)
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			status := map[string]string{}
			for line := range strings.Lines(output(t, p.play(t, way, "cat", "/proc/self/status"))) {
				name, value, _ := strings.Cut(line, ":")
				status[name] = strings.TrimSpace(value)
			}
			if status["NoNewPrivs"] != "1" {
				t.Error("it can gain privileges")
			}
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				caps, err := strconv.ParseUint(status[set], 16, 64)
				if err != nil {
					t.Fatal(err)
				}
				// NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN,
				// DAC_READ_SEARCH, SETPCAP, BPF.
				for _, c := range []int{12, 13, 16, 17, 19, 21, 2, 8, 39} {
					if caps&(1<<c) != 0 {
						t.Errorf("%s %x has capability %d", set, caps, c)
					}
				}
			}
			if eff, _ := strconv.ParseUint(status["CapEff"], 16, 64); eff&(1<<10) == 0 {
				t.Errorf("user 0 cannot bind low ports: %x", eff)
			}
		})
	}
}

func TestAProgramCannotGetOut(t *testing.T) {
	p := newPlace(t)
	empty := t.TempDir()
	for _, way := range ways {
		for _, c := range []struct{ attack, want string }{
			{"write:" + filepath.Join(p.other, "cgroup.procs"), "read-only file system"},
			{"write:/proc/1/root" + filepath.Join(p.other, "cgroup.procs"), "permission denied"},
			{"remount:" + testenv.Cgroup2(t), "operation not permitted"},
			{"unmount:" + testenv.Cgroup2(t), "operation not permitted"},
			{"mount cgroup2:" + empty, "operation not permitted"},
			{"enter:/proc/1/ns/net", "permission denied"},
			{"enter:" + p.namespace, "operation not permitted"},
			{"packet:", "operation not permitted"},
		} {
			t.Run(way+" "+c.attack, func(t *testing.T) {
				cmd := p.play(t, way, "env", part+"=attack:"+c.attack, exe(t))
				if got := output(t, cmd); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
			})
		}
	}
}

// A program that is user 0 of a namespace of its own may mount control groups,
// but from its own group down only.
func TestAUserNamespaceDoesNotLeadOutOfTheGroup(t *testing.T) {
	p := newPlace(t)
	const script = `
unshare --user --map-root-user --mount --cgroup sh -c '
mount -t cgroup2 none "$0" || exit 0
find "$0" -name e1
echo 0 2>/dev/null > "$0/../e1/cgroup.procs"
sed -n s/^0:://p /proc/self/cgroup
' "$0"
sed -n 's/^0:://p' /proc/self/cgroup
`
	for _, way := range ways {
		lines := strings.Split(output(t, p.play(t, way, "sh", "-c", script, t.TempDir())), "\n")
		if last := lines[len(lines)-1]; !strings.HasSuffix(p.group, last) || last == "/" {
			t.Errorf("%s: it is in %q", way, last)
		}
		for _, line := range lines[:len(lines)-1] {
			if strings.Contains(line, "e1") {
				t.Errorf("%s: it reaches %q", way, line)
			}
		}
	}
}

func TestPinnedBPFObjectsAreNotSeen(t *testing.T) {
	p := newPlace(t)
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "pins"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, way := range ways {
		if got := output(t, p.play(t, way, "ls", dir)); got != "" {
			t.Errorf("%s: got %q", way, got)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pins")); err != nil {
		t.Errorf("outside they are gone too: %v", err)
	}
}

func TestTheHostsMountsStayAsTheyAre(t *testing.T) {
	p := newPlace(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range ways {
		output(t, p.play(t, way, "true"))
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	// Other tests may mount at the same time: what matters are control groups.
	groups := func(text []byte) (lines []string) {
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, " - cgroup") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if b, a := groups(before), groups(after); strings.Join(a, "") != strings.Join(b, "") {
		t.Errorf("they were\n%s\nand are\n%s", b, a)
	}
	if err := os.WriteFile(filepath.Join(p.group, "cgroup.max.depth"), []byte("5"), 0); err != nil {
		t.Errorf("control groups are read-only outside: %v", err)
	}
}

func TestAbstractSocketsOfOthersAreOutOfReach(t *testing.T) {
	p := newPlace(t)
	testenv.Need(t, testenv.Landlock)
	// A listener that is another endpoint's: in the same namespace.
	name := fmt.Sprintf("@vlla%d", os.Getpid())
	var l net.Listener
	if err := sys.OnThread(func() (err error) {
		if err := sys.EnterNetwork(p.namespace); err != nil {
			return err
		}
		l, err = net.Listen("unix", name)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	free := exec.Command("nsenter", "--net="+p.namespace, exe(t))
	free.Env = append(os.Environ(), part+"=dial:"+name)
	if got := output(t, free); got != "done" {
		t.Fatalf("without launch: got %q", got)
	}
	for _, way := range ways {
		if got := output(t, p.play(t, way, "env", part+"=dial:"+name, exe(t))); got != "operation not permitted" {
			t.Errorf("%s: got %q", way, got)
		}
	}
}

func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitStatusesAreTheProgramsOrThoseOfAShell(t *testing.T) {
	p := newPlace(t)
	notExecutable := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notExecutable, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, way := range ways {
		for _, c := range []struct {
			argv []string
			want int
		}{
			{[]string{"true"}, 0},
			{[]string{"sh", "-c", "exit 7"}, 7},
			{[]string{"volley-no-such-program"}, 127},
			{[]string{"/no/such/program"}, 127},
			{[]string{notExecutable}, 126},
		} {
			t.Run(fmt.Sprint(way, c.argv), func(t *testing.T) {
				cmd := p.play(t, way, c.argv...)
				out, err := cmd.CombinedOutput()
				if got := cmd.ProcessState.ExitCode(); got != c.want {
					t.Errorf("got %d (%v), want %d: %s", got, err, c.want, out)
				}
			})
		}
	}
	cmd := p.play(t, "run:bpf", "sh", "-c", "kill -TERM $$")
	_ = cmd.Run()
	if got, want := cmd.ProcessState.ExitCode(), 128+15; got != want {
		t.Errorf("killed by a signal: got %d, want %d", got, want)
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	p := newPlace(t)
	for _, way := range ways {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGUSR1} {
			t.Run(fmt.Sprint(way, " ", s), func(t *testing.T) {
				cmd := p.play(t, way, "sh", "-c", fmt.Sprintf(`trap "exit 9" %d; echo ready; while :; do read line || exit 1; done`, s))
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // away from a terminal
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				defer in.Close()
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
					t.Fatalf("got %q: %v", line, err)
				}
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
				// read(1) of the shell goes on after a signal; a line ends it.
				fmt.Fprintln(in)
				_ = cmd.Wait()
				if got := cmd.ProcessState.ExitCode(); got != 9 {
					t.Errorf("got %d", got)
				}
			})
		}
	}
}

func TestAProgramDiesWithWhoRunsIt(t *testing.T) {
	p := newPlace(t)
	for _, way := range []string{"run:bpf", "run:seccomp"} {
		cmd := p.play(t, way, "sh", "-c", "echo $$; exec sleep 600")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		program, err := sys.OpenProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := program.Wait(ctx); err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
}

func TestTheEndOfTheContextEndsTheProgram(t *testing.T) {
	p := newPlace(t)
	for _, d := range []Discipline{None, Seccomp} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = r.Read(make([]byte, 1)) // it runs
			cancel()
		}()
		o := Options{Namespace: p.namespace, Cgroup: p.group, Address: address, Discipline: d}
		status, err := Run(ctx, o, []string{"sh", "-c", "echo; exec sleep 600"}, Stdio{Out: w})
		if status != 128+9 || err != nil {
			t.Errorf("%s: got %d, %v", d, status, err)
		}
		cancel()
		r.Close()
		w.Close()
	}
}

func TestAProgramRunsAsWhoItIsToldTo(t *testing.T) {
	p := newPlace(t)
	uid, gid := 65534, 65533
	for _, d := range []Discipline{BPF, Seccomp} {
		var out, problems bytes.Buffer
		o := Options{Namespace: p.namespace, Cgroup: p.group, Address: address, Discipline: d, UID: &uid, GID: &gid, Dir: "/"}
		status, err := Run(t.Context(), o, []string{"sh", "-c", "id -u; id -g; id -G; pwd; grep CapEff /proc/self/status"}, Stdio{Out: &out, Err: &problems})
		if status != 0 || err != nil {
			t.Fatalf("%s: %d, %v: %s", d, status, err, problems.Bytes())
		}
		if got, want := out.String(), "65534\n65533\n65533\n/\nCapEff:\t0000000000000000\n"; got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
	}
}

func TestTheSupervisorHoldsARunProgramToItsAddress(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	p := newPlace(t)
	const program = `
import socket
s = socket.create_server(("", 8000))
c = socket.create_connection(("localhost", 8000))
print(s.getsockname()[0], s.accept()[1][0])
try:
    socket.create_server(("10.88.0.3", 8000))
except PermissionError:
    print("refused")
`
	if got, want := output(t, p.play(t, "run:seccomp", "python3", "-c", program)), "10.88.0.2 10.88.0.2\nrefused"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatCannotBeStartedIsSaid(t *testing.T) {
	p := newPlace(t)
	for name, o := range map[string]Options{
		"enter network namespace": {Namespace: "/no/such/namespace"},
		"join control group":      {Cgroup: "/no/such/group"},
		"is unknown":              {Discipline: "magic"},
		"make build":              {Discipline: Preload},
		"no address":              {Namespace: p.namespace, Discipline: Seccomp},
	} {
		status, err := Run(t.Context(), o, []string{"true"}, Stdio{})
		if err == nil || !strings.Contains(err.Error(), name) || status != -1 {
			t.Errorf("want an error with %q, got %d, %v", name, status, err)
		}
	}
	if err := Exec(Options{Discipline: Seccomp}, []string{"true"}); err == nil || !strings.Contains(err.Error(), "supervisor") {
		t.Errorf("got %v", err)
	}
	if err := Exec(Options{Namespace: "/no/such/namespace"}, []string{"true"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := Run(t.Context(), Options{}, nil, Stdio{}); err == nil {
		t.Error("nothing was started")
	}
}
