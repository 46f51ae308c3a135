package cni_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/cni"
	"github.com/volley-run/volley/particle/rtnl"
)

// both is a network of both address families.
func both() object { return object{"prefix": "10.78.0.0/24", "prefix6": "fd78::/64"} }

func TestContainersReachEachOtherInEveryVersion(t *testing.T) {
	for _, version := range cni.Versions().SupportedVersions() {
		t.Run(version, func(t *testing.T) {
			r := newRuntime(t)
			ctx := context.Background()
			list := r.list(version, object{"network": both()})
			a, b := container("a", r.namespace("a")), container("b", r.namespace("b"))
			atA, atB := r.addressesOf(r.add(list, a)), r.addressesOf(r.add(list, b))
			if len(atA) != 2 || len(atB) != 2 || atA[0] == atB[0] || atA[1] == atB[1] {
				t.Fatalf("the addresses are %v and %v", atA, atB)
			}
			for i := range 2 {
				if err := r.reach(a.NetNS, b.NetNS, atB[i]); err != nil {
					t.Error(err)
				}
				if err := r.reach(b.NetNS, a.NetNS, atA[i]); err != nil {
					t.Error(err)
				}
			}
			if again := r.addressesOf(r.add(list, a)); !slices.Equal(again, atA) {
				t.Errorf("added again it has %v, and had %v", again, atA)
			}
			for _, rc := range []*libcni.RuntimeConf{a, b} {
				if err := r.cni.CheckNetworkList(ctx, list, rc); err != nil {
					t.Errorf("check %s: %v", rc.ContainerID, err)
				}
			}
			r.del(list, a)
			r.del(list, a)
			if err := r.reach(b.NetNS, b.NetNS, atB[0]); err != nil {
				t.Errorf("b after a is gone: %v", err)
			}
			if n := r.owners("cnitest"); n != 1 {
				t.Errorf("%d endpoints are in use", n)
			}
			b.NetNS = "" // as of a container that is gone
			r.del(list, b)
			if n := r.owners("cnitest"); n != -1 {
				t.Errorf("the network is left, with %d endpoints in use", n)
			}
			r.del(list, b)
		})
	}
}

func TestCheckNoticesWhatIsMissing(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	list := r.list("1.1.0", object{"network": both()})
	rc := container("a", r.namespace("a"))
	result := r.add(list, rc)
	address := netip.PrefixFrom(r.addressesOf(result)[0], 24)
	change := func(fill func(b *rtnl.Batch, link int)) {
		t.Helper()
		if err := within(rc.NetNS, func() error {
			c, err := rtnl.Dial()
			if err != nil {
				return err
			}
			defer c.Close()
			link, err := c.Link("eth0")
			if err != nil {
				return err
			}
			var b rtnl.Batch
			fill(&b, link.Index)
			return c.Do(ctx, &b)
		}); err != nil {
			t.Fatal(err)
		}
	}
	check := func() error { return r.cni.CheckNetworkList(ctx, list, rc) }
	if err := check(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nsenter", "--net="+rc.NetNS, "ip", "route", "del", address.Masked().String()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.wantCode("check without the route", check(), cni.ErrNotAsAdded)
	change(func(b *rtnl.Batch, link int) { b.DeleteAddress(link, address) })
	r.wantCode("check without the address", check(), cni.ErrNotAsAdded)
	r.add(list, rc) // makes what is missing
	if err := check(); err != nil {
		t.Errorf("check after it was added again: %v", err)
	}
	change(func(b *rtnl.Batch, _ int) { b.DeleteLink("eth0") })
	r.wantCode("check without the interface", check(), cni.ErrNotAsAdded)
	r.use(func(n *particle.Node) error {
		nw, err := n.Open("cnitest")
		if err != nil {
			return err
		}
		return nw.Pool().Release(ctx, "cni:cnitest/a/eth0")
	})
	r.wantCode("check without an endpoint", check(), types.ErrUnknownContainer)
}

func TestGCGivesBackWhatLostContainersHave(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	list := r.list("1.1.0", object{"network": both()})
	a, b := container("a", r.namespace("a")), container("b", r.namespace("b"))
	r.add(list, a)
	lost := r.addressesOf(r.add(list, b))
	// The runtime has forgotten b, and its namespace is gone.
	if err := os.RemoveAll(r.cache); err != nil {
		t.Fatal(err)
	}
	if err := rtnl.Remove(b.NetNS); err != nil {
		t.Fatal(err)
	}
	valid := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}}}
	for range 2 {
		if err := r.cni.GCNetworkList(ctx, list, valid); err != nil {
			t.Fatal(err)
		}
		if n := r.owners("cnitest"); n != 1 {
			t.Errorf("%d endpoints are in use", n)
		}
	}
	if again := r.addressesOf(r.add(list, container("c", r.namespace("c")))); !slices.Equal(again, lost) {
		t.Errorf("the next has %v, not the lost %v", again, lost)
	}
	if err := os.RemoveAll(r.cache); err != nil {
		t.Fatal(err)
	}
	if err := r.cni.GCNetworkList(ctx, list, nil); err != nil { // as cnitool does
		t.Error(err)
	}
	if n := r.owners("cnitest"); n != 2 {
		t.Errorf("%d endpoints are in use after GC without a list", n)
	}
	if err := r.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}); err != nil {
		t.Error(err)
	}
	if n := r.owners("cnitest"); n != -1 {
		t.Errorf("the network is left, with %d endpoints in use", n)
	}
}

