package particle

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"testing"
	"time"

	"github.com/volley-run/volley/particle/rtnl"
)

func TestEndpointsOfEveryDesignReachEachOther(t *testing.T) {
	for _, design := range Designs() {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 2)
			var nws []*Network
			for i, s := range jobSpecs(nodes, "job", 3, func(s *Spec) { s.Design = design }) {
				nws = append(nws, nodes[i].up(t, s))
				t.Log(nws[i].Steps())
			}
			for _, pair := range [][4]int{{0, 0, 1, 0}, {1, 2, 0, 1}, {0, 0, 0, 2}} {
				from, to := endpoint(t, nws[pair[0]], pair[1]), endpoint(t, nws[pair[2]], pair[3])
				if err := exchange(from, to, from.Address, to.Address, 100_000); err != nil {
					t.Errorf("%v to %v: %v", from.Address, to.Address, err)
				}
				if err := exchange(from, to, from.Address6, to.Address6, 100_000); err != nil {
					t.Errorf("%v to %v: %v", from.Address6, to.Address6, err)
				}
			}
			for i, nw := range nws {
				if err := nw.Apply(context.Background()); err != nil {
					t.Errorf("apply again: %v", err)
				}
				for range 2 {
					if err := nw.Close(context.Background()); err != nil {
						t.Error(err)
					}
				}
				if list, err := nodes[i].List(context.Background()); err != nil || len(list) > 0 {
					t.Errorf("networks after Close: %v, %v", list, err)
				}
			}
		})
	}
}

func TestNetworksAreUsableAsSoonAsTheyAreMade(t *testing.T) {
	for _, design := range Designs() {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 2)
			var nws []*Network
			for i, s := range jobSpecs(nodes, "job", 8, func(s *Spec) { s.Design = design }) {
				nws = append(nws, nodes[i].up(t, s))
			}
			started := time.Now()
			for i := range 8 {
				from, to := endpoint(t, nws[0], i), endpoint(t, nws[1], i)
				if err := exchange(from, to, from.Address, to.Address, 1); err != nil {
					t.Error(err)
				}
			}
			// A first packet that is lost is sent again after a second.
			if took := time.Since(started); took > 900*time.Millisecond {
				t.Errorf("8 exchanges took %v", took)
			}
		})
	}
}

func TestANetworkMayUseANamespaceOfSomebodyElse(t *testing.T) {
	for _, design := range []Design{AnyIP, Consolidated} {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 2)
			ctx := context.Background()
			_, inside := newTestNamespace(t, "sandbox")
			specs := jobSpecs(nodes, "job", 2, func(s *Spec) { s.Design = design })
			mine := nodes[0].up(t, specs[0], InNamespace(nodePath(t, "sandbox"), "net1"))
			other := nodes[1].up(t, specs[1])
			check := func() {
				t.Helper()
				from, to := endpoint(t, mine, 0), endpoint(t, other, 1)
				if from.Namespace != nodePath(t, "sandbox") {
					t.Errorf("the endpoint is in %s", from.Namespace)
				}
				for _, pair := range [][2]netip.Addr{{from.Address, to.Address}, {from.Address6, to.Address6}} {
					if err := exchange(from, to, pair[0], pair[1], 1000); err != nil {
						t.Error(err)
					}
				}
			}
			if _, err := inside.Link("net1"); err != nil {
				t.Fatal(err)
			}
			check()
			if err := mine.Apply(ctx); err != nil {
				t.Error(err)
			}
			check()
			// Another process finds it by its name alone.
			again, err := nodes[0].open(t).Open("job")
			if err != nil {
				t.Fatal(err)
			}
			if again.Namespace() != mine.Namespace() {
				t.Errorf("it is in %s", again.Namespace())
			}
			if err := again.Close(ctx); err != nil {
				t.Fatal(err)
			}
			links, err := inside.Links()
			if err != nil || len(links) != 1 {
				t.Errorf("links after Close: %v, %v", links, err)
			}
			addresses, err := inside.Addresses()
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range addresses {
				if !a.Prefix.Addr().IsLoopback() {
					t.Errorf("address after Close: %v", a)
				}
			}
			if err := reaches(endpoint(t, mine, 0), endpoint(t, mine, 0).Address, endpoint(t, mine, 1).Address); err == nil {
				t.Error("addresses are local after Close")
			}
			// It can be used again, and vanish.
			mine = nodes[0].up(t, specs[0], InNamespace(nodePath(t, "sandbox"), "net1"))
			check()
			if err := rtnl.Remove(nodePath(t, "sandbox")); err != nil {
				t.Fatal(err)
			}
			if report, err := nodes[0].GC(ctx); err != nil || len(report.Removed) == 0 {
				t.Errorf("GC: %v, %v", report, err)
			}
		})
	}
}

func TestANamespaceOfSomebodyElseMustBeThere(t *testing.T) {
	n := newCluster(t, 1)[0]
	spec := jobSpecs([]*testNode{n}, "job", 2, nil)[0]
	nw, err := n.Declare(spec, InNamespace(nodePath(t, "missing"), "net1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := nw.Apply(context.Background()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Apply = %v, want %v", err, fs.ErrNotExist)
	}
	spec.Design = Direct
	if _, err := n.Declare(spec, InNamespace(nodePath(t, "missing"), "net1")); err == nil {
		t.Error("endpoints with a namespace each were declared in one")
	}
}

func TestOperationsWaitForEachOtherUntilTheirContextEnds(t *testing.T) {
	n := newCluster(t, 1)[0]
	nw := n.up(t, jobSpecs([]*testNode{n}, "job", 1, nil)[0])
	unlock, err := n.state.lock(context.Background(), nw.label(), true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	for what, err := range map[string]error{"Apply": nw.Apply(ctx), "SetPeers": nw.SetPeers(ctx, nil), "Close": nw.Close(ctx)} {
		if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s = %v, want %v", what, err, ErrBusy)
		}
	}
	if report, err := n.GC(context.Background()); err != nil || len(report.Removed) > 0 {
		t.Errorf("GC meanwhile: %v, %v", report, err)
	}
	done := make(chan error)
	go func() { done <- nw.Apply(context.Background()) }()
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNodesAreNamedLikeJobs(t *testing.T) {
	for _, name := range []string{"Upper", "a.b", "vtep", "a/b", "-"} {
		if _, err := OpenNode(NodeConfig{Name: name, StateDir: t.TempDir()}); err == nil {
			t.Errorf("a node is called %q", name)
		}
	}
}
