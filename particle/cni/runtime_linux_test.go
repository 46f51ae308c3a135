package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/rtnl"
)

// bin is where the plugin and what tests need besides is; TestMain sets it and
// nobody else.
var bin string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "volley-cni-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for name, pkg := range map[string]string{
		"volley-cni": "github.com/volley-run/volley/cmd/volley-cni",
		"reach":      "./testdata/reach",
		"cnitool":    "github.com/containernetworking/cni/cnitool",
	} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		// What runs in containers must not need libraries of this machine.
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

// patience is for hosts on which much else goes on: the kernel holds back the
// first packets of a new link while it is busy with others.
const patience = 30 * time.Second

// runtime is a container runtime's side of CNI, on a node of its own.
type runtime struct {
	*testing.T
	cni          *libcni.CNIConfig
	cache, state string
}

// newRuntime makes a runtime, and checks at the end that nothing is left.
func newRuntime(t *testing.T) *runtime {
	t.Helper()
	testenv.Need(t, testenv.NetAdmin)
	if err := rtnl.PrepareDir(particle.DefaultNamespaceDir); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &runtime{T: t, cache: filepath.Join(dir, "cache"), state: filepath.Join(dir, "state")}
	r.cni = libcni.NewCNIConfigWithCacheDir([]string{bin}, r.cache, nil)
	t.Cleanup(r.expectNothing)
	return r
}

// node opens the node that the plugin is on.
func (r *runtime) node() *particle.Node {
	r.Helper()
	node, err := particle.OpenNode(particle.NodeConfig{StateDir: r.state})
	if err != nil {
		r.Fatal(err)
	}
	return node
}

// use calls f with the node.
func (r *runtime) use(f func(n *particle.Node) error) {
	r.Helper()
	node := r.node()
	if err := errors.Join(f(node), node.Close()); err != nil {
		r.Error(err)
	}
}

// owners returns how many endpoints of a network are in use, or -1 if there is
// no such network.
func (r *runtime) owners(network string) (n int) {
	r.Helper()
	r.use(func(node *particle.Node) error {
		nw, err := node.Open(network)
		if errors.Is(err, particle.ErrNotFound) {
			n = -1
			return nil
		}
		if err != nil {
			return err
		}
		owners, err := nw.Pool().Owners()
		n = len(owners)
		return err
	})
	return n
}

// expectNothing removes what is there. Networks are an error: a test ends with
// as many DEL as ADD.
func (r *runtime) expectNothing() {
	r.use(func(n *particle.Node) error {
		ctx := context.Background()
		list, err := n.List(ctx)
		if err != nil {
			return err
		}
		for _, s := range list {
			if !r.Failed() {
				r.Errorf("network %s is left", s.Spec.Name)
			}
			nw, err := n.Open(s.Spec.Name)
			if err == nil {
				err = nw.Close(ctx)
			}
			if err != nil {
				return err
			}
		}
		_, err = n.GC(ctx)
		return err
	})
	h := fnv.New32a()
	io.WriteString(h, r.state)
	left, err := filepath.Glob(filepath.Join(particle.DefaultNamespaceDir, fmt.Sprintf("volley-*s%08x*", h.Sum32())))
	if err != nil || len(left) > 0 {
		r.Errorf("namespaces are left: %v %v", left, err)
	}
	for _, pattern := range []string{"networks/*", "pools/*", "vni/*", "labels/*", "cni/*/declared", "cni/*/groups/*"} {
		if left, err := filepath.Glob(filepath.Join(r.state, pattern)); err != nil || len(left) > 0 {
			r.Errorf("state is left: %v %v", left, err)
		}
	}
}

// namespace makes a network namespace, as a runtime does for a container.
func (r *runtime) namespace(name string) string {
	r.Helper()
	h := fnv.New32a()
	io.WriteString(h, r.Name())
	path := filepath.Join(particle.DefaultNamespaceDir, fmt.Sprintf("cni-%d-%x-%s", os.Getpid(), h.Sum32(), name))
	ns, err := rtnl.Create(path, func() error {
		c, err := rtnl.Dial()
		if err != nil {
			return err
		}
		var b rtnl.Batch
		b.SetLink(1, rtnl.LinkConfig{Up: true})
		return errors.Join(c.Do(context.Background(), &b), c.Close())
	})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := rtnl.Remove(path); err != nil {
			r.Error(err)
		}
	})
	if err := ns.Close(); err != nil {
		r.Fatal(err)
	}
	return path
}

// object is JSON.
type object = map[string]any

// list makes a configuration of one plugin; fields are those of volley-cni.
func (r *runtime) list(version string, fields object) *libcni.NetworkConfigList {
	r.Helper()
	plugin := object{"type": "volley-cni", "stateDir": r.state, "capabilities": object{"ips": true, "cgroupPath": true}}
	for k, v := range fields {
		plugin[k] = v
	}
	text, err := json.Marshal(object{"cniVersion": version, "name": "cnitest", "plugins": []any{plugin}})
	if err != nil {
		r.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		r.Fatal(err)
	}
	return list
}

// container is what a runtime says of one.
func container(id, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0"}
}

// add adds a container that is deleted at the end, if it was not before.
func (r *runtime) add(list *libcni.NetworkConfigList, rc *libcni.RuntimeConf) *current.Result {
	r.Helper()
	result, err := r.cni.AddNetworkList(context.Background(), list, rc)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { r.del(list, rc) })
	if result.Version() != list.CNIVersion {
		r.Errorf("the result is of version %s, want %s", result.Version(), list.CNIVersion)
	}
	now, err := current.NewResultFromResult(result)
	if err != nil {
		r.Fatal(err)
	}
	return now
}

func (r *runtime) del(list *libcni.NetworkConfigList, rc *libcni.RuntimeConf) {
	r.Helper()
	if err := r.cni.DelNetworkList(context.Background(), list, rc); err != nil {
		r.Error(err)
	}
}

// wantCode reports whether err is of that code.
func (r *runtime) wantCode(what string, err error, code uint) {
	r.Helper()
	got, ok := errors.AsType[*types.Error](err)
	if !ok || got.Code != code {
		r.Errorf("%s: %v, want an error of code %d", what, err, code)
		return
	}
	r.Logf("%s: %v", what, err)
}

// addressesOf returns a result's addresses.
func (r *runtime) addressesOf(result *current.Result) (all []netip.Addr) {
	r.Helper()
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			r.Fatalf("%v is no address", ip)
		}
		all = append(all, a.Unmap())
	}
	return all
}

// reach connects over TCP from a namespace to an address in another one.
func (r *runtime) reach(from, to string, address netip.Addr) error {
	r.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
		return err
	}
	if err := within(to, listen); err != nil {
		return err
	}
	defer l.Close()
	return within(from, func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), patience)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// within calls f on a thread in the namespace at path.
func within(path string, f func() error) error {
	ns, err := rtnl.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(ns.Do(f), ns.Close())
}