func TestStatusSaysWhetherAContainerCanBeAdded(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	small := both()
	small["endpoints"] = 1
	list := r.list("1.1.0", object{"network": small})
	if err := r.cni.GetStatusNetworkList(ctx, list); err != nil {
		t.Error(err)
	}
	r.add(list, container("a", r.namespace("a")))
	r.wantCode("status of a full network", r.cni.GetStatusNetworkList(ctx, list), types.ErrPluginNotAvailable)
	_, err := r.cni.AddNetworkList(ctx, list, container("b", r.namespace("b")))
	r.wantCode("add to a full network", err, cni.ErrNoAddressLeft)
	missing := r.list("1.1.0", object{"job": "missing"})
	r.wantCode("status of a network that there is not", r.cni.GetStatusNetworkList(ctx, missing), types.ErrPluginNotAvailable)
	elsewhere := r.list("1.1.0", object{"network": object{"name": "far", "prefix": "10.79.0.0/24", "underlay": object{"address": "192.0.2.77"}}})
	r.wantCode("status without the underlay", r.cni.GetStatusNetworkList(ctx, elsewhere), types.ErrPluginNotAvailable)
}

func TestContainersOfAJobShareItsNamespace(t *testing.T) {
	for _, design := range []particle.Design{particle.AnyIP, particle.Consolidated} {
		t.Run(string(design), func(t *testing.T) {
			r := newRuntime(t)
			ctx := context.Background()
			network := both()
			network["design"], network["endpoints"] = design, 10
			list := r.list("1.1.0", object{"network": network, "mode": "job"})
			pod := r.namespace("pod")
			a, b := container("a", pod), container("b", pod)
			atA, atB := r.addressesOf(r.add(list, a)), r.addressesOf(r.add(list, b))
			if len(atA) != 2 || len(atB) != 2 || atA[0] == atB[0] || atA[1] == atB[1] {
				t.Fatalf("the addresses are %v and %v", atA, atB)
			}
			for _, address := range append(atA, atB...) {
				if err := r.reach(pod, pod, address); err != nil {
					t.Error(err)
				}
			}
			for _, rc := range []*libcni.RuntimeConf{a, b} {
				if err := r.cni.CheckNetworkList(ctx, list, rc); err != nil {
					t.Error(err)
				}
			}
			_, err := r.cni.AddNetworkList(ctx, list, container("c", r.namespace("other")))
			r.wantCode("a container in another namespace", err, cni.ErrConflict)
			r.del(list, a)
			if err := r.reach(pod, pod, atB[0]); err != nil {
				t.Errorf("b after a is gone: %v", err)
			}
			r.del(list, b)
			if n := r.owners("cnitest"); n != -1 {
				t.Errorf("the network is left, with %d endpoints in use", n)
			}
			// A namespace that was lost with its containers is in nobody's way.
			r.add(list, a)
			if err := rtnl.Remove(pod); err != nil {
				t.Fatal(err)
			}
			r.add(list, container("d", r.namespace("next")))
			if n := r.owners("cnitest"); n != 1 {
				t.Errorf("%d endpoints are in use", n)
			}
		})
	}
}

func TestANetworkThatIsThereAlreadyIsUsedAndStays(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	r.use(func(n *particle.Node) error {
		nw, err := n.Declare(particle.Spec{Name: "job1", Prefix: netip.MustParsePrefix("10.78.0.0/24"), Endpoints: 3, Design: particle.Attached})
		if err != nil {
			return err
		}
		return nw.Apply(ctx)
	})
	defer r.use(func(n *particle.Node) error {
		nw, err := n.Open("job1")
		if err != nil {
			return err
		}
		return nw.Close(ctx)
	})
	list := r.list("1.1.0", object{"job": "job1"})
	a, b := container("a", r.namespace("a")), container("b", r.namespace("b"))
	r.add(list, a)
	if err := r.reach(a.NetNS, b.NetNS, r.addressesOf(r.add(list, b))[0]); err != nil {
		t.Error(err)
	}
	for _, rc := range []*libcni.RuntimeConf{a, b} {
		r.del(list, rc)
	}
	if n := r.owners("job1"); n != 0 {
		t.Errorf("%d endpoints are in use", n)
	}
	_, err := r.cni.AddNetworkList(ctx, r.list("1.1.0", object{"job": "job1", "mode": "job"}), a)
	r.wantCode("mode job on a network of another design", err, types.ErrInvalidNetworkConfig)
	_, err = r.cni.AddNetworkList(ctx, r.list("1.1.0", object{"job": "missing"}), a)
	r.wantCode("a network that there is not", err, types.ErrInvalidNetworkConfig)
}

