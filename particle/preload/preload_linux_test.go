package preload

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// compile compiles a C program or library into a new directory.
func compile(t *testing.T, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	out, err := exec.Command("cc", append([]string{"-Wall", "-Wextra", "-Werror", "-O2", "-o", path}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	return path
}

func library(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.CC, testenv.NetAdmin)
	return compile(t, Library, "-shared", "-fPIC", "preload.c", "-ldl")
}

var (
	address  = netip.MustParseAddr("10.88.0.2")
	address6 = netip.MustParseAddr("fd88::2")
)

// output runs a program under the library.
func output(t *testing.T, namespace, library string, a, a6 netip.Addr, args ...string) string {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + namespace, "--", "env"}, append(Env(library, nil, a, a6), args...)...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestACProgramKeepsToItsAddress(t *testing.T) {
	lib := library(t)
	namespace := testenv.AnyIPNamespace(t, "vlpl")
	subject := compile(t, "subject", "testdata/subject.c")
	none := netip.Addr{}
	for _, c := range []struct {
		do    string
		a, a6 netip.Addr
		want  string
	}{
		{"tcp bind 10.88.0.2 8000 name", address, address6, "10.88.0.2 8000"},
		{"tcp bind 10.88.0.3 8000 name", address, address6, "EPERM"},
		{"tcp bind 0.0.0.0 8000 name", address, address6, "10.88.0.2 8000"},
		{"tcp bind 0.0.0.0 0 name", address, address6, "10.88.0.2 some"},
		{"tcp bind 127.0.0.1 8000 name", address, address6, "10.88.0.2 8000"},
		{"tcp6 bind :: 8000 name", address, address6, "fd88::2 8000"},
		{"tcp6 bind ::1 8000 name", address, address6, "fd88::2 8000"},
		{"tcp6 bind fd88::3 8000 name", address, address6, "EPERM"},
		{"tcp6 bind ::ffff:10.88.0.3 8000 name", address, address6, "EPERM"},
		{"tcp6 bind ::ffff:0.0.0.0 8000 name", address, address6, "::ffff:10.88.0.2 8000"},
		{"tcp6 bind :: 8000 name", address, none, "::ffff:10.88.0.2 8000"},
		{"tcp bind 0.0.0.0 8000 name", none, address6, "EPERM"},
		{"tcp listen name", address, address6, "10.88.0.2 some"},
		{"tcp6 listen name", address, address6, "fd88::2 some"},
		{"udp connect 10.88.0.3 8000 name", address, address6, "10.88.0.2 some"},
		{"udp6 connect fd88::3 8000 name", address, address6, "fd88::2 some"},
		{"udp6 connect ::ffff:10.88.0.3 8000 name", address, address6, "::ffff:10.88.0.2 some"},
		{"tcp connect 10.88.0.3 8000 name", address, address6, "ECONNREFUSED"},
		{"udp sendto 10.88.0.3 8000 name", address, address6, "10.88.0.2 some"},
		{"udp sendmsg 10.88.0.3 8000 name", address, address6, "10.88.0.2 some"},
		{"udp6 sendmmsg fd88::3 8000 name", address, address6, "fd88::2 some"},
		{"udp bind 0.0.0.0 8000 sendto 127.0.0.1 8000 sender", address, address6, "10.88.0.2 8000"},
		{"udp bind 0.0.0.0 8000 sendmsg 127.0.0.1 8000 sender", address, address6, "10.88.0.2 8000"},
		{"udp bind 0.0.0.0 8000 sendmmsg 127.0.0.1 8000 sender", address, address6, "10.88.0.2 8000"},
		{"tcp bind 0.0.0.0 8000 name", none, none, "0.0.0.0 8000"},
	} {
		t.Run(c.do, func(t *testing.T) {
			args := append([]string{subject}, strings.Fields(c.do)...)
			if got := output(t, namespace, lib, c.a, c.a6, args...); got != c.want {
				t.Errorf("with %v and %v: got %q, want %q", c.a, c.a6, got, c.want)
			}
		})
	}
}

func TestAPythonServerAndClientFindEachOtherAtLocalhost(t *testing.T) {
	lib := library(t)
	testenv.Need(t, testenv.Python3)
	const program = `
import socket, threading
server = socket.create_server(("", 8000))
client = socket.create_connection(("localhost", 8000))
conn, peer = server.accept()
print(server.getsockname()[0], peer[0])
`
	if got, want := output(t, testenv.AnyIPNamespace(t, "vlpl"), lib, address, address6, "python3", "-c", program), "10.88.0.2 10.88.0.2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// This is what the package's comment says, and why there are better
// disciplines.
func TestAStaticProgramEvadesIt(t *testing.T) {
	lib := library(t)
	subject := compile(t, "subject", "-static", "testdata/subject.c")
	got := output(t, testenv.AnyIPNamespace(t, "vlpl"), lib, address, address6, subject, "tcp", "bind", "10.88.0.3", "8000", "name")
	if want := "10.88.0.3 8000"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestALibraryThatIsNotBuiltIsSaid(t *testing.T) {
	if _, err := Find(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
}
