package rtnl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// newNamespace makes a namespace that is gone after the test, and a Conn there.
func newNamespace(t *testing.T, name string) (*Namespace, *Conn) {
	t.Helper()
	path := filepath.Join("/run/netns", fmt.Sprintf("rtnl-%d-%s", os.Getpid(), name))
	if err := PrepareDir(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	var c *Conn
	ns, err := Create(path, func() (err error) {
		c, err = Dial()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), ns.Close(), Remove(path)); err != nil {
			t.Error(err)
		}
	})
	return ns, c
}

func do(t *testing.T, c *Conn, fill func(b *Batch)) {
	t.Helper()
	if err := try(c, fill); err != nil {
		t.Fatal(err)
	}
}

func try(c *Conn, fill func(b *Batch)) error {
	var b Batch
	fill(&b)
	return c.Do(context.Background(), &b)
}

func TestANamespaceLivesUntilItIsRemoved(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	path := filepath.Join("/run/netns", fmt.Sprintf("rtnl-%d-life", os.Getpid()))
	if err := Remove(path); err != nil {
		t.Fatalf("remove what is not there: %v", err)
	}
	if _, err := Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open what is not there: %v", err)
	}
	// A killed maker leaves an empty file.
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Remove(path) })
	if _, err := Open(path); !errors.Is(err, ErrNotNamespace) {
		t.Fatalf("open an empty file: %v", err)
	}
	ns, err := Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if _, err := Create(path, nil); !errors.Is(err, ErrExists) {
		t.Fatalf("create it twice: %v", err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !again.Same(path) || !ns.Same(path) {
		t.Error("it is not the same")
	}
	here, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	if here.Same(path) {
		t.Error("this thread is in the new namespace")
	}
	if err := again.Do(func() error {
		there, err := Current()
		if err == nil && !there.Same(path) {
			err = errors.New("the thread is not in the namespace")
		}
		return errors.Join(err, there.Close())
	}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestNoNamespaceIsLeftWhenWhatIsInsideFails(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	var paths []string
	for i := range 3 {
		paths = append(paths, filepath.Join("/run/netns", fmt.Sprintf("rtnl-%d-fail%d", os.Getpid(), i)))
	}
	failure := errors.New("no")
	_, err := CreateAll(paths, func(i int) error {
		if i == 2 {
			return failure
		}
		return nil
	})
	if !errors.Is(err, failure) {
		t.Errorf("CreateAll = %v, want %v", err, failure)
	}
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want none", path, err)
		}
	}
}

func TestLinksAreMadeWhereTheyBelong(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	vtep, there := newNamespace(t, "vtep")
	job, inside := newNamespace(t, "job")
	outside, here := newNamespace(t, "node")
	_ = outside
	const group, bridge = 77, 1<<24 | 77
	do(t, there, func(b *Batch) {
		b.AddBridge(LinkConfig{Name: "b77", Index: bridge, Group: group, MTU: 1450, Up: true})
		b.AddVeth(LinkConfig{Name: "p77", Group: group, MTU: 1450, Master: bridge, Up: true, Queues: 1},
			LinkConfig{Name: "eth0", Namespace: job, MTU: 1450, MAC: []byte{2, 0, 0, 0, 0, 9}, Queues: 1})
	})
	do(t, here, func(b *Batch) {
		b.AddVXLAN(LinkConfig{Name: "x77", Namespace: vtep, Group: group, MTU: 1450, Master: bridge, Up: true},
			VXLAN{VNI: 77, Local: netip.MustParseAddr("192.0.2.1"), Port: 4789})
	})
	links, err := there.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		name, kind string
		master     int
	}{{"b77", "bridge", 0}, {"p77", "veth", bridge}, {"x77", "vxlan", bridge}} {
		i := slices.IndexFunc(links, func(l Link) bool { return l.Name == want.name })
		if i < 0 {
			t.Fatalf("no link %s among %v", want.name, links)
		}
		if l := links[i]; l.Kind != want.kind || l.Master != want.master || l.Group != group || l.MTU != 1450 || !l.Up {
			t.Errorf("link %+v, want %+v", l, want)
		}
	}
	eth0, err := inside.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if eth0.MAC.String() != "02:00:00:00:00:09" || eth0.Up {
		t.Errorf("eth0 = %+v", eth0)
	}
	do(t, inside, func(b *Batch) {
		b.SetLink(1, LinkConfig{Up: true})
		b.SetLink(eth0.Index, LinkConfig{Up: true})
		for range 2 { // what is there is no error
			b.AddAddress(eth0.Index, netip.MustParsePrefix("10.1.0.1/32"))
			b.AddAddress(eth0.Index, netip.MustParsePrefix("2001:db8::1/128"))
			b.AddNeighbour(eth0.Index, netip.MustParseAddr("10.1.1.1"), []byte{2, 0, 0, 0, 0, 1})
			b.AddRoute(Route{To: netip.MustParsePrefix("10.1.1.0/24"), Via: netip.MustParseAddr("10.1.1.1"), Link: eth0.Index})
			b.AddRoute(Route{To: netip.MustParsePrefix("10.1.0.0/24"), Link: 1, Local: true})
			b.AddRoute(Route{To: netip.MustParsePrefix("10.1.2.7/32"), Link: eth0.Index})
		}
	})
	if mtu, err := inside.MTU(netip.MustParseAddr("10.1.0.1")); err != nil || mtu != 1450 {
		t.Errorf("MTU = %d, %v", mtu, err)
	}
	if _, err := inside.MTU(netip.MustParseAddr("10.9.9.9")); !errors.Is(err, ErrNotFound) {
		t.Errorf("MTU of nobody's address: %v", err)
	}
	routes, err := inside.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Route{
		{To: netip.MustParsePrefix("10.1.1.0/24"), Via: netip.MustParseAddr("10.1.1.1"), Link: eth0.Index},
		{To: netip.MustParsePrefix("10.1.0.0/24"), Link: 1, Local: true},
		{To: netip.MustParsePrefix("10.1.2.7/32"), Link: eth0.Index},
	} {
		if !slices.Contains(routes, want) {
			t.Errorf("the routes are %+v, without %+v", routes, want)
		}
	}
	x77, err := there.Link("x77")
	if err != nil {
		t.Fatal(err)
	}
	entries := []Forward{
		{Link: x77.Index, Remote: netip.MustParseAddr("192.0.2.2")},
		{Link: x77.Index, Remote: netip.MustParseAddr("192.0.2.3")},
		{Link: x77.Index, MAC: []byte{2, 0, 0, 0, 0, 1}, Remote: netip.MustParseAddr("192.0.2.2")},
	}
	for range 2 {
		do(t, there, func(b *Batch) {
			for _, f := range entries {
				b.AddForward(f)
			}
		})
	}
	for range 2 {
		do(t, there, func(b *Batch) {
			for _, f := range entries {
				b.DeleteForward(f)
			}
		})
		do(t, inside, func(b *Batch) {
			b.DeleteRoute(Route{To: netip.MustParsePrefix("10.1.1.0/24"), Via: netip.MustParseAddr("10.1.1.1"), Link: eth0.Index})
			b.DeleteNeighbour(eth0.Index, netip.MustParseAddr("10.1.1.1"))
			b.DeleteAddress(eth0.Index, netip.MustParsePrefix("10.1.0.1/32"))
			b.DeleteAddress(eth0.Index, netip.MustParsePrefix("2001:db8::1/128"))
		})
	}
	for range 2 { // what is not there is no error
		do(t, there, func(b *Batch) { b.DeleteGroup(group) })
	}
	for _, c := range []*Conn{there, inside} {
		links, err := c.Links()
		if err != nil || len(links) != 1 {
			t.Errorf("links left: %v, %v", links, err)
		}
	}
}

