package cni_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func TestGCRemovesWhatACrashLeft(t *testing.T) {
	for name, fields := range map[string]object{
		"namespace": {"network": both()},
		"job":       {"network": both(), "mode": "job"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t)
			list := r.list("1.1.0", fields)
			netns := r.namespace("a")
			none := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
			killed := 0
			// An ADD takes some tens of milliseconds.
			for after := time.Duration(0); after < 60*time.Millisecond; after += 3 * time.Millisecond {
				if r.killedAdd(list, netns, after) {
					killed++
				}
				if after/(3*time.Millisecond)%2 == 0 { // the next ADD takes up what the others left
					if err := r.cni.GCNetworkList(context.Background(), list, none); err != nil {
						t.Fatal(err)
					}
					if n := r.owners("cnitest"); n != -1 {
						t.Errorf("the network is left, with %d endpoints in use", n)
					}
				}
			}
			t.Logf("%d calls were killed", killed)
			rc := container("b", netns)
			r.cni.GCNetworkList(context.Background(), list, none)
			if err := r.reach(netns, netns, r.addressesOf(r.add(list, rc))[0]); err != nil {
				t.Error(err)
			}
		})
	}
}

// killedAdd starts an ADD and kills it after that time, unless it has ended.
func (r *runtime) killedAdd(list *libcni.NetworkConfigList, netns string, after time.Duration) (killed bool) {
	r.Helper()
	conf := object{}
	if err := json.Unmarshal(list.Plugins[0].Bytes, &conf); err != nil {
		r.Fatal(err)
	}
	conf["name"], conf["cniVersion"] = list.Name, list.CNIVersion
	delete(conf, "capabilities")
	text, err := json.Marshal(conf)
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "volley-cni"))
	cmd.Stdin = bytes.NewReader(text)
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + bin}
	out, err := cmd.Output()
	if err == nil {
		return false
	}
	if ctx.Err() == nil {
		r.Fatalf("add: %v: %s", err, out)
	}
	return true
}

func TestCnitoolWorksInEveryVersion(t *testing.T) {
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			r := newRuntime(t)
			list := r.list(version, object{"network": both()})
			// cnitool keeps what it knows under the network's name in one place.
			name := "cnitest-" + strings.ToLower(rand.Text())
			text := bytes.Replace(list.Bytes, []byte(`"cnitest"`), []byte(`"`+name+`"`), 1)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "10-test.conflist"), text, 0o600); err != nil {
				t.Fatal(err)
			}
			tool := func(args ...string) (string, error) {
				cmd := exec.Command(filepath.Join(bin, "cnitool"), args...)
				cmd.Env = append(os.Environ(), "NETCONFPATH="+dir, "CNI_PATH="+bin)
				out, err := cmd.CombinedOutput()
				if err != nil {
					err = fmt.Errorf("cnitool %s: %w: %s", args[0], err, out)
				}
				return string(out), err
			}
			must := func(args ...string) string {
				t.Helper()
				out, err := tool(args...)
				if err != nil {
					t.Error(err)
				}
				return out
			}
			a, b := r.namespace("a"), r.namespace("b")
			for _, ns := range []string{a, b} {
				t.Cleanup(func() { must("del", name, ns) })
				if out := must("add", name, ns); !strings.Contains(out, `"10.78.0.`) {
					t.Errorf("it says %s", out)
				}
				must("check", name, ns)
			}
			if out, err := exec.Command("nsenter", "--net="+a, "ip", "addr", "flush", "dev", "eth0").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if _, err := tool("check", name, a); err == nil || !strings.Contains(err.Error(), "is missing") {
				t.Errorf("check without addresses: %v", err)
			}
			must("status", name, a)
			must("del", name, a)
			must("del", name, a)
			must("gc", name, b) // it says that no attachment is valid
			if n := r.owners(name); n != -1 {
				t.Errorf("%d endpoints are in use after gc", n)
			}
			must("del", name, b)
		})
	}
}