func TestARuntimeMayAskForAnAddress(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	list := r.list("1.1.0", object{"network": both()})
	asks := func(id string, ips ...string) *libcni.RuntimeConf {
		rc := container(id, r.namespace(id))
		rc.CapabilityArgs = object{"ips": ips}
		return rc
	}
	if got := r.addressesOf(r.add(list, asks("a", "10.78.0.9/24", "fd78::9"))); got[0].String() != "10.78.0.9" || got[1].String() != "fd78::9" {
		t.Errorf("it has %v", got)
	}
	byArgs := container("b", r.namespace("b"))
	byArgs.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "b"}, {"IP", "10.78.0.7"}, {"OTHER", "x"}}
	if got := r.addressesOf(r.add(list, byArgs)); got[0].String() != "10.78.0.7" {
		t.Errorf("it has %v", got)
	}
	for name, tc := range map[string]struct {
		ips  []string
		code uint
	}{
		"another's":               {[]string{"10.78.0.9"}, cni.ErrAddressTaken},
		"the node's own":          {[]string{"10.78.0.1"}, cni.ErrAddressTaken},
		"of another network":      {[]string{"192.0.2.1"}, cni.ErrAddressTaken},
		"of two endpoints":        {[]string{"10.78.0.20", "fd78::21"}, cni.ErrAddressTaken},
		"two of one family":       {[]string{"10.78.0.20", "10.78.0.21"}, types.ErrInvalidNetworkConfig},
		"something that is no IP": {[]string{"localhost"}, types.ErrInvalidNetworkConfig},
	} {
		_, err := r.cni.AddNetworkList(ctx, list, asks("c"+name[:1]+name[len(name)-1:], tc.ips...))
		r.wantCode(name, err, tc.code)
	}
	if n := r.owners("cnitest"); n != 2 {
		t.Errorf("%d endpoints are in use", n)
	}
}

func TestAnAddThatFailsLeavesNothing(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	list := r.list("1.1.0", object{"network": both()})
	rc := container("a", r.namespace("a"))
	if err := within(rc.NetNS, func() error {
		c, err := rtnl.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		var b rtnl.Batch
		b.AddBridge(rtnl.LinkConfig{Name: "eth0"})
		return c.Do(ctx, &b)
	}); err != nil {
		t.Fatal(err)
	}
	_, err := r.cni.AddNetworkList(ctx, list, rc)
	r.wantCode("an interface of that name is there", err, cni.ErrConflict)
	if n := r.owners("cnitest"); n != -1 {
		t.Errorf("the network is left, with %d endpoints in use", n)
	}
	rc.NetNS += "-missing"
	_, err = r.cni.AddNetworkList(ctx, list, rc)
	r.wantCode("there is no namespace", err, types.ErrInvalidNetNS)
	r.del(list, rc)
}

func TestAContainersControlGroupIsHeldToItsAddress(t *testing.T) {
	testenv.Need(t, testenv.CgroupBPF, testenv.Python3)
	r := newRuntime(t)
	network := both()
	network["discipline"] = "bpf"
	list := r.list("1.1.0", object{"network": network, "mode": "job"})
	name := "cni-" + strconv.Itoa(os.Getpid())
	group := filepath.Join(testenv.Cgroup2(t), name)
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	rc := container("a", r.namespace("a"))
	bound := func() string {
		t.Helper()
		const program = `import socket; s = socket.socket(); s.bind(("0.0.0.0", 0)); print(s.getsockname()[0], end="")`
		out, err := exec.Command("nsenter", "--net="+rc.NetNS, "sh", "-ec", `echo $$ > "$0"/cgroup.procs; exec python3 -c "$1"`, group, program).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	_, err := r.cni.AddNetworkList(context.Background(), list, rc)
	r.wantCode("bpf without a control group", err, types.ErrInvalidNetworkConfig)
	rc.CapabilityArgs = object{"cgroupPath": "/" + name}
	address := r.addressesOf(r.add(list, rc))[0].String()
	if got := bound(); got != address {
		t.Errorf("a program bound to %s, want %s", got, address)
	}
	r.del(list, rc)
	if got := bound(); got != "0.0.0.0" {
		t.Errorf("after DEL a program bound to %s", got)
	}
	rc.CapabilityArgs = object{"cgroupPath": "/" + name + "-missing"}
	_, err = r.cni.AddNetworkList(context.Background(), list, rc)
	r.wantCode("no such control group", err, types.ErrInvalidNetworkConfig)
}
