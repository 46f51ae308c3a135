package seccomp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/testenv"
)

// attempt, in the environment, makes the test binary the hostile program.
const attempt = "VOLLEY_SECCOMP_TEST_ATTEMPT"

func TestMain(m *testing.M) {
	if what := os.Getenv(attempt); what != "" {
		fmt.Print(attempts()[what]())
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func need(t *testing.T) {
	t.Helper()
	testenv.Need(t, testenv.NetAdmin, testenv.SeccompNotify)
	if err := Probe(); err != nil {
		t.Fatal(err)
	}
}

var endpoint = Endpoint{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")}

// try runs the hostile program once.
func try(t *testing.T, namespace, what string, ep Endpoint, change func(*exec.Cmd)) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), attempt+"="+what, "GORACE=atexit_sleep_ms=0")
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if change != nil {
		change(cmd)
	}
	s, err := Start(cmd, ep, func() error { return sys.EnterNetwork(namespace) })
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if err := s.Wait(); err != nil { // it ends with the program
		t.Errorf("supervisor: %v", err)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, problems.Bytes())
	}
	return out.String()
}

func TestAHostileProgramKeepsToItsAddress(t *testing.T) {
	need(t)
	namespace := testenv.AnyIPNamespace(t, "vlsc")
	tried := map[string]bool{}
	for _, c := range []struct{ attempt, want string }{
		{"bind own", "10.88.0.2 8000"},
		{"bind another's", "EPERM"},
		{"bind any", "10.88.0.2 8000"},
		{"bind any port of any", "10.88.0.2 some"},
		{"bind loopback", "10.88.0.2 8000"},
		{"bind ::", "fd88::2 8000"},
		{"bind ::1", "fd88::2 8000"},
		{"bind another's IPv6", "EPERM"},
		{"bind another's, mapped", "EPERM"},
		{"bind any, mapped", "::ffff:10.88.0.2 8000"},
		{"bind UDP another's", "EPERM"},
		{"bind UDP any", "10.88.0.2 8000"},
		{"bind UDP ::", "fd88::2 8000"},
		{"bind low port", "10.88.0.2 80"},
		{"bind twice", "<nil> EINVAL"},
		{"bind in use", "EADDRINUSE, then 10.88.0.2 0"},
		{"listen without bind", "10.88.0.2 some"},
		{"listen without bind, IPv6", "fd88::2 some"},
		{"connect UDP without bind", "10.88.0.2 some"},
		{"connect UDP without bind, IPv6", "fd88::2 some"},
		{"connect UDP without bind, mapped", "::ffff:10.88.0.2 some"},
		{"connect TCP to another's", "ECONNREFUSED"},
		{"connect TCP to loopback", "ECONNREFUSED"},
		{"send UDP without bind", "10.88.0.2 some"},
		{"sendmsg UDP without bind, IPv6", "fd88::2 some"},
		{"disconnect and send", "10.88.0.2 some"},
		{"sticky source", "EPERM"},
		{"raw", "EPERM"},
		{"raw IPv6", "EPERM"},
		{"packet", "EPERM"},
		{"packet by AF_INET", "EPERM"},
		{"ping", "EPROTONOSUPPORT"},
		{"MPTCP", "EPROTONOSUPPORT"},
		{"SCTP", "EPROTONOSUPPORT"},
		{"vsock", "EAFNOSUPPORT"},
		{"SMC", "EAFNOSUPPORT"},
		{"unix", "made"},
		{"netlink", "made"},
		{"io_uring", "EPERM"},
		{"x32", "ENOSYS"},
		{"Go's net package", "10.88.0.2:8000 from 10.88.0.2"},
		{"unix sockets work", "connected <nil>"},
		{"swap for a TCP one", "never bound"},
		{"threads of all call", "[10.88.0.2 some]"},
	} {
		t.Run(c.attempt, func(t *testing.T) {
			tried[c.attempt] = true
			if got := try(t, namespace, c.attempt, endpoint, nil); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for name := range attempts() {
		if !tried[name] && !t.Failed() {
			t.Errorf("%q is not tried", name)
		}
	}
}

func TestAnEndpointOfOneFamilyHasNoOther(t *testing.T) {
	need(t)
	namespace := testenv.AnyIPNamespace(t, "vlsc")
	only4, only6 := Endpoint{Address: endpoint.Address}, Endpoint{Address6: endpoint.Address6}
	for _, c := range []struct {
		attempt string
		ep      Endpoint
		want    string
	}{
		{"bind ::", only4, "::ffff:10.88.0.2 8000"},
		{"bind UDP ::", only4, "::ffff:10.88.0.2 8000"},
		{"bind another's, mapped", only4, "EPERM"},
		{"listen without bind, IPv6", only4, "::ffff:10.88.0.2 some"},
		{"bind any", only6, "EAFNOSUPPORT"},
		{"bind any, mapped", only6, "EPERM"},
		{"bind ::", only6, "fd88::2 8000"},
	} {
		t.Run(c.attempt, func(t *testing.T) {
			if got := try(t, namespace, c.attempt, c.ep, nil); got != c.want {
				t.Errorf("%+v: got %q, want %q", c.ep, got, c.want)
			}
		})
	}
}

func TestAProgramOfAnotherUserIsSupervisedWithoutItsPrivileges(t *testing.T) {
	need(t)
	namespace := testenv.AnyIPNamespace(t, "vlsc")
	nobody := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for what, want := range map[string]string{
		"bind low port":  "EACCES",
		"bind any":       "10.88.0.2 8000",
		"bind another's": "EPERM",
		"packet":         "EPERM",
	} {
		if got := try(t, namespace, what, endpoint, nobody); got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
}

func TestTheSupervisorOutlivesTheFirstProgramButNotTheLast(t *testing.T) {
	need(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", "cat <&3 >/dev/null & exit 0")
	cmd.ExtraFiles = []*os.File{r}
	s, err := Start(cmd, endpoint, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
		t.Error("it ended before the last process")
	case <-time.After(50 * time.Millisecond): // it could end later only
	}
	w.Close()
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close what has ended: %v", err)
	}
}

func TestClosingASupervisorLeavesItsProgramWithoutSockets(t *testing.T) {
	need(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command("sh", "-c", `read line <&3; exec "$0"`, "/proc/self/exe")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[3] = exe
	cmd.Env = append(os.Environ(), attempt+"=bind any")
	cmd.ExtraFiles = []*os.File{r}
	var out bytes.Buffer
	cmd.Stdout = &out
	s, err := Start(cmd, endpoint, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(w)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if out.String() != "ENOSYS" {
		t.Errorf("got %q", out.String())
	}
}

func TestAProgramThatDoesNotStartLeavesNothing(t *testing.T) {
	need(t)
	before := descriptors(t)
	_, err := Start(exec.Command("/no/such/program"), endpoint, nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	_, err = Start(exec.Command("true"), endpoint, func() error { return errors.New("no") })
	if err == nil || err.Error() != "no" {
		t.Errorf("got %v", err)
	}
	if _, err = Start(exec.Command("true"), Endpoint{}, nil); err == nil {
		t.Error("it is supervised without an address")
	}
	if after := descriptors(t); after != before {
		t.Errorf("there were %d descriptors, there are %d", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestThreadsOfOthersAreNotUnderTheFilter(t *testing.T) {
	need(t)
	cmd := exec.Command("true")
	s, err := Start(cmd, endpoint, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		status, err := os.ReadFile("/proc/self/task/" + e.Name() + "/status")
		if err != nil {
			continue // ended
		}
		if strings.Contains(string(status), "NoNewPrivs:\t1") {
			t.Errorf("thread %s has inherited something", e.Name())
		}
	}
}
