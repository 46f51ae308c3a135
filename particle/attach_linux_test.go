package particle

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle/rtnl"
)

// attachTo attaches endpoint i to a namespace of the test's, and returns it with
// that as its own.
func attachTo(t *testing.T, nw *Network, i int, path string) Endpoint {
	t.Helper()
	if err := nw.Attach(context.Background(), i, path, "net1"); err != nil {
		t.Fatal(err)
	}
	ep := endpoint(t, nw, i)
	if ep.Namespace != "" || ep.Cgroup != "" {
		t.Errorf("%+v claims what is somebody else's", ep)
	}
	ep.Namespace = path
	return ep
}

func TestNamespacesOfSomebodyElseAreAttachedAndDetached(t *testing.T) {
	ctx := context.Background()
	nodes := newCluster(t, 2)
	specs := jobSpecs(nodes, "job", 3, func(s *Spec) { s.Design = Attached })
	specs[1].Design = Direct // it is the same on the wire
	mine, other := nodes[0].up(t, specs[0]), nodes[1].up(t, specs[1])
	_, inA := newTestNamespace(t, "a")
	_, inB := newTestNamespace(t, "b")
	a, b := attachTo(t, mine, 0, nodePath(t, "a")), attachTo(t, mine, 1, nodePath(t, "b"))
	check := func() {
		t.Helper()
		for _, to := range []Endpoint{b, endpoint(t, other, 2)} {
			for _, pair := range [][2]netip.Addr{{a.Address, to.Address}, {a.Address6, to.Address6}} {
				if err := exchange(a, to, pair[0], pair[1], 1000); err != nil {
					t.Error(err)
				}
			}
		}
	}
	check()
	// Again, with something missing, and in another process.
	link, err := inA.Link("net1")
	if err != nil {
		t.Fatal(err)
	}
	do(t, inA, func(batch *rtnl.Batch) { batch.DeleteAddress(link.Index, netip.PrefixFrom(a.Address, 16)) })
	again, err := nodes[0].open(t).Open("job")
	if err != nil {
		t.Fatal(err)
	}
	attachTo(t, again, 0, nodePath(t, "a"))
	if err := mine.Apply(ctx); err != nil {
		t.Errorf("apply again: %v", err)
	}
	check()
	// Nobody's interface is replaced.
	if err := mine.Attach(ctx, 2, nodePath(t, "a"), "net1"); !errors.Is(err, ErrConflict) {
		t.Errorf("a second endpoint on the same interface: %v, want %v", err, ErrConflict)
	}
	if err := mine.Attach(ctx, 2, nodePath(t, "missing"), "net1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attach to no namespace: %v, want %v", err, fs.ErrNotExist)
	}
	if err := mine.Attach(ctx, 3, nodePath(t, "a"), "net2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("attach an endpoint that there is not: %v, want %v", err, ErrNotFound)
	}
	if err := other.Attach(ctx, 0, nodePath(t, "a"), "net2"); !errors.Is(err, ErrConflict) {
		t.Errorf("attach an endpoint of the design direct: %v, want %v", err, ErrConflict)
	}
	for range 2 {
		if err := mine.Detach(ctx, 1); err != nil {
			t.Error(err)
		}
	}
	// The first moves to where the second was.
	a = attachTo(t, mine, 0, nodePath(t, "b"))
	b = attachTo(t, mine, 1, nodePath(t, "a"))
	check()
	if err := mine.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*rtnl.Conn{"a": inA, "b": inB} {
		if links, err := c.Links(); err != nil || len(links) != 1 {
			t.Errorf("links of %s after Close: %v, %v", name, links, err)
		}
	}
	if err := mine.Detach(ctx, 0); err != nil {
		t.Errorf("detach after Close: %v", err)
	}
	if err := mine.Attach(ctx, 0, nodePath(t, "a"), "net1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("attach after Close: %v, want %v", err, ErrNotFound)
	}
}

func TestWhatIsAttachedMayVanish(t *testing.T) {
	ctx := context.Background()
	n := newCluster(t, 1)[0]
	nw := n.up(t, jobSpecs([]*testNode{n}, "job", 3, func(s *Spec) { s.Design = Attached })[0])
	ns, err := rtnl.Create(nodePath(t, "a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	attachTo(t, nw, 0, nodePath(t, "a"))
	if err := errors.Join(ns.Close(), rtnl.Remove(nodePath(t, "a"))); err != nil {
		t.Fatal(err)
	}
	if report, err := n.GC(ctx); err != nil || len(report.Removed) > 0 {
		t.Errorf("GC: %v, %v", report, err)
	}
	if err := nw.Detach(ctx, 0); err != nil {
		t.Error(err)
	}
	newTestNamespace(t, "b")
	attachTo(t, nw, 0, nodePath(t, "b"))
}

func TestAPoolGivesAParticularEndpoint(t *testing.T) {
	p, ctx := testPool(t.TempDir(), 3), context.Background()
	for range 2 {
		if ep, err := p.AcquireIndex(ctx, "a", 1); err != nil || ep.Index != 1 {
			t.Errorf("got %v, %v", ep, err)
		}
	}
	if _, err := p.AcquireIndex(ctx, "b", 1); !errors.Is(err, ErrEndpointTaken) {
		t.Errorf("another's endpoint: %v, want %v", err, ErrEndpointTaken)
	}
	if _, err := p.AcquireIndex(ctx, "a", 2); !errors.Is(err, ErrEndpointTaken) {
		t.Errorf("a second endpoint: %v, want %v", err, ErrEndpointTaken)
	}
	if _, err := p.AcquireIndex(ctx, "b", 3); !errors.Is(err, ErrNotFound) {
		t.Errorf("an endpoint that there is not: %v, want %v", err, ErrNotFound)
	}
	for i, want := range []int{2, 0} {
		if ep, err := p.Acquire(ctx, string(rune('b'+i))); err != nil || ep.Index != want {
			t.Errorf("got %v, %v, want %d", ep, err, want)
		}
	}
}

func TestAControlGroupOfSomebodyElseIsEnrolled(t *testing.T) {
	testenv.Need(t, testenv.CgroupBPF, testenv.Python3)
	ctx := context.Background()
	n := newCluster(t, 1)[0]
	nw := n.up(t, jobSpecs([]*testNode{n}, "job", 3, func(s *Spec) { s.Discipline = DisciplineBPF })[0])
	group := filepath.Join(testenv.Cgroup2(t), "particle-"+testID(t))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ExpelGroup(group), os.Remove(group)); err != nil {
			t.Error(err)
		}
	})
	bound := func() string {
		t.Helper()
		const program = `import socket; s = socket.socket(); s.bind(("0.0.0.0", 0)); print(s.getsockname()[0], end="")`
		out, err := exec.Command("nsenter", "--net="+nw.Namespace(), "sh", "-ec", `echo $$ > "$0"/cgroup.procs; exec python3 -c "$1"`, group, program).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for _, i := range []int{1, 1, 2} {
		ep := endpoint(t, nw, i)
		if err := nw.EnrollGroup(ctx, ep, group); err != nil {
			t.Fatal(err)
		}
		if got := bound(); got != ep.Address.String() {
			t.Errorf("a program bound to %s, want %s", got, ep.Address)
		}
	}
	for range 2 {
		if err := ExpelGroup(group); err != nil {
			t.Fatal(err)
		}
	}
	if got := bound(); got != "0.0.0.0" {
		t.Errorf("a program that is expelled bound to %s", got)
	}
	if err := nw.EnrollGroup(ctx, endpoint(t, nw, 0), group+"-missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("enroll no group: %v, want %v", err, fs.ErrNotExist)
	}
}
