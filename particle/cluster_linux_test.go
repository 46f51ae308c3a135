package particle

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle/rtnl"
)

// testNode is a node of a cluster on one machine: its underlay is in a network
// namespace of its own.
type testNode struct {
	*Node
	ns       *rtnl.Namespace
	cfg      NodeConfig
	address  netip.Addr
	address6 netip.Addr
}

// newCluster connects nodes by a bridge, and checks at the end that they left
// nothing.
func newCluster(t testing.TB, nodes int, change ...func(*NodeConfig)) []*testNode {
	t.Helper()
	testenv.Need(t, testenv.NetAdmin)
	if err := rtnl.PrepareDir(DefaultNamespaceDir); err != nil {
		t.Fatal(err)
	}
	wire, there := newTestNamespace(t, "wire")
	const bridge = 100
	do(t, there, func(b *rtnl.Batch) {
		b.AddBridge(rtnl.LinkConfig{Name: "wire", Index: bridge, MTU: 1500, Up: true})
	})
	var all []*testNode
	for i := range nodes {
		ns, inside := newTestNamespace(t, fmt.Sprint("node", i))
		do(t, there, func(b *rtnl.Batch) {
			b.AddVeth(rtnl.LinkConfig{Name: fmt.Sprint("n", i), Index: 200 + i, Master: bridge, Up: true},
				rtnl.LinkConfig{Name: "eth0", Index: 300, Namespace: ns})
		})
		n := &testNode{
			ns:       ns,
			address:  netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}),
			address6: netip.MustParseAddr(fmt.Sprintf("2001:db8:ffff::%d", 1+i)),
		}
		do(t, inside, func(b *rtnl.Batch) {
			b.SetLink(1, rtnl.LinkConfig{Up: true})
			b.SetLink(300, rtnl.LinkConfig{Up: true})
			b.AddAddress(300, netip.PrefixFrom(n.address, 24))
			b.AddAddress(300, netip.PrefixFrom(n.address6, 64))
		})
		n.cfg = NodeConfig{Name: fmt.Sprintf("t%s-%d", testID(t), i), StateDir: filepath.Join(t.TempDir(), "state")}
		for _, f := range change {
			f(&n.cfg)
		}
		n.Node = n.open(t)
		all = append(all, n)
		t.Cleanup(func() { n.expectNothing(t) })
	}
	_ = wire
	return all
}

// open opens the node once more, as another process would.
func (n *testNode) open(t testing.TB) *Node {
	t.Helper()
	var node *Node
	if err := n.ns.Do(func() (err error) {
		node, err = OpenNode(n.cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node
}

// expectNothing removes what is there of the node. Networks are the test's to
// remove: they are an error.
func (n *testNode) expectNothing(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	list, err := n.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range list {
		if !t.Failed() {
			t.Errorf("network %s is left on %s", s.Spec.Name, n.cfg.Name)
		}
		nw, err := n.Open(s.Spec.Name)
		if err == nil {
			err = nw.Close(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	}
	report, err := n.GC(ctx)
	if err != nil {
		t.Errorf("GC of %s: %v", n.cfg.Name, err)
	}
	for _, what := range report.Removed {
		if what != "VTEP "+n.vtepPath() && !t.Failed() {
			t.Errorf("left on %s: %s", n.cfg.Name, what)
		}
	}
	if left := n.leftovers(t); len(left) > 0 {
		t.Errorf("left on %s after GC: %v", n.cfg.Name, left)
	}
}

// leftovers lists all that a node may have made and must have removed.
func (n *testNode) leftovers(t testing.TB) (left []string) {
	t.Helper()
	for _, pattern := range []string{
		filepath.Join(DefaultNamespaceDir, "volley-"+n.cfg.Name+".*"),
		n.vtepPath(),
		filepath.Join(n.cfg.StateDir, "*", "*"),
		// The names of pins are escaped.
		"/sys/fs/bpf/volley-*" + strings.ReplaceAll(n.cfg.Name, "-", "-h") + "-n*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if filepath.Base(path) != vtepLock {
				left = append(left, path)
			}
		}
	}
	links, err := n.host.Links()
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if l.Name != "lo" && l.Name != "eth0" {
			left = append(left, l.Name)
		}
	}
	tree, err := n.cgroups()
	if err == nil {
		if _, err := os.Stat(tree.parent); err == nil {
			left = append(left, tree.parent)
		}
	}
	return left
}

// nodePath is where newTestNamespace pins a namespace.
func nodePath(t testing.TB, name string) string {
	return filepath.Join(DefaultNamespaceDir, fmt.Sprintf("particle-%s-%s", testID(t), name))
}

// testID tells tests apart that run at the same time.
func testID(t testing.TB) string {
	h := fnv.New32a()
	io.WriteString(h, t.Name())
	return fmt.Sprintf("%d-%x", os.Getpid(), h.Sum32())
}

func newTestNamespace(t testing.TB, name string) (*rtnl.Namespace, *rtnl.Conn) {
	t.Helper()
	path := nodePath(t, name)
	if err := rtnl.Remove(path); err != nil {
		t.Fatal(err)
	}
	var c *rtnl.Conn
	ns, err := rtnl.Create(path, func() (err error) {
		c, err = rtnl.Dial()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), ns.Close(), rtnl.Remove(path)); err != nil {
			t.Error(err)
		}
	})
	return ns, c
}

