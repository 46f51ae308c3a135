package evpn_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/control/evpn"
	"github.com/volley-run/volley/particle/rtnl"
)

// envAgent, in the environment, makes the test binary a node's agent: the
// sockets of a BGP speaker are in the network namespace of its process.
const envAgent = "VOLLEY_EVPN_TEST_AGENT"

func TestMain(m *testing.M) {
	if text := os.Getenv(envAgent); text != "" {
		if err := actAsAgent(text); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// agent is what the agent is told.
type agent struct {
	Node  particle.NodeConfig
	Speak evpn.Config
}

// actAsAgent keeps a node in step with its neighbours until its input ends.
func actAsAgent(text string) (err error) {
	var a agent
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	a.Speak.Log = log
	node, err := particle.OpenNode(a.Node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	speaker, err := evpn.Open(ctx, a.Speak)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, speaker.Close()) }()
	if err := node.Follow(ctx, speaker, log); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

const frrPatience = 60 * time.Second

var (
	nodeVTEP = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	frrVTEP  = netip.AddrFrom4([4]byte{192, 0, 2, 2})
)

// lab is a node, a router on which FRR runs, and a host behind that, each in a
// network namespace.
type lab struct {
	*testing.T
	frr              testenv.FRRPrograms
	dir              string
	node             *particle.Node
	cfg              particle.NodeConfig
	inNode, inRouter string // names of namespaces
	inHost           string
}

func newLab(t *testing.T) *lab {
	testenv.Need(t, testenv.NetAdmin)
	l := &lab{T: t, frr: testenv.FRR(t)}
	// FRR's user must get in, which t.TempDir does not let it.
	var err error
	if l.dir, err = os.MkdirTemp("", "volley-frr-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(l.dir) })
	uid, _ := strconv.Atoi(l.frr.User.Uid)
	gid, _ := strconv.Atoi(l.frr.User.Gid)
	if err := errors.Join(os.Chmod(l.dir, 0o755), os.Chown(l.dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]*string{"node": &l.inNode, "router": &l.inRouter, "host": &l.inHost} {
		*in = fmt.Sprintf("evpn-%d-%s", os.Getpid(), name)
		l.ip("netns", "add", *in)
		t.Cleanup(func() { l.ip("netns", "del", *in) })
		l.ip("-n", *in, "link", "set", "lo", "up")
	}
	l.ip("-n", l.inNode, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", l.inRouter)
	l.ip("-n", l.inRouter, "link", "add", "host", "type", "veth", "peer", "name", "eth0", "netns", l.inHost)
	l.ip("-n", l.inNode, "addr", "add", nodeVTEP.String()+"/24", "dev", "eth0")
	l.ip("-n", l.inRouter, "addr", "add", frrVTEP.String()+"/24", "dev", "eth0")
	for _, end := range [][2]string{{l.inNode, "eth0"}, {l.inRouter, "eth0"}, {l.inRouter, "host"}, {l.inHost, "eth0"}} {
		l.ip("-n", end[0], "link", "set", end[1], "up")
	}
	l.cfg = particle.NodeConfig{Name: fmt.Sprintf("evpn-%d", os.Getpid()), StateDir: filepath.Join(l.dir, "state")}
	l.within(l.inNode, func() (err error) {
		l.node, err = particle.OpenNode(l.cfg)
		return err
	})
	t.Cleanup(func() {
		_, err := l.node.GC(context.Background())
		if err := errors.Join(err, l.node.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// ip runs the command of that name.
func (l *lab) ip(args ...string) { l.Helper(); l.run("ip", args...) }

func (l *lab) run(name string, args ...string) string {
	l.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		l.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// within calls f in a namespace.
func (l *lab) within(name string, f func() error) {
	l.Helper()
	if err := inNamespace("/run/netns/"+name, f); err != nil {
		l.Fatal(err)
	}
}

func inNamespace(path string, f func() error) error {
	ns, err := rtnl.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

// start runs a program in a namespace until stop, or the end of the test.
func (l *lab) start(in string, stop func(*exec.Cmd), environment string, args ...string) (end func()) {
	l.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + in, "--"}, args...)...)
	cmd.Env = append(os.Environ(), environment)
	var out testenv.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	input, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		input.Close()
		stop(cmd)
		late := time.AfterFunc(frrPatience, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
	})
	l.Cleanup(func() {
		end()
		if l.Failed() {
			l.Logf("%s:\n%s", filepath.Base(args[0]), out.String())
		}
	})
	return end
}

func terminate(cmd *exec.Cmd) { _ = cmd.Process.Signal(syscall.SIGTERM) }

// startFRR runs zebra and bgpd, and returns what ends bgpd.
func (l *lab) startFRR(zebraConf, bgpdConf string) (stop func()) {
	for name, text := range map[string]string{"zebra.conf": zebraConf, "bgpd.conf": bgpdConf} {
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o644); err != nil {
			l.Fatal(err)
		}
	}
	daemon := func(program, name string) func() {
		return l.start(l.inRouter, terminate, "", program, "--config_file", filepath.Join(l.dir, name+".conf"),
			"--pid_file", filepath.Join(l.dir, name+".pid"), "--socket", filepath.Join(l.dir, "zserv.api"), "--vty_socket", l.dir,
			"--vty_addr", "127.0.0.1", "--vty_port", "0", "--log", "stdout")
	}
	daemon(l.frr.Zebra, "zebra")
	l.await("zebra to listen", func() string { return l.exists("zebra.vty") })
	stop = daemon(l.frr.BGPD, "bgpd")
	l.await("bgpd to listen", func() string { return l.exists("bgpd.vty") })
	return stop
}

func (l *lab) exists(name string) string {
	if _, err := os.Stat(filepath.Join(l.dir, name)); err != nil {
		return err.Error()
	}
	return ""
}

// startAgent runs the node's agent, which begins a session with FRR.
func (l *lab) startAgent(frrASN uint32) {
	text, err := json.Marshal(agent{Node: l.cfg, Speak: evpn.Config{
		ASN: asn, RouterID: nodeVTEP, Neighbors: []evpn.Neighbor{{Address: frrVTEP, ASN: frrASN}},
	}})
	if err != nil {
		l.Fatal(err)
	}
	l.start(l.inNode, func(*exec.Cmd) {}, envAgent+"="+string(text), os.Args[0])
}

// await waits until f returns "", which otherwise says what is missing.
func (l *lab) await(what string, f func() string) {
	l.Helper()
	deadline := time.Now().Add(frrPatience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := f()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			l.Fatalf("waited %v in vain for %s: %s", frrPatience, what, missing)
		}
		<-tick.C
	}
}

// shows returns "" if a command's output has all of the texts.
func shows(out string, want ...string) string {
	for _, text := range want {
		if !strings.Contains(out, text) {
			return fmt.Sprintf("no %q in\n%s", text, out)
		}
	}
	return ""
}

func (l *lab) vtysh(command string) string {
	l.Helper()
	return l.run(l.frr.Vtysh, "--vty_socket", l.dir, "-c", command)
}

// up makes the node's network.
func (l *lab) up(vni uint32) *particle.Network {
	l.Helper()
	nw, err := l.node.Declare(particle.Spec{
		Name: "job", VNI: vni, Prefix: netip.MustParsePrefix("10.77.0.0/16"), NodePrefix: netip.MustParsePrefix("10.77.1.0/24"),
		Endpoints: 3, Discipline: particle.DisciplineNone, Underlay: particle.Underlay{Address: nodeVTEP},
	})
	if err == nil {
		err = nw.Apply(l.Context())
	}
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if err := nw.Close(context.Background()); err != nil {
			l.Error(err)
		}
	})
	return nw
}

// awaitPeers waits until the node's network has exactly these, and calls
// meanwhile, unless it is nil, again and again.
func (l *lab) awaitPeers(nw *particle.Network, meanwhile func(), want ...particle.Peer) {
	l.Helper()
	text, err := json.Marshal(append([]particle.Peer{}, want...))
	if err != nil {
		l.Fatal(err)
	}
	l.await("peers", func() string {
		if meanwhile != nil {
			meanwhile()
		}
		s, err := nw.Status(l.Context())
		if err != nil {
			return err.Error()
		}
		if got, err := json.Marshal(append([]particle.Peer{}, s.Peers...)); err != nil || !bytes.Equal(got, text) {
			return fmt.Sprintf("have %s, want %s", got, text)
		}
		return ""
	})
}

// exchange sends a line by TCP from one namespace to another, and back.
func exchange(from, to string, target netip.Addr) error {
	var listener net.Listener
	if err := inNamespace(to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(target, 0).String())
		return err
	}); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			_, err = io.CopyN(c, c, 5)
			err = errors.Join(err, c.Close())
		}
		served <- err
	}()
	err := inNamespace(from, func() error {
		c, err := net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 5))
		return err
	})
	return errors.Join(err, listener.Close(), ignoreClosed(<-served))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
