package particle

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle/rtnl"
)

const (
	envServer  = "PARTICLE_TEST_SERVER" // the namespace of a server
	serverPort = 7000
)

// serveAll tells everybody who connects to any address their own.
func serveAll(namespace string) error {
	ns, err := rtnl.Open(namespace)
	if err != nil {
		return err
	}
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprint(":", serverPort))
		return err
	}); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
		c.Close()
	}
}

// startServer runs serveAll at an endpoint until the end of the test.
func startServer(t *testing.T, ep Endpoint) {
	t.Helper()
	group, err := os.Open(ep.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envServer+"="+ep.Namespace)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the server says %q, %v", line, err)
	}
}

// ask returns what the server at an address says.
func ask(from Endpoint, source, target netip.Addr) (string, error) {
	c, err := dial(from, source, netip.AddrPortFrom(target, serverPort))
	if err != nil {
		return "", err
	}
	defer c.Close()
	said, err := io.ReadAll(c)
	return string(said), err
}

func TestServersOnAllAddressesServeIPv4AndIPv6(t *testing.T) {
	testenv.Need(t, testenv.CgroupBPF)
	nodes := newCluster(t, 2)
	ctx := context.Background()
	// Two jobs on the same nodes, with the same addresses.
	for _, job := range []string{"one", "two"} {
		specs := jobSpecs(nodes, job, 3, func(s *Spec) { s.Tenant = job })
		clients, servers := nodes[0].up(t, specs[0]), nodes[1].up(t, specs[1])
		from := endpoint(t, clients, 0)
		for i := range 2 {
			to := endpoint(t, servers, i)
			if err := servers.Enroll(ctx, to); err != nil {
				t.Fatal(err)
			}
			startServer(t, to)
		}
		for range 2 { // and after Enroll of what is enrolled
			for i := range 2 {
				to := endpoint(t, servers, i)
				for _, pair := range [][2]netip.Addr{{from.Address, to.Address}, {from.Address6, to.Address6}} {
					if said, err := ask(from, pair[0], pair[1]); err != nil || said != pair[0].String() {
						t.Errorf("job %s: %s is told by %s that it is %q, %v", job, pair[0], pair[1], said, err)
					}
				}
				if err := servers.Enroll(ctx, to); err != nil {
					t.Error(err)
				}
			}
			// Nobody is at the third one.
			for _, pair := range [][2]netip.Addr{{from.Address, endpoint(t, servers, 2).Address}, {from.Address6, endpoint(t, servers, 2).Address6}} {
				if said, err := ask(from, pair[0], pair[1]); err == nil {
					t.Errorf("job %s: %s is served by %q", job, pair[1], said)
				}
			}
		}
		defer func() {
			for _, want := range []int{1, 0} {
				if pins, err := filepath.Glob("/sys/fs/bpf/*/redirect-" + servers.label()); err != nil || len(pins) != want {
					t.Errorf("there are %v, %v, want %d", pins, err, want)
				}
				if err := servers.Close(ctx); err != nil {
					t.Error(err)
				}
			}
		}()
	}
}