func do(t testing.TB, c *rtnl.Conn, fill func(b *rtnl.Batch)) {
	t.Helper()
	var b rtnl.Batch
	fill(&b)
	if err := c.Do(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
}

// jobSpecs declares a job on all nodes, each with peers' prefixes.
func jobSpecs(nodes []*testNode, name string, endpoints int, change func(*Spec)) []Spec {
	var specs []Spec
	for i, n := range nodes {
		s := Spec{
			Name: name, Endpoints: endpoints,
			Prefix: netip.MustParsePrefix("10.77.0.0/16"), NodePrefix: netip.MustParsePrefix(fmt.Sprintf("10.77.%d.0/24", 1+i)),
			Prefix6: netip.MustParsePrefix("fd77::/48"), NodePrefix6: netip.MustParsePrefix(fmt.Sprintf("fd77:0:0:%d::/64", 1+i)),
			Underlay: Underlay{Address: n.address},
		}
		if change != nil {
			change(&s)
		}
		specs = append(specs, s)
	}
	for i := range specs {
		for j, p := range specs {
			if i != j {
				specs[i].Peers = append(specs[i].Peers, peerOf(nodes[j], p))
			}
		}
	}
	return specs
}

func peerOf(n *testNode, s Spec) Peer {
	return Peer{Node: n.cfg.Name, Underlay: s.Underlay.Address, Prefix: s.NodePrefix, Prefix6: s.NodePrefix6}
}

// up makes a network that the test removes, or else the end of the test.
func (n *testNode) up(t testing.TB, s Spec, opts ...Option) *Network {
	t.Helper()
	nw, err := n.Declare(s, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := nw.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return nw
}

func endpoint(t testing.TB, nw *Network, i int) Endpoint {
	t.Helper()
	ep, err := nw.Endpoint(i)
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

// within calls f in an endpoint's namespace.
func (ep Endpoint) within(f func() error) error {
	ns, err := rtnl.Open(ep.Namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

const exchangeTime = 5 * time.Second

// exchange sends size bytes by TCP from one endpoint to another and back, and
// checks whom the server sees.
func exchange(from, to Endpoint, source, target netip.Addr, size int) error {
	var l net.Listener
	if err := to.within(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(target, 0).String())
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(exchangeTime)); err != nil {
				return err
			}
			if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != source {
				return fmt.Errorf("the server sees %s, not %s", got, source)
			}
			_, err = io.CopyN(c, c, int64(size))
			return err
		}()
	}()
	err := func() error {
		c, err := dial(from, source, l.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			return err
		}
		defer c.Close()
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, size))
			sent <- err
		}()
		_, err = io.CopyN(io.Discard, c, int64(size))
		return errors.Join(err, <-sent)
	}()
	if err != nil {
		l.Close()
	}
	return errors.Join(err, <-served)
}

func dial(from Endpoint, source netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := from.within(func() error {
		// A plain socket: the resolver's goroutines would be elsewhere.
		fd, err := connect(source, to)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		c, err = net.FileConn(f)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(exchangeTime))
}

func connect(source netip.Addr, to netip.AddrPort) (fd int, err error) {
	family := syscall.AF_INET
	if to.Addr().Is6() {
		family = syscall.AF_INET6
	}
	fd, err = syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	limit := syscall.NsecToTimeval(int64(exchangeTime))
	err = errors.Join(
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit),
		syscall.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0))))
	if err == nil {
		err = syscall.Connect(fd, sockaddr(to))
	}
	if err != nil {
		syscall.Close(fd)
		return -1, fmt.Errorf("connect %s to %s: %w", source, to, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) syscall.Sockaddr {
	if a.Addr().Is6() {
		return &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}