func TestAnErrorSaysWhichRequestWasRefused(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	_, c := newNamespace(t, "err")
	err := try(c, func(b *Batch) {
		b.AddBridge(LinkConfig{Name: "b1", Index: 10})
		b.AddBridge(LinkConfig{Name: "b1", Index: 11})
		b.AddBridge(LinkConfig{Name: "b2", Index: 12})
	})
	request, ok := errors.AsType[*RequestError](err)
	if !ok || request.Op != "add bridge" || request.Subject != "b1" || !errors.Is(err, ErrExists) {
		t.Errorf("adding a bridge twice: %v", err)
	}
	if _, err := c.Link("b2"); err != nil {
		t.Errorf("what came after the refused request in the same write: %v", err)
	}
	if _, err := c.Link("b3"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a link that is not there: %v", err)
	}
	err = try(c, func(b *Batch) { b.AddAddress(99, netip.MustParsePrefix("10.0.0.1/32")) })
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "10.0.0.1/32") {
		t.Errorf("an address on no link: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var b Batch
	b.AddBridge(LinkConfig{Name: "b4"})
	if err := c.Do(ctx, &b); !errors.Is(err, context.Canceled) {
		t.Errorf("Do after the end: %v", err)
	}
}

func TestABatchMayBeLargerThanTheSocketsBuffer(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	_, c := newNamespace(t, "big")
	const n = 5000
	address := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)
	}
	do(t, c, func(b *Batch) {
		b.SetLink(1, LinkConfig{Up: true})
		for i := range n {
			b.AddRoute(Route{To: address(i), Link: 1, Local: true})
		}
	})
	// Errors in every request overflow no buffer, and the first is told.
	err := try(c, func(b *Batch) {
		for i := range n {
			b.AddAddress(50, address(i))
		}
	})
	request, ok := errors.AsType[*RequestError](err)
	if !ok || request.Subject != "10.1.0.0/32" {
		t.Errorf("5000 errors: %v", err)
	}
	// The socket is usable afterwards.
	if _, err := c.Link("lo"); err != nil {
		t.Error(err)
	}
}

