package particle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle/rtnl"
)

// What a re-executed test binary is told by its environment.
const (
	envVictim  = "PARTICLE_TEST_VICTIM" // a victim as JSON
	victimDone = 7                      // the exit status of one that lived
)

// victim is a process that kills itself in the middle of Apply or Close.
type victim struct {
	Node      NodeConfig
	Namespace string // of the node
	Spec      Spec
	Close     bool // kill itself in Close, not in Apply
	Step      int  // after how many things
}

func TestMain(m *testing.M) {
	if text := os.Getenv(envVictim); text != "" {
		var v victim
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			panic(err)
		}
		if err := v.run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(victimDone)
	}
	if namespace := os.Getenv(envServer); namespace != "" {
		fmt.Fprintln(os.Stderr, serveAll(namespace))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func (v victim) run() error {
	count, armed := 0, !v.Close
	v.Node.hook = func(string) {
		if !armed {
			return
		}
		if count++; count == v.Step {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	ns, err := rtnl.Open(v.Namespace)
	if err != nil {
		return err
	}
	var node *Node
	if err := ns.Do(func() (err error) {
		node, err = OpenNode(v.Node)
		return err
	}); err != nil {
		return err
	}
	nw, err := node.Declare(v.Spec)
	if err != nil {
		return err
	}
	if err := nw.Apply(context.Background()); err != nil {
		return err
	}
	if v.Close {
		ep, err := nw.Endpoint(0)
		if err == nil {
			err = nw.Enroll(context.Background(), ep)
		}
		if err != nil {
			return err
		}
	}
	armed = true
	return nw.Close(context.Background())
}

// kill runs v, and reports whether it was killed: it lives if it has fewer steps.
func (v victim) kill(t *testing.T) (killed bool) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envVictim+"="+string(text))
	out, err := cmd.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case ok && exit.ExitCode() == victimDone:
		return false
	case ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return true
	}
	t.Fatalf("the victim of step %d: %v\n%s", v.Step, err, out)
	return false
}

func TestNothingIsLeftWhereverApplyOrCloseIsKilled(t *testing.T) {
	t.Parallel()
	for _, design := range Designs() {
		for _, closing := range []bool{false, true} {
			name := string(design)
			if closing {
				name += " while it is removed"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel() // the kernel takes its time to remove links
				nodes := newCluster(t, 1)
				n := nodes[0]
				spec := jobSpecs(nodes, "job", 2, func(s *Spec) { s.Design = design })[0]
				ctx := context.Background()
				spec.Peers = []Peer{{Underlay: netip.MustParseAddr("192.0.2.9"), Prefix: netip.MustParsePrefix("10.77.9.0/24"), Prefix6: netip.MustParsePrefix("fd77:0:0:9::/64")}}
				v := victim{Node: n.cfg, Namespace: nodePath(t, "node0"), Spec: spec, Close: closing}
				const most = 60
				for v.Step = 1; v.kill(t); v.Step++ {
					if v.Step == most {
						t.Fatal("there is no end of steps")
					}
					// Some are taken up by another Apply, the others by GC.
					nw, err := n.Declare(spec)
					if err != nil {
						t.Fatal(err)
					}
					status, err := nw.Status(ctx)
					whole := err == nil && status.State == StateUp // killed after the last step
					if v.Step%4 == 1 {
						if err := nw.Apply(ctx); err != nil {
							t.Fatalf("Apply after step %d: %v", v.Step, err)
						}
						a, b := endpoint(t, nw, 0), endpoint(t, nw, 1)
						if err := exchange(a, b, a.Address, b.Address, 1); err != nil {
							t.Errorf("after step %d: %v", v.Step, err)
						}
						whole = true
					}
					if whole {
						if err := nw.Close(ctx); err != nil {
							t.Fatalf("Close after step %d: %v", v.Step, err)
						}
					}
					if _, err := n.GC(ctx); err != nil {
						t.Fatalf("GC after step %d: %v", v.Step, err)
					}
					if left := n.leftovers(t); len(left) > 0 {
						t.Fatalf("left of step %d: %v", v.Step, left)
					}
				}
				if v.Step < 4 {
					t.Errorf("there are only %d steps", v.Step)
				}
			})
		}
	}
}

func TestGCRemovesWhatNoStateNames(t *testing.T) {
	n := newCluster(t, 1)[0]
	ctx := context.Background()
	keep := n.up(t, jobSpecs([]*testNode{n}, "keep", 2, nil)[0])
	for _, design := range Designs() {
		lost := n.up(t, jobSpecs([]*testNode{n}, "lost", 2, func(s *Spec) { s.Design = design; s.VNI = 4711 })[0])
		if _, err := lost.Pool().Acquire(ctx, "somebody"); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(n.state.record("lost")); err != nil {
			t.Fatal(err)
		}
		report, err := n.GC(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Removed) < 3 {
			t.Errorf("%s: removed only %v", design, report.Removed)
		}
		if report, err = n.GC(ctx); err != nil || len(report.Removed) > 0 {
			t.Errorf("%s: the second GC has removed %v, %v", design, report.Removed, err)
		}
	}
	ep := endpoint(t, keep, 0)
	if err := exchange(ep, endpoint(t, keep, 1), ep.Address, endpoint(t, keep, 1).Address, 1); err != nil {
		t.Errorf("the other network: %v", err)
	}
}

func TestGCRemovesNetworksWhoseNamespaceIsGone(t *testing.T) {
	nodes := newCluster(t, 1)
	n := nodes[0]
	for _, design := range []Design{AnyIP, Direct} {
		nw := n.up(t, jobSpecs(nodes, "gone", 2, func(s *Spec) { s.Design = design })[0])
		if report, err := n.GC(context.Background()); err != nil || len(report.Removed) > 0 {
			t.Fatalf("GC of a whole network: %v, %v", report, err)
		}
		if err := rtnl.Remove(endpoint(t, nw, 1).Namespace); err != nil {
			t.Fatal(err)
		}
		report, err := n.GC(context.Background())
		if err != nil || !slices.Contains(report.Removed, "network gone") {
			t.Errorf("GC: %v, %v", report, err)
		}
		// Apply mends it as well.
		nw = n.up(t, nw.Spec())
		if err := rtnl.Remove(endpoint(t, nw, 1).Namespace); err != nil {
			t.Fatal(err)
		}
		nw = n.up(t, nw.Spec())
		a, b := endpoint(t, nw, 0), endpoint(t, nw, 1)
		if err := exchange(a, b, a.Address, b.Address, 1); err != nil {
			t.Error(err)
		}
		if err := nw.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestAProcessNoticesThatAnotherHasRemovedTheVTEP(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	nodes := newCluster(t, 1)
	n := nodes[0]
	ctx := context.Background()
	other := n.open(t)
	for i := range 3 {
		nw := n.up(t, jobSpecs(nodes, "job"+strconv.Itoa(i), 1, nil)[0])
		if err := nw.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := other.GC(ctx); err != nil {
			t.Fatal(err)
		}
		if left := n.leftovers(t); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	}
}