func TestAFullBridgeIsTold(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	_, c := newNamespace(t, "full")
	const bridge, ports = 10, 1023
	err := try(c, func(b *Batch) {
		b.AddBridge(LinkConfig{Name: "br", Index: bridge, Group: 5})
		for i := range ports + 1 {
			// Small links: one end of each pair is a port, the other too.
			if i%2 == 0 {
				b.AddVeth(LinkConfig{Name: fmt.Sprint("p", i), Index: 100 + i, Master: bridge, Group: 5, Queues: 1},
					LinkConfig{Name: fmt.Sprint("p", i+1), Index: 101 + i, Group: 5, Queues: 1})
			} else {
				b.SetLink(100+i, LinkConfig{Master: bridge})
			}
		}
	})
	if !errors.Is(err, ErrBridgeFull) {
		t.Errorf("port 1024: %v, want %v", err, ErrBridgeFull)
	}
	do(t, c, func(b *Batch) { b.DeleteGroup(5) })
}

func TestSettleWaitsForTheEndOfNamespaces(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	outside, there := newNamespace(t, "settle")
	// It is not pinned: a copy of the mount in somebody's mount namespace would
	// keep it.
	var ns *Namespace
	if err := onThread(func() (err error) {
		if err := enterNew(); err != nil {
			return err
		}
		ns, err = Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	do(t, there, func(b *Batch) {
		b.AddVeth(LinkConfig{Name: "va", Queues: 1}, LinkConfig{Name: "vb", Namespace: ns, Queues: 1})
	})
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := outside.Do(func() error { return Settle(context.Background()) }); err != nil {
		t.Fatal(err)
	}
	// The peer is gone with the namespace of the other end.
	if _, err := there.Link("va"); !errors.Is(err, ErrNotFound) {
		t.Errorf("link into a namespace that has ended: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Settle(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Settle after the end: %v", err)
	}
}

func TestProbeFindsWhatNetworksNeed(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	for _, f := range Probe(context.Background()) {
		if !f.OK {
			t.Errorf("%s: %s", f.Name, f.Detail)
		}
	}
}

func FuzzMessagesAndAttributes(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
	f.Add([]byte{8, 0, 3, 0, 'l', 'o', 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for m := range messages(data) {
			m.failure()
			parseLink(m.body)
			nsid(m.body)
		}
		for range attributes(data) {
		}
	})
}

func TestTheProcessesFirstThreadStaysWhereItIs(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	path := fmt.Sprintf("/proc/%d/task/%[1]d/ns/net", os.Getpid())
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		ended := make(chan struct{})
		go func() { // each goroutine may start on any thread
			defer close(ended)
			if err := onThread(enterNew); err != nil {
				t.Error(err)
			}
		}()
		<-ended
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("it is in another namespace")
	}
}
